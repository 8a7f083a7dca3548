//! ExecService, ContextService and FileService against a simulated node, called as clients call them: through generated
//! clients.

#![allow(clippy::unwrap_used)]

mod calls;
mod executions;
mod files;
mod lost;
mod network;
mod support;
