//! Kills a session: the process group of its leader, and whatever moved to a group of its own.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};

/// A fork bomb within a limit of processes is gone after a few; one that outruns this many is the node's to end.
const ROUNDS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(1);

/// Kills all processes in the session of `leader`, again and again until a look at `/proc` finds none.
pub(super) async fn kill_session(leader: i32) {
    for _ in 0..ROUNDS {
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
        let members = members(leader);
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

fn members(session: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &i32| {
        fs::read(format!("/proc/{pid}/stat")).is_ok_and(|stat| live_session(&stat) == Some(session))
    })
    .collect()
}

/// The session of the process that `/proc/<pid>/stat` describes (proc_pid_stat(5)); none of one that is dead already.
fn live_session(stat: &[u8]) -> Option<i32> {
    // The name in parentheses may hold anything, parentheses and spaces included.
    let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
    let mut fields = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_is_found_behind_a_hostile_name() {
        assert_eq!(live_session(b"7 (a) Z 1 1 1 () S 1 7 5 0 -1"), Some(5));
    }

    #[test]
    fn dead_processes_are_in_no_session() {
        assert_eq!(live_session(b"7 (sh) Z 1 7 7 0 -1"), None);
    }
}
