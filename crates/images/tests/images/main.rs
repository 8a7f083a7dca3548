//! Root file systems of every kind of source: what is in them, and that nothing else is touched, or left after a fault.

// a test that panics fails, which is the point
#![allow(clippy::unwrap_used)]

#[path = "../../../../tests/setup/docker.rs"]
#[expect(dead_code, reason = "some is for other tests")]
mod docker;
#[path = "../../../../tests/setup/registry.rs"]
mod registry;
#[path = "../../../storage/src/small_disk.rs"]
#[expect(dead_code, reason = "some is for other tests")]
mod small_disk;

mod archives;
mod daemon;
mod faults;
mod folders;
mod hostile;
mod layers;
mod pack;
mod push;
mod refusals;
mod remote;
mod rig;
mod said;
