//! Sandboxes that have ended and whose executions can still be asked for, also those of earlier processes of this node.
//!
//! Invariant: a sandbox is here from before it leaves the table of those that are there until the last of its
//! executions is past its time, or it is released.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use cloud_sandbox_journal::{Journal, Recovered};
use cloud_sandbox_model::{
    Limits, SandboxId,
    error::{Error, ErrorKind, reason},
};
use cloud_sandbox_rpc::limits_of;
use cloud_sandbox_storage::SandboxEntry;
use prost::Message;

use crate::{
    executions::{Executions, Owned},
    options::Options,
};

/// The word for sandboxes whose node's process ended without a word.
const NODE_ENDED: &str = "node";

/// A sandbox that has ended.
pub(crate) struct Archived {
    pub(crate) id: SandboxId,
    pub(crate) executions: Arc<Executions>,
    owned: Owned,
    ended_at: SystemTime,
    /// whether the directory has it as one that has ended
    pub(crate) listed: AtomicBool,
}

impl Archived {
    pub(crate) fn new(id: SandboxId, executions: Arc<Executions>, owned: Owned) -> Self {
        Self { id, executions, owned, ended_at: SystemTime::now(), listed: AtomicBool::new(false) }
    }

    /// What an earlier process left of a sandbox; none when nobody knows whose it was, or nothing of it can be read.
    pub(crate) fn recovered(journal: &Journal, left: &Recovered) -> Option<Self> {
        let mut owned = Owned::decode(left.blob.clone()?).ok()?;
        if owned.cause.is_empty() {
            NODE_ENDED.clone_into(&mut owned.cause);
            "its node ended".clone_into(&mut owned.cause_text);
        }
        let executions = Executions::recovered(journal.clone(), left);
        let ended_at = left.logs.iter().filter_map(|log| log.log.ended_at()).max()?;
        let archived = Self { id: left.sandbox, executions, owned, ended_at, listed: AtomicBool::new(false) };
        (!archived.executions.is_empty()).then_some(archived)
    }

    /// Why nothing can be done in it any more.
    pub(crate) fn gone_error(&self) -> Error {
        gone(self.id, &self.owned.cause, &self.owned.cause_text).before_it_began()
    }

    /// What the directory has of it, until the last of its executions is past its time.
    pub(crate) fn entry(&self, options: &Options) -> SandboxEntry {
        SandboxEntry {
            id: self.id,
            tenant: self.owned.tenant.clone(),
            user: self.owned.user.clone(),
            node: options.id,
            node_address: options.address.clone(),
            template: self.owned.template.clone(),
            runtime: self.owned.runtime.clone(),
            paused: false,
            ended: true,
            // an earlier version did not know all of them, and its sandboxes had the defaults of the others
            limits: Limits::DEFAULT.with(limits_of(self.owned.limits.unwrap_or_default())),
            metadata: BTreeMap::new(),
            acquired_at: SystemTime::UNIX_EPOCH + Duration::from_secs(self.owned.acquired_at),
            expires_at: self.expires_at(options),
        }
    }

    /// Whether its entry has gone with its time.
    pub(crate) fn has_left_directory(&self, options: &Options) -> bool {
        self.is_listed() && self.expires_at(options) <= SystemTime::now()
    }

    fn expires_at(&self, options: &Options) -> SystemTime {
        self.ended_at + options.journal.retention
    }

    pub(crate) fn is_listed(&self) -> bool {
        self.listed.load(Ordering::Relaxed)
    }
}

/// What is told of a sandbox that is gone.
pub(crate) fn gone(id: SandboxId, cause: &str, text: &str) -> Error {
    Error::new(ErrorKind::NotFound, reason::SANDBOX_GONE, format!("sandbox {id} is gone: {text}"))
        .with_metadata("cause", cause)
}

/// The sandboxes of a node that have ended.
#[derive(Default)]
pub(crate) struct Archive(Mutex<HashMap<SandboxId, Arc<Archived>>>);

impl Archive {
    pub(crate) fn insert(&self, archived: Archived) -> Arc<Archived> {
        let archived = Arc::new(archived);
        self.all_mut().insert(archived.id, Arc::clone(&archived));
        archived
    }

    pub(crate) fn get(&self, id: SandboxId) -> Option<Arc<Archived>> {
        self.all_mut().get(&id).cloned()
    }

    pub(crate) fn remove(&self, id: SandboxId) -> Option<Arc<Archived>> {
        self.all_mut().remove(&id)
    }

    /// Those of which nothing is kept any more.
    pub(crate) fn empty(&self) -> Vec<Arc<Archived>> {
        self.all_mut().values().filter(|archived| archived.executions.is_empty()).cloned().collect()
    }

    /// Those that the directory does not have yet.
    pub(crate) fn unlisted(&self) -> Vec<Arc<Archived>> {
        let missing = |archived: &&Arc<Archived>| !archived.is_listed() && !archived.executions.is_empty();
        self.all_mut().values().filter(missing).cloned().collect()
    }

    fn all_mut(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Archived>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
