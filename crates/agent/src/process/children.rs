//! Owns the birth and death of every child: nobody else forks or waits.
//!
//! Invariant: a child is registered before its exit can be collected, since both happen under one lock. So no exit is
//! ever lost, however short a child lives.
//!
//! On gVisor a process that is waited for has its process group looked at: if that is an orphan, as all are that are
//! started here, and anybody in it is stopped, all of it is sent SIGHUP. Linux does so only when a group becomes an
//! orphan. So while everything stands still, those exits are left alone that have others in their group.

use std::{
    collections::HashMap,
    io,
    mem::MaybeUninit,
    process::{Child, Command},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

use super::stat::{Stat, all_pids};
use crate::{kernel, oom::OomScore};

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
    /// whether exits are left alone that would have others signalled
    sparing: AtomicBool,
}

impl Children {
    /// Of a process that has others besides: only those started here are reaped.
    pub fn own() -> Self {
        Self { waiting: Mutex::default(), orphans: false, oom_score: None, sparing: AtomicBool::new(false) }
    }

    /// Of an init, or of a subreaper: orphans that end up with it are reaped too, and what it starts is killed for
    /// memory before it is. Make it before the process becomes undumpable.
    pub fn of_init() -> Self {
        Self { orphans: true, oom_score: OomScore::open().ok(), ..Self::own() }
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

    /// From before the first process is stopped: collects no exit that has a kernel signal those that are.
    pub(super) fn spare(&self) {
        self.sparing.store(kernel::is_gvisor(), Ordering::Relaxed);
    }

    /// After the last one goes on: collects what was left alone.
    pub(super) fn spare_no_more(&self) {
        if self.sparing.swap(false, Ordering::Relaxed) {
            self.reap();
        }
    }

    /// Collects every exit there is.
    fn reap(&self) {
        let mut waiting = self.waiting();
        if self.sparing.load(Ordering::Relaxed) {
            let ended = ended_apart(&all_pids().filter_map(|pid| Some((pid, Stat::of(pid)?))).collect::<Vec<_>>());
            for (pid, exit) in ended.into_iter().filter_map(wait) {
                deliver(&mut waiting, pid, exit);
            }
        } else if self.orphans {
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

/// The children of this process that have ended, and have nobody left in their process group.
fn ended_apart(all: &[(i32, Stat)]) -> Vec<i32> {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let is_left = |group: i32| all.iter().any(|(_, other)| other.group == group && !other.is_dead());
    let ended = all.iter().filter(|(_, stat)| stat.is_dead() && stat.parent == own && !is_left(stat.group));
    ended.map(|(pid, _)| *pid).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_left_alone_that_have_others_in_their_group() {
        let own = i32::try_from(std::process::id()).unwrap();
        let process =
            |pid, state, parent, group| (pid, Stat { state, parent, group, session: group, threads: 1, began: 0 });
        let all = [
            process(10, b'Z', own, 10),
            process(11, b'T', 10, 10),
            process(20, b'Z', own, 20),
            process(21, b'Z', own, 20),
            process(30, b'T', own, 30),
            process(40, b'Z', 30, 40),
        ];
        assert_eq!(ended_apart(&all), [20, 21]);
    }
}
