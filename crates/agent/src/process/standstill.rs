//! Stops everything but the agent, and lets it go on.
//!
//! As the first process of its PID namespace the agent signals all others at once: the kernel lets no fork slip through
//! between. Anywhere else, as in a test, that would be everybody's processes; there only its own descendants are stopped,
//! round by round until a look at all of them finds none that moves.
//!
//! Invariant: what its user had stopped before stays stopped when the standstill ends. No process is started while it
//! lasts, and none is let go on by `Signal`; a kill still ends whom it is for.

use std::{
    collections::HashSet,
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_sandbox_proto::agent::v1::ProcessInfo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, getpid},
};
use tokio::time::Instant;
use tonic::Status;

use super::{
    children::Children,
    stat::{Stat, all_pids, proc},
};
use crate::kernel;

/// How long to wait for those that do not stop at once, since they wait for a disk.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);
/// How many looks it takes until a process in an uninterruptible wait may be waiting for a child that was stopped.
const BEFORE_NUDGE: u32 = 20;
/// How much of a command line is told, in bytes.
const MAX_COMMAND: usize = 256;

/// The processes of the sandbox as something that can be stopped.
pub(crate) struct Standstill {
    children: Arc<Children>,
    /// one change at a time
    turn: tokio::sync::Mutex<()>,
    /// while it lasts: what was stopped before
    held: Mutex<Option<HashSet<Identity>>>,
}

/// An id, and when it was given: another process may get the id later.
type Identity = (i32, u64);

struct Process {
    pid: i32,
    stat: Stat,
}

impl Standstill {
    pub(crate) fn of(children: Arc<Children>) -> Self {
        Self { children, turn: tokio::sync::Mutex::default(), held: Mutex::default() }
    }

    /// Refuses what must not happen during a standstill.
    pub(crate) fn refuse(&self) -> Result<(), Status> {
        match &*self.held() {
            Some(_) => Err(Status::failed_precondition("the processes of this sandbox are stopped")),
            None => Ok(()),
        }
    }

    /// Stops all processes and tells which there are. When one does not stop in time, all go on.
    pub(crate) async fn stop(&self) -> Result<Vec<ProcessInfo>, Status> {
        let _turn = self.turn.lock().await;
        // Before the first signal, so that whatever happens then can be undone.
        let before = self.held().get_or_insert_with(already_stopped).clone();
        self.children.spare();
        if is_init() && kernel::is_gvisor() {
            stop_those_who_wait();
        }
        let began = Instant::now();
        let mut looks = 0;
        // Only a second look at all of them shows whom the first may have missed, born while it went on.
        let mut calm_looks = 0;
        while calm_looks < 2 {
            if is_init() {
                // Nobody else may be there, and then it fails.
                let _ = kill(Pid::from_raw(-1), Signal::SIGSTOP);
            }
            let processes = others();
            let moving: Vec<&Process> = processes.iter().filter(|process| !process.is_still()).collect();
            let Some(first) = moving.first() else {
                calm_looks += 1;
                continue;
            };
            calm_looks = 0;
            looks += 1;
            if began.elapsed() > PATIENCE {
                let message = format!("process {} did not stop within {} s", first.pid, PATIENCE.as_secs());
                self.let_go_on();
                return Err(Status::deadline_exceeded(message));
            }
            if !is_init() {
                moving.iter().for_each(|process| process.signal(Signal::SIGSTOP));
            }
            if looks % BEFORE_NUDGE == 0 {
                nudge(&moving, &processes, &before);
            }
            tokio::time::sleep(PAUSE).await;
        }
        let alive = others().into_iter().filter(|process| !process.stat.is_dead());
        Ok(alive.map(|process| process.describe()).collect())
    }

    /// Lets go on what was stopped.
    pub(crate) async fn end(&self) {
        let _turn = self.turn.lock().await;
        self.let_go_on();
    }

    fn let_go_on(&self) {
        let Some(before) = self.held().take() else { return };
        let mut processes = others();
        // Children first: a parent that looks after them, as a shell does, finds none of them stopped.
        processes.sort_unstable_by_key(|process| std::cmp::Reverse((process.stat.began, process.pid)));
        let stopped = processes.iter().filter(|process| !before.contains(&process.identity()));
        stopped.for_each(|process| process.signal(Signal::SIGCONT));
        if is_init() && kernel::is_gvisor() && before.is_empty() {
            // There a list of processes may lack some while others come and go.
            let _ = kill(Pid::from_raw(-1), Signal::SIGCONT);
        }
        self.children.spare_no_more();
    }

    fn held(&self) -> MutexGuard<'_, Option<HashSet<Identity>>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops parents before their children, the youngest first. On gVisor a process that is waited for while others of its
/// group are stopped has them sent SIGHUP ([`super::children`]), and the window for that is as short as it can be made.
fn stop_those_who_wait() {
    let processes = others();
    let parents: HashSet<i32> = processes.iter().map(|process| process.stat.parent).collect();
    let mut waiting: Vec<&Process> = processes.iter().filter(|process| parents.contains(&process.pid)).collect();
    waiting.sort_unstable_by_key(|process| std::cmp::Reverse((process.stat.began, process.pid)));
    waiting.into_iter().for_each(|process| process.signal(Signal::SIGSTOP));
}

/// A parent that used vfork sleeps until its child executes something, which one that was stopped a moment too early
/// never does. Such children may go on until the next round.
fn nudge(moving: &[&Process], all: &[Process], before: &HashSet<Identity>) {
    for parent in moving.iter().filter(|process| process.stat.state == b'D') {
        let children = all.iter().filter(|child| child.stat.parent == parent.pid && !child.stat.is_dead());
        children.filter(|child| !before.contains(&child.identity())).for_each(|child| child.signal(Signal::SIGCONT));
    }
}

fn already_stopped() -> HashSet<Identity> {
    let stopped = others().into_iter().filter(|process| process.stat.state == b'T');
    stopped.map(|process| process.identity()).collect()
}

fn is_init() -> bool {
    getpid().as_raw() == 1
}

/// All processes that may be stopped: as init all others, else the descendants.
fn others() -> Vec<Process> {
    let own = getpid().as_raw();
    let all = all_pids().filter(|pid| *pid != own);
    let all: Vec<Process> = all.filter_map(|pid| Some(Process { pid, stat: Stat::of(pid)? })).collect();
    if is_init() { all } else { descendants(own, all) }
}

fn descendants(ancestor: i32, mut left: Vec<Process>) -> Vec<Process> {
    let mut family = HashSet::from([ancestor]);
    let mut found = Vec::new();
    loop {
        let (born, others): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|process| family.contains(&process.stat.parent));
        if born.is_empty() {
            return found;
        }
        family.extend(born.iter().map(|process| process.pid));
        found.extend(born);
        left = others;
    }
}

impl Process {
    fn identity(&self) -> Identity {
        (self.pid, self.stat.began)
    }

    fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(self.pid), signal);
    }

    /// Whether none of its threads runs.
    fn is_still(&self) -> bool {
        if self.stat.threads <= 1 {
            return self.stat.is_still();
        }
        let Ok(threads) = fs::read_dir(proc().join(format!("{}/task", self.pid))) else { return true };
        let stats = threads.flatten().filter_map(|thread| fs::read(thread.path().join("stat")).ok());
        stats.filter_map(|stat| Stat::parse(&stat)).all(|stat| stat.is_still())
    }

    fn describe(&self) -> ProcessInfo {
        let folder = proc().join(self.pid.to_string());
        let line = fs::read(folder.join("cmdline")).unwrap_or_default();
        let command = match command(&line) {
            command if command.is_empty() => fs::read(folder.join("comm")).map_or(command, |name| self::command(&name)),
            command => command,
        };
        let descriptors = fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
        let sockets = descriptors.filter_map(|entry| fs::read_link(entry.path()).ok());
        let sockets = sockets.filter(|target| target.as_os_str().as_encoded_bytes().starts_with(b"socket:")).count();
        ProcessInfo {
            pid: u32::try_from(self.pid).unwrap_or(0),
            command,
            sockets: u32::try_from(sockets).unwrap_or(u32::MAX),
        }
    }
}

/// A command line in words, as much of it as is told.
fn command(line: &[u8]) -> String {
    let line: Vec<u8> = line.iter().map(|byte| if *byte == 0 { b' ' } else { *byte }).collect();
    let mut command = String::from_utf8_lossy(line.trim_ascii()).into_owned();
    command.truncate(command.floor_char_boundary(MAX_COMMAND));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_words_of_a_bounded_length() {
        assert_eq!(command(b"sh\0-c\0echo a\0"), "sh -c echo a");
        assert_eq!(command(b"a\xffb\0"), "a\u{fffd}b");
        let long = command("ä".repeat(500).as_bytes());
        assert!(long.len() <= MAX_COMMAND && long.len() > MAX_COMMAND - 4 && long.ends_with('ä'));
    }

    #[test]
    fn descendants_are_found_in_any_order_and_nobody_else() {
        let process = |pid, parent| Process {
            pid,
            stat: Stat { state: b'S', parent, group: 1, session: 1, threads: 1, began: 0 },
        };
        let all = vec![process(9, 7), process(7, 5), process(8, 1), process(6, 5), process(3, 8)];
        let mut found: Vec<i32> = descendants(5, all).iter().map(|process| process.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [6, 7, 9]);
    }
}
