//! What a runtime tells the jailer, and what it answers.
//!
//! The jailer is a small static program. It is started with one end of a sequenced-packet socket as its standard input, and
//! reads one [`Order`] with its descriptors from it.
//!
//! [`Order::Build`]: it clones a child into new namespaces that builds the sandbox around itself and becomes the agent, and
//! ends. The child is the *starter's* child (CLONE_PARENT). Answers: one [`Reply::Cloned`], then either [`Reply::Failed`] or
//! the end of the stream: the agent was executed.
//!
//! [`Order::Listen`] and [`Order::Attach`]: it enters the network of a sandbox that lives, makes what is wanted, and ends. It
//! answers [`Reply::Made`] with a descriptor, or [`Reply::Failed`].

use std::{net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The most descriptors that come with an [`Order`].
pub const DESCRIPTORS_MAX: usize = 3;

/// The longest message either way, in bytes.
pub const MESSAGE_MAX: usize = 64 * 1024;

/// The descriptor at which the agent finds its listening socket.
pub const LISTENER_FD: i32 = 3;

/// The descriptor at which the agent finds a `/proc` that hides no process from it. The one that everybody sees hides what
/// its reader may not trace: the agent from the user's code, and whatever of that made itself undumpable from the agent.
pub const PROC_FD: i32 = 4;

/// The device of the host that makes network interfaces.
pub const TUN: &str = "/dev/net/tun";

/// What the jailer is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// build a sandbox; three descriptors: the agent's listening socket, the agent's program, and the seccomp programs, one
    /// after the other, as arrays of `struct sock_filter`
    Build(Box<Spec>),
    /// listen on a port of the loopback of a sandbox, or on any other where that is taken; one descriptor: the sandbox's
    /// first process
    Listen {
        /// the port
        port: u16,
    },
    /// give a sandbox a network interface whose packets are read and written elsewhere; one descriptor: the sandbox's first
    /// process
    Attach(Interface),
}

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// its name: `eth0`
    pub name: String,
    /// its own address
    pub address: Ipv4Addr,
    /// bits of it that are the network's
    pub prefix: u8,
    /// where everything is sent that is not in that network
    pub gateway: Ipv4Addr,
    /// bytes of the largest packet
    pub mtu: u16,
}

/// Everything that the jailer is told of a sandbox to build. What is decided is decided by the runtime; the jailer only acts.
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
    /// the version of Landlock that the kernel has; 0 is none
    pub landlock: u32,
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
    /// a folder of the host that sources of binds are relative to; nobody else has to be able to enter those above it
    pub base: Option<PathBuf>,
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
    /// paths of files that show a text of the sandbox's own instead, where they are there
    pub replaced: Vec<(PathBuf, String)>,
    /// paths below `/proc` that show nothing
    pub masked: Vec<PathBuf>,
    /// paths below `/proc` that cannot be written
    pub read_only: Vec<PathBuf>,
}

/// A host path shown inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// the path on the host; a relative one is below the root's base
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
    /// it is made; comes with its descriptor
    Made {
        /// the port that is listened on; 0 of an interface
        port: u16,
    },
    /// a step failed; nothing is left
    Failed {
        /// what was tried: `mount proc`
        step: String,
        /// the error number
        errno: i32,
    },
}
