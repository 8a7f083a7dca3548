//! What a runtime tells the jailer, and what it answers.
//!
//! The jailer is a small static program. It is started with one end of a sequenced-packet socket as its standard input,
//! reads one [`Spec`] with three descriptors from it (see [`DESCRIPTORS`]), clones a child into new namespaces that
//! builds the sandbox around itself and becomes the agent, and ends. The child is the *starter's* child (CLONE_PARENT).
//!
//! Answers: one [`Reply::Cloned`], then either [`Reply::Failed`] or the end of the stream: the agent was executed.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How many descriptors come with a [`Spec`]: the agent's listening socket, the agent's program, and the seccomp
/// programs, one after the other, as arrays of `struct sock_filter`.
pub const DESCRIPTORS: usize = 3;

/// The longest message either way, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The descriptor at which the agent finds its listening socket.
pub const LISTENER_FD: i32 = 3;

/// Everything that the jailer is told. What is decided is decided by the runtime; the jailer only acts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// the host name inside
    pub hostname: String,
    /// user and group id, inside, of the agent and all that it starts
    pub user: u32,
    /// which host ids the ids inside are
    pub ids: IdMap,
    /// `cgroup.procs` files to join before anything else
    pub cgroup_procs: Vec<PathBuf>,
    /// the root file system
    pub root: Root,
    /// how many instructions each seccomp program has; installed in this order, so that the last one's answer wins
    pub seccomp: Vec<u16>,
    /// resource limits of every process: number (`RLIMIT_*`) and value
    pub rlimits: Vec<(u32, u64)>,
}

/// A range of ids inside, and the host ids that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    /// the first id inside
    pub inside: u32,
    /// the first id on the host
    pub outside: u32,
    /// how many ids
    pub count: u32,
}

/// The root file system: a small read-only tmpfs with the host's folders bound into it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// host folders and files shown read-only, without set-user-ID and without devices
    pub binds: Vec<Bind>,
    /// device files of the host shown in `/dev`
    pub devices: Vec<String>,
    /// symbolic links: path and target
    pub links: Vec<(PathBuf, PathBuf)>,
    /// small files: path and content
    pub files: Vec<(PathBuf, String)>,
    /// writable folders, all on one tmpfs: path and mode
    pub scratch: Vec<(PathBuf, u32)>,
    /// the size of that tmpfs in bytes
    pub scratch_bytes: u64,
    /// how many files it may hold
    pub scratch_inodes: u64,
    /// paths below `/proc` that show nothing
    pub masked: Vec<PathBuf>,
    /// paths below `/proc` that cannot be written
    pub read_only: Vec<PathBuf>,
}

/// A host path shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// the path on the host
    pub source: PathBuf,
    /// the path inside
    pub target: PathBuf,
    /// whether it is a folder
    pub directory: bool,
}

/// An answer of the jailer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// the child exists; its process id on the host
    Cloned(i32),
    /// a step failed; nothing is left
    Failed {
        /// what was tried: `mount proc`
        step: String,
        /// the error number
        errno: i32,
    },
}
