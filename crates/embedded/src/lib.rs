//! The static programs of a sandbox, carried in the server's own file, so that one binary is the whole system.

/// The agent: the first process inside every sandbox.
pub const AGENT: &[u8] = include_bytes!(env!("CLOUD_SANDBOX_AGENT_PATH"));

/// The jailer: builds a sandbox around itself and becomes its agent.
pub const JAILER: &[u8] = include_bytes!(env!("CLOUD_SANDBOX_JAILER_PATH"));
