//! The directory: where each acquired sandbox is and whose it is, which nodes are alive, and short-lived claims.
//!
//! A node writes its sandboxes once they are usable and renews itself; an entry whose time has passed is not there, so
//! that what a dead node left is gone by itself. The node stays the authority on what a sandbox is doing.
//!
//! An entry may end before its time: the sandbox is gone, and its node still has what its executions printed.
//! Invariant: what has ended stays ended. A living entry that is written over it, late, changes nothing; it is removed,
//! or its time passes.

#[cfg(test)]
pub(crate) mod conformance;
pub mod memory;
pub mod redis;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use cloud_sandbox_model::{Limits, NodeId, SandboxId};
use serde::{Deserialize, Serialize};

use crate::error::StorageError;

/// An acquired sandbox.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxEntry {
    /// the sandbox
    pub id: SandboxId,
    /// the tenant it belongs to
    pub tenant: String,
    /// the user it belongs to
    pub user: String,
    /// the node that hosts it
    pub node: NodeId,
    /// where the node serves node.v1
    pub node_address: String,
    /// what it was made from
    pub template: String,
    /// what made it; empty where its node was of a version that did not say
    pub runtime: String,
    /// whether its processes are frozen
    pub paused: bool,
    /// has ended; what its executions printed can still be read on its node until `expires_at`
    pub ended: bool,
    /// the limits in force
    pub limits: Limits,
    /// the owner's labels
    pub metadata: BTreeMap<String, String>,
    /// when it was acquired
    pub acquired_at: SystemTime,
    /// when its lease ends, or when its node drops what an ended one printed
    pub expires_at: SystemTime,
}

/// For how long a living entry is found beyond its lease. Its node tells callers how it ended before the directory knows,
/// and they may ask at once for what it printed.
pub(crate) const ENDS_WITHIN: Duration = Duration::from_secs(30);

impl SandboxEntry {
    /// Whether it is to be found at `now`.
    pub(crate) fn is_there(&self, now: SystemTime) -> bool {
        now < if self.ended { self.expires_at } else { self.expires_at + ENDS_WITHIN }
    }
}

/// A node that is alive, as it last reported itself.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeEntry {
    /// the node
    pub id: NodeId,
    /// where it serves node.v1
    pub address: String,
    /// the templates that it knows, and how far it is with each
    pub templates: Vec<NodeTemplate>,
    /// warm sandboxes
    pub ready: u32,
    /// owned sandboxes, paused included
    pub acquired: u32,
    /// of these, paused ones
    pub paused: u32,
    /// sandboxes being made
    pub creating: u32,
    /// how many sandboxes may exist at most
    pub capacity: u32,
    /// takes no more because it is shutting down
    pub draining: bool,
    /// its machine is short of memory: what can give some back should
    pub low_memory: bool,
}

/// How far a node is with a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeTemplate {
    /// its reference: `python@3`, `host`
    pub reference: String,
    /// how far it is
    pub state: TemplateState,
    /// the runtime that its sandboxes have, once it is ready
    pub runtime: String,
    /// what is being done, or why it failed
    pub detail: String,
    /// bytes of that which are done
    pub done_bytes: u64,
    /// bytes that there are; 0 where that is not known
    pub total_bytes: u64,
    /// it failed for nothing but that no runtime of its is there
    #[serde(default)]
    pub runtime_unavailable: bool,
}

impl NodeTemplate {
    /// One that sandboxes can be made from.
    #[must_use]
    pub fn ready(reference: impl Into<String>, runtime: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            state: TemplateState::Ready,
            runtime: runtime.into(),
            detail: String::new(),
            done_bytes: 0,
            total_bytes: 0,
            runtime_unavailable: false,
        }
    }
}

/// How far something is with a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateState {
    /// being pulled, imported or unpacked
    Preparing,
    /// sandboxes can be made from it
    Ready,
    /// it could not be prepared, and is tried again from time to time
    Failed,
}

/// Which living sandboxes to list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SandboxFilter {
    /// of this tenant
    pub tenant: String,
    /// of this user; of all when `None`
    pub user: Option<String>,
    /// of this template, in any version where it names none; of all when `None`
    pub template: Option<String>,
    /// paused ones or running ones; both when `None`
    pub paused: Option<bool>,
    /// with each of these labels
    pub metadata: Vec<(String, String)>,
}

impl SandboxFilter {
    /// Whether `entry` is one of those wanted; one that has ended never is.
    #[must_use]
    pub fn matches(&self, entry: &SandboxEntry) -> bool {
        !entry.ended
            && entry.tenant == self.tenant
            && self.user.as_ref().is_none_or(|user| *user == entry.user)
            && self.template.as_ref().is_none_or(|template| is_of(&entry.template, template))
            && self.paused.is_none_or(|paused| paused == entry.paused)
            && self.metadata.iter().all(|(key, value)| entry.metadata.get(key) == Some(value))
    }
}

/// Whether the template `reference` is the one that is called `name`, with or without a version.
fn is_of(reference: &str, name: &str) -> bool {
    reference == name || reference.strip_prefix(name).is_some_and(|rest| rest.starts_with('@'))
}

/// What came of a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claim {
    /// It is the caller's.
    Won,
    /// Somebody has claimed the key before; this is the value given then.
    Held(String),
}

/// Where sandboxes are.
#[async_trait]
pub trait Directory: Send + Sync + 'static {
    /// Writes a sandbox, new or again. The entry goes some time after its lease. Nothing is written where a living entry
    /// would replace one that has ended.
    async fn put_sandbox(&self, entry: &SandboxEntry) -> Result<(), StorageError>;

    /// Removes a sandbox; one that is not there is removed already.
    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StorageError>;

    /// A sandbox; it may have ended, and its lease may have been over for a moment.
    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxEntry>, StorageError>;

    /// At most `limit` living sandboxes that match, in order of their ids, those after `after` only.
    async fn sandboxes(
        &self,
        filter: &SandboxFilter,
        after: Option<SandboxId>,
        limit: usize,
    ) -> Result<Vec<SandboxEntry>, StorageError>;

    /// Reports a node; it counts as dead when it has not reported again within `ttl`.
    async fn put_node(&self, entry: &NodeEntry, ttl: Duration) -> Result<(), StorageError>;

    /// Removes a node that says goodbye.
    async fn remove_node(&self, id: NodeId) -> Result<(), StorageError>;

    /// The nodes that are alive, in order of their ids.
    async fn nodes(&self) -> Result<Vec<NodeEntry>, StorageError>;

    /// Claims `key` with `value` for `ttl`, unless somebody has.
    async fn claim(&self, key: &str, value: &str, ttl: Duration) -> Result<Claim, StorageError>;

    /// Gives up a claim if it still has `value`.
    async fn unclaim(&self, key: &str, value: &str) -> Result<(), StorageError>;

    /// Whether the store answers.
    async fn check(&self) -> Result<(), StorageError>;
}
