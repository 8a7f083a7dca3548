//! The directory of one machine: in this process's memory, gone with it, as its sandboxes are.
//!
//! What has expired is never returned. It is purged by writes, at most once a second, so that reads stay cheap and
//! nothing grows without end.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use cloud_sandbox_model::{NodeId, SandboxId};

use super::{Claim, Directory, NodeEntry, SandboxEntry, SandboxFilter};
use crate::error::StorageError;

const PURGED_EVERY: Duration = Duration::from_secs(1);

/// A [`Directory`] in memory.
#[derive(Debug, Default)]
pub struct MemoryDirectory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    sandboxes: BTreeMap<SandboxId, SandboxEntry>,
    nodes: BTreeMap<NodeId, Expiring<NodeEntry>>,
    claims: HashMap<String, Expiring<String>>,
    purged_at: Option<Instant>,
}

#[derive(Debug)]
struct Expiring<T> {
    value: T,
    /// `None` is later than this machine can count
    until: Option<Instant>,
}

impl<T> Expiring<T> {
    fn new(value: T, ttl: Duration) -> Self {
        Self { value, until: Instant::now().checked_add(ttl) }
    }

    fn lives(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

impl State {
    fn purge(&mut self) {
        let now = Instant::now();
        if self.purged_at.is_some_and(|then| now.duration_since(then) < PURGED_EVERY) {
            return;
        }
        self.purged_at = Some(now);
        let clock = SystemTime::now();
        self.sandboxes.retain(|_, entry| entry.is_there(clock));
        self.nodes.retain(|_, node| node.lives(now));
        self.claims.retain(|_, claim| claim.lives(now));
    }
}

impl MemoryDirectory {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing under the lock is left half done by a panic, so a poisoned lock is as good as any.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Directory for MemoryDirectory {
    async fn put_sandbox(&self, entry: &SandboxEntry) -> Result<(), StorageError> {
        let mut state = self.state();
        state.purge();
        let ended = state.sandboxes.get(&entry.id).is_some_and(|known| known.ended);
        if entry.ended || !ended {
            state.sandboxes.insert(entry.id, entry.clone());
        }
        Ok(())
    }

    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StorageError> {
        self.state().sandboxes.remove(&id);
        Ok(())
    }

    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxEntry>, StorageError> {
        let now = SystemTime::now();
        Ok(self.state().sandboxes.get(&id).filter(|entry| entry.is_there(now)).cloned())
    }

    async fn sandboxes(
        &self,
        filter: &SandboxFilter,
        after: Option<SandboxId>,
        limit: usize,
    ) -> Result<Vec<SandboxEntry>, StorageError> {
        let now = SystemTime::now();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let state = self.state();
        let living = state.sandboxes.range((start, Bound::Unbounded)).map(|(_, entry)| entry);
        Ok(living.filter(|entry| now < entry.expires_at && filter.matches(entry)).take(limit).cloned().collect())
    }

    async fn put_node(&self, entry: &NodeEntry, ttl: Duration) -> Result<(), StorageError> {
        let mut state = self.state();
        state.purge();
        state.nodes.insert(entry.id, Expiring::new(entry.clone(), ttl));
        Ok(())
    }

    async fn remove_node(&self, id: NodeId) -> Result<(), StorageError> {
        self.state().nodes.remove(&id);
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<NodeEntry>, StorageError> {
        let now = Instant::now();
        let state = self.state();
        Ok(state.nodes.values().filter(|node| node.lives(now)).map(|node| node.value.clone()).collect())
    }

    async fn claim(&self, key: &str, value: &str, ttl: Duration) -> Result<Claim, StorageError> {
        let mut state = self.state();
        state.purge();
        if let Some(claim) = state.claims.get(key)
            && claim.lives(Instant::now())
        {
            return Ok(Claim::Held(claim.value.clone()));
        }
        state.claims.insert(key.to_owned(), Expiring::new(value.to_owned(), ttl));
        Ok(Claim::Won)
    }

    async fn unclaim(&self, key: &str, value: &str) -> Result<(), StorageError> {
        let mut state = self.state();
        if state.claims.get(key).is_some_and(|claim| claim.value == value) {
            state.claims.remove(key);
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::{ENDS_WITHIN, conformance};

    conformance::directory_suite!(((), MemoryDirectory::new()));

    #[tokio::test]
    async fn writes_purge_what_has_expired() {
        let directory = MemoryDirectory::new();
        let long_over = SystemTime::now() - ENDS_WITHIN;
        let entry = SandboxEntry { expires_at: long_over, ..conformance::entry("t", "u", Duration::ZERO) };
        directory.put_sandbox(&entry).await.unwrap();
        directory.claim("old", "1", Duration::ZERO).await.unwrap();
        directory.state().purged_at = None;
        directory.claim("new", "1", Duration::from_secs(9)).await.unwrap();
        let state = directory.state();
        assert_eq!((state.sandboxes.len(), state.claims.len()), (0, 1));
    }
}
