//! Sessions as they are stored. The session service alone writes them.
//!
//! Invariant: every write names the version it was decided on, and a stale one is refused. So of two replicas that act
//! on the same session at once, one finds that it was too late. What belongs to a write, its events and what becomes of
//! checkpoints, is written with it or not at all.

#[cfg(test)]
pub(crate) mod conformance;
mod details;
pub mod postgres;
mod sql;
pub mod sqlite;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use cloud_sandbox_model::{CheckpointId, SandboxId, SessionId, SessionState};

use crate::error::StorageError;
pub use details::{Depth, Flight, Paused, SessionDetails, TimeoutAction, WantedNetwork};

/// How many events of a session are kept.
pub const EVENTS_MAX: i64 = 1000;

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
    /// when somebody should look at it next, in whole milliseconds; never when `None`
    pub due_at: Option<SystemTime>,
    /// everything else
    pub details: SessionDetails,
}

/// A session's work at one moment, in the workspace store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// the checkpoint
    pub id: CheckpointId,
    /// the session that it is of
    pub session: SessionId,
    /// all of it is in the store; nobody but who writes it is told of one that is not
    pub complete: bool,
    /// the checkpoint that its manifest lies with: another one's after a fork
    pub folder: CheckpointId,
    /// BLAKE3 of the manifest; empty while it is not complete
    pub digest: Vec<u8>,
    /// what it builds on
    pub parent: Option<CheckpointId>,
    /// the checkpoints whose packs it needs; while it is being written, all that it may need
    pub packs: BTreeSet<CheckpointId>,
    /// files, folders and links in it
    pub files: u64,
    /// bytes of the files in it
    pub bytes: u64,
    /// bytes that were stored for it
    pub stored_bytes: u64,
    /// when it was made, in whole milliseconds
    pub created_at: SystemTime,
}

/// Something that happened to a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEvent {
    /// its number in the session, ascending
    pub sequence: i64,
    /// when, in whole milliseconds
    pub happened_at: SystemTime,
    /// a stable word
    pub kind: String,
    /// in words
    pub message: String,
}

/// What is written along with a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Along {
    /// what happened
    pub events: Vec<SessionEvent>,
    /// checkpoints that are new or have changed
    pub checkpoints: Vec<CheckpointRecord>,
    /// checkpoints that are not kept any more
    pub removed: Vec<CheckpointId>,
}

impl Along {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
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
    /// due to be looked at by then; whenever when `None`
    pub due_by: Option<SystemTime>,
    /// with each of these labels
    pub metadata: Vec<(String, String)>,
    /// in falling order of their ids
    pub newest_first: bool,
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
    async fn insert(&self, record: &SessionRecord, along: &Along) -> Result<Inserted, StorageError>;

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
    async fn update(&self, record: &SessionRecord, along: &Along) -> Result<bool, StorageError>;

    /// Says when to look at a session next, without a new version. `false` when the store has another version, or
    /// somebody else has said it meanwhile: of several who look at once, one finds that it is the one to do so.
    async fn postpone(&self, record: &SessionRecord, due_at: Option<SystemTime>) -> Result<bool, StorageError>;

    /// Deletes version `version` of a session, with its events and checkpoints. `false` when the store has another; a
    /// session that is not there is deleted already.
    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError>;

    /// At most `limit` events of a session, in order, those after `after` only.
    async fn events(&self, session: SessionId, after: i64, limit: usize) -> Result<Vec<SessionEvent>, StorageError>;

    /// The checkpoints of a session, oldest first, also those that are not complete.
    async fn checkpoints(&self, session: SessionId) -> Result<Vec<CheckpointRecord>, StorageError>;

    /// Every checkpoint in whose folder of the workspace store something lies that some session needs.
    async fn needed_folders(&self) -> Result<BTreeSet<CheckpointId>, StorageError>;

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
