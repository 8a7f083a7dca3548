//! The owner task of a sandbox: it alone makes it, moves it from state to state, and destroys it.
//!
//! Invariant: from the moment the runtime was asked to make the sandbox, the task goes on until the runtime says that
//! it is destroyed; its slot is held as long. A failed destroy is tried again, with growing pauses, for ever.

use std::{ops::ControlFlow, sync::Arc, time::Duration};

use cloud_sandbox_model::{
    Limits, SandboxState,
    error::{Error, ErrorKind, Result, chain, reason},
    network::NetworkPolicy,
};
use cloud_sandbox_runtime::End;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{
    Busy, Command, EndCause, Lease, Purpose, Sandbox, View, activity::CpuTime, hit, network::Network, runtime_error,
};
use crate::{node::Shared, pool::Slot};

/// How often an acquired sandbox is written into the directory again, which may have been emptied meanwhile.
const PUT_AGAIN: Duration = Duration::from_secs(30);
/// How often an acquired sandbox is looked at, to see whether its processes do anything.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Later than any lease: a sandbox that nobody has acquired does not expire.
const NEVER: Duration = Duration::from_secs(86_400 * 365);

/// The owner.
pub(super) struct Owner {
    pub(super) node: Arc<Shared>,
    pub(super) sandbox: Arc<Sandbox>,
    pub(super) slot: Slot,
    pub(super) mailbox: mpsc::UnboundedReceiver<Command>,
    pub(super) view: watch::Sender<View>,
    pub(super) limits: Limits,
    pub(super) network: Network,
    /// somebody saves or restores it
    pub(super) held: bool,
    pub(super) cpu: CpuTime,
    /// what it was made from is in use for as long
    pub(super) _user: TaskTrackerToken,
}

impl Owner {
    pub(super) async fn run(
        mut self,
        purpose: Purpose,
        permit: OwnedSemaphorePermit,
        made: oneshot::Sender<Result<()>>,
    ) {
        let began = Instant::now();
        let outcome = self.create(purpose, permit).await;
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
                    self.node.pool.fill_failed(&self.sandbox.origin);
                }
                let _ = made.send(Err(error));
                EndCause::Failed
            }
        };
        self.finish(cause).await;
    }

    /// Does what it is told until the sandbox's time is over.
    async fn live(&mut self) -> EndCause {
        let runtime = Arc::clone(&self.sandbox.origin.runtime);
        let stop = self.node.stop.clone();
        let mut ended = std::pin::pin!(runtime.ended(self.sandbox.id));
        let mut lease_end = Instant::now() + NEVER;
        let mut again = Instant::now() + PUT_AGAIN;
        let mut look = Instant::now() + LOOK_AGAIN;
        loop {
            let command = tokio::select! {
                biased;
                () = stop.cancelled() => return EndCause::Shutdown,
                end = &mut ended => return self.lost_agent(end).await,
                frozen = self.paused_by_others() => match self.note_paused(frozen).await {
                    ControlFlow::Break(cause) => return cause,
                    ControlFlow::Continue(()) => continue,
                },
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
    async fn lost_agent(&self, end: End) -> EndCause {
        let before = self.sandbox.hits_seen();
        if end.out_of_memory || self.sandbox.hits().await.oom_kills > before.oom_kills {
            hit("memory");
            return EndCause::OutOfMemory;
        }
        end.from_outside.map_or(EndCause::AgentEnded, EndCause::FromOutside)
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
        if let Ok(usage) = self.sandbox.origin.runtime.usage(self.sandbox.id).await
            && self.cpu.busy(Instant::now(), &usage)
        {
            self.sandbox.activity().touch();
        }
    }

    /// Makes the sandbox the caller's, findable before it is told.
    async fn claim(&mut self, mut lease: Lease) -> Result<Arc<Lease>> {
        self.slot.enter(SandboxState::Acquired)?;
        if lease.limits != self.limits {
            self.sandbox.origin.runtime.set_limits(self.sandbox.id, lease.limits).await.map_err(runtime_error)?;
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
            self.sandbox.origin.runtime.thaw(self.sandbox.id).await.map_err(runtime_error)?;
        }
        self.held = true;
        Ok(paused)
    }

    async fn let_go(&mut self, freeze: bool) -> Result<()> {
        self.held = false;
        self.cpu.forget();
        if freeze {
            self.sandbox.origin.runtime.freeze(self.sandbox.id).await.map_err(runtime_error)?;
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
            self.sandbox.origin.runtime.freeze(self.sandbox.id).await.map_err(runtime_error)?;
            self.enter(SandboxState::Paused)?;
            self.put_again(&lease, true).await;
        }
        Ok(self.view.borrow().clone())
    }

    async fn resume(&mut self) -> Result<View> {
        let lease = self.lease()?;
        self.refuse_if_held()?;
        if self.slot.state() == SandboxState::Paused {
            self.sandbox.origin.runtime.thaw(self.sandbox.id).await.map_err(runtime_error)?;
            self.enter(SandboxState::Acquired)?;
            self.put_again(&lease, false).await;
        }
        Ok(self.view.borrow().clone())
    }

    pub(super) fn lease(&self) -> Result<Arc<Lease>> {
        self.view.borrow().lease.clone().ok_or_else(|| Error::sandbox_not_found(self.sandbox.id))
    }

    pub(super) fn enter(&mut self, next: SandboxState) -> Result<()> {
        self.slot.enter(next)?;
        self.view.send_modify(|view| {
            view.state = next;
            view.paused_from_outside = false;
        });
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
    pub(super) async fn put_again(&self, lease: &Lease, paused: bool) {
        if let Err(error) = self.put(lease, paused).await {
            tracing::warn!(error = chain(&error), "the directory shows an old state of the sandbox");
        }
    }
}
