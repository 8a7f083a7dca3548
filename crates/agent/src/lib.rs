//! The program inside every sandbox: runs processes and works with files for its node, over `agent.v1`.
//!
//! It is mechanism without policy: which language a piece of code is in, who may call and what is remembered is the
//! node's. Everything runs on one thread with small buffers, because every page of it counts once per sandbox; only
//! work that takes long gets a thread while it lasts.
//!
//! Invariant: what a run started is reaped here, its staged file is gone once it ended, and a node that hangs up leaves
//! nothing of the run's session behind.

mod apart;
mod disk;
mod files;
mod kernel;
mod oom;
mod ports;
mod process;
mod serve;
mod service;
mod snapshot;
mod status;
mod tree;
mod walls;
mod worker;

pub use apart::stand_apart;
pub use process::{Children, read_processes_by};
pub use serve::{Stdio, dial, serve, serve_agent, serve_stdio};
pub use service::Agent;

/// The largest message the agent reads, in bytes: a file of 8 MiB and what is around it.
pub const MAX_MESSAGE: usize = 16 * 1024 * 1024;
