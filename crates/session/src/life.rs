//! Sessions in their store: found for their owner, written over the version that was read, and waited for while somebody
//! else does something with them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{CheckpointId, Error, ErrorKind, Result, SessionId, SessionState, error::reason};
use cloud_sandbox_node_client::deadline_exceeded;
use cloud_sandbox_proto::v1::scheduler_service_client::SchedulerServiceClient;
use cloud_sandbox_rpc::{CallContext, Dial, Upstream, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::{
    CheckpointRecord, Directory, SessionRecord, SessionStore, StorageError, WorkspaceStore,
    sessions::{from_millis, to_millis},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;

use crate::{
    change::{Change, event},
    due::due,
    hosts::Hosts,
    options::Options,
    steps::{Probe, Steps},
};

pub(crate) const SANDBOX_ENDED: &str = "its sandbox ended";
/// How long somebody waits for what another one does with the session, unless its own deadline is sooner.
const WAIT_MAX: Duration = Duration::from_secs(300);
const POLL_MIN: Duration = Duration::from_millis(2);
const POLL_MAX: Duration = Duration::from_millis(100);
/// A write whose outcome nobody told is sent again this often: it is found if it had been written.
pub(crate) const WRITES_AGAIN: u32 = 4;
const WRITE_AGAIN_AFTER: Duration = Duration::from_millis(40);

pub(crate) type SchedulerClient = SchedulerServiceClient<Upstream>;

/// What sessions are made of, and kept in.
pub struct Parts {
    /// where they are kept
    pub store: Arc<dyn SessionStore>,
    /// where their checkpoints lie
    pub workspaces: Arc<dyn WorkspaceStore>,
    /// where their sandboxes are
    pub directory: Arc<dyn Directory>,
    /// how nodes are called
    pub dial: Arc<dyn Dial>,
    /// what hands out sandboxes, called in the caller's name
    pub scheduler: Upstream,
}

/// Sessions and the sandboxes that hold them. Clones are the same.
#[derive(Clone)]
pub struct Sessions(Arc<Inner>);

pub struct Inner {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) workspaces: Arc<dyn WorkspaceStore>,
    pub(crate) hosts: Hosts,
    pub(crate) scheduler: SchedulerClient,
    pub(crate) options: Options,
    pub(crate) steps: Steps,
    /// this process, as flights name it
    pub(crate) process: String,
    /// what goes on although its caller has left
    pub(crate) tasks: TaskTracker,
    /// told when a checkpoint may have become superfluous
    pub(crate) superfluous: Notify,
}

impl std::ops::Deref for Sessions {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

/// How long to wait until a write is sent again: not all at once.
pub(crate) fn write_again_after() -> Duration {
    WRITE_AGAIN_AFTER.mul_f64(rand::random_range(0.5..1.5))
}

/// The time now, as stores keep it.
pub(crate) fn now() -> SystemTime {
    from_millis(to_millis(SystemTime::now()))
}

pub(crate) fn not_found(id: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, reason::SESSION_NOT_FOUND, format!("session {id} not found"))
}

pub(crate) fn no_checkpoint(id: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, reason::CHECKPOINT_NOT_FOUND, format!("checkpoint {id} not found"))
}

/// The session is in a state that does not allow what was asked for.
pub(crate) fn wrong_state(record: &SessionRecord, asked: &str) -> Error {
    let state = record.state.as_str();
    let why = if record.failure.is_empty() { String::new() } else { format!(" ({})", record.failure) };
    let message = format!("session {} is {state}{why} and cannot be {asked}", record.id);
    Error::new(ErrorKind::FailedPrecondition, reason::SESSION_STATE, message).with_metadata("state", state)
}

/// Somebody else has taken the session over.
pub(crate) fn overtaken(id: SessionId) -> Error {
    let message = format!("session {id} was changed by another call meanwhile");
    Error::new(ErrorKind::Aborted, reason::SESSION_STATE, message)
}

/// Whether somebody does something with a session in this state, after which it is in another one.
pub(crate) fn passing(state: SessionState) -> bool {
    matches!(state, SessionState::Creating | SessionState::Pausing | SessionState::Resuming)
}

impl Sessions {
    /// Sessions made of `parts`.
    #[must_use]
    pub fn new(parts: Parts, options: Options) -> Self {
        Self::stepping(parts, options, Steps::default())
    }

    /// The same, with somebody who is told of every step: for tests of what a crash between two of them leaves.
    #[must_use]
    pub fn watched(parts: Parts, options: Options, probe: Arc<dyn Probe>) -> Self {
        Self::stepping(parts, options, Steps::watched_by(probe))
    }

    fn stepping(parts: Parts, options: Options, steps: Steps) -> Self {
        let certain = options.missing_patience.is_zero();
        Self(Arc::new(Inner {
            store: parts.store,
            workspaces: parts.workspaces,
            hosts: Hosts::new(parts.directory, parts.dial, certain),
            scheduler: SchedulerClient::new(parts.scheduler)
                .max_decoding_message_size(MESSAGE_MAX)
                .max_encoding_message_size(MESSAGE_MAX),
            options,
            steps,
            process: SessionId::generate().to_string(),
            tasks: TaskTracker::new(),
            superfluous: Notify::new(),
        }))
    }

    /// Waits for what is being done with sessions, at most for `patience`; what is left then is finished or undone by
    /// whoever looks at it next.
    pub async fn settle(&self, patience: Duration) {
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait()).await.is_err() {
            tracing::warn!(left = self.tasks.len(), "sessions are left on their way");
        }
    }

    /// The session that `principal` calls `id`. NOT_FOUND when there is none or it is somebody else's.
    pub(crate) async fn find(&self, principal: &Principal, id: &str) -> Result<SessionRecord> {
        if id.is_empty() {
            return Err(Error::invalid("session_id", "must be given"));
        }
        let parsed: SessionId = id.parse()?;
        let found = self.store.get(parsed).await?;
        found.filter(|record| principal.may_use(&record.tenant, &record.user)).ok_or_else(|| not_found(id))
    }

    /// The same, when nobody does anything with it any more.
    pub(crate) async fn find_settled(
        &self,
        principal: &Principal,
        context: &CallContext,
        id: &str,
    ) -> Result<SessionRecord> {
        let patience = context.remaining().map_or(WAIT_MAX, |left| left.min(WAIT_MAX));
        let until = Instant::now() + patience;
        let mut pause = POLL_MIN;
        loop {
            let record = self.find(principal, id).await?;
            if !passing(record.state) {
                return Ok(record);
            }
            if Instant::now() + pause >= until {
                return Err(if context.remaining().is_some() { deadline_exceeded() } else { overtaken(record.id) });
            }
            sleep(pause).await;
            pause = (pause * 2).min(POLL_MAX);
        }
    }

    /// Writes a change, and gives what is stored then; `None` when somebody else wrote since it was read.
    pub(crate) async fn commit(&self, change: &Change) -> Result<Option<SessionRecord>> {
        let mut next = change.next.clone();
        next.due_at = due(&next, now(), &self.options);
        let written = SessionRecord { version: next.version + 1, ..next.clone() };
        let mut again = WRITES_AGAIN;
        loop {
            match self.store.update(&next, &change.along).await {
                Ok(true) => return Ok(Some(written)),
                // it may be our own write, of which nobody told us
                Ok(false) => {
                    let stored = self.store.get(next.id).await?;
                    return Ok(
                        stored.filter(|stored| SessionRecord { due_at: next.due_at, ..stored.clone() } == written)
                    );
                }
                Err(StorageError::Unavailable { .. }) if again > 0 => again -= 1,
                Err(error) => return Err(error.into()),
            }
            sleep(write_again_after()).await;
        }
    }

    /// Applies a change that does not depend on what else happens to the session, however often that is.
    pub(crate) async fn apply(
        &self,
        mut record: SessionRecord,
        change: impl Fn(Change) -> Result<Change>,
    ) -> Result<SessionRecord> {
        loop {
            if let Some(written) = self.commit(&change(Change::of(&record))?).await? {
                return Ok(written);
            }
            record = self.store.get(record.id).await?.ok_or_else(|| not_found(record.id))?;
        }
    }

    /// Notes that the session's sandbox is gone. Gives the session as it is stored then.
    pub(crate) async fn fail(&self, record: SessionRecord, why: &str) -> Result<SessionRecord> {
        if !record.state.may_become(SessionState::Failed) {
            return Ok(record);
        }
        let left = match record.details.checkpoint {
            Some(checkpoint) => format!("{why}; it can be resumed from checkpoint {checkpoint}"),
            None => format!("{why}; it has no checkpoint to be resumed from"),
        };
        let change = Change::of(&record).state(SessionState::Failed).with(|session| {
            why.clone_into(&mut session.failure);
            session.sandbox = None;
            session.details.node = None;
            session.details.paused = None;
            session.details.running_since = None;
            session.details.missing_since = None;
        });
        match self.commit(&change.landed().event(event::FAILED, left)).await? {
            Some(failed) => Ok(failed),
            None => self.store.get(record.id).await?.ok_or_else(|| not_found(record.id)),
        }
    }

    /// A complete checkpoint of the session.
    pub(crate) async fn checkpoint(&self, session: SessionId, id: CheckpointId) -> Result<CheckpointRecord> {
        let kept = self.store.checkpoints(session).await?;
        let found = kept.into_iter().find(|checkpoint| checkpoint.id == id && checkpoint.complete);
        found.ok_or_else(|| no_checkpoint(id))
    }
}
