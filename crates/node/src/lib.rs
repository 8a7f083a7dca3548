//! One machine's side of the system: keeps a pool of warm sandboxes, owns what each sandbox does from its making to its
//! destruction, runs what callers send, and keeps a journal of what that printed. It serves `node.v1` for the lives of
//! its sandboxes, and the public ExecService, ContextService and FileService for what is done inside them.
//!
//! The node alone decides whether it has room and knows what its sandboxes are doing; the directory holds copies for
//! others to find them by. Who may call is decided before a call comes here.
//!
//! Invariant: every sandbox has one owner task that lives until the runtime has destroyed it. Every acquired one has a
//! lease. So nothing is left behind by a lost reply, a caller that hung up, or an orderly shutdown; what a crash left
//! is destroyed at the next start.
//!
//! Invariant: every execution is in the journal before it can have begun, and has one driver that ends it. So a
//! `request_id` runs once at most, every stream ends, and what was printed outlives the sandbox and this process.

mod acquire;
mod agent;
mod archive;
mod checkpoints;
mod claims;
mod contents;
mod contexts;
mod executions;
mod files;
mod fingerprint;
mod interactive;
mod keeper;
mod languages;
mod node;
mod options;
mod own_addresses;
mod pool;
mod report;
mod runtimes;
mod sandbox;
mod service;
mod signals;
mod templates;
mod walls;

#[cfg(test)]
mod tests;

pub use node::Node;
pub use options::{
    AGENT_DEADLINE, CREATE_PARALLELISM, DIRECTORY_DEADLINE, IMAGE, JOURNAL_EXECUTION_BYTES, JOURNAL_RETENTION,
    JOURNAL_SWEEP_INTERVAL, JOURNAL_TOTAL_BYTES, JournalOptions, KILL_GRACE, Options, POOL_MAX, POOL_MIN,
    RELEASE_PATIENCE, REPORT_INTERVAL,
};
pub use runtimes::Runtimes;
pub use service::{ContextService, ExecService, FileService, NodeService};
pub use walls::try_walls;
