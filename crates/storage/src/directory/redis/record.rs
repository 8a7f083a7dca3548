//! Entries as they are stored. Unknown fields are ignored, so that a newer version may add some while an older one
//! still reads.

use std::{collections::BTreeMap, time::SystemTime};

use cloud_sandbox_model::Limits;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::STORE;
use crate::{
    directory::{NodeEntry, NodeTemplate, SandboxEntry},
    error::StorageError,
};

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    id: String,
    pub(super) tenant: String,
    user: String,
    node: String,
    node_address: String,
    template: String,
    #[serde(default)]
    runtime: String,
    paused: bool,
    #[serde(default)]
    ended: bool,
    memory_bytes: u64,
    cpu_millis: u32,
    pids: u32,
    disk_bytes: u64,
    #[serde(default = "open_files")]
    open_files: u32,
    #[serde(default = "output_bytes")]
    output_bytes: u64,
    #[serde(default = "execution_seconds")]
    execution_seconds: u32,
    #[serde(default = "cpu_weight")]
    cpu_weight: u32,
    metadata: BTreeMap<String, String>,
    acquired_at: SystemTime,
    expires_at: SystemTime,
}

impl From<&SandboxEntry> for SandboxRecord {
    fn from(entry: &SandboxEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            tenant: entry.tenant.clone(),
            user: entry.user.clone(),
            node: entry.node.to_string(),
            node_address: entry.node_address.clone(),
            template: entry.template.clone(),
            runtime: entry.runtime.clone(),
            paused: entry.paused,
            ended: entry.ended,
            memory_bytes: entry.limits.memory_bytes,
            cpu_millis: entry.limits.cpu_millis,
            pids: entry.limits.pids,
            disk_bytes: entry.limits.disk_bytes,
            open_files: entry.limits.open_files,
            output_bytes: entry.limits.output_bytes,
            execution_seconds: entry.limits.execution_seconds,
            cpu_weight: entry.limits.cpu_weight,
            metadata: entry.metadata.clone(),
            acquired_at: entry.acquired_at,
            expires_at: entry.expires_at,
        }
    }
}

impl SandboxRecord {
    pub(super) fn entry(self) -> Result<SandboxEntry, StorageError> {
        let Self { memory_bytes, cpu_millis, pids, disk_bytes, .. } = self;
        let Self { open_files, output_bytes, execution_seconds, cpu_weight, .. } = self;
        Ok(SandboxEntry {
            id: self.id.parse().map_err(|_| corrupt(format!("sandbox id {:?}", self.id)))?,
            tenant: self.tenant,
            user: self.user,
            node: self.node.parse().map_err(|_| corrupt(format!("node id {:?}", self.node)))?,
            node_address: self.node_address,
            template: self.template,
            runtime: self.runtime,
            paused: self.paused,
            ended: self.ended,
            limits: Limits {
                memory_bytes,
                cpu_millis,
                pids,
                disk_bytes,
                open_files,
                output_bytes,
                execution_seconds,
                cpu_weight,
            },
            metadata: self.metadata,
            acquired_at: self.acquired_at,
            expires_at: self.expires_at,
        })
    }
}

/// What sandboxes of versions had that did not know this limit yet; so for those below.
fn open_files() -> u32 {
    Limits::DEFAULT.open_files
}

fn output_bytes() -> u64 {
    Limits::DEFAULT.output_bytes
}

fn execution_seconds() -> u32 {
    Limits::DEFAULT.execution_seconds
}

fn cpu_weight() -> u32 {
    Limits::DEFAULT.cpu_weight
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct NodeRecord {
    id: String,
    address: String,
    templates: Vec<NodeTemplate>,
    ready: u32,
    acquired: u32,
    paused: u32,
    creating: u32,
    capacity: u32,
    draining: bool,
    #[serde(default)]
    low_memory: bool,
}

impl From<&NodeEntry> for NodeRecord {
    fn from(entry: &NodeEntry) -> Self {
        Self {
            id: entry.id.to_string(),
            address: entry.address.clone(),
            templates: entry.templates.clone(),
            ready: entry.ready,
            acquired: entry.acquired,
            paused: entry.paused,
            creating: entry.creating,
            capacity: entry.capacity,
            draining: entry.draining,
            low_memory: entry.low_memory,
        }
    }
}

impl NodeRecord {
    pub(super) fn entry(self) -> Result<NodeEntry, StorageError> {
        Ok(NodeEntry {
            id: self.id.parse().map_err(|_| corrupt(format!("node id {:?}", self.id)))?,
            address: self.address,
            templates: self.templates,
            ready: self.ready,
            acquired: self.acquired,
            paused: self.paused,
            creating: self.creating,
            capacity: self.capacity,
            draining: self.draining,
            low_memory: self.low_memory,
        })
    }
}

fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { store: STORE, what: what.into() }
}

pub(super) fn write(record: &impl Serialize) -> Result<String, StorageError> {
    serde_json::to_string(record).map_err(|error| corrupt(format!("an entry to write: {error}")))
}

pub(super) fn read<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, StorageError> {
    serde_json::from_str(text).map_err(|error| corrupt(format!("{what}: {error}")))
}

/// One entry that cannot be read must not hide all others from a list.
pub(super) fn read_or_skip<T: DeserializeOwned>(text: &str, what: &str) -> Option<T> {
    let record = read(text, what);
    record.inspect_err(|error| tracing::warn!(%error, "skipped an entry of the directory")).ok()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_model::{NodeId, SandboxId};

    use super::*;

    #[test]
    fn entry_of_an_earlier_version_is_read_with_the_limits_that_it_had() {
        let text = r#"{"id": "ID", "tenant": "t", "user": "u", "node": "NODE",
            "node_address": "a", "template": "host", "paused": false, "memory_bytes": 1, "cpu_millis": 2, "pids": 3,
            "disk_bytes": 4, "metadata": {}, "acquired_at": {"secs_since_epoch": 0, "nanos_since_epoch": 0},
            "expires_at": {"secs_since_epoch": 0, "nanos_since_epoch": 0}}"#;
        let text = text.replace("ID", &SandboxId::generate().to_string());
        let text = text.replace("NODE", &NodeId::generate().to_string());
        let entry = read::<SandboxRecord>(&text, "an entry").unwrap().entry().unwrap();
        let own = Limits { memory_bytes: 1, cpu_millis: 2, pids: 3, disk_bytes: 4, ..Limits::DEFAULT };
        assert_eq!(entry.limits, own);
    }
}
