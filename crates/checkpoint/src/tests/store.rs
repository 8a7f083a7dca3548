//! A store in memory, with faults.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sandbox_model::CheckpointId;
use cloud_sandbox_storage::{StorageError, WorkspaceStore};

#[derive(Default)]
pub(super) struct FakeStore {
    objects: Mutex<BTreeMap<(CheckpointId, String), Bytes>>,
    puts: AtomicUsize,
    written: AtomicU64,
    /// the put that fails, counted from 1
    pub(super) failing_put: AtomicUsize,
}

fn unavailable() -> StorageError {
    StorageError::Unavailable { store: "fake", source: "so the test wants".into() }
}

impl FakeStore {
    pub(super) fn names(&self, folder: CheckpointId) -> Vec<String> {
        let objects = self.objects.lock().unwrap();
        objects.keys().filter(|(of, _)| *of == folder).map(|(_, name)| name.clone()).collect()
    }

    pub(super) fn object(&self, folder: CheckpointId, name: &str) -> Bytes {
        self.objects.lock().unwrap()[&(folder, name.to_owned())].clone()
    }

    pub(super) fn replace(&self, folder: CheckpointId, name: &str, content: impl Into<Bytes>) {
        self.objects.lock().unwrap().insert((folder, name.to_owned()), content.into());
    }

    pub(super) fn remove(&self, folder: CheckpointId, name: &str) {
        self.objects.lock().unwrap().remove(&(folder, name.to_owned())).unwrap();
    }

    /// Bytes that puts have written so far.
    pub(super) fn written(&self) -> u64 {
        self.written.load(SeqCst)
    }

    pub(super) fn puts(&self) -> usize {
        self.puts.load(SeqCst)
    }
}

#[async_trait]
impl WorkspaceStore for FakeStore {
    async fn put(&self, folder: CheckpointId, name: &str, content: Bytes) -> Result<(), StorageError> {
        let number = self.puts.fetch_add(1, SeqCst) + 1;
        tokio::task::yield_now().await;
        if number == self.failing_put.load(SeqCst) {
            return Err(unavailable());
        }
        self.written.fetch_add(content.len() as u64, SeqCst);
        self.replace(folder, name, content);
        Ok(())
    }

    async fn get(&self, folder: CheckpointId, name: &str) -> Result<Option<Bytes>, StorageError> {
        Ok(self.objects.lock().unwrap().get(&(folder, name.to_owned())).cloned())
    }

    async fn read(&self, folder: CheckpointId, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StorageError> {
        let object = self.get(folder, name).await?;
        let whole = object.filter(|object| range.end <= object.len() as u64);
        Ok(whole.map(|object| object.slice(range.start as usize..range.end as usize)))
    }

    async fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, StorageError> {
        let mut all: Vec<_> = self.objects.lock().unwrap().keys().map(|(folder, _)| *folder).collect();
        all.dedup();
        Ok(all.into_iter().filter(|folder| after.is_none_or(|after| *folder > after)).take(limit).collect())
    }

    async fn delete(&self, folder: CheckpointId) -> Result<(), StorageError> {
        self.objects.lock().unwrap().retain(|(of, _), _| *of != folder);
        Ok(())
    }

    async fn check(&self) -> Result<(), StorageError> {
        Ok(())
    }
}
