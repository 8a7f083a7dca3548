//! The real binary, over a socket, with the generated client.

// a test that panics fails, which is the point
#![allow(clippy::unwrap_used)]

mod files;
mod rig;
mod runs;
mod sessions;
mod start;
mod terminals;
