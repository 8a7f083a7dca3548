//! The edge over real sockets, in front of small services that implement the generated traits.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail as its body does")]

mod auth;
mod downloads;
mod errors;
mod fakes;
mod file_urls;
mod fuzz;
mod grpc;
mod limits;
mod operational;
mod rest;
mod streams;
mod support;
mod templates;
mod throughput;
mod uploads;
