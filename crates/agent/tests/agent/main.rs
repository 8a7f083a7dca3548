//! The real binary, over a socket, with the generated client.

// a test that panics fails, which is the point
#![allow(clippy::unwrap_used)]

mod control;
mod file_archives;
mod file_search;
mod file_streams;
mod file_trees;
mod file_watch;
mod files;
mod many;
mod ports;
mod rig;
mod runs;
mod saved;
mod sessions;
mod snapshots;
mod standstill;
mod start;
mod terminals;
mod tree_restores;
mod tree_speed;
mod trees;
mod users;
mod walls;
mod ways_in;
