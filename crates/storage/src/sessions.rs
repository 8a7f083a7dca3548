//! Sessions as they are stored. The session service alone writes them.
//!
//! Invariant: every write names the version it was decided on, and a stale one is refused. So of two replicas that act
//! on the same session at once, one finds that it was too late.

#[cfg(test)]
pub(crate) mod conformance;
pub mod postgres;
mod sql;
pub mod sqlite;

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use cloud_sandbox_model::{SandboxId, SessionId, SessionState};

use crate::error::StorageError;

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// the session
    pub id: SessionId,
    /// the tenant it belongs to
    pub tenant: String,
    /// the user it belongs to
    pub user: String,
    /// what it is doing
    pub state: SessionState,
    /// the sandbox that holds it
    pub sandbox: Option<SandboxId>,
    /// what it was made from
    pub template: String,
    /// the owner's labels
    pub metadata: BTreeMap<String, String>,
    /// why it failed; empty unless it did
    pub failure: String,
    /// what makes a retry of its create return it; one session of a user has it
    pub request_id: Option<String>,
    /// what was asked for when it was created, to tell a retry from another request
    pub request_fingerprint: String,
    /// when it was created, in whole milliseconds
    pub created_at: SystemTime,
    /// when it was last written, in whole milliseconds
    pub updated_at: SystemTime,
    /// how often it has been written; a new one is 1
    pub version: i64,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionFilter {
    /// of this tenant; of all when `None`, which is for the reconciler alone
    pub tenant: Option<String>,
    /// of this user; of all when `None`
    pub user: Option<String>,
    /// in one of these states; in any when empty
    pub states: Vec<SessionState>,
    /// not written since; whenever when `None`
    pub idle_since: Option<SystemTime>,
    /// with each of these labels
    pub metadata: Vec<(String, String)>,
}

/// What came of an insert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inserted {
    /// It is stored.
    New,
    /// The user has a session with this `request_id`: here it is. Nothing was stored.
    Existing(Box<SessionRecord>),
}

/// Where sessions are.
#[async_trait]
pub trait SessionStore: Send + Sync + 'static {
    /// Stores a new session, unless the user's `request_id` has made one.
    async fn insert(&self, record: &SessionRecord) -> Result<Inserted, StorageError>;

    /// A session.
    async fn get(&self, id: SessionId) -> Result<Option<SessionRecord>, StorageError>;

    /// At most `limit` sessions that match, in order of their ids, those after `after` only.
    async fn list(
        &self,
        filter: &SessionFilter,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionRecord>, StorageError>;

    /// Writes a session over its version `record.version`; the store then has the next version. `false`, and nothing
    /// written, when the store has another version or no such session. What never changes (owner, template, request,
    /// when it was created) is not written.
    async fn update(&self, record: &SessionRecord) -> Result<bool, StorageError>;

    /// Deletes version `version` of a session. `false` when the store has another; a session that is not there is
    /// deleted already.
    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError>;

    /// Whether the store answers and takes writes.
    async fn check(&self) -> Result<(), StorageError>;

    /// Ends the store's connections after what is under way.
    async fn close(&self);
}

/// `time` as stores keep it.
#[must_use]
pub fn to_millis(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// The time that a store kept.
#[must_use]
pub fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}
