//! A session as it is about to be written, with what is written along.

use cloud_sandbox_model::{CheckpointId, SessionState};
use cloud_sandbox_storage::{
    CheckpointRecord, SessionRecord,
    sessions::{Along, SessionEvent},
};

use crate::life::now;

/// What happened, as events name it. Published: a word never changes its meaning.
pub(crate) mod event {
    pub(crate) const CREATED: &str = "created";
    pub(crate) const UPDATED: &str = "updated";
    pub(crate) const PAUSED: &str = "paused";
    pub(crate) const RESUMED: &str = "resumed";
    pub(crate) const CHECKPOINTED: &str = "checkpointed";
    pub(crate) const TIMEOUT: &str = "timeout";
    pub(crate) const IDLE_TIMEOUT: &str = "idle_timeout";
    pub(crate) const DEEPENED: &str = "deepened";
    pub(crate) const FORKED: &str = "forked";
    pub(crate) const FAILED: &str = "failed";
    pub(crate) const RECOVERED: &str = "recovered";
    pub(crate) const CHECKPOINT_REMOVED: &str = "checkpoint_removed";
}

/// The next version of a session.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    pub(crate) next: SessionRecord,
    pub(crate) along: Along,
}

impl Change {
    /// Nothing but what `record` is.
    pub(crate) fn of(record: &SessionRecord) -> Self {
        Self { next: SessionRecord { updated_at: now(), ..record.clone() }, along: Along::default() }
    }

    /// The session gets into another state.
    pub(crate) fn state(mut self, state: SessionState) -> Self {
        self.next.state = state;
        self
    }

    /// Something else of it changes.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut SessionRecord)) -> Self {
        change(&mut self.next);
        self
    }

    /// Something has happened.
    pub(crate) fn event(mut self, kind: &str, message: impl Into<String>) -> Self {
        self.next.details.events += 1;
        self.along.events.push(SessionEvent {
            sequence: self.next.details.events,
            happened_at: self.next.updated_at,
            kind: kind.to_owned(),
            message: message.into(),
        });
        self
    }

    /// A checkpoint is new, or has changed.
    pub(crate) fn checkpoint(mut self, checkpoint: CheckpointRecord) -> Self {
        self.along.checkpoints.push(checkpoint);
        self
    }

    /// Checkpoints are not kept any more.
    pub(crate) fn without(mut self, checkpoints: impl IntoIterator<Item = CheckpointId>) -> Self {
        self.along.removed.extend(checkpoints);
        self
    }

    /// The sandbox is not the session's any more, and has to be released.
    pub(crate) fn discard_sandbox(mut self) -> Self {
        self.next.details.discarded.extend(self.next.sandbox.take());
        self.next.details.node = None;
        self
    }

    /// What was under way is over. What it was restoring into has to be released, unless it has become the session's.
    pub(crate) fn landed(mut self) -> Self {
        if let Some(flight) = self.next.details.flight.take()
            && let Some(sandbox) = flight.sandbox
            && self.next.sandbox != Some(sandbox)
        {
            self.next.details.discarded.push(sandbox);
        }
        self
    }
}
