//! Placement, and the services that acquire sandboxes and release them, and keep what they are made from.
//!
//! The scheduler ranks nodes by what they last reported, then asks: whether a node has room is the node's to say.
//! Templates lie in their store, and nothing else is kept here, so any number of schedulers run side by side.

mod acquire;
mod listing;
pub mod placement;
mod service;
mod templates;

pub use service::SchedulerService;
pub use templates::{TemplateOptions, TemplatePublisher, TemplateService, Templates};
