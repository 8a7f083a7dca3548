//! Executions over a checkpoint: which of them can be started again, and how.

use std::sync::Arc;

use cloud_sandbox_model::error::Result;
use cloud_sandbox_proto::{
    checkpoint::v1::{LostThing, SavedCommand},
    v1::ExecuteRequest,
};
use cloud_sandbox_rpc::from_status;
use prost::Message;

use super::{
    Execution, Executions, Place, execute,
    spec::{Mode, summary},
};
use crate::{node::Shared, sandbox::Sandbox};

/// What all commands of a sandbox that can be started again are, in bytes.
const COMMANDS_MAX: usize = 8 * 1024 * 1024;

/// A request as it is kept for another start: without what names this one, and what only somebody who waits may ask for.
pub(super) fn kept(request: &ExecuteRequest) -> ExecuteRequest {
    ExecuteRequest {
        sandbox_id: String::new(),
        session_id: String::new(),
        request_id: String::new(),
        max_output_bytes: 0,
        output_strategy: 0,
        changes: false,
        ..request.clone()
    }
}

impl Executions {
    /// What runs now: what can be started again, and what is lost.
    pub(crate) fn saved(&self) -> (Vec<SavedCommand>, Vec<LostThing>) {
        let (mut commands, mut lost) = (Vec::new(), Vec::new());
        let mut room = COMMANDS_MAX;
        for execution in self.running() {
            let why = match execution.request() {
                Some(_) if !execution.context_id().is_empty() => "code in a context cannot be started again",
                Some(request) if request.encoded_len() <= room => {
                    room -= request.encoded_len();
                    commands.push(SavedCommand { execution_id: execution.id.to_string(), request: Some(request) });
                    continue;
                }
                Some(_) => "there was too much to start again",
                None => "somebody waited for it: it did not run in the background",
            };
            lost.push(process(&execution, why));
        }
        (commands, lost)
    }
}

fn process(execution: &Execution, why: &str) -> LostThing {
    let what = format!("execution {}: {}", execution.id, execution.summary());
    LostThing { kind: "process".to_owned(), what, reason: why.to_owned() }
}

/// What a request runs, in one line.
pub(crate) fn describe_command(request: &ExecuteRequest) -> String {
    summary(request)
}

/// Starts a saved request in the background. Gives the execution's id.
pub(crate) async fn again(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, request: &ExecuteRequest) -> Result<String> {
    let request = ExecuteRequest { sandbox_id: sandbox.id.to_string(), ..kept(request) };
    let caller = execute(node, Place::Live(Arc::clone(sandbox)), request, Mode::Background, true)?;
    caller.execution.until_begun().await.map_err(|status| from_status(&status))?;
    caller.execution.tell_of();
    Ok(caller.execution.id.to_string())
}
