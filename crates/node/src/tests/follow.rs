//! What a test reads of executions.

use std::time::Duration;

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::v1::{
    self, AttachExecutionRequest, AttachExecutionResponse, Execution, ExecutionState, ListExecutionsRequest,
    ReadExecutionOutputRequest, TerminalSize, exec_event::Event, exec_output::Content,
};
use tokio::time::sleep;
use tonic::{Status, Streaming};

use super::harness::*;

pub(super) const SIZE: TerminalSize = TerminalSize { rows: 24, cols: 80 };

impl World {
    pub(super) async fn attach(&self, id: SandboxId, execution: &str, from: (u64, u64)) -> Result<Attached, Failure> {
        let request = AttachExecutionRequest {
            sandbox_id: id.to_string(),
            execution_id: execution.to_owned(),
            stdout_offset: from.0,
            stderr_offset: from.1,
            ..Default::default()
        };
        let stream = self.exec().attach_execution(request).await.map_err(|status| Failure::of(&status))?;
        Ok(Attached(stream.into_inner()))
    }

    pub(super) async fn read(
        &self,
        id: SandboxId,
        execution: &str,
        offset: u64,
        limit: u32,
    ) -> Result<v1::ReadExecutionOutputResponse, Failure> {
        let request = ReadExecutionOutputRequest {
            sandbox_id: id.to_string(),
            execution_id: execution.to_owned(),
            offset,
            limit,
            ..Default::default()
        };
        let answer = self.exec().read_execution_output(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn list(&self, request: ListExecutionsRequest) -> Result<v1::ListExecutionsResponse, Failure> {
        let answer = self.exec().list_executions(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn until_exited(&self, id: SandboxId, execution: &str) -> Execution {
        loop {
            let found = self.execution(id, execution).await.unwrap();
            if found.state() != ExecutionState::Running {
                return found;
            }
            sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The events of an execution that was attached to.
pub(super) struct Attached(pub(super) Streaming<AttachExecutionResponse>);

impl Attached {
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Status> {
        Ok(self.0.message().await?.map(|message| message.event.unwrap().event.unwrap()))
    }

    /// Everything to the end.
    pub(super) async fn all(mut self) -> (Vec<Event>, Result<v1::ExecExited, Failure>) {
        let mut events = Vec::new();
        loop {
            match self.next().await {
                Ok(Some(Event::Exited(exited))) => {
                    assert!(self.next().await.unwrap().is_none(), "something comes after exited");
                    return (events, Ok(exited));
                }
                Ok(Some(event)) => events.push(event),
                Ok(None) => panic!("the stream ended without exited"),
                Err(status) => return (events, Err(Failure::of(&status))),
            }
        }
    }
}

/// Puts the pieces of standard output together; they must follow one another from `from` on.
pub(super) fn stdout(events: &[Event], from: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in events {
        let Event::Stdout(output) = event else { continue };
        assert_eq!(output.offset, from + bytes.len() as u64);
        match output.content.as_ref().unwrap() {
            Content::Text(text) => bytes.extend_from_slice(text.as_bytes()),
            Content::Data(data) => bytes.extend_from_slice(data),
        }
    }
    bytes
}
