//! Black-box tests: each starts the built binary and uses it as a stranger would.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod architecture;
mod auth;
mod bad_input;
mod chaos;
mod command_line;
mod containers;
mod contexts;
mod daemon;
#[path = "../setup/docker.rs"]
mod docker;
mod egress;
mod endurance;
mod execute;
mod executions;
mod figures;
mod file_service;
mod files;
mod fleet;
mod grpc;
mod harness;
mod hostile;
mod isolation;
mod left_out;
mod lifecycle;
mod limits;
#[path = "../setup/own_engine.rs"]
mod own_engine;
mod postgres;
#[path = "../setup/postgres.rs"]
mod postgres_server;
mod resources;
#[path = "../setup/s3.rs"]
mod s3_server;
mod sandboxes;
mod session_ids;
mod sessions;
mod survival;
mod templates;
mod walk;
mod wire;
mod workspaces;

/// What the sandboxes are made by, where a test says nothing else.
const RUNTIME: &str = "linux";
