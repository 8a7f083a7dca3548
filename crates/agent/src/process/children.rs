//! Owns the birth and death of every child: nobody else forks or waits.
//!
//! Invariant: a child is registered before its exit can be collected, since both happen under one lock. So no exit is
//! ever lost, however short a child lives.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use crate::oom::OomScore;

/// How a child ended and what it used.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    pub(crate) signal: i32,
    pub(crate) cpu_time_us: u64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) at: Instant,
}

/// The children of this process.
pub struct Children {
    waiting: Mutex<HashMap<i32, oneshot::Sender<Exit>>>,
    orphans: bool,
    oom_score: Option<OomScore>,
}

impl Children {
    /// Of a process that has others besides: only those started here are reaped.
    pub fn own() -> Self {
        Self { waiting: Mutex::default(), orphans: false, oom_score: None }
    }

    /// Of an init, or of a subreaper: orphans that end up with it are reaped too, and what it starts is killed for
    /// memory before it is. Make it before the process becomes undumpable.
    pub fn of_init() -> Self {
        Self { waiting: Mutex::default(), orphans: true, oom_score: OomScore::open().ok() }
    }

    /// Starts `command`; the receiver gets its exit.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Exit>)> {
        let mut waiting = self.waiting();
        let child = match &self.oom_score {
            Some(score) => score.raised(|| command.spawn()),
            None => command.spawn(),
        }?;
        let (sender, receiver) = oneshot::channel();
        waiting.insert(pid_of(&child), sender);
        Ok((child, receiver))
    }

    /// Whether a child with this id has been started here and not been reaped.
    pub(crate) fn is_running(&self, pid: i32) -> bool {
        self.waiting().contains_key(&pid)
    }

    /// Collects every exit there is.
    fn reap(&self) {
        let mut waiting = self.waiting();
        if self.orphans {
            while let Some((pid, exit)) = wait(-1) {
                deliver(&mut waiting, pid, exit);
            }
        } else {
            let pids: Vec<i32> = waiting.keys().copied().collect();
            for (pid, exit) in pids.into_iter().filter_map(wait) {
                deliver(&mut waiting, pid, exit);
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<i32, oneshot::Sender<Exit>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reaps until the last user of `children` is gone.
pub(crate) fn keep_reaped(children: &Arc<Children>) -> io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    let children = Arc::downgrade(children);
    tokio::spawn(async move {
        while ended.recv().await.is_some() {
            let Some(children) = children.upgrade() else { return };
            children.reap();
        }
    });
    Ok(())
}

/// The id of `child` as the kernel's calls want it.
pub(crate) fn pid_of(child: &Child) -> i32 {
    i32::try_from(child.id()).expect("process ids are positive 32-bit numbers")
}

fn deliver(waiting: &mut HashMap<i32, oneshot::Sender<Exit>>, pid: i32, exit: Exit) {
    if let Some(sender) = waiting.remove(&pid) {
        // A run that is gone has nobody to tell.
        let _ = sender.send(exit);
    }
}

/// Takes one exit of `pid` (-1: of any child), if there is one.
fn wait(pid: i32) -> Option<(i32, Exit)> {
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let ended = loop {
        // SAFETY: both pointers are to live, writable memory of the right type.
        let found = unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, usage.as_mut_ptr()) };
        if found <= 0 {
            return None;
        }
        // gVisor also tells, unasked, who was stopped or goes on.
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            break found;
        }
    };
    // SAFETY: zeroed at first, and an all-zero rusage is valid.
    let usage = unsafe { usage.assume_init() };
    let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
    let code = if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 0 };
    let exit = Exit {
        code,
        signal,
        cpu_time_us: micros(usage.ru_utime) + micros(usage.ru_stime),
        peak_memory_bytes: u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024,
        at: Instant::now(),
    };
    Some((ended, exit))
}

fn micros(time: libc::timeval) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(time.tv_usec).unwrap_or(0)
}
