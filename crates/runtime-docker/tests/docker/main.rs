//! The Docker runtime on the Docker Engine that `tests/setup/docker.py` starts.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod engine;
mod images;
mod inside;
mod life;
mod podman;
mod rig;
#[allow(dead_code, reason = "other crates use the rest of it")]
#[path = "../../../../tests/setup/docker.rs"]
mod setup;
