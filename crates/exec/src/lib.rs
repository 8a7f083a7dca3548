//! ExecService, ContextService and FileService at the edge of the control plane: authorise, find the node, relay.
//!
//! A node serves the same three services for its own sandboxes. Here each call is let through for those who may use the
//! sandbox, and goes to the node that hosts it, message by message, unchanged. `about` says of each message what it
//! is about; everything else is one function for each shape of call.
//!
//! A call names its sandbox, or the session that has it: the session manager is asked, in the caller's name, which one
//! that is now (`sessions`), and to resume it where the session says so. Nodes never hear of sessions.
//!
//! Nothing is kept here but copies for some seconds, and nothing is spawned: a call to a node lives in the call that it serves, so that whoever
//! hangs up ends it too. What paths, sizes and environments are good is the node's to say.

mod about;
mod context;
mod file;
mod input;
mod measure;
mod output;
mod place;
mod relay;
mod service;
mod sessions;

pub use context::ContextService;
pub use file::FileService;
pub use service::ExecService;
