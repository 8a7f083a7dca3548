//! What `/proc` says of a process (proc_pid_stat(5)).

use std::{fs, os::fd::RawFd, path::PathBuf, sync::OnceLock};

static PROC: OnceLock<PathBuf> = OnceLock::new();

/// Reads about processes in the `/proc` behind a descriptor, which is open for good. The one at its usual place may hide
/// some: whoever makes itself undumpable must not escape from being killed.
pub fn read_processes_by(descriptor: RawFd) {
    PROC.get_or_init(|| format!("/proc/self/fd/{descriptor}").into());
}

/// Where processes are read about.
pub(super) fn proc() -> PathBuf {
    PROC.get().cloned().unwrap_or_else(|| "/proc".into())
}

/// The parts of `/proc/<pid>/stat` that are asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Stat {
    /// a letter
    pub(super) state: u8,
    pub(super) parent: i32,
    pub(super) group: i32,
    pub(super) session: i32,
    pub(super) threads: u32,
    /// in ticks since the machine's start; with the id it names a process for good
    pub(super) began: u64,
}

impl Stat {
    /// Reads it; none when the process is gone.
    pub(super) fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read(proc().join(format!("{pid}/stat"))).ok()?)
    }

    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        // The name in parentheses may hold anything, parentheses and spaces included.
        let end_of_name = stat.iter().rposition(|byte| *byte == b')')?;
        let mut fields = std::str::from_utf8(&stat[end_of_name + 1..]).ok()?.split_ascii_whitespace();
        Some(Self {
            state: *fields.next()?.as_bytes().first()?,
            parent: fields.next()?.parse().ok()?,
            group: fields.next()?.parse().ok()?,
            session: fields.next()?.parse().ok()?,
            threads: fields.nth(13)?.parse().ok()?,
            began: fields.nth(1)?.parse().ok()?,
        })
    }

    /// Whether it has ended, and only its exit is left.
    pub(super) fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    /// Whether it runs nothing: it is stopped, by a signal or a tracer, or has ended.
    pub(super) fn is_still(&self) -> bool {
        self.is_dead() || matches!(self.state, b'T' | b't')
    }
}

/// The ids of all processes.
pub(super) fn all_pids() -> impl Iterator<Item = i32> {
    let entries = fs::read_dir(proc()).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAIL: &str = "1 7 5 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 3 0 4242 1000 10";

    #[test]
    fn fields_are_found_behind_a_hostile_name() {
        let stat = Stat::parse(format!("7 (a) Z 1 1 1 () S {TAIL}").as_bytes()).unwrap();
        assert_eq!(stat, Stat { state: b'S', parent: 1, group: 7, session: 5, threads: 3, began: 4242 });
    }

    #[test]
    fn what_is_stopped_or_dead_is_still() {
        for (state, dead, still) in [('R', false, false), ('D', false, false), ('T', false, true), ('Z', true, true)] {
            let stat = Stat::parse(format!("7 (sh) {state} {TAIL}").as_bytes()).unwrap();
            assert_eq!((stat.is_dead(), stat.is_still()), (dead, still), "{state}");
        }
    }

    #[test]
    fn own_process_is_described() {
        let stat = Stat::of(std::process::id() as i32).unwrap();
        assert_eq!(stat.parent, nix::unistd::getppid().as_raw());
        assert!(!stat.is_still());
    }
}
