//! What is kept of one container: how its agent is reached, and what became of it.

use std::{
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use cloud_sandbox_model::Limits;
use cloud_sandbox_runtime::{End, multiplex::Streams};
use cloud_sandbox_runtime_linux::Process;
use tokio::sync::watch;

use crate::{events::ENGINE_AWAY, facts::Kernel, socket::Socket, streams};

/// The exit status of what was ended by SIGKILL.
pub const KILLED: i64 = 137;
/// How long the daemon may take to say why a process is gone that has been seen to be gone.
pub const REASON_WITHIN: Duration = Duration::from_secs(5);

/// A container of this server.
pub struct Sandbox {
    /// the container's id
    pub container: String,
    pub kernel: Kernel,
    pub agent: Way,
    /// its first process, once it is started
    pub first: OnceLock<First>,
    pub limits: Mutex<Limits>,
    /// held by whoever pauses it or asks whether it is paused
    pub acting: tokio::sync::Mutex<()>,
    fate: watch::Sender<Fate>,
    hints: Mutex<Hints>,
}

/// The first process of a container.
pub struct First {
    /// its number on the host
    pub pid: i32,
    /// the process itself, where this one can see it
    pub process: Option<Process>,
}

/// How the agent is reached.
pub enum Way {
    Socket(Socket),
    Streams(Streams),
}

/// Why a container has died that nobody here wanted to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    OutOfMemory,
    Killed { status: i64 },
}

impl Reason {
    /// The end that it makes; `away` says that its daemon was, when it died.
    pub fn told(self, away: bool) -> End {
        match self {
            Self::OutOfMemory => End { out_of_memory: true, ..End::default() },
            Self::Killed { .. } if away => from_outside(ENGINE_AWAY),
            Self::Killed { status } => from_outside(format!("was killed from outside (exit code {status})")),
        }
    }
}

/// An end that somebody else has made, in words that follow "it".
pub fn from_outside(what: impl Into<String>) -> End {
    End { from_outside: Some(what.into()), ..End::default() }
}

#[derive(Debug, Clone, Default)]
struct Fate {
    end: Option<End>,
    frozen: bool,
}

/// What the daemon has said of a container and what is known of its end before it ends.
#[derive(Default)]
struct Hints {
    /// this server ends it
    destroying: bool,
    /// somebody has sent it a signal
    signalled: bool,
    /// the kernel has killed something in it for memory; so many times
    oom_kills: u64,
    /// its exit status
    status: Option<i64>,
}

impl Sandbox {
    pub fn new(container: String, kernel: Kernel, agent: Way, limits: Limits) -> Self {
        Self {
            container,
            kernel,
            agent,
            first: OnceLock::new(),
            limits: Mutex::new(limits),
            acting: tokio::sync::Mutex::default(),
            fate: watch::Sender::default(),
            hints: Mutex::default(),
        }
    }

    fn hints(&self) -> MutexGuard<'_, Hints> {
        self.hints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This server is about to end it.
    pub fn expect_end(&self) {
        self.hints().destroying = true;
    }

    /// Somebody has sent it a signal.
    pub fn signalled(&self) {
        self.hints().signalled = true;
    }

    /// A process of it was killed for memory.
    pub fn ran_out_of_memory(&self) {
        self.hints().oom_kills += 1;
    }

    /// How many were, as far as the daemon has said.
    pub fn oom_kills(&self) -> u64 {
        self.hints().oom_kills
    }

    /// Its exit status, once it has one.
    pub fn status(&self) -> Option<i64> {
        self.hints().status
    }

    /// Whether somebody has sent it a signal.
    pub fn was_signalled(&self) -> bool {
        self.hints().signalled
    }

    /// Its first process has ended with this status.
    pub fn exited(&self, status: i64) -> Option<Reason> {
        self.hints().status = Some(status);
        self.reason()
    }

    /// What its end came of, as far as the daemon has said, unless it was the agent's own doing.
    pub fn reason(&self) -> Option<Reason> {
        let hints = self.hints();
        let status = hints.status?;
        if hints.destroying {
            None
        } else if hints.oom_kills > 0 && status == KILLED && !hints.signalled {
            Some(Reason::OutOfMemory)
        } else if hints.signalled || status == KILLED {
            Some(Reason::Killed { status })
        } else {
            None
        }
    }

    /// It has ended; only the first end counts.
    pub fn end(&self, end: End) {
        let end = if self.hints().destroying { End::default() } else { end };
        self.fate.send_if_modified(|fate| {
            let first = fate.end.is_none();
            if first {
                fate.end = Some(end);
            }
            first
        });
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.fate.borrow().end.is_some()
    }

    /// Resolves when it has ended.
    pub async fn ended(&self) -> End {
        let mut fate = self.fate.subscribe();
        let ended = fate.wait_for(|fate| fate.end.is_some()).await;
        // the sender is this very value
        ended.ok().and_then(|fate| fate.end.clone()).unwrap_or_default()
    }

    /// Resolves when its agent has been heard of.
    pub async fn answered(&self) {
        match &self.agent {
            Way::Socket(socket) => socket.dialled().await,
            Way::Streams(streams) => streams::answered(streams).await,
        }
    }

    /// Whether it is paused, as far as is known.
    pub fn is_frozen(&self) -> bool {
        self.fate.borrow().frozen
    }

    /// It is paused, or is not.
    pub fn set_frozen(&self, frozen: bool) {
        self.fate.send_if_modified(|fate| std::mem::replace(&mut fate.frozen, frozen) != frozen);
    }

    /// Resolves when it is paused and was not, or the other way round.
    pub async fn frozen_otherwise(&self, known: bool) -> bool {
        let mut fate = self.fate.subscribe();
        match fate.wait_for(|fate| fate.frozen != known).await.map(|fate| fate.frozen) {
            Ok(frozen) => frozen,
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_runtime::multiplex::multiplex;
    use tokio::io::duplex;

    use super::*;

    fn sandbox() -> Sandbox {
        let (streams, _) = multiplex(duplex(1).0);
        Sandbox::new("c".into(), Kernel::Own, Way::Streams(streams), Limits::DEFAULT)
    }

    async fn end_of(hints: impl Fn(&Sandbox), status: i64) -> End {
        let sandbox = sandbox();
        hints(&sandbox);
        let reason = sandbox.exited(status);
        sandbox.end(reason.map_or_else(End::default, |reason| reason.told(false)));
        sandbox.end(from_outside("something later"));
        sandbox.ended().await
    }

    #[tokio::test]
    async fn ends_are_told_apart_by_what_came_before() {
        let killed = from_outside("was killed from outside (exit code 137)");
        assert_eq!(end_of(|_| (), 0).await, End::default(), "its agent ended by itself");
        assert_eq!(end_of(|_| (), KILLED).await, killed);
        assert_eq!(end_of(Sandbox::expect_end, KILLED).await, End::default());
        let out_of_memory = end_of(Sandbox::ran_out_of_memory, KILLED).await;
        assert_eq!((out_of_memory.out_of_memory, out_of_memory.from_outside), (true, None));
        let signalled_later = |sandbox: &Sandbox| {
            sandbox.ran_out_of_memory();
            sandbox.signalled();
        };
        assert_eq!(end_of(signalled_later, KILLED).await, killed, "what ran out before was one of its processes");
        let stopped = from_outside("was killed from outside (exit code 143)");
        assert_eq!(end_of(Sandbox::signalled, 143).await, stopped);
    }

    #[test]
    fn what_dies_with_its_daemon_was_not_killed_by_somebody() {
        assert_eq!(Reason::Killed { status: KILLED }.told(true), from_outside(ENGINE_AWAY));
        assert!(Reason::OutOfMemory.told(true).out_of_memory);
    }

    #[tokio::test]
    async fn frozen_is_told_when_it_is_not_what_was_known() {
        let sandbox = sandbox();
        sandbox.set_frozen(true);
        assert!(sandbox.frozen_otherwise(false).await);
        sandbox.set_frozen(false);
        assert!(!sandbox.frozen_otherwise(true).await);
    }
}
