//! A sandbox's limits in the words of a daemon.

use std::fs;

use bollard::models::{ContainerUpdateBody, ResourcesUlimits};
use cloud_sandbox_model::Limits;
use cloud_sandbox_runtime_linux::RLIMITS;
use nix::sys::resource::{Resource, getrlimit};

use crate::facts::{Dialect, Kernel};

const PERIOD_US: i64 = 100_000;
/// cpu.shares of a group that says nothing, and the weight that stands for it.
const SHARES: u64 = 1024;
const WEIGHT: u64 = 100;
/// What a kernel of a sandbox's own takes of its limits, which are the host's for all of it: threads, and memory.
const KERNEL_THREADS: i64 = 512;
const KERNEL_BYTES: u64 = 64 * 1024 * 1024;

/// Names of RLIMIT_* as Docker has them.
pub fn ulimits(limits: &Limits, dialect: Dialect) -> Vec<ResourcesUlimits> {
    let name = |resource: u32| match resource {
        libc::RLIMIT_CORE => Some("core"),
        libc::RLIMIT_MEMLOCK => Some("memlock"),
        libc::RLIMIT_MSGQUEUE => Some("msgqueue"),
        libc::RLIMIT_SIGPENDING => Some("sigpending"),
        _ => None,
    };
    let same = RLIMITS.iter().filter_map(|(resource, value)| Some((name(*resource)?, *value)));
    let limit = |(name, value): (&str, u64)| {
        let value = i64::try_from(value).ok();
        ResourcesUlimits { name: Some(name.to_owned()), soft: value, hard: value }
    };
    let of_dialect = (dialect == Dialect::Podman).then(|| ("nproc", processes()));
    same.chain([("nofile", u64::from(limits.open_files))]).chain(of_dialect).map(limit).collect()
}

/// As many processes of a user as a daemon may allow that was started as this server was. Podman, which is told nothing, asks
/// for more, and not every root may have that; how many a sandbox has is limited by its cgroup.
fn processes() -> u64 {
    let most = fs::read_to_string("/proc/sys/kernel/pid_max").ok().and_then(|text| text.trim().parse().ok());
    let own = getrlimit(Resource::RLIMIT_NPROC).map_or(u64::MAX, |(_, hard)| hard);
    // of 64-bit kernels, where that is hidden
    own.min(most.unwrap_or(1 << 22))
}

/// What the daemon is told of limits, at first and again.
pub struct Resources {
    pub memory: Option<i64>,
    pub swap: Option<i64>,
    pub period: Option<i64>,
    pub quota: Option<i64>,
    pub shares: Option<i64>,
    pub pids: Option<i64>,
}

impl Resources {
    pub fn of(limits: &Limits, kernel: Kernel) -> Self {
        let (threads, bytes) = match kernel {
            Kernel::Hosts => (0, 0),
            Kernel::Own => (KERNEL_THREADS, KERNEL_BYTES),
        };
        let memory = i64::try_from(limits.memory_bytes.saturating_add(bytes)).ok();
        Self {
            memory,
            // with swap it is as much: there is none
            swap: memory,
            period: Some(PERIOD_US),
            quota: Some(i64::from(limits.cpu_millis) * PERIOD_US / 1000),
            shares: i64::try_from(u64::from(limits.cpu_weight) * SHARES / WEIGHT).ok().map(|shares| shares.max(2)),
            pids: Some(i64::from(limits.pids) + threads),
        }
    }
}

/// The limits of a container that lives.
pub fn update(limits: &Limits, kernel: Kernel) -> ContainerUpdateBody {
    let Resources { memory, swap, period, quota, shares, pids } = Resources::of(limits, kernel);
    ContainerUpdateBody {
        memory,
        memory_swap: swap,
        cpu_period: period,
        cpu_quota: quota,
        cpu_shares: shares,
        pids_limit: pids,
        ..ContainerUpdateBody::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_a_user_are_limited_where_the_daemon_would_ask_for_more() {
        let names = |dialect| {
            let limits = ulimits(&Limits::DEFAULT, dialect).into_iter();
            limits.map(|limit| (limit.name.unwrap(), limit.hard.unwrap())).collect::<Vec<_>>()
        };
        let (docker, mut podman) = (names(Dialect::Docker), names(Dialect::Podman));
        let (name, most) = podman.pop().unwrap();
        assert_eq!(podman, docker);
        assert!(name == "nproc" && most > 0, "{name} {most}");
        assert!(docker.contains(&("nofile".to_owned(), Limits::DEFAULT.open_files.into())));
    }
}
