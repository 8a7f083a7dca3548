//! Generated code and descriptor set of the contracts in `proto/`, nothing else.

// tonic writes full paths so that its code compiles anywhere
#![allow(unused_qualifications)]

/// The whole descriptor set, imports, comments and `google.api.http` annotations included, as encoded protobuf.
pub const DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor_set.bin"));

/// `cloud_sandbox.v1`: what clients call.
#[allow(clippy::all)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/cloud_sandbox.v1.rs"));
}

/// `cloud_sandbox.checkpoint.v1`: what checkpoints are made of, as it is stored.
pub mod checkpoint {
    #[allow(clippy::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/cloud_sandbox.checkpoint.v1.rs"));
    }
}

/// `cloud_sandbox.node.v1`: what the control plane calls on a node.
pub mod node {
    #[allow(clippy::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/cloud_sandbox.node.v1.rs"));
    }
}

/// `cloud_sandbox.agent.v1`: what a node calls inside a sandbox.
pub mod agent {
    #[allow(clippy::all)]
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/cloud_sandbox.agent.v1.rs"));
    }
}
