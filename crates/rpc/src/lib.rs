//! How services meet: one mapping of errors to gRPC status, one type of upstream for in-process and remote calls, and
//! what travels with a call from service to service.

pub mod context;
pub mod dial;
pub mod limits;
pub mod network;
pub mod status;
pub mod template;
pub mod upstream;

pub use context::CallContext;
pub use dial::{Dial, LocalDial, RemoteDial};
pub use limits::{limits_message, limits_of};
pub use network::{network_message, network_policy};
pub use status::{from_status, to_status};
pub use template::{requested_template, template_message};
pub use upstream::{TransportError, Upstream, connect, in_process};
