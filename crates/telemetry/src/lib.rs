//! What the operator sees: logs on standard error, metrics for Prometheus, and the layer that measures gRPC calls.
//!
//! Invariant: whatever is written here carries no token, no secret and nothing that a user ran or printed.

pub mod call;
pub mod logs;
pub mod metrics;
pub mod request_id;

pub use call::CallLayer;
pub use logs::LogFormat;
pub use metrics::Metrics;
