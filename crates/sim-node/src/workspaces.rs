//! A workspace store in memory.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use cloud_sandbox_model::CheckpointId;
use cloud_sandbox_storage::{StorageError, WorkspaceStore};

type Folders = BTreeMap<CheckpointId, BTreeMap<String, Bytes>>;

/// A workspace store in memory.
#[derive(Debug, Default)]
pub struct MemoryWorkspaces(Mutex<Folders>);

impl MemoryWorkspaces {
    fn lock(&self) -> MutexGuard<'_, Folders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The folders that there are.
    #[must_use]
    pub fn all(&self) -> Vec<CheckpointId> {
        self.lock().keys().copied().collect()
    }

    /// Changes every object of a folder.
    pub fn damage(&self, folder: CheckpointId) {
        for object in self.lock().entry(folder).or_default().values_mut() {
            *object = Bytes::from_static(b"damaged");
        }
    }
}

#[tonic::async_trait]
impl WorkspaceStore for MemoryWorkspaces {
    async fn put(&self, folder: CheckpointId, name: &str, content: Bytes) -> Result<(), StorageError> {
        self.lock().entry(folder).or_default().insert(name.to_owned(), content);
        Ok(())
    }

    async fn get(&self, folder: CheckpointId, name: &str) -> Result<Option<Bytes>, StorageError> {
        Ok(self.lock().get(&folder).and_then(|objects| objects.get(name)).cloned())
    }

    async fn read(&self, folder: CheckpointId, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StorageError> {
        let object = self.get(folder, name).await?;
        let within = |bytes: Bytes| {
            let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
            (start <= end && end <= bytes.len()).then(|| bytes.slice(start..end))
        };
        Ok(object.and_then(within))
    }

    async fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, StorageError> {
        let folders = self.lock();
        Ok(folders.keys().filter(|id| after.is_none_or(|after| **id > after)).take(limit).copied().collect())
    }

    async fn delete(&self, folder: CheckpointId) -> Result<(), StorageError> {
        self.lock().remove(&folder);
        Ok(())
    }

    async fn check(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
