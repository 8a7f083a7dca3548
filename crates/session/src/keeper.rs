//! The session keeper: every session that is due is looked at. What was left half-way is finished or undone, timeouts
//! are kept, leases renewed, frozen sessions checkpointed in time, and checkpoints that nobody needs deleted.
//!
//! It takes no input: it rereads the store and acts on what it finds, over the version that it read, so that any number
//! of them may run at once and none undoes what a call did meanwhile.

use std::time::{Duration, SystemTime};

use cloud_sandbox_model::{NodeId, Result, SandboxId, SessionState, error::chain};
use cloud_sandbox_proto::node::v1::GetSandboxResponse;
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::{
    SessionFilter, SessionRecord,
    sessions::{Depth, TimeoutAction},
};
use futures::{StreamExt, stream};

use crate::{
    bring_up::LEASE,
    change::{Change, event},
    due::{AGE_EVERY, LOOK_MAX},
    hosts::{is_gone, is_missing},
    life::{SANDBOX_ENDED, Sessions, now},
    pause::After,
    timeouts::{self, Verdict},
};

const BATCH: usize = 100;
/// How many sessions are looked at at once: each may wait for its node.
const AT_ONCE: usize = 16;
/// When a session is looked at again that could not be dealt with.
const AGAIN_AFTER: Duration = Duration::from_secs(15);
/// How many sessions of a node that shuts down are saved at once.
const EVACUATED_AT_ONCE: usize = 4;
/// How often is looked for nodes that shut down or are short of memory.
const NODES_EVERY: Duration = Duration::from_secs(2);

/// Keeps true that every session is where its owner and its time say.
#[derive(Clone)]
pub struct SessionKeeper {
    sessions: Sessions,
}

impl SessionKeeper {
    /// A keeper of `sessions`.
    #[must_use]
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }

    /// Looks now and then, until `shutdown`. A round that fails is logged; the next one begins anew.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let looking = async {
            if self.sessions.options.alone {
                self.look_at(SessionFilter::default(), |record| {
                    record.sandbox.is_some() || record.details.flight.is_some()
                })
                .await;
            }
            loop {
                self.round().await;
                tokio::time::sleep(self.sessions.options.look_every).await;
            }
        };
        let collecting = async {
            loop {
                let _ = tokio::time::timeout(self.sessions.options.collect_every, self.sessions.superfluous.notified())
                    .await;
                self.collect().await;
            }
        };
        let relieving = async {
            loop {
                self.relieve_nodes().await;
                tokio::time::sleep(NODES_EVERY).await;
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = looking => {}
            () = collecting => {}
            () = relieving => {}
        }
    }

    /// Looks at what is due.
    pub async fn round(&self) {
        let due = SessionFilter { due_by: Some(SystemTime::now()), ..SessionFilter::default() };
        self.look_at(due, |_| true).await;
    }

    async fn look_at(&self, filter: SessionFilter, wanted: impl Fn(&SessionRecord) -> bool) {
        let mut after = None;
        loop {
            let found = match self.sessions.store.list(&filter, after, BATCH).await {
                Ok(found) => found,
                Err(error) => return tracing::warn!(error = chain(&error), "failed to list sessions to look at"),
            };
            after = found.last().map(|record| record.id);
            let last = found.len() < BATCH;
            let looks = found.into_iter().filter(|record| wanted(record)).map(|record| async {
                let (id, state) = (record.id, record.state.as_str());
                if let Err(error) = self.look(record).await {
                    tracing::warn!(session_id = %id, state, error = chain(&error), "failed to look after a session; it is tried again");
                }
            });
            stream::iter(looks).buffer_unordered(AT_ONCE).collect::<()>().await;
            if last {
                return;
            }
        }
    }

    /// Looks at one session, unless another keeper does.
    async fn look(&self, record: SessionRecord) -> Result<()> {
        let sessions = &self.sessions;
        let again = Some(now() + AGAIN_AFTER);
        if !sessions.store.postpone(&record, again).await? {
            return Ok(());
        }
        let record = SessionRecord { due_at: again, ..record };
        if sessions.is_left(&record, SystemTime::now()) {
            return sessions.recover(&record).await;
        }
        if record.details.flight.is_some() {
            return Ok(());
        }
        let record = match sessions.release_discarded(&record).await {
            Ok(released) => released,
            // the node of its old sandbox says nothing of where it is now
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(session_id = %record.id, error, "failed to release a session's old sandbox; it is tried again");
                record
            }
        };
        let frozen = record.details.paused.is_none_or(|paused| paused.depth == Depth::Frozen);
        match (record.state, record.sandbox) {
            (SessionState::Running, Some(sandbox)) => self.look_at_running(record, sandbox).await,
            (SessionState::Paused, Some(sandbox)) if frozen => self.look_at_frozen(record, sandbox).await,
            (SessionState::Running, None) => sessions.fail(record, SANDBOX_ENDED).await.map(drop),
            _ => self.age(record).await,
        }
    }

    async fn look_at_running(&self, record: SessionRecord, sandbox: SandboxId) -> Result<()> {
        let Some((record, seen)) = self.see(record, sandbox).await? else { return Ok(()) };
        let now = now();
        let last = seen.activity.and_then(|activity| SystemTime::try_from(activity.last_active_time?).ok());
        let idle = last.and_then(|last| now.duration_since(last).ok()).unwrap_or_default();
        let (kind, why) = match timeouts::running(&record, now, idle, LOOK_MAX) {
            Verdict::Keep { until } => return self.keep(&record, until).await,
            Verdict::Idle(idle) => (event::IDLE_TIMEOUT, format!("it was not used for {} seconds", idle.as_secs())),
            Verdict::Expired | Verdict::FrozenForLong => {
                (event::TIMEOUT, format!("it has run for its {} seconds", record.details.timeout_seconds))
            }
        };
        match record.details.on_timeout {
            TimeoutAction::Pause => {
                let told = format!("{why}: paused, checkpointed");
                self.sessions.save(&CallContext::default(), &record, After::Paused, (kind, told)).await.map(drop)
            }
            TimeoutAction::Delete => {
                tracing::info!(session_id = %record.id, why, "session is deleted at its timeout");
                match self.sessions.begin_delete(&record).await? {
                    Some(pilot) => pilot.delete().await,
                    None => Ok(()),
                }
            }
        }
    }

    async fn look_at_frozen(&self, record: SessionRecord, sandbox: SandboxId) -> Result<()> {
        let Some((record, _)) = self.see(record, sandbox).await? else { return Ok(()) };
        match timeouts::frozen(&record, now(), LOOK_MAX, &self.sessions.options) {
            Verdict::Keep { until } => self.keep(&record, until).await,
            _ => self.deepen(&record, "it was frozen for long").await,
        }
    }

    /// Checkpoints a session that is frozen, and says what that costs.
    async fn deepen(&self, record: &SessionRecord, why: &str) -> Result<()> {
        let told = format!("{why}: checkpointed; its processes are gone, its next resume says which");
        self.sessions.save(&CallContext::default(), record, After::Paused, (event::DEEPENED, told)).await.map(drop)
    }

    /// The sandbox as its node knows it, with a lease that is long again. `None` when it is not there, which the session
    /// then knows, or when nobody knows where it is.
    async fn see(
        &self,
        record: SessionRecord,
        sandbox: SandboxId,
    ) -> Result<Option<(SessionRecord, GetSandboxResponse)>> {
        let sessions = &self.sessions;
        let seen = match sessions.hosts.look(sandbox, record.details.node).await {
            Ok(seen) => seen,
            Err(error) if is_gone(&error) => {
                sessions.fail(record, SANDBOX_ENDED).await?;
                return Ok(None);
            }
            Err(error) if is_missing(&error) => {
                sessions.note_missing(record).await?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let lease_end = seen.sandbox.as_ref().and_then(|sandbox| SystemTime::try_from(sandbox.expire_time?).ok());
        let long = lease_end.is_some_and(|end| end > SystemTime::now() + Duration::from_secs(u64::from(LEASE) / 2));
        if !long {
            sessions.hosts.keep_alive(sandbox, record.details.node, LEASE).await?;
        }
        if record.details.missing_since.is_none() && record.details.node.is_some() {
            return Ok(Some((record, seen)));
        }
        let node = sessions.hosts.node_of(sandbox).await?;
        let found = Change::of(&record).with(|session| {
            session.updated_at = record.updated_at;
            session.details.missing_since = None;
            session.details.node = node;
        });
        Ok(sessions.commit(&found).await?.map(|record| (record, seen)))
    }

    async fn keep(&self, record: &SessionRecord, until: SystemTime) -> Result<()> {
        let until = if record.details.discarded.is_empty() { until } else { until.min(now() + AGAIN_AFTER) };
        self.sessions.store.postpone(record, Some(until)).await?;
        Ok(())
    }

    /// Removes checkpoints that have become too old, of a session that nobody saves any more.
    async fn age(&self, record: SessionRecord) -> Result<()> {
        let sessions = &self.sessions;
        let kept = sessions.store.checkpoints(record.id).await?;
        let current = kept.iter().find(|checkpoint| Some(checkpoint.id) == record.details.checkpoint).cloned();
        let Some(current) = current else { return self.keep(&record, now() + AGE_EVERY).await };
        // as if one were made now, and the current one stayed beside it
        let made_now = cloud_sandbox_storage::CheckpointRecord { created_at: now(), ..current };
        let options = crate::Options { checkpoints_kept: usize::MAX, ..sessions.options.clone() };
        let old = crate::retention::superfluous(&kept, &made_now, &options);
        if old.is_empty() {
            return self.keep(&record, now() + AGE_EVERY).await;
        }
        let mut change = Change::of(&record).without(old.iter().copied());
        change.next.updated_at = record.updated_at;
        for removed in &old {
            change = change.event(event::CHECKPOINT_REMOVED, format!("checkpoint {removed} has become too old"));
        }
        sessions.commit(&change).await?;
        sessions.superfluous.notify_one();
        Ok(())
    }

    /// Deletes what lies in the workspace store and no session needs.
    ///
    /// The store is listed before the sessions are asked: whoever writes a checkpoint has said so in its session first.
    pub async fn collect(&self) {
        let collected = self.sessions.collect().await;
        match collected {
            Ok(0) => {}
            Ok(folders) => tracing::debug!(folders, "deleted checkpoints that nobody needs"),
            Err(error) => tracing::warn!(error = chain(&error), "failed to delete checkpoints that nobody needs"),
        }
    }

    /// Saves what is on nodes that shut down, and what can be saved on those that are short of memory.
    pub async fn relieve_nodes(&self) {
        let nodes = match self.sessions.hosts.alive().await {
            Ok(nodes) => nodes,
            Err(error) => return tracing::debug!(error = chain(&error), "failed to look at the nodes"),
        };
        for node in nodes {
            if node.draining {
                self.evacuate(node.id).await;
            } else if node.low_memory {
                self.relieve(node.id).await;
            }
        }
    }

    /// Checkpoints the sessions on `node` that are frozen only for a while, to give their memory back.
    async fn relieve(&self, node: NodeId) {
        let why = "its node is short of memory";
        let auto = |record: &SessionRecord| record.details.paused.is_some_and(|paused| paused.auto);
        self.save_on(node, vec![SessionState::Paused], auto, why).await;
    }

    /// Saves the sessions whose sandboxes are on `node`, which is about to end. Those that cannot be saved stay as they
    /// are, and fail with their sandboxes.
    pub async fn evacuate(&self, node: NodeId) {
        let states = vec![SessionState::Running, SessionState::Paused];
        self.save_on(node, states, |_| true, "its node is shutting down").await;
    }

    async fn save_on(
        &self,
        node: NodeId,
        states: Vec<SessionState>,
        wanted: impl Fn(&SessionRecord) -> bool,
        why: &'static str,
    ) {
        let filter = SessionFilter { states, ..SessionFilter::default() };
        let mut after = None;
        loop {
            let found = match self.sessions.store.list(&filter, after, BATCH).await {
                Ok(found) => found,
                Err(error) => {
                    return tracing::warn!(error = chain(&error), "failed to list the sessions of a node");
                }
            };
            after = found.last().map(|record| record.id);
            let last = found.len() < BATCH;
            let here = |record: &SessionRecord| record.details.node == Some(node) && record.sandbox.is_some();
            let here = found.into_iter().filter(|record| here(record) && wanted(record));
            let saves = here.map(|record| async move {
                let done = match record.state {
                    SessionState::Running => {
                        let told = (event::PAUSED, format!("{why}: paused, checkpointed"));
                        self.sessions.save(&CallContext::default(), &record, After::Paused, told).await.map(drop)
                    }
                    _ => self.deepen(&record, why).await,
                };
                if let Err(error) = done {
                    tracing::warn!(session_id = %record.id, error = chain(&error), "failed to save a session");
                }
            });
            stream::iter(saves).buffer_unordered(EVACUATED_AT_ONCE).collect::<()>().await;
            if last {
                return;
            }
        }
    }
}

impl Sessions {
    /// A directory may lose its content, and gets it back from the nodes; only what stays missing is gone.
    pub(crate) async fn note_missing(&self, record: SessionRecord) -> Result<()> {
        let missing_for = record.details.missing_since.and_then(|since| SystemTime::now().duration_since(since).ok());
        match missing_for {
            Some(missing_for) if missing_for >= self.options.missing_patience => {
                self.fail(record, "its node is gone").await?;
            }
            Some(_) => {}
            None => {
                let missing = Change::of(&record).with(|session| {
                    session.updated_at = record.updated_at;
                    session.details.missing_since = Some(now());
                });
                if let Some(written) = self.commit(&missing).await? {
                    self.store.postpone(&written, Some(now() + AGAIN_AFTER)).await?;
                }
            }
        }
        Ok(())
    }

    async fn collect(&self) -> Result<usize> {
        let mut folders = Vec::new();
        let mut after = None;
        loop {
            let page = self.workspaces.folders(after, BATCH).await?;
            after = page.last().copied();
            let last = page.len() < BATCH;
            folders.extend(page);
            if last {
                break;
            }
        }
        if folders.is_empty() {
            return Ok(0);
        }
        let needed = self.store.needed_folders().await?;
        folders.retain(|folder| !needed.contains(folder));
        for folder in &folders {
            self.workspaces.delete(*folder).await?;
        }
        Ok(folders.len())
    }
}
