//! The owner task of a sandbox: it alone makes it, moves it from state to state, and destroys it.
//!
//! Invariant: from the moment the runtime was asked to make the sandbox, the task goes on until the runtime says that
//! it is destroyed; its slot is held as long. A failed destroy is tried again, with growing pauses, for ever.

use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_sandbox_model::{
    Limits, SandboxId, SandboxState,
    error::{Error, ErrorKind, Result, chain, reason},
    network::NetworkPolicy,
    template,
};
use cloud_sandbox_runtime::{Prepared, SandboxSpec};
use cloud_sandbox_storage::StorageError;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Busy, Command, EndCause, Lease, Sandbox, View, activity::CpuTime, hit, network::Network, runtime_error};
use crate::{
    agent::Agent,
    archive::Archived,
    contexts::{self, Contexts},
    executions::Executions,
    node::Shared,
    pool::Slot,
    walls,
};

const DESTROY_PAUSE: Duration = Duration::from_millis(100);
const DESTROY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// How often an acquired sandbox is written into the directory again, which may have been emptied meanwhile.
const PUT_AGAIN: Duration = Duration::from_secs(30);
/// How often an acquired sandbox is looked at, to see whether its processes do anything.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long the end of a sandbox waits for its executions to be recorded as ended with it.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Later than any lease: a sandbox that nobody has acquired does not expire.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// Who a sandbox is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pool,
    Caller,
}

/// Has a sandbox made by a task of its own. The receiver gets word once it is ready or has failed.
pub(crate) fn spawn(
    node: &Arc<Shared>,
    slot: Slot,
    limits: Limits,
    purpose: Purpose,
) -> (Arc<Sandbox>, oneshot::Receiver<Result<()>>) {
    let id = SandboxId::generate();
    let (commands, mailbox) = mpsc::unbounded_channel();
    let (view, watched) = watch::channel(View { state: SandboxState::Creating, lease: None, end: None });
    let ended = CancellationToken::new();
    let network = Network::new(node, id, ended.clone());
    let sandbox = Arc::new(Sandbox {
        id,
        egress: network.egress(),
        template: template::HOST.to_owned(),
        agent: Agent::new(Arc::clone(&node.runtime), id),
        executions: Executions::new(id, node.journal.clone()),
        contexts: Contexts::default(),
        ended,
        finished: CancellationToken::new(),
        runtime: Arc::clone(&node.runtime),
        mailbox: commands,
        view: watched,
        hits: Mutex::default(),
        busy: Mutex::new(None),
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
    };
    let (made, receiver) = oneshot::channel();
    let span = tracing::info_span!("sandbox", sandbox_id = %id);
    node.tasks.spawn(owner.run(purpose, made).instrument(span));
    (sandbox, receiver)
}

struct Owner {
    node: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    slot: Slot,
    mailbox: mpsc::UnboundedReceiver<Command>,
    view: watch::Sender<View>,
    limits: Limits,
    network: Network,
    /// somebody saves or restores it
    held: bool,
    cpu: CpuTime,
}

impl Owner {
    async fn run(mut self, purpose: Purpose, made: oneshot::Sender<Result<()>>) {
        let began = Instant::now();
        let outcome = self.create(purpose).await;
        metrics::histogram!("cloud_sandbox_create_duration_seconds").record(began.elapsed().as_secs_f64());
        let label = if outcome.is_ok() { "ok" } else { "failed" };
        metrics::counter!("cloud_sandbox_create_total", "outcome" => label).increment(1);

        let cause = match outcome {
            Ok(()) => {
                tracing::debug!(elapsed_ms = began.elapsed().as_millis(), "sandbox is ready");
                if purpose == Purpose::Pool {
                    self.node.pool.offer(&self.sandbox);
                }
                // the one who asked may have hung up; an abandoned sandbox is told so by its mailbox
                let _ = made.send(Ok(()));
                self.live().await
            }
            Err(error) => {
                if purpose == Purpose::Pool {
                    self.node.pool.fill_failed();
                }
                let _ = made.send(Err(error));
                EndCause::Failed
            }
        };
        self.finish(cause).await;
    }

    async fn create(&mut self, purpose: Purpose) -> Result<()> {
        let spec = SandboxSpec { template: Prepared::host(), limits: self.limits };
        self.node.runtime.create(self.sandbox.id, &spec).await.map_err(runtime_error)?;
        let deadline = self.node.options.agent_deadline;
        tokio::select! {
            answered = self.sandbox.agent.wait_ready(deadline) => answered?,
            _ = self.node.runtime.ended(self.sandbox.id) => {
                return Err(Error::internal("start a sandbox", "its agent ended before it answered"));
            }
        }
        walls::prove(&self.node, &self.sandbox).await?;
        if purpose == Purpose::Pool {
            let warmed = contexts::warm(&self.node, &self.sandbox);
            tokio::select! {
                () = warmed => {}
                // the owner comes to it
                _ = self.node.runtime.ended(self.sandbox.id) => {}
                () = self.node.stop.cancelled() => {}
            }
        }
        self.enter(SandboxState::Ready)
    }

    /// Does what it is told until the sandbox's time is over.
    async fn live(&mut self) -> EndCause {
        let runtime = Arc::clone(&self.node.runtime);
        let stop = self.node.stop.clone();
        let mut ended = std::pin::pin!(runtime.ended(self.sandbox.id));
        let mut lease_end = Instant::now() + NEVER;
        let mut again = Instant::now() + PUT_AGAIN;
        let mut look = Instant::now() + LOOK_AGAIN;
        loop {
            let command = tokio::select! {
                biased;
                () = stop.cancelled() => return EndCause::Shutdown,
                _ = &mut ended => return self.lost_agent().await,
                () = sleep_until(lease_end) => return EndCause::LeaseEnded,
                () = sleep_until(again) => {
                    again = Instant::now() + PUT_AGAIN;
                    if let Ok(lease) = self.lease() {
                        let paused = self.slot.state() == SandboxState::Paused;
                        self.put_again(&lease, paused).await;
                    }
                    continue;
                }
                () = sleep_until(look) => {
                    look = Instant::now() + LOOK_AGAIN;
                    self.look().await;
                    continue;
                }
                Some(command) = self.mailbox.recv() => command,
            };
            if let ControlFlow::Break(cause) = self.obey(command, &mut lease_end).await {
                return cause;
            }
        }
    }

    /// Why its agent is gone. Nothing in a sandbox can end it, so that a kill for memory meanwhile was its own.
    async fn lost_agent(&self) -> EndCause {
        let before = self.sandbox.hits_seen();
        if self.sandbox.hits().await.oom_kills > before.oom_kills {
            hit("memory");
            EndCause::OutOfMemory
        } else {
            EndCause::AgentEnded
        }
    }

    async fn obey(&mut self, command: Command, lease_end: &mut Instant) -> ControlFlow<EndCause> {
        match command {
            Command::End(cause) => return ControlFlow::Break(cause),
            Command::Claim { lease, reply } => {
                let end = Instant::now() + lease.length;
                let claimed = self.claim(*lease).await;
                let failed = claimed.is_err();
                let _ = reply.send(claimed);
                if failed {
                    return ControlFlow::Break(EndCause::Failed);
                }
                *lease_end = end;
            }
            Command::KeepAlive { timeout_seconds, reply } => {
                let renewed = self.keep_alive(timeout_seconds, lease_end).await;
                let _ = reply.send(renewed);
            }
            Command::SetNetwork { policy, reply } => {
                let changed = self.set_network(policy).await;
                let _ = reply.send(changed);
            }
            Command::Pause { reply } => {
                let paused = self.pause().await;
                let _ = reply.send(paused);
            }
            Command::Resume { reply } => {
                let resumed = self.resume().await;
                let _ = reply.send(resumed);
            }
            Command::Hold { reply } => {
                let held = self.hold().await;
                let _ = reply.send(held);
            }
            Command::LetGo { freeze, reply } => {
                let let_go = self.let_go(freeze).await;
                let _ = reply.send(let_go);
            }
        }
        ControlFlow::Continue(())
    }

    /// Sees whether processes have done anything since it last looked. What an agent does for a checkpoint is no use.
    async fn look(&mut self) {
        if self.held || self.slot.state() != SandboxState::Acquired {
            return self.cpu.forget();
        }
        if let Ok(usage) = self.node.runtime.usage(self.sandbox.id).await
            && self.cpu.busy(Instant::now(), &usage)
        {
            self.sandbox.activity().touch();
        }
    }

    /// Makes the sandbox the caller's, findable before it is told.
    async fn claim(&mut self, mut lease: Lease) -> Result<Arc<Lease>> {
        self.slot.enter(SandboxState::Acquired)?;
        if lease.limits != self.limits {
            self.node.runtime.set_limits(self.sandbox.id, lease.limits).await.map_err(runtime_error)?;
            self.limits = lease.limits;
        }
        if lease.network != NetworkPolicy::default() {
            self.network.apply(&self.node, &self.sandbox.agent, lease.network.clone()).await?;
            lease.proxy = self.network.environment();
        }
        self.put(&lease, false).await?;
        let lease = Arc::new(lease);
        self.view.send_modify(|view| {
            view.state = SandboxState::Acquired;
            view.lease = Some(Arc::clone(&lease));
        });
        self.sandbox.activity().touch();
        tracing::info!(tenant = lease.tenant, user = lease.user, "sandbox acquired");
        Ok(lease)
    }

    async fn keep_alive(&mut self, timeout_seconds: u32, lease_end: &mut Instant) -> Result<View> {
        let lease = self.lease()?;
        let length = match timeout_seconds {
            0 => lease.length,
            seconds => Duration::from_secs(seconds.into()),
        };
        let begin = Instant::now();
        let renewed = lease.renewed(length);
        self.put(&renewed, self.slot.state() == SandboxState::Paused).await?;
        *lease_end = begin + length;
        self.view.send_modify(|view| view.lease = Some(Arc::new(renewed)));
        Ok(self.view.borrow().clone())
    }

    async fn set_network(&mut self, policy: NetworkPolicy) -> Result<View> {
        let lease = self.lease()?;
        self.network.apply(&self.node, &self.sandbox.agent, policy.clone()).await?;
        let changed = Lease { network: policy, proxy: self.network.environment(), ..(*lease).clone() };
        self.view.send_modify(|view| view.lease = Some(Arc::new(changed)));
        Ok(self.view.borrow().clone())
    }

    async fn hold(&mut self) -> Result<bool> {
        self.lease()?;
        self.refuse_if_held()?;
        let paused = self.slot.state() == SandboxState::Paused;
        if paused {
            self.node.runtime.thaw(self.sandbox.id).await.map_err(runtime_error)?;
        }
        self.held = true;
        Ok(paused)
    }

    async fn let_go(&mut self, freeze: bool) -> Result<()> {
        self.held = false;
        self.cpu.forget();
        if freeze {
            self.node.runtime.freeze(self.sandbox.id).await.map_err(runtime_error)?;
        }
        Ok(())
    }

    fn refuse_if_held(&self) -> Result<()> {
        let busy = self.sandbox.busy().unwrap_or(Busy::Checkpoint);
        if self.held { Err(busy.error(self.sandbox.id)) } else { Ok(()) }
    }

    async fn pause(&mut self) -> Result<View> {
        let lease = self.lease()?;
        self.refuse_if_held()?;
        if self.slot.state() != SandboxState::Paused {
            self.node.runtime.freeze(self.sandbox.id).await.map_err(runtime_error)?;
            self.enter(SandboxState::Paused)?;
            self.put_again(&lease, true).await;
        }
        Ok(self.view.borrow().clone())
    }

    async fn resume(&mut self) -> Result<View> {
        let lease = self.lease()?;
        self.refuse_if_held()?;
        if self.slot.state() == SandboxState::Paused {
            self.node.runtime.thaw(self.sandbox.id).await.map_err(runtime_error)?;
            self.enter(SandboxState::Acquired)?;
            self.put_again(&lease, false).await;
        }
        Ok(self.view.borrow().clone())
    }

    fn lease(&self) -> Result<Arc<Lease>> {
        self.view.borrow().lease.clone().ok_or_else(|| Error::sandbox_not_found(self.sandbox.id))
    }

    fn enter(&mut self, next: SandboxState) -> Result<()> {
        self.slot.enter(next)?;
        self.view.send_modify(|view| view.state = next);
        Ok(())
    }

    async fn put(&self, lease: &Lease, paused: bool) -> Result<()> {
        let entry = lease.entry(&self.sandbox, paused, &self.node.options);
        let written = timeout(self.node.options.directory_deadline, self.node.directory.put_sandbox(&entry)).await;
        let cause = match written {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => chain(&error),
            Err(_) => "it did not answer in time".to_owned(),
        };
        let message = "the directory of sandboxes is unavailable";
        Err(Error::new(ErrorKind::Unavailable, reason::STORE_UNAVAILABLE, message).with_cause(cause))
    }

    /// Writes what only lists show: the change itself has happened and is not undone for it.
    async fn put_again(&self, lease: &Lease, paused: bool) {
        if let Err(error) = self.put(lease, paused).await {
            tracing::warn!(error = chain(&error), "the directory shows an old state of the sandbox");
        }
    }

    async fn finish(mut self, cause: EndCause) {
        self.node.pool.forget(self.sandbox.id);
        // also of a claim that failed: its entry may have been written without our being told
        let listed = matches!(self.slot.state(), SandboxState::Acquired | SandboxState::Paused);
        // every state but terminating may become terminating, and only this function leads there
        if let Err(error) = self.slot.enter(SandboxState::Terminating) {
            tracing::error!(error = chain(&error), "sandbox ended twice");
        }
        self.view.send_modify(|view| {
            view.state = SandboxState::Terminating;
            view.end = Some(cause);
        });
        self.sandbox.ended.cancel();
        metrics::counter!("cloud_sandbox_sandbox_ended_total", "cause" => cause.label()).increment(1);
        let lease = self.view.borrow().lease.clone();
        match (&lease, cause) {
            (None, EndCause::Shutdown | EndCause::Evicted | EndCause::Abandoned) => {
                tracing::debug!(%cause, "sandbox ends")
            }
            (None, _) => tracing::warn!(%cause, "unused sandbox ends"),
            (Some(_), _) => tracing::info!(%cause, "sandbox ends"),
        }

        let leave = async {
            let archived = self.archive(lease.as_deref(), cause).await;
            self.leave_directory(listed, archived.as_deref()).await;
        };
        tokio::join!(self.destroy(), leave);
        self.node.table().remove(&self.sandbox.id);
        if let Some(key) = lease.as_ref().and_then(|lease| lease.claim.as_ref()) {
            self.node.claims.forget(key, self.sandbox.id);
        }
        let finished = self.sandbox.finished.clone();
        drop(self);
        finished.cancel();
    }

    async fn destroy(&self) {
        let mut pause = DESTROY_PAUSE;
        while let Err(error) = self.node.runtime.destroy(self.sandbox.id).await {
            metrics::counter!("cloud_sandbox_destroy_failed_total").increment(1);
            tracing::warn!(error = chain(&error), retry_in = ?pause, "failed to destroy the sandbox");
            sleep(pause).await;
            pause = (pause * 2).min(DESTROY_PAUSE_MAX);
        }
    }

    /// Keeps what its executions printed, unless nobody will ask for it.
    async fn archive(&self, lease: Option<&Lease>, cause: EndCause) -> Option<Arc<Archived>> {
        let executions = &self.sandbox.executions;
        executions.close();
        // those that drive them have heard of the end; the journal is better off when they have said their last
        if timeout(LAST_WORDS, executions.tasks.wait()).await.is_err() {
            tracing::warn!("executions of the sandbox take long to end");
        }
        let asked_for = !matches!(cause, EndCause::Released | EndCause::Abandoned);
        match lease.filter(|_| asked_for && !executions.is_empty()) {
            Some(lease) => {
                let mut owned = lease.owned(&self.sandbox.template);
                cause.label().clone_into(&mut owned.cause);
                owned.cause_text = cause.to_string();
                if let Err(error) = executions.describe(&owned) {
                    tracing::warn!(error = chain(&error), "the journal does not know why the sandbox ended");
                }
                Some(self.node.archive.insert(Archived::new(self.sandbox.id, Arc::clone(executions), owned)))
            }
            None => {
                if executions.have_begun() {
                    self.node.forget_journal(self.sandbox.id).await;
                }
                None
            }
        }
    }

    async fn leave_directory(&self, listed: bool, archived: Option<&Archived>) {
        if let Some(archived) = archived {
            return self.node.list_archived(archived).await;
        }
        if !listed {
            return;
        }
        let removed =
            timeout(self.node.options.directory_deadline, self.node.directory.remove_sandbox(self.sandbox.id));
        let error = match removed.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => chain(&StorageError::Unavailable { store: "directory", source: "no answer in time".into() }),
        };
        tracing::warn!(error, "the directory keeps the sandbox until its lease ends");
    }
}
