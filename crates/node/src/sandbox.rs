//! The handle of a sandbox: what everybody but its owner task knows of it and may ask of it.
//!
//! Requests go into the owner's mailbox; what the sandbox is doing is read off a watch that the owner alone writes.

mod activity;
mod create;
mod ends;
mod finish;
mod lease;
mod network;
mod outside;
mod owner;
mod start;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloud_sandbox_egress::Egress;
use cloud_sandbox_model::{
    SandboxId, SandboxState,
    error::{Error, ErrorKind, Result, reason},
    network::NetworkPolicy,
};
use cloud_sandbox_proto::{
    agent::v1::{CheckRequest, CheckResponse},
    v1,
};
use cloud_sandbox_runtime::RuntimeError;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{error::Elapsed, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    agent::Agent, archive::gone, contexts::Contexts, executions::Executions, options::Options, templates::Origin,
};

pub(crate) use activity::{Activity, InUse};
pub(crate) use create::{Purpose, spawn};
pub(crate) use ends::EndCause;
pub(crate) use lease::{ClaimKey, Lease};
pub(crate) use start::{Started, start};

/// How long an agent may take to say how full its disk is. It answers within a millisecond, unless its sandbox leaves it no
/// CPU: then nobody waits for it.
const CHECK_PATIENCE: Duration = Duration::from_millis(500);
/// How long word of an end may take when a connection breaks: more than a container's end takes to be noticed where its
/// daemon has nothing to say.
const END_PATIENCE: Duration = Duration::from_secs(8);

/// What a sandbox is doing, as its owner last said.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) state: SandboxState,
    pub(crate) lease: Option<Arc<Lease>>,
    pub(crate) end: Option<EndCause>,
    /// it was somebody from outside who paused it
    pub(crate) paused_from_outside: bool,
}

type Reply<T> = oneshot::Sender<Result<T>>;

enum Command {
    Claim {
        lease: Box<Lease>,
        reply: Reply<Arc<Lease>>,
    },
    KeepAlive {
        timeout_seconds: u32,
        reply: Reply<View>,
    },
    SetNetwork {
        policy: NetworkPolicy,
        reply: Reply<View>,
    },
    Pause {
        reply: Reply<View>,
    },
    Resume {
        reply: Reply<View>,
    },
    /// thaws it, and keeps it from being paused or resumed; says whether it was paused
    Hold {
        reply: Reply<bool>,
    },
    /// ends that; frozen again, it is paused as before
    LetGo {
        freeze: bool,
        reply: Reply<()>,
    },
    End(EndCause),
}

/// Why nothing may be done in a sandbox that is acquired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Busy {
    /// it is being saved
    Checkpoint,
    /// it is being filled
    Restore,
    /// its processes stand still after a checkpoint, for a release or, paused, for a resume
    Stopped,
    /// it could not be restored
    Broken,
}

impl Busy {
    pub(crate) fn error(self, id: SandboxId) -> Error {
        let (kind, what) = match self {
            Self::Checkpoint => (ErrorKind::Aborted, "is being checkpointed; try again"),
            Self::Restore => (ErrorKind::Aborted, "is being restored; try again"),
            Self::Stopped => (ErrorKind::FailedPrecondition, "stands still after a checkpoint; resume or release it"),
            Self::Broken => (ErrorKind::FailedPrecondition, "could not be restored; release it"),
        };
        Error::new(kind, reason::SANDBOX_BUSY, format!("sandbox {id} {what}"))
    }
}

/// The handle.
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    /// what it was made from, and what made it
    pub(crate) origin: Arc<Origin>,
    /// the process of its template's start command
    pub(crate) started: Started,
    pub(crate) agent: Agent,
    pub(crate) executions: Arc<Executions>,
    pub(crate) contexts: Contexts,
    /// cancelled as soon as the sandbox is of no more use
    pub(crate) ended: CancellationToken,
    /// cancelled when nothing of it is left
    pub(crate) finished: CancellationToken,
    egress: Egress,
    mailbox: mpsc::UnboundedSender<Command>,
    view: watch::Receiver<View>,
    hits: Mutex<Hits>,
    busy: Mutex<Option<Busy>>,
    /// why its runtime cannot destroy it now
    away: Mutex<Option<String>>,
}

impl Sandbox {
    /// The reference of its template.
    pub(crate) fn template(&self) -> &str {
        self.origin.reference()
    }

    pub(crate) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// The lease of a sandbox that may be used now.
    pub(crate) fn usable(&self) -> Result<Arc<Lease>> {
        let view = self.view.borrow();
        match (view.state, &view.lease) {
            (SandboxState::Acquired, Some(lease)) => match self.busy() {
                None => Ok(Arc::clone(lease)),
                Some(busy) => Err(busy.error(self.id)),
            },
            (SandboxState::Paused, Some(_)) => {
                let how = if view.paused_from_outside { "was paused from outside" } else { "is paused" };
                let message = format!("sandbox {} {how}; resume it first", self.id);
                Err(Error::new(ErrorKind::FailedPrecondition, reason::SANDBOX_PAUSED, message))
            }
            (SandboxState::Terminating, Some(_)) => Err(self.gone(view.end.as_ref()).before_it_began()),
            _ => Err(Error::sandbox_not_found(self.id)),
        }
    }

    /// What a caller sees of an acquired sandbox.
    pub(crate) fn describe(&self, options: &Options) -> Result<v1::Sandbox> {
        self.describe_view(&self.view(), options)
    }

    pub(crate) fn describe_view(&self, view: &View, options: &Options) -> Result<v1::Sandbox> {
        match &view.lease {
            Some(_) if view.end.is_some() => Err(self.gone(view.end.as_ref())),
            Some(lease) => Ok(lease.describe(self, view.state, options)),
            None => Err(Error::sandbox_not_found(self.id)),
        }
    }

    /// Why calls to the sandbox are refused once it is over.
    pub(crate) fn gone_error(&self) -> Error {
        let end = self.view.borrow().end.clone();
        self.gone(end.as_ref())
    }

    /// Why calls that were under way end with the sandbox.
    pub(crate) fn ending_error(&self) -> Error {
        let end = self.view.borrow().end.clone();
        let error = self.gone(end.as_ref());
        if end == Some(EndCause::LeaseEnded) { error.with_reason(reason::LEASE_ENDED) } else { error }
    }

    /// The same when a connection to it breaks, which is usually why; none where nothing is heard of an end.
    pub(crate) async fn ended_meanwhile(&self) -> Option<Error> {
        timeout(END_PATIENCE, self.ended.cancelled()).await.ok().map(|()| self.ending_error())
    }

    fn gone(&self, end: Option<&EndCause>) -> Error {
        match end {
            Some(cause) => gone(self.id, cause.label(), &cause.to_string()),
            None => gone(self.id, "unknown", "its owner ended"),
        }
    }

    /// Gives a warm sandbox to its owner.
    pub(crate) async fn claim(&self, lease: Lease) -> Result<Arc<Lease>> {
        self.ask(|reply| Command::Claim { lease: Box::new(lease), reply }).await
    }

    pub(crate) async fn keep_alive(&self, timeout_seconds: u32) -> Result<View> {
        self.ask(|reply| Command::KeepAlive { timeout_seconds, reply }).await
    }

    /// Changes what of the network it sees.
    pub(crate) async fn set_network(&self, policy: NetworkPolicy) -> Result<View> {
        self.ask(|reply| Command::SetNetwork { policy, reply }).await
    }

    pub(crate) async fn pause(&self) -> Result<View> {
        self.ask(|reply| Command::Pause { reply }).await
    }

    pub(crate) async fn resume(&self) -> Result<View> {
        self.ask(|reply| Command::Resume { reply }).await
    }

    /// Keeps the sandbox from being paused, resumed or held by another, and thaws it. Says whether it was paused.
    /// [`Self::let_go`] must follow.
    pub(crate) async fn hold(&self) -> Result<bool> {
        self.ask(|reply| Command::Hold { reply }).await
    }

    /// Ends that, and freezes the sandbox again if it is to be paused on.
    pub(crate) async fn let_go(&self, freeze: bool) -> Result<()> {
        self.ask(|reply| Command::LetGo { freeze, reply }).await
    }

    pub(crate) fn busy(&self) -> Option<Busy> {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_busy(&self, busy: Option<Busy>) {
        *self.busy.lock().unwrap_or_else(PoisonError::into_inner) = busy;
    }

    /// What is known of its use.
    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.executions.activity
    }

    /// Ends the sandbox. `finished` says when nothing is left.
    pub(crate) fn end(&self, cause: EndCause) {
        // an owner that is gone has ended it already
        let _ = self.mailbox.send(Command::End(cause));
    }

    /// Takes note of why its runtime, which is away, has not destroyed it yet.
    pub(crate) fn note_away(&self, why: Option<String>) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Why it is not destroyed in time, and that it will be.
    pub(crate) fn undestroyed(&self, elapsed: Elapsed) -> Error {
        let (id, away) = (self.id, self.away.lock().unwrap_or_else(PoisonError::into_inner).clone());
        match away {
            Some(why) => {
                let message = format!("sandbox {id} is destroyed as soon as there is its runtime again: {why}");
                Error::new(ErrorKind::Unavailable, reason::RUNTIME_UNAVAILABLE, message)
            }
            None => Error::internal(&format!("destroy sandbox {id} in time; it is tried again"), elapsed),
        }
    }

    pub(crate) fn abandon(&self) {
        self.end(EndCause::Abandoned);
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        if self.mailbox.send(command(reply)).is_err() {
            return Err(self.gone_error());
        }
        tokio::select! {
            biased;
            answer = answer => answer.unwrap_or_else(|_| Err(self.gone_error())),
            () = self.ended.cancelled() => Err(self.gone_error()),
        }
    }

    /// How often limits had been hit when somebody last looked.
    pub(crate) fn hits_seen(&self) -> Hits {
        *self.hits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks how often they have been now; what was last known where the host cannot tell.
    pub(crate) async fn hits(&self) -> Hits {
        let usage = self.origin.runtime.usage(self.id).await.unwrap_or_default();
        let mut hits = self.hits.lock().unwrap_or_else(PoisonError::into_inner);
        hits.oom_kills = hits.oom_kills.max(usage.oom_kills.unwrap_or_default());
        hits.pids_refused = hits.pids_refused.max(usage.pids_refused.unwrap_or_default());
        *hits
    }

    /// Whether its writable folders are full; no, when its agent does not say so soon.
    pub(crate) async fn disk_is_full(&self) -> bool {
        self.check().await.is_some_and(|answer| answer.disk_full)
    }

    /// What the sandbox uses. What the host, or an agent that has no time, cannot tell is left out.
    pub(crate) async fn usage(&self) -> v1::SandboxUsage {
        let usage = self.origin.runtime.usage(self.id).await.unwrap_or_default();
        let traffic = self.egress.traffic();
        // the agent of one that is paused stands still
        let stands = self.view.borrow().state == SandboxState::Paused;
        let answer = if stands { None } else { self.check().await };
        v1::SandboxUsage {
            memory_bytes: usage.memory_bytes,
            pids: usage.pids,
            cpu_time_ms: usage.cpu_time.map(|time| time.as_secs_f64() * 1000.0),
            disk_bytes: answer.map(|answer| answer.disk_used_bytes),
            oom_kills: usage.oom_kills,
            pids_refused: usage.pids_refused,
            connections_allowed: traffic.allowed,
            connections_denied: traffic.denied,
            network_sent_bytes: traffic.sent,
            network_received_bytes: traffic.received,
        }
    }

    async fn check(&self) -> Option<CheckResponse> {
        let mut client = self.agent.client();
        let answer = timeout(CHECK_PATIENCE, client.check(CheckRequest {})).await.ok()?.ok()?;
        Some(answer.into_inner())
    }
}

/// How often limits were hit in a sandbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Hits {
    /// processes that the kernel killed for the memory limit
    pub(crate) oom_kills: u64,
    /// processes that could not be started
    pub(crate) pids_refused: u64,
}

/// Counts that something ran into a limit.
pub(crate) fn hit(limit: &'static str) {
    metrics::counter!("cloud_sandbox_limit_hits_total", "limit" => limit).increment(1);
}

/// What a caller is told of a runtime's failure.
pub(crate) fn runtime_error(error: RuntimeError) -> Error {
    match error {
        RuntimeError::Template { .. } => {
            Error::new(ErrorKind::FailedPrecondition, reason::TEMPLATE_FAILED, error.to_string())
        }
        RuntimeError::Unavailable(_) => {
            Error::new(ErrorKind::Unavailable, reason::RUNTIME_UNAVAILABLE, error.to_string())
        }
        RuntimeError::Gone(_) => Error::new(ErrorKind::NotFound, reason::SANDBOX_GONE, error.to_string()),
        RuntimeError::Unsupported(_) => {
            Error::new(ErrorKind::FailedPrecondition, reason::UNSUPPORTED_BY_HOST, error.to_string())
        }
        RuntimeError::Exhausted(_) => Error::new(ErrorKind::ResourceExhausted, reason::CAPACITY, error.to_string()),
        RuntimeError::Host { ref operation, .. } => Error::internal(&operation.clone(), error),
    }
}
