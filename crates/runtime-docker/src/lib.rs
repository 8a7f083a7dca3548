//! Sandboxes that are containers of a Docker Engine, or of Podman's service: of any image, with any OCI runtime that the
//! daemon has (runc, crun, gVisor's runsc, Kata).
//!
//! The agent is a static program that is bound into each container and is its first process, whatever the image. With
//! runtimes that share the host's kernel it dials a socket of its node, which is bound in beside it; with all others its
//! standard input and output carry its connections. Nothing is ever run by `docker exec`.
//!
//! Invariant: a container has a label that names its server's data folder. Each server removes those of its own that it does
//! not know, and touches no others.

mod change;
mod container;
mod doctor;
mod engine;
mod events;
mod facts;
mod images;
mod life;
mod limits;
mod programs;
mod runtime;
mod sandbox;
mod seen;
mod socket;
mod streams;
mod users;

pub use runtime::{DockerRuntime, Options};
