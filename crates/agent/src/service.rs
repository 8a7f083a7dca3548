//! `AgentService`: takes requests apart and hands them to `process` and `files`.

use std::{io, sync::Arc};

use cloud_sandbox_proto::agent::v1::{
    CheckRequest, CheckResponse, DeleteFileRequest, DeleteFileResponse, ReadFileRequest, ReadFileResponse, RunRequest,
    RunResponse, SignalRequest, SignalResponse, WriteFileRequest, WriteFileResponse,
    agent_service_server::AgentService, run_request::Input,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::{files, process, process::Children};

/// The service, cheap to clone.
#[derive(Clone)]
pub struct Agent {
    children: Arc<Children>,
}

impl Agent {
    /// Makes the service and starts to reap `children`.
    ///
    /// # Errors
    /// When signals cannot be watched.
    ///
    /// # Panics
    /// Outside a tokio runtime with its I/O driver enabled.
    pub fn new(children: Children) -> io::Result<Self> {
        let children = Arc::new(children);
        process::keep_reaped(&children)?;
        Ok(Self { children })
    }
}

#[tonic::async_trait]
impl AgentService for Agent {
    type RunStream = ReceiverStream<Result<RunResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Ok(Response::new(CheckResponse { version: env!("CARGO_PKG_VERSION").to_owned() }))
    }

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let mut input = request.into_inner();
        let first = input.message().await?.and_then(|message| message.input);
        let Some(Input::Start(start)) = first else {
            return Err(Status::invalid_argument("the first message of a run must be start"));
        };
        let events = process::run(Arc::clone(&self.children), start, input)?;
        Ok(Response::new(ReceiverStream::new(events)))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        let SignalRequest { pid, signal } = request.into_inner();
        let leader = i32::try_from(pid).ok().filter(|pid| *pid > 0);
        let leader = leader.ok_or_else(|| Status::invalid_argument(format!("{pid} is no process id")))?;
        if !(0..=libc::SIGRTMAX()).contains(&signal) {
            return Err(Status::invalid_argument(format!("{signal} is no signal")));
        }
        let running = process::signal(&self.children, leader, signal).await;
        Ok(Response::new(SignalResponse { running }))
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        files::read(&request.into_inner()).map(Response::new)
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Result<Response<WriteFileResponse>, Status> {
        files::write(&request.into_inner()).map(Response::new)
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Result<Response<DeleteFileResponse>, Status> {
        files::delete(&request.into_inner()).map(Response::new)
    }
}
