//! The life of sessions: made with a sandbox, paused, saved, resumed, forked, deleted.
//!
//! What takes several steps is a saga over the session's row ([`pilot`]): each step is written to the store before it is
//! taken and again when it is done, over the version it was decided on. So a crash between two steps leaves a session
//! that says what it was on its way to, and the [`SessionKeeper`] finishes or undoes that; of two calls that act on one
//! session at once, one waits for the other.
//!
//! Invariant: the last complete checkpoint stands until the next one is recorded, and a session is never in two
//! sandboxes: the one that it is given up for is named in its row until it is released.

mod bring_up;
mod change;
mod create;
mod delete;
mod due;
mod hosts;
mod keeper;
mod life;
mod options;
mod pause;
mod pilot;
mod recover;
mod resume;
mod retention;
mod service;
pub mod steps;
mod timeouts;
mod wire;

pub use keeper::SessionKeeper;
pub use life::{Parts, Sessions};
pub use options::Options;
pub use service::SessionService;
