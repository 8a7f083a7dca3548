//! Sandboxes made of nothing but the kernel: no daemon, as root or as an ordinary user.
//!
//! A sandbox is a process in new user, mount, PID, network, IPC, UTS and cgroup namespaces. The *jailer* (a small static
//! program) builds it and becomes the agent; this crate decides what is built and keeps what the host must keep: the
//! process, its cgroup, its range of ids, and the agent's socket.
//!
//! Invariant: everything taken for a sandbox is given back by `destroy`, in any state, and what a killed server left is
//! found again: its sandboxes die with it (PR_SET_PDEATHSIG), their cgroups are found by `reclaim`.

pub mod doctor;

mod cgroup;
mod identity;
mod ids;
mod landlock;
mod launch;
mod network;
mod programs;
mod rlimits;
mod runtime;
mod sandbox;
mod seccomp;
mod template;

pub use cgroup::usage_of;
pub use network::Networks;
pub use rlimits::SAME as RLIMITS;
pub use runtime::{LinuxRuntime, Options};
pub use sandbox::Process;
pub use seccomp::profile;
pub use template::{MASKED, READ_ONLY, own_files};
