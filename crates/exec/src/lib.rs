//! ExecService and FileService: authorise, find the node, relay.
//!
//! Nothing is kept here and nothing is spawned: a call to a node lives in the call that it serves, so that whoever
//! hangs up ends it too. What paths, sizes and environments are good is the node's to say.

mod file;
mod measure;
mod relay;
mod service;

pub use file::FileService;
pub use service::ExecService;
