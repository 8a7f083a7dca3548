//! The proxy of a sandbox, over real sockets. Public hosts are addresses for documentation that a test's upstream connects to
//! listeners of the test.

#![allow(clippy::unwrap_used)]

mod bounds;
mod changes;
mod forward;
mod hostile;
mod policy;
mod timeouts;
mod tunnel;
mod world;
