//! The executions of one sandbox: which run, which are remembered for their `request_id`, and who waits for them.
//!
//! Every execution is driven by a task of its own into a record that callers read; a caller never holds one up. Without
//! a `request_id` there is one caller, and the execution ends when that one hangs up. With one it runs on to its
//! timeout, and whoever repeats the id reads the same record from its beginning. While the sandbox is paused an
//! execution stands still, but its time goes on.

mod capture;
mod drive;
mod pieces;
mod register;
pub(crate) mod spec;
mod stream;

use std::sync::Arc;

use cloud_sandbox_model::{ExecutionId, error::Result};
use cloud_sandbox_proto::v1::{ExecuteRequest, ExecuteResponse};
use cloud_sandbox_rpc::from_status;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tracing::Instrument;

use crate::{fingerprint, node::Shared, sandbox::Sandbox};

use capture::Capture;
pub(crate) use capture::Exit;
pub(crate) use drive::{Ending, exit_of, lost, start};
pub(crate) use pieces::Pieces;
use register::Turn;
pub(crate) use register::{Executions, OutputBudget};
use spec::{Mode, Spec};
pub(crate) use stream::{event, events};

/// One run, from its start until it is forgotten.
pub(crate) struct Execution {
    pub(crate) id: ExecutionId,
    capture: watch::Sender<Capture>,
    /// cancelled when nobody wants it any more
    unwanted: CancellationToken,
}

impl Execution {
    fn new() -> Self {
        let capture = watch::Sender::new(Capture::default());
        Self { id: ExecutionId::generate(), capture, unwanted: CancellationToken::new() }
    }
}

/// Somebody who waits for an execution. Dropped, it ends the execution unless that may be asked for again.
pub(crate) struct Caller {
    execution: Arc<Execution>,
    only: bool,
}

impl Drop for Caller {
    fn drop(&mut self) {
        if self.only {
            // one that is over does not notice
            self.execution.unwanted.cancel();
        }
    }
}

impl Caller {
    /// Waits for the end.
    pub(crate) async fn response(self) -> Result<ExecuteResponse> {
        let mut capture = self.execution.capture.subscribe();
        // the sender is in `self`, so waiting cannot fail; if it did, the record is as it is
        let _ = capture.wait_for(|capture| capture.end.is_some()).await;
        let capture = capture.borrow();
        match &capture.end {
            Some(Ok(exit)) => Ok(capture.response(self.execution.id, exit)),
            Some(Err(status)) => Err(from_status(status)),
            None => Err(from_status(&Status::internal("lost an execution"))),
        }
    }

    /// Waits until the process runs or has failed to.
    pub(crate) async fn started(&self) -> Result<()> {
        let mut capture = self.execution.capture.subscribe();
        let known = |capture: &Capture| capture.started || capture.end.is_some();
        let _ = capture.wait_for(known).await;
        match &capture.borrow().end {
            Some(Err(status)) => Err(from_status(status)),
            _ => Ok(()),
        }
    }
}

/// Runs what is asked for, or finds the run that the `request_id` stands for.
pub(crate) fn execute(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, request: ExecuteRequest) -> Result<Caller> {
    let lease = sandbox.usable()?;
    let request_id = request.request_id.clone();
    let named = !request_id.is_empty();
    let fingerprint = if named { fingerprint::of_execute(&request) } else { 0 };
    let execution = Execution::new();
    let spec = Spec::new(request, execution.id, &lease.env, &sandbox.template, Mode::Kept)?;

    let execution = Arc::new(execution);
    match sandbox.executions.begin(&execution, &request_id, fingerprint, 2 * spec.max_output)? {
        Turn::Later(earlier) => return Ok(Caller { execution: earlier, only: false }),
        Turn::First => {}
    }
    let span = tracing::info_span!("execution", sandbox_id = %sandbox.id, execution_id = %execution.id);
    let grace = node.options.kill_grace;
    let run = drive::drive(Arc::clone(sandbox), Arc::clone(&execution), spec, request_id, grace);
    node.tasks.spawn(run.instrument(span));
    Ok(Caller { execution, only: !named })
}
