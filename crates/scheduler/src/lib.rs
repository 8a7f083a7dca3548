//! Placement, and the service that acquires sandboxes and releases them.
//!
//! The scheduler ranks nodes by what they last reported, then asks: whether a node has room is the node's to say.
//! Nothing is kept here, so any number of schedulers run side by side.

mod acquire;
mod listing;
pub mod placement;
mod service;

pub use service::SchedulerService;
