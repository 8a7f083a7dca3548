//! The system calls that a sandbox may make: the allow-list of the containers project, less what no sandbox needs.
//!
//! Two programs, because a program has one answer for what it stops: the first answers ENOSYS to all that is not
//! allowed (libraries take that as "this kernel is older" and do without), the second EPERM to what exists but is
//! forbidden. The kernel runs the last one first and keeps its answer among equals (seccomp(2)). Runtimes of containers
//! compile programs of their own, from a profile that says the same: [`profile`].

mod profile;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    os::fd::OwnedFd,
    str::FromStr,
};

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};
use serde::Deserialize;
use syscalls::Sysno;

pub use profile::profile;

use crate::programs;

const PROFILE: &str = include_str!("../profiles/seccomp.json");

/// In the profile for containers with more rights than ours. The kernel would refuse most of them by itself to a
/// process without capabilities; a bug there should not be in reach.
const FORBIDDEN: &[&str] = &[
    "add_key",
    "chroot",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "keyctl",
    "mount",
    "mount_setattr",
    "move_mount",
    "name_to_handle_at",
    "open_tree",
    "pivot_root",
    "quotactl_fd",
    "request_key",
    "setns",
    "sethostname",
    "setdomainname",
    "umount",
    "umount2",
    "unshare",
    "userfaultfd",
];

/// clone3 hides its flags behind a pointer, where no filter can look; without it the C library calls clone. The contexts
/// that io_setup makes are counted for the whole host (fs.aio-max-nr).
const ABSENT: &[&str] = &["clone3", "io_setup"];

/// Calls by which a process may starve or cripple another of its user, named in the first argument. The agent is the
/// first process of the sandbox.
const ON_A_PROCESS: &[&str] =
    &["prlimit64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler"];
/// The same, with a process or group (as the first argument says: these two numbers) in the second argument. Of a user it
/// would be all processes at once.
const ON_SOMEBODY: &[(&str, [u32; 2])] = &[("setpriority", [0, 1]), ("ioprio_set", [1, 2])];
const AGENT: u32 = 1;

const NEW_NAMESPACE: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Families of sockets that leave the network namespace, or reach much code of the kernel for little use.
const FORBIDDEN_SOCKETS: [i32; 2] = [libc::AF_VSOCK, libc::AF_ALG];

/// What holds for an argument; of the arguments, which are C's `int` all, the lower half counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Condition {
    argument: u8,
    /// the bits that are looked at, and what they must be
    mask: u32,
    value: u32,
    /// whether they must be anything else instead
    negated: bool,
}

/// All of these must hold.
type Rule = Vec<Condition>;

/// Any rule of a system call must hold; none means: whatever the arguments.
type Rules = BTreeMap<i64, Vec<Rule>>;

#[derive(Deserialize)]
struct Profile {
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    names: Vec<String>,
    action: String,
    #[serde(default)]
    args: Option<Vec<Arg>>,
    #[serde(default)]
    includes: HashMap<String, Vec<String>>,
    #[serde(default)]
    excludes: HashMap<String, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Arg {
    index: u8,
    value: u64,
    value_two: u64,
    op: String,
}

/// The compiled programs, ready for the jailer.
pub struct Filters {
    /// both programs, one after the other
    pub programs: OwnedFd,
    /// how many instructions each has
    pub lengths: Vec<u16>,
}

impl Filters {
    /// Compiles the programs for this machine.
    pub fn compile() -> io::Result<Self> {
        let programs = compile_all().map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        let mut lengths = Vec::new();
        for program in &programs {
            lengths.push(u16::try_from(program.len()).map_err(io::Error::other)?);
            for instruction in program {
                // struct sock_filter of linux/filter.h, in the machine's own byte order
                bytes.extend_from_slice(&instruction.code.to_ne_bytes());
                bytes.extend_from_slice(&[instruction.jt, instruction.jf]);
                bytes.extend_from_slice(&instruction.k.to_ne_bytes());
            }
        }
        Ok(Self { programs: programs::sealed(c"cloud-sandbox-seccomp", &bytes)?, lengths })
    }
}

fn compile_all() -> Result<Vec<BpfProgram>, Box<dyn std::error::Error + Send + Sync>> {
    let profile: Profile = serde_json::from_str(PROFILE)?;
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let errno = |number: i32| SeccompAction::Errno(number.unsigned_abs());
    let (allowed, forbidden) = (compiled(allowed(&profile))?, compiled(forbidden(&profile))?);
    let allowed = SeccompFilter::new(allowed, errno(libc::ENOSYS), SeccompAction::Allow, arch)?;
    let forbidden = SeccompFilter::new(forbidden, SeccompAction::Allow, errno(libc::EPERM), arch)?;
    Ok(vec![allowed.try_into()?, forbidden.try_into()?])
}

fn compiled(rules: Rules) -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let rule = |rule: Rule| SeccompRule::new(rule.iter().map(Condition::compiled).collect::<Result<_, _>>()?);
    let call = |(number, rules): (i64, Vec<Rule>)| Ok((number, rules.into_iter().map(rule).collect::<Result<_, _>>()?));
    rules.into_iter().map(call).collect()
}

impl Condition {
    const fn equal(argument: u8, value: u32) -> Self {
        Self { argument, mask: u32::MAX, value, negated: false }
    }

    fn compiled(&self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let op = match (self.negated, self.mask) {
            (true, _) => SeccompCmpOp::Ne,
            (false, u32::MAX) => SeccompCmpOp::Eq,
            (false, mask) => SeccompCmpOp::MaskedEq(mask.into()),
        };
        SeccompCondition::new(self.argument, SeccompCmpArgLen::Dword, op, self.value.into())
    }
}

impl Entry {
    /// Whether the entry holds for a process without capabilities on this machine.
    fn applies(&self) -> bool {
        // the profile's words for what std calls x86_64 and aarch64
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let here = |arches: Option<&Vec<String>>| arches.is_none_or(|arches| arches.iter().any(|a| a == arch));
        !self.includes.contains_key("caps")
            && here(self.includes.get("arches"))
            && !self.excludes.get("arches").is_some_and(|arches| arches.iter().any(|a| a == arch))
    }

    /// The system calls of the entry that this machine has.
    fn numbers(&self) -> impl Iterator<Item = (&str, i64)> {
        self.names.iter().filter_map(|name| Some((name.as_str(), number(name)?)))
    }

    /// What must hold of the arguments; nothing, where it is empty.
    fn rule(&self) -> Rule {
        self.args.iter().flatten().map(Arg::condition).collect()
    }
}

impl Arg {
    fn condition(&self) -> Condition {
        // the profile compares no halves above what an `int` has
        let low = |value: u64| value as u32;
        let Self { index: argument, value, value_two, .. } = *self;
        match self.op.as_str() {
            "SCMP_CMP_NE" => Condition { negated: true, ..Condition::equal(argument, low(value)) },
            "SCMP_CMP_MASKED_EQ" => Condition { argument, mask: low(value), value: low(value_two), negated: false },
            _ => Condition::equal(argument, low(value)),
        }
    }
}

fn number(name: &str) -> Option<i64> {
    Sysno::from_str(name).ok().map(|sysno| i64::from(sysno.id()))
}

fn allowed(profile: &Profile) -> Rules {
    let mut rules = Rules::new();
    let mut without_rule = Vec::new();
    for entry in profile.syscalls.iter().filter(|entry| entry.action == "SCMP_ACT_ALLOW" && entry.applies()) {
        let rule = entry.rule();
        for (name, number) in entry.numbers() {
            if FORBIDDEN.contains(&name) || ABSENT.contains(&name) {
                continue;
            }
            if rule.is_empty() {
                without_rule.push(number);
            } else {
                rules.entry(number).or_default().push(rule.clone());
            }
        }
    }
    // no rules means: whatever the arguments
    rules.extend(without_rule.into_iter().map(|number| (number, Vec::new())));
    for (name, kinds) in ON_SOMEBODY {
        let kinds = kinds.iter().map(|kind| vec![Condition::equal(0, *kind)]).collect();
        rules.extend(number(name).map(|number| (number, kinds)));
    }
    rules
}

fn forbidden(profile: &Profile) -> Rules {
    let mut rules = Rules::new();
    for entry in profile.syscalls.iter().filter(|entry| entry.action == "SCMP_ACT_ERRNO" && entry.applies()) {
        if entry.rule().is_empty() {
            rules.extend(entry.numbers().map(|(_, number)| (number, Vec::new())));
        }
    }
    rules.extend(FORBIDDEN.iter().filter_map(|name| Some((number(name)?, Vec::new()))));
    let on_agent = |argument| vec![vec![Condition::equal(argument, AGENT)]];
    rules.extend(ON_A_PROCESS.iter().filter_map(|name| Some((number(name)?, on_agent(0)))));
    rules.extend(ON_SOMEBODY.iter().filter_map(|(name, _)| Some((number(name)?, on_agent(1)))));
    let flags = NEW_NAMESPACE.iter().map(|flag| flag.unsigned_abs());
    let clone = flags.map(|flag| vec![Condition { argument: 0, mask: flag, value: flag, negated: false }]);
    rules.insert(Sysno::clone as i64, clone.collect());
    let socket = FORBIDDEN_SOCKETS.iter().map(|family| vec![Condition::equal(0, family.unsigned_abs())]);
    rules.insert(Sysno::socket as i64, socket.collect());
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_compile_and_fit_the_kernel() {
        let filters = Filters::compile().unwrap();
        assert_eq!(filters.lengths.len(), 2);
        assert!(filters.lengths.iter().all(|length| (10..4096).contains(length)), "{:?}", filters.lengths);
    }

    #[test]
    fn what_breaks_out_is_never_allowed() {
        let profile: Profile = serde_json::from_str(PROFILE).unwrap();
        let (allowed, forbidden) = (allowed(&profile), forbidden(&profile));
        for name in [
            "mount",
            "unshare",
            "setns",
            "bpf",
            "keyctl",
            "init_module",
            "kexec_load",
            "perf_event_open",
            "io_uring_setup",
        ] {
            assert!(!allowed.contains_key(&number(name).unwrap()), "{name}");
        }
        for name in ["mount", "unshare", "setns", "bpf", "init_module"] {
            assert!(forbidden.get(&number(name).unwrap()).is_some_and(Vec::is_empty), "{name} is EPERM");
        }
        for name in ["read", "execve", "execveat", "futex", "openat", "getrandom", "wait4", "seccomp", "statx"] {
            assert!(allowed.get(&number(name).unwrap()).is_some_and(Vec::is_empty), "{name}");
            assert!(!forbidden.contains_key(&number(name).unwrap()), "{name}");
        }
    }
}
