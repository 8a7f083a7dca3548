//! Ids, life cycles, limits and error kinds: what all services agree on, without I/O.

pub mod error;
pub mod id;
pub mod input;
pub mod limits;
pub mod network;
pub mod sandbox;
pub mod session;
pub mod template;

pub use error::{Error, ErrorKind, Result};
pub use id::{CheckpointId, ExecutionId, NodeId, SandboxId, SessionId};
pub use limits::Limits;
pub use network::{NetworkMode, NetworkPolicy};
pub use sandbox::SandboxState;
pub use session::SessionState;
pub use template::{RuntimeName, Template};
