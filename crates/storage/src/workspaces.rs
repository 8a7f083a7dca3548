//! Where checkpoints lie: folders of objects, each folder named by a checkpoint. Nodes write and read them directly, so
//! that their bytes never pass through the control plane.
//!
//! Invariant: an object is there whole or not at all, and is never changed once it is there.

#[cfg(test)]
mod conformance;
pub mod file;
pub mod s3;

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sandbox_model::CheckpointId;

use crate::error::StorageError;

/// Where checkpoints lie. Names of objects are `[a-z0-9-]`, up to 64 of them.
#[async_trait]
pub trait WorkspaceStore: Send + Sync + 'static {
    /// Writes an object. One of that name is replaced.
    async fn put(&self, folder: CheckpointId, name: &str, content: Bytes) -> Result<(), StorageError>;

    /// An object; `None` when there is none.
    async fn get(&self, folder: CheckpointId, name: &str) -> Result<Option<Bytes>, StorageError>;

    /// Bytes of an object, counted from 0; `None` when there is no such object, or it ends before the range does.
    async fn read(&self, folder: CheckpointId, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StorageError>;

    /// At most `limit` folders in order, those after `after` only. What is no folder of ours is passed over.
    async fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, StorageError>;

    /// Deletes a folder with all its objects; one that is not there is deleted already.
    async fn delete(&self, folder: CheckpointId) -> Result<(), StorageError>;

    /// Whether the store answers and takes writes.
    async fn check(&self) -> Result<(), StorageError>;
}

/// The longest name of an object.
const NAME_MAX: usize = 64;

/// Whether an object may have this name. Nothing else reaches a path or an address.
fn is_name(name: &str) -> bool {
    let fits = (1..=NAME_MAX).contains(&name.len());
    fits && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

fn nameless(store: &'static str, name: &str) -> StorageError {
    StorageError::Refused { store, what: format!("no object is called {name:?}") }
}
