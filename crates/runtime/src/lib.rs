//! The port of an isolation technology: make an isolated place, hand out a byte stream to the agent in it, freeze,
//! thaw, report use, destroy. Everything that a user does inside is the agent's, once, the same under every runtime.

pub mod conformance;
pub mod fake;
pub mod multiplex;
pub mod walls;

use std::{collections::BTreeMap, fmt, io, net::Ipv4Addr, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;
use cloud_sandbox_model::{
    Limits, RuntimeName, SandboxId, Template,
    template::{self, Progress},
};
use tokio::io::{AsyncRead, AsyncWrite};

pub use fake::FakeRuntime;

/// A template that a runtime has on this machine, ready for sandboxes to be made from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// the template's reference: `python@3`, `host`
    pub template: String,
    /// the runtime and, of the Docker Engine, the OCI runtime: always named, `docker+runc`
    pub runtime: RuntimeName,
    /// its root file system
    pub root: Root,
    /// the user inside, by name or number; empty for the sandbox's own
    pub user: String,
    /// everything in it can be written, not the writable folders alone
    pub writable_root: bool,
    /// environment that the image brings
    pub env: BTreeMap<String, String>,
}

/// A root file system on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// the host's own `/usr`
    Host,
    /// a folder of this machine that nobody writes to
    Folder(PathBuf),
    /// an image of the Docker Engine, by its id
    Image(String),
}

impl Prepared {
    /// The built-in template `host`, which needs no preparing.
    #[must_use]
    pub fn host() -> Self {
        Self {
            template: template::HOST.to_owned(),
            runtime: RuntimeName::Linux,
            root: Root::Host,
            user: String::new(),
            writable_root: false,
            env: BTreeMap::new(),
        }
    }
}

/// What a sandbox is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxSpec {
    /// the template
    pub template: Prepared,
    /// bounds of its use
    pub limits: Limits,
}

/// How a sandbox ended that nobody here had destroyed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct End {
    /// what somebody or something outside did to it, in words that follow "it": `was killed from outside (exit code 137)`;
    /// `None` where its agent ended by itself, or nobody knows
    pub from_outside: Option<String>,
    /// whether it was killed at its memory limit, where the runtime is told so rather than sees it in the sandbox's use
    pub out_of_memory: bool,
}

/// What a sandbox has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// bytes of memory now; `None` where the host cannot tell
    pub memory_bytes: Option<u64>,
    /// processes and threads now
    pub pids: Option<u64>,
    /// CPU time of all its processes
    pub cpu_time: Option<Duration>,
    /// how many processes the kernel has killed for the memory limit
    pub oom_kills: Option<u64>,
    /// how many processes could not be started for the limit of processes
    pub pids_refused: Option<u64>,
}

/// A connection to the agent in a sandbox.
pub trait AgentStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> AgentStream for T {}

/// A boxed [`AgentStream`].
pub type BoxedStream = Box<dyn AgentStream>;

/// Accepts what programs in a sandbox connect to on their loopback.
#[async_trait]
pub trait Listener: Send {
    /// The next connection. An error ends the listener: the sandbox has ended.
    async fn accept(&mut self) -> io::Result<BoxedStream>;
}

/// A port of a sandbox's own loopback, served by its node.
pub struct Port {
    /// the port; another than was asked for where a program had that already
    pub number: u16,
    /// what connects to it
    pub listener: Box<dyn Listener>,
}

/// The IP packets of a sandbox's network interface: each read gives one that was sent, each write delivers one.
pub type BoxedPackets = Box<dyn AgentStream>;

/// A network interface of a sandbox: its address, and the node's at the other end, which is its gateway and resolver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interface {
    /// its own address
    pub address: Ipv4Addr,
    /// the gateway's
    pub gateway: Ipv4Addr,
    /// bits of both that are the network's
    pub prefix: u8,
    /// bytes of the largest packet
    pub mtu: u16,
}

/// The interface that every sandbox has in network mode `open`: sandboxes do not see one another, so one is as good as
/// another. 100.64.0.0/10 is meant for what lies between a provider and its customers, and so rarely what they want to reach.
pub const INTERFACE: Interface = Interface {
    address: Ipv4Addr::new(100, 127, 255, 2),
    gateway: Ipv4Addr::new(100, 127, 255, 1),
    prefix: 30,
    mtu: 1500,
};

/// The writable folders of a sandbox, with their modes: the same on all runtimes, so that a checkpoint of one can be
/// restored on another.
pub const SCRATCH: [(&str, u32); 6] = [
    ("/workspace", 0o755),
    ("/home/user", 0o755),
    ("/tmp", 0o1777),
    ("/var/tmp", 0o1777),
    ("/run", 0o755),
    ("/dev/shm", 0o1777),
];

/// Their names, in the order of their bytes.
#[must_use]
pub fn scratch_folders() -> Vec<PathBuf> {
    let mut folders = SCRATCH.map(|(path, _)| path);
    folders.sort_unstable();
    folders.into_iter().map(PathBuf::from).collect()
}

/// Bytes of disk for each file that may exist: a quarter of what small source trees average.
const BYTES_PER_INODE: u64 = 4096;
const INODES_MIN: u64 = 1024;

/// The most files that fit into `bytes` of disk.
#[must_use]
pub fn inodes(bytes: u64) -> u64 {
    (bytes / BYTES_PER_INODE).max(INODES_MIN)
}

/// Why a runtime could not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The template cannot be prepared, or what was prepared is not there any more; the text says why and what helps.
    #[error("template {template}: {why}")]
    Template { template: String, why: String },
    /// What the runtime works with does not answer: a daemon that is not there, for example. It may come back.
    #[error("the runtime is not available: {0}")]
    Unavailable(String),
    /// No such sandbox, or it has ended.
    #[error("sandbox {0} is gone")]
    Gone(SandboxId),
    /// The host cannot do this; the text says what is missing.
    #[error("the host cannot {0}")]
    Unsupported(String),
    /// The host has no room for another sandbox.
    #[error("the host has no room: {0}")]
    Exhausted(String),
    /// An operation on the host failed.
    #[error("failed to {operation}")]
    Host { operation: String, source: io::Error },
}

impl RuntimeError {
    /// A failed operation on the host: `RuntimeError::host("mount proc", error)`.
    pub fn host(operation: impl fmt::Display, source: io::Error) -> Self {
        Self::Host { operation: operation.to_string(), source }
    }
}

/// An isolation technology. All methods may be called at once for different sandboxes; a sandbox's owner calls them
/// one after the other for one sandbox.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// The name of the runtime's family: `linux`, `docker`.
    fn name(&self) -> &'static str;

    /// Whether sandboxes can be made now by `name`, which is of this runtime's family; why not otherwise. Templates that name
    /// several runtimes take the first that is available.
    async fn available(&self, name: &RuntimeName) -> Result<(), RuntimeError>;

    /// Fetches what sandboxes of a template are made from, or finds it. `runtime` is one of the template's and of this
    /// runtime's family. May take minutes; dropped, it leaves nothing half done that a later call does not remove or use.
    async fn prepare(
        &self,
        template: &Template,
        runtime: &RuntimeName,
        progress: &Arc<Progress>,
    ) -> Result<Prepared, RuntimeError>;

    /// Drops what was prepared of a template; of one that was not, nothing. No sandbox is made from it any more.
    async fn discard(&self, template: &str) -> Result<(), RuntimeError>;

    /// The templates, by reference, of which something prepared is kept here, also by an earlier process of this node.
    async fn prepared_templates(&self) -> Result<Vec<String>, RuntimeError>;

    /// The folders of a template's sandboxes in which anything can be written, in the order of their bytes: all that a
    /// checkpoint has to hold. The same on all runtimes, so that a checkpoint of one can be restored on another.
    fn writable_folders(&self, template: &Prepared) -> Vec<PathBuf>;

    /// Makes a sandbox in which the agent is starting. On an error nothing of it is left.
    async fn create(&self, id: SandboxId, spec: &SandboxSpec) -> Result<(), RuntimeError>;

    /// A new connection to the sandbox's agent, to be written to at once: where agents dial their node, the next one comes
    /// after the first byte on the last. The agent answers as soon as it runs.
    async fn connect(&self, id: SandboxId) -> Result<BoxedStream, RuntimeError>;

    /// Changes the limits of a living sandbox. The disk limit may only be changed before first use.
    async fn set_limits(&self, id: SandboxId, limits: Limits) -> Result<(), RuntimeError>;

    /// Stops all processes; they keep their memory. Doing it twice is once.
    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError>;

    /// Lets them go on. Doing it twice is once.
    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError>;

    /// What the sandbox has used.
    async fn usage(&self, id: SandboxId) -> Result<Usage, RuntimeError>;

    /// Listens on a port of the sandbox's own loopback: `port`, or any other where a program has that already.
    async fn listen(&self, id: SandboxId, port: u16) -> Result<Port, RuntimeError> {
        Err(RuntimeError::Unsupported(format!("listen on port {port} of sandbox {id}")))
    }

    /// Gives the sandbox a network interface, up and with a default route, and its packets to the caller. It is gone when
    /// they are dropped.
    async fn attach_interface(&self, id: SandboxId, interface: Interface) -> Result<BoxedPackets, RuntimeError> {
        Err(RuntimeError::Unsupported(format!("give sandbox {id} an interface with {}", interface.address)))
    }

    /// The walls that a template's sandboxes have here, by their names in [`walls`].
    fn walls(&self, template: &Prepared) -> Vec<&'static str>;

    /// Resolves when the sandbox has ended by itself or by somebody else's hand: its agent is gone.
    async fn ended(&self, id: SandboxId) -> End;

    /// Resolves when somebody else has frozen the sandbox, or let it go on, and says whether it is frozen. `known` is what the
    /// caller thinks: anything else resolves at once.
    async fn frozen_by_others(&self, id: SandboxId, known: bool) -> bool {
        let _ = (id, known);
        std::future::pending().await
    }

    /// Ends all that runs in the sandbox and removes all that was taken for it. Of a sandbox that does not exist,
    /// nothing is left either: that is success.
    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError>;

    /// Destroys what earlier processes with the same state folder left behind, and names it. Called once, before the
    /// first create.
    async fn reclaim(&self) -> Result<Vec<SandboxId>, RuntimeError>;
}
