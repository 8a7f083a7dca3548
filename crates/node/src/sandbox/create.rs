//! How a sandbox is made: by its runtime, until its agent answers, its walls are proved, and what its template starts is
//! ready.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_sandbox_model::{
    Limits, SandboxId, SandboxState,
    error::{Error, ErrorKind, Result, reason},
};
use cloud_sandbox_runtime::{End, SandboxSpec};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{
    Command, Sandbox, Started, View, activity::CpuTime, network::Network, owner::Owner, runtime_error, start::start,
};
use crate::{
    agent::Agent,
    contexts::{self, Contexts},
    executions::Executions,
    node::Shared,
    pool::Slot,
    templates::Origin,
    walls,
};

/// A host that has taken so long over one sandbox is stalled, and not short of processors.
const STALLED_AFTER: Duration = Duration::from_secs(10);

/// Who a sandbox is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pool,
    Caller,
}

/// Has a sandbox made by a task of its own, which gives the permit back as soon as the host has done its part. The receiver
/// gets word once it is ready or has failed.
pub(crate) fn spawn(
    node: &Arc<Shared>,
    slot: Slot,
    origin: Arc<Origin>,
    limits: Limits,
    purpose: Purpose,
    permit: OwnedSemaphorePermit,
) -> (Arc<Sandbox>, oneshot::Receiver<Result<()>>) {
    let id = SandboxId::generate();
    let (commands, mailbox) = mpsc::unbounded_channel();
    let first = View { state: SandboxState::Creating, lease: None, end: None, paused_from_outside: false };
    let (view, watched) = watch::channel(first);
    let ended = CancellationToken::new();
    let network = Network::new(node, id, Arc::clone(&origin.runtime), ended.clone());
    let user = origin.users.token();
    let sandbox = Arc::new(Sandbox {
        id,
        egress: network.egress(),
        agent: Agent::new(Arc::clone(&origin.runtime), id),
        executions: Executions::new(id, node.journal.clone()),
        contexts: Contexts::default(),
        origin,
        started: Started::default(),
        ended,
        finished: CancellationToken::new(),
        mailbox: commands,
        view: watched,
        hits: Mutex::default(),
        busy: Mutex::new(None),
        away: Mutex::default(),
    });
    node.table().insert(id, Arc::clone(&sandbox));
    let owner = Owner {
        node: Arc::clone(node),
        sandbox: Arc::clone(&sandbox),
        slot,
        mailbox,
        view,
        limits,
        network,
        held: false,
        cpu: CpuTime::default(),
        _user: user,
    };
    let (made, receiver) = oneshot::channel();
    let span = tracing::info_span!("sandbox", sandbox_id = %id);
    node.tasks.spawn(owner.run(purpose, permit, made).instrument(span));
    (sandbox, receiver)
}

impl Owner {
    pub(super) async fn create(&mut self, purpose: Purpose, permit: OwnedSemaphorePermit) -> Result<()> {
        let (node, sandbox) = (Arc::clone(&self.node), Arc::clone(&self.sandbox));
        let origin = &sandbox.origin;
        let spec = SandboxSpec { template: origin.prepared.clone(), limits: self.limits };
        // its user's token was taken before this is looked at: what it is made from stays until it has ended
        if origin.retired.is_cancelled() {
            return Err(replaced(origin));
        }
        let mut permit = Some(permit);
        let made = {
            let making = origin.runtime.create(sandbox.id, &spec);
            tokio::pin!(making);
            tokio::select! {
                made = &mut making => made,
                // what it hangs on, a daemon for example, is not to hold up those that are made by others
                () = sleep(STALLED_AFTER) => {
                    permit = None;
                    making.await
                }
            }
        };
        made.inspect_err(|error| origin.note(error)).map_err(runtime_error)?;
        let ended = origin.runtime.ended(sandbox.id);
        tokio::pin!(ended);
        tokio::select! {
            answered = sandbox.agent.wait_ready(node.options.agent_deadline) => answered?,
            end = &mut ended => return Err(ended_early(&end, "start a sandbox")),
        }
        walls::prove(&node, &sandbox).await?;
        if purpose == Purpose::Pool {
            let warmed = contexts::warm(&node, &sandbox);
            tokio::select! {
                () = warmed => {}
                end = &mut ended => return Err(ended_early(&end, "warm a sandbox")),
                () = node.stop.cancelled() => {}
            }
        }
        // what a template starts takes its own time, and must not keep others from being made
        drop(permit);
        if let Some(command) = &origin.template.start {
            tokio::select! {
                biased;
                started = start(&node, &sandbox, command) => started?,
                end = &mut ended => return Err(ended_early(&end, "start what the template starts")),
                () = node.stop.cancelled() => return Err(unwanted("its node shut down")),
                () = origin.retired.cancelled() => return Err(replaced(origin)),
                cause = self.told_to_end() => return Err(unwanted(&cause)),
            }
        }
        self.enter(SandboxState::Ready)
    }

    /// Resolves when it is to end before it is ready. Nothing else can be asked of it.
    async fn told_to_end(&mut self) -> String {
        loop {
            match self.mailbox.recv().await {
                Some(Command::End(cause)) => return cause.to_string(),
                // who asked is told that it has ended
                Some(_) => {}
                // the owner's own handle keeps the mailbox open
                None => return "nobody has it".to_owned(),
            }
        }
    }
}

fn ended_early(end: &End, operation: &str) -> Error {
    let cause = match &end.from_outside {
        Some(what) => format!("it {what}"),
        None if end.out_of_memory => "it was killed at its memory limit before it was ready".to_owned(),
        None => "its agent ended before it was ready".to_owned(),
    };
    Error::internal(operation, cause)
}

fn replaced(origin: &Origin) -> Error {
    let message = format!("template {} became another while its sandbox was made", origin.reference());
    Error::new(ErrorKind::Unavailable, reason::TEMPLATE_NOT_READY, message)
}

fn unwanted(cause: &str) -> Error {
    Error::internal("make a sandbox", format!("it is not wanted any more: {cause}"))
}
