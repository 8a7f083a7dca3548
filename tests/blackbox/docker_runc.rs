//! The suites of executions, contexts, files, sessions and limits in containers by runc: the very tests of `main.rs`.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod contexts;
#[expect(dead_code, reason = "the tests of faults need more of it")]
#[path = "../setup/docker.rs"]
mod docker;
mod execute;
mod executions;
mod file_service;
mod files;
#[expect(dead_code, reason = "the tests of the server need more of it")]
mod harness;
mod hostile;
mod left_out;
mod resources;
#[expect(dead_code, reason = "the tests of the server need more of it")]
#[path = "../setup/s3.rs"]
mod s3_server;
mod sandboxes;
mod sessions;
#[expect(dead_code, reason = "the tests of the server need more of it")]
mod survival;
mod wire;

/// What the sandboxes are made by.
const RUNTIME: &str = "docker+runc";
