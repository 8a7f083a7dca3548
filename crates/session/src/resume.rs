//! Resuming: thawed, or brought up from a checkpoint.

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{CheckpointId, Error, ErrorKind, Result, SessionState, error::reason};
use cloud_sandbox_proto::v1::{PauseDepth, ResumeManifest};
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::{CheckpointRecord, SessionRecord, sessions::Depth};
use prost::Message;

use crate::{
    bring_up::Source,
    change::event,
    life::{Sessions, now, overtaken, wrong_state},
    pilot::Pilot,
    steps::Step,
};

/// What a resume asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Wanted {
    pub(crate) checkpoint: Option<CheckpointId>,
    pub(crate) restart_commands: bool,
}

impl Sessions {
    pub(crate) async fn resume(
        &self,
        who: &Principal,
        context: &CallContext,
        id: &str,
        wanted: Wanted,
    ) -> Result<SessionRecord> {
        loop {
            let record = self.find_settled(who, context, id).await?;
            let frozen = record.details.paused.is_some_and(|paused| paused.depth == Depth::Frozen);
            let resumed = match (record.state, wanted.checkpoint) {
                (SessionState::Running, None) => return Ok(record),
                (SessionState::Paused, None) if frozen || record.details.paused.is_none() => {
                    self.thaw(context, &record).await?
                }
                (SessionState::Paused | SessionState::Failed, checkpoint) => {
                    let Some(checkpoint) = checkpoint.or(record.details.checkpoint) else {
                        return Err(wrong_state(&record, "resumed"));
                    };
                    self.bring_back(who, context, &record, checkpoint, wanted.restart_commands).await?
                }
                _ => return Err(wrong_state(&record, "resumed")),
            };
            if let Some(resumed) = resumed {
                return Ok(resumed);
            }
        }
    }

    async fn thaw(&self, context: &CallContext, record: &SessionRecord) -> Result<Option<SessionRecord>> {
        let begun = Pilot::begin(self, record, Step::BeginThaw, |change, mut flight| {
            flight.before = change.next.details.paused;
            change.state(SessionState::Resuming).with(|session| session.details.flight = Some(flight))
        });
        match begun.await? {
            Some(pilot) => self.fly(context, pilot.thaw()).await.map(Some),
            None => Ok(None),
        }
    }

    async fn bring_back(
        &self,
        who: &Principal,
        context: &CallContext,
        record: &SessionRecord,
        checkpoint: CheckpointId,
        restart_commands: bool,
    ) -> Result<Option<SessionRecord>> {
        if who.user != record.user {
            // the new sandbox is acquired in the caller's name, and would not be its owner's
            let message = "only its owner resumes a session from a checkpoint";
            return Err(Error::new(ErrorKind::PermissionDenied, reason::ROLE_DENIED, message));
        }
        let checkpoint = self.checkpoint(record.id, checkpoint).await?;
        let lost_work = Self::lost_work(record, &checkpoint);
        let begun = Pilot::begin(self, record, Step::BeginRestore, |change, mut flight| {
            flight.checkpoint = Some(checkpoint.id);
            flight.before = record.details.paused;
            flight.failure.clone_from(&record.failure);
            change.state(SessionState::Resuming).with(|session| {
                session.details.flight = Some(flight);
                session.details.acquires += 1;
            })
        });
        let Some(pilot) = begun.await? else { return Ok(None) };
        let source = Source { checkpoint, restart_commands, lost_work };
        self.fly(context, pilot.bring_back(context.clone(), source)).await.map(Some)
    }
}

impl Pilot {
    async fn thaw(mut self) -> Result<SessionRecord> {
        let Some(sandbox) = self.record.sandbox else { return Err(wrong_state(&self.record, "resumed")) };
        let node = self.record.details.node;
        let (hosts, steps) = (self.sessions.hosts.clone(), self.sessions.steps.clone());
        let thawed = self.during(None, steps.take(Step::Thaw, || hosts.thaw(sandbox, node))).await;
        if let Err(error) = thawed {
            return self.turn_back(error, SessionState::Paused, "resumed").await;
        }
        let mut manifest = ResumeManifest::default();
        manifest.set_depth(PauseDepth::Frozen);
        manifest.env = self.record.details.env.keys().cloned().collect();
        let manifest = manifest.encode_to_vec();
        self.write(Step::NoteThawed, |change| {
            let thawed = change.state(SessionState::Running).with(|session| {
                session.details.paused = None;
                session.details.running_since = Some(now());
                session.details.manifest.clone_from(&manifest);
            });
            thawed.landed().event(event::RESUMED, "resumed where it was frozen")
        })
        .await?;
        Ok(self.record)
    }

    async fn bring_back(mut self, context: CallContext, source: Source) -> Result<SessionRecord> {
        let told = format!("resumed from checkpoint {}", source.checkpoint.id);
        let done = self.bring_up(&context, Some(&source), |change| change.event(event::RESUMED, told.clone())).await;
        match done {
            Ok(()) => Ok(self.record),
            Err(error) => self.undo_restore(error, &source.checkpoint).await,
        }
    }

    /// The session is what it was before; the sandbox that was to hold it goes.
    async fn undo_restore(mut self, error: Error, tried: &CheckpointRecord) -> Result<SessionRecord> {
        if error.kind() == ErrorKind::Aborted && error.reason() == overtaken(self.record.id).reason() {
            return Err(error);
        }
        self.write(Step::NoteThawed, put_back).await?;
        self.release_discarded().await;
        if error.reason() != reason::CHECKPOINT_DAMAGED {
            return Err(error);
        }
        // there may be an older one that is whole
        let kept = self.sessions.store.checkpoints(self.record.id).await?;
        let older = kept.iter().rev().find(|kept| kept.complete && kept.id < tried.id);
        Err(match older {
            Some(older) => {
                let message = format!("{error}; the checkpoint before it is {}", older.id);
                Error::new(error.kind(), reason::CHECKPOINT_DAMAGED, message)
                    .with_metadata("older_checkpoint_id", older.id.to_string())
                    .with_cause(error)
            }
            None => error,
        })
    }
}

/// The session as it was before a restore that came to nothing.
pub(crate) fn put_back(change: crate::change::Change) -> crate::change::Change {
    let flight = change.next.details.flight.clone();
    let (before, failure) = flight.map(|flight| (flight.before, flight.failure)).unwrap_or_default();
    let state = if failure.is_empty() { SessionState::Paused } else { SessionState::Failed };
    change
        .state(state)
        .with(|session| {
            session.details.paused = before;
            session.failure = failure;
        })
        .landed()
}
