//! Copies of directory entries, for a second: a client that works in a sandbox asks for the same one again and again.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_storage::SandboxEntry;

const KEPT_FOR: Duration = Duration::from_secs(1);
const KEPT_MAX: usize = 4096;

#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<HashMap<SandboxId, (Instant, SandboxEntry)>>);

impl Copies {
    pub(crate) fn get(&self, id: SandboxId) -> Option<SandboxEntry> {
        let copies = self.lock();
        copies.get(&id).filter(|(made, _)| made.elapsed() < KEPT_FOR).map(|(_, entry)| entry.clone())
    }

    pub(crate) fn put(&self, entry: &SandboxEntry) {
        let mut copies = self.lock();
        if copies.len() >= KEPT_MAX {
            copies.retain(|_, (made, _)| made.elapsed() < KEPT_FOR);
        }
        // more sandboxes than that within a second: the rest goes without
        if copies.len() < KEPT_MAX {
            copies.insert(entry.id, (Instant::now(), entry.clone()));
        }
    }

    pub(crate) fn remove(&self, id: SandboxId) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SandboxId, (Instant, SandboxEntry)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
