//! The executions of one sandbox: how they begin, who waits for them, and what they leave.
//!
//! Every execution is driven by a task of its own into a log on disk; callers are readers of that log, and a caller
//! never holds one up but by reading slowly what was printed while the log is full. Without a `request_id` a unary or
//! streamed execution ends when its one caller hangs up. With one it runs on to its timeout, and whoever repeats the id
//! reads the same log from its beginning. While the sandbox is paused an execution stands still, but its time goes on.

mod answer;
pub(crate) mod changes;
mod controls;
mod drive;
pub(crate) mod environment;
mod execution;
mod pieces;
mod query;
pub(crate) mod record;
mod register;
mod saved;
pub(crate) mod spec;
mod stream;

use std::{sync::Arc, time::Duration};

use cloud_sandbox_journal::Hold;
use cloud_sandbox_model::{
    ExecutionId, Limits,
    error::{Error, Result},
};
use cloud_sandbox_proto::v1::ExecuteRequest;
use tracing::Instrument;

use crate::{
    contexts, fingerprint,
    node::Shared,
    sandbox::{InUse, Sandbox},
};

pub(crate) use answer::Budget;
pub(crate) use controls::Driver;
pub(crate) use drive::{hung_up, lost};
pub(crate) use execution::{End, Execution};
pub(crate) use query::{grep, list, read};
pub(crate) use record::{Exit, Owned};
pub(crate) use register::Executions;
use register::{Beginning, Turn};
pub(crate) use saved::{again, describe_command};
use spec::{Bounds, Mode, Plan, What};
pub(crate) use stream::events;

/// Code to be run in a code context, validated but for whether the context is there.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// the context's id, or `default`
    pub(crate) context_id: String,
    /// as the caller named it; empty for the context's own, or the default one
    pub(crate) language: String,
    pub(crate) code: String,
    /// the folder to run in, if the caller wants another than the context's
    pub(crate) cwd: Option<String>,
    /// the call's own variables
    pub(crate) env: std::collections::HashMap<String, String>,
    /// from the moment its turn in the context comes
    pub(crate) timeout: Duration,
    /// whether to tell what became of the files
    pub(crate) changes: bool,
}

/// Somebody who waits for an execution. Dropped, it ends the execution if nobody else can ask for it.
pub(crate) struct Caller {
    pub(crate) execution: Arc<Execution>,
    only: bool,
    /// it had ended before
    late: bool,
    /// what it printed is not evicted before it could be read
    _hold: Hold,
    /// the sandbox is in use for as long as somebody waits
    _in_use: Option<InUse>,
}

impl Caller {
    /// One who only looks on.
    pub(crate) fn attached(execution: Arc<Execution>) -> Self {
        let late = execution.known_end().is_some();
        let (hold, in_use) = (execution.log.hold(), execution.in_use());
        Self { execution, only: false, late, _hold: hold, _in_use: in_use }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if self.only {
            // one that is over does not notice
            self.execution.unwanted.cancel();
        }
    }
}

/// Ends an execution whose driver is gone without having said how it ended.
struct Attended(Arc<Execution>);

impl Drop for Attended {
    fn drop(&mut self) {
        self.0.end(Err(Error::internal("drive the execution", "its task ended without an answer")));
    }
}

/// Where an execution is asked for.
pub(crate) enum Place {
    /// in a sandbox that is there
    Live(Arc<Sandbox>),
    /// in one that has ended, of which executions are kept
    Ended(Arc<crate::archive::Archived>),
}

impl Place {
    pub(crate) fn executions(&self) -> &Arc<Executions> {
        match self {
            Self::Live(sandbox) => &sandbox.executions,
            Self::Ended(archived) => &archived.executions,
        }
    }

    /// The sandbox, if anything can still be done in it.
    pub(crate) fn live(self) -> Result<Arc<Sandbox>> {
        match self {
            Self::Live(sandbox) if sandbox.view().end.is_some() => Err(sandbox.gone_error().before_it_began()),
            Self::Live(sandbox) => Ok(sandbox),
            Self::Ended(archived) => Err(archived.gone_error()),
        }
    }

    /// An execution that is kept here.
    pub(crate) fn execution(&self, id: &str) -> Result<Arc<Execution>> {
        let id: ExecutionId = id.parse()?;
        self.executions().get(id)
    }
}

/// Runs what is asked for, or finds the run that the `request_id` stands for. With `detached` it runs on when nobody
/// waits for it.
pub(crate) fn execute(
    node: &Arc<Shared>,
    place: Place,
    request: ExecuteRequest,
    mode: Mode,
    detached: bool,
) -> Result<Caller> {
    let request_id = request.request_id.clone();
    let fingerprint = if request_id.is_empty() { Vec::new() } else { fingerprint::of_execute(&request) };
    if let Some(earlier) = place.executions().earlier(&request_id, &fingerprint)? {
        return Ok(Caller::attached(earlier));
    }
    let sandbox = place.live()?;
    let lease = sandbox.usable()?;
    let id = ExecutionId::generate();
    let kept = (mode == Mode::Background || detached).then(|| saved::kept(&request));
    let Limits { execution_seconds, output_bytes, .. } = lease.limits;
    // what runs on when nobody waits for it is bound by the lease alone
    let seconds = (mode != Mode::Background && !detached).then_some(execution_seconds);
    let bounds = Bounds { mode, seconds };
    let Plan { what, mut head } = Plan::new(request, (sandbox.id, id), &sandbox.origin, &lease.environment(), bounds)?;
    head.fingerprint = fingerprint;
    let beginning = Beginning { id, head, stdin: what.stdin(), output_bytes };
    let execution = match sandbox.executions.begin(beginning, || lease.owned(&sandbox))? {
        Turn::Later(earlier) => return Ok(Caller::attached(earlier)),
        Turn::First(execution) => execution,
    };
    // before it can end
    if let Some(kept) = kept {
        execution.keep_request(kept);
    }
    let (hold, in_use) = (execution.log.hold(), execution.in_use());
    // what runs in the background keeps a sandbox in use by the CPU time that it takes
    let in_foreground = if detached { None } else { execution.in_use() };
    spawn(node, &sandbox, &execution, what, in_foreground);
    let only = request_id.is_empty() && !detached;
    Ok(Caller { execution, only, late: false, _hold: hold, _in_use: in_use })
}

fn spawn(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, execution: &Arc<Execution>, what: What, in_use: Option<InUse>) {
    let span = tracing::info_span!("execution", sandbox_id = %sandbox.id, execution_id = %execution.id);
    let attended = Attended(Arc::clone(execution));
    let (node_of, sandbox_of, execution) = (Arc::clone(node), Arc::clone(sandbox), Arc::clone(execution));
    let driving = async move {
        let _attended = (attended, in_use);
        match what {
            What::Process(spec) => drive::process(sandbox_of, execution, *spec, node_of.options.kill_grace).await,
            What::Context(job) => in_context(node_of, sandbox_of, execution, *job).await,
        }
    };
    node.tasks.spawn(sandbox.executions.tasks.track_future(driving.instrument(span)));
}

async fn in_context(node: Arc<Shared>, sandbox: Arc<Sandbox>, execution: Arc<Execution>, job: Job) {
    let running = contexts::run(node, Arc::clone(&sandbox), Arc::clone(&execution), job);
    tokio::select! {
        biased;
        () = running => {}
        () = sandbox.ended.cancelled() => execution.finish(Err(sandbox.ending_error())).await,
    }
}
