//! A simulated node for the tests of the control plane: it speaks the real contracts in this process (node.v1, and the
//! exec, context and file services of v1), keeps its sandboxes in the directory as a node does, and fails where a test
//! tells it to.
//!
//! It runs nothing. `execute` answers with the code as its output; the code [`FOREVER`] prints without end; an
//! interactive execution echoes its input and ends when its input is closed. A download is as long as it was asked to
//! be; what is uploaded is counted. What a test puts into a sandbox is saved to checkpoints and restored from them.

mod calls;
mod checkpoints;
mod contexts;
mod executions;
mod files;
mod lives;
mod node;
mod workspaces;

pub use calls::{assert_eventually, by, by_admin, principal};
pub use node::{Fault, SimNode};
pub use workspaces::MemoryWorkspaces;

/// The code that prints without end.
pub const FOREVER: &str = "forever";
