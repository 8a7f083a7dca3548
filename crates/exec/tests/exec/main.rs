//! ExecService, ContextService and FileService against a simulated node, called as clients call them: through generated
//! clients.

#![allow(clippy::unwrap_used)]

mod calls;
mod executions;
mod fake_sessions;
mod files;
mod lost;
mod moved_sessions;
mod network;
mod sessions;
mod support;
