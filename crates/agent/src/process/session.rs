//! Kills a session: the process group of its leader, and whatever moved to a group of its own.

use std::time::Duration;

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

use super::stat::{Stat, all_pids};

/// A fork bomb within a limit of processes is gone after a few; one that outruns this many is the node's to end.
const ROUNDS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(1);

/// Kills all processes in the session of `leader`, again and again until a look at `/proc` finds none.
pub(super) async fn kill_session(leader: i32) {
    for _ in 0..ROUNDS {
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        let members: Vec<i32> = members(leader).collect();
        if members.is_empty() {
            return;
        }
        for pid in members {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends a signal to the process group of `leader`.
pub(super) fn signal_group(leader: i32, signal: i32) {
    // SAFETY: a plain system call; real-time signals have no name in nix's enum.
    unsafe { libc::kill(-leader, signal) };
}

fn members(session: i32) -> impl Iterator<Item = i32> {
    all_pids().filter(move |pid| Stat::of(*pid).is_some_and(|stat| stat.session == session && !stat.is_dead()))
}
