//! A simulated node for the tests of the control plane: it speaks the real node.v1 contract in this process, keeps its
//! sandboxes in the directory as a node does, and fails where a test tells it to.
//!
//! It runs nothing. `execute` answers with the code as its output; the code [`FOREVER`] prints without end; an
//! interactive execution echoes its input and ends when its input is closed.

mod calls;
mod node;
mod service;

pub use calls::{assert_eventually, by, by_admin, principal};
pub use node::{Fault, SimNode};

/// The code that prints without end.
pub const FOREVER: &str = "forever";
