//! The life of sessions: made with a sandbox, paused, resumed, deleted.
//!
//! Each step is written to the store before it is taken and again when it is done, over the version it was decided on.
//! So a crash between two steps leaves a session that says what it was on its way to, and the [`SessionReconciler`]
//! brings it to where its sandbox says that it is; of two calls that act on one session at once, one is told to try
//! again. A lost sandbox is nobody's for at most its lease.

mod create;
mod life;
mod reconciler;
mod service;

pub use reconciler::SessionReconciler;
pub use service::SessionService;
