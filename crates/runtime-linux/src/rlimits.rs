//! What holds for each process of a sandbox beside its cgroup (setrlimit(2)).

use std::io;

use cloud_sandbox_model::Limits;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::cgroup::Controller;

/// Locked memory is not swapped and not reclaimed; what interpreters lock is little.
const LOCKED_BYTES: u64 = 8 * 1024 * 1024;

/// No core dumps. Not 0, which a `core_pattern` with a pipe ignores: 1 also keeps the host's handler from being started
/// for a crash in a sandbox (do_coredump of the kernel).
const CORE_BYTES: u64 = 1;

/// Queued signals and timers. They are charged to the node's user on the host as well, to whom the kernel allows one for
/// about every 128 KiB of memory: without a bound one sandbox takes them all.
const QUEUED_SIGNALS: u64 = 1024;

/// What is the same in every sandbox.
pub const SAME: [(u32, u64); 4] = [
    (libc::RLIMIT_CORE, CORE_BYTES),
    (libc::RLIMIT_MEMLOCK, LOCKED_BYTES),
    (libc::RLIMIT_MSGQUEUE, 0),
    (libc::RLIMIT_SIGPENDING, QUEUED_SIGNALS),
];

/// What a sandbox's own limits say: open files, and what no cgroup limits, as far as a limit for each process goes.
///
/// `shared` is how many files the node may have open where sandboxes are the node's own user on the host. Descriptors in
/// flight are counted for that user, and whoever may have fewer open than are in flight may send none (unix(7)): with half
/// of the node's, no sandbox keeps the node from sending.
pub fn own(limits: &Limits, missing: &[Controller], shared: Option<u64>) -> Vec<(u32, u64)> {
    let open_files = u64::from(limits.open_files);
    let mut rlimits = vec![(libc::RLIMIT_NOFILE, shared.map_or(open_files, |shared| open_files.min(shared / 2)))];
    if missing.contains(&Controller::Pids) {
        // counted within the user namespace since Linux 5.14
        rlimits.push((libc::RLIMIT_NPROC, u64::from(limits.pids)));
    }
    if missing.contains(&Controller::Memory) {
        rlimits.push((libc::RLIMIT_DATA, limits.memory_bytes));
    }
    rlimits
}

/// Lets this process have as many files open as it may allow itself, and gives that number.
pub fn raise_open_files() -> io::Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_leave_the_node_its_half_where_both_are_one_user() {
        let open_files = |limits: u32, shared| {
            let limits = Limits { open_files: limits, ..Limits::DEFAULT };
            let all = own(&limits, &[], shared);
            all.into_iter().find(|(resource, _)| *resource == libc::RLIMIT_NOFILE).map(|(_, value)| value)
        };
        assert_eq!(open_files(4096, None), Some(4096));
        assert_eq!(open_files(4096, Some(1024)), Some(512));
        assert_eq!(open_files(4096, Some(524_288)), Some(4096));
    }

    #[test]
    fn processes_and_memory_are_limited_here_where_no_cgroup_does_it() {
        let resources = |missing: &[Controller]| -> Vec<u32> {
            own(&Limits::DEFAULT, missing, None).into_iter().map(|(resource, _)| resource).collect()
        };
        assert!(!resources(&[]).contains(&libc::RLIMIT_NPROC) && !resources(&[]).contains(&libc::RLIMIT_DATA));
        let missing = resources(&[Controller::Pids, Controller::Memory]);
        assert!(missing.contains(&libc::RLIMIT_NPROC) && missing.contains(&libc::RLIMIT_DATA));
    }
}
