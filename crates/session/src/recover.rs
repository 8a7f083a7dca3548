//! Finishing or undoing what somebody left half-way.

use std::time::SystemTime;

use cloud_sandbox_model::{Result, SessionState};
use cloud_sandbox_node_client::missing;
use cloud_sandbox_proto::v1::SandboxState;
use cloud_sandbox_storage::{
    SessionRecord,
    sessions::{Depth, Paused, to_millis},
};

use crate::{
    change::event,
    hosts::{is_gone, is_missing},
    life::{SANDBOX_ENDED, Sessions},
    pause::undone,
    pilot::Pilot,
    resume::put_back,
    steps::Step,
};

impl Sessions {
    /// Takes over a session whose flight is over, and brings it to a state in which it can stay.
    pub(crate) async fn recover(&self, record: &SessionRecord) -> Result<()> {
        if record.state == SessionState::Deleting {
            return match self.begin_delete(record).await? {
                Some(pilot) => pilot.delete().await,
                None => Ok(()),
            };
        }
        let begun = Pilot::begin(self, record, Step::BeginThaw, |change, flight| {
            change.with(|session| {
                let left = session.details.flight.take().unwrap_or_else(|| flight.clone());
                let (pilot, until_ms) = (flight.pilot, flight.until_ms);
                session.details.flight = Some(cloud_sandbox_storage::sessions::Flight { pilot, until_ms, ..left });
            })
        });
        let Some(pilot) = begun.await? else { return Ok(()) };
        match pilot.record.state {
            SessionState::Creating => {
                self.fail(pilot.record, "its creation was interrupted").await?;
                Ok(())
            }
            SessionState::Pausing => pilot.recover_pause().await,
            SessionState::Resuming => pilot.recover_resume().await,
            _ => pilot.forget_flight().await,
        }
    }
}

impl Pilot {
    /// A save is undone, since nobody has its result; a freeze is what its node says it is.
    async fn recover_pause(mut self) -> Result<()> {
        let flight = self.record.details.flight.clone();
        let Some(checkpoint) = flight.as_ref().and_then(|flight| flight.checkpoint) else { return self.follow().await };
        let before = flight.and_then(|flight| flight.before);
        let Some(sandbox) = self.record.sandbox else { return self.lost().await };
        let (hosts, node) = (self.sessions.hosts.clone(), self.record.details.node);
        let steps = self.sessions.steps.clone();
        let restored = match before {
            Some(_) => steps.take(Step::Freeze, || hosts.freeze(sandbox, node)).await,
            None => steps.take(Step::Thaw, || hosts.thaw(sandbox, node)).await,
        };
        match restored {
            Err(error) if is_gone(&error) => return self.lost().await,
            Err(error) if is_missing(&error) => return self.sessions.note_missing(self.record).await,
            Err(error) => return Err(error),
            Ok(()) => {}
        }
        self.write(Step::NoteThawed, |change| {
            let told = "a checkpoint was interrupted and is undone";
            undone(change, before).without([checkpoint]).event(event::RECOVERED, told)
        })
        .await?;
        self.sessions.superfluous.notify_one();
        Ok(())
    }

    /// A restore is undone; a thaw is what its node says it is.
    async fn recover_resume(mut self) -> Result<()> {
        let restoring = self.record.details.flight.as_ref().is_some_and(|flight| flight.checkpoint.is_some());
        if !restoring {
            return self.follow().await;
        }
        let told = "a resume was interrupted and is undone; it can be resumed again";
        self.write(Step::NoteThawed, |change| put_back(change).event(event::RECOVERED, told)).await?;
        self.release_discarded().await;
        Ok(())
    }

    /// Brings a session that was being frozen or thawed to what its node says of the sandbox.
    async fn follow(mut self) -> Result<()> {
        let Some(sandbox) = self.record.sandbox else { return self.lost().await };
        let seen = match self.sessions.hosts.look(sandbox, self.record.details.node).await {
            Err(error) if is_gone(&error) => return self.lost().await,
            Err(error) if is_missing(&error) => return self.sessions.note_missing(self.record).await,
            seen => missing(seen?.sandbox, "sandbox")?,
        };
        let frozen = seen.state() == SandboxState::Paused;
        self.write(Step::NoteThawed, |change| {
            let state = if frozen { SessionState::Paused } else { SessionState::Running };
            let since = change.next.updated_at;
            let change = change.state(state).with(|session| {
                let details = &mut session.details;
                let before = details.paused.or(details.flight.as_ref().and_then(|flight| flight.before));
                let now_frozen = Paused { depth: Depth::Frozen, auto: false, since_ms: to_millis(since) };
                details.missing_since = None;
                details.paused = frozen.then(|| before.unwrap_or(now_frozen));
                details.running_since = (!frozen).then(|| details.running_since.unwrap_or(since));
            });
            change.landed().event(event::RECOVERED, format!("it was left on its way, and is {} now", state.as_str()))
        })
        .await
    }

    async fn lost(self) -> Result<()> {
        self.sessions.fail(self.record, SANDBOX_ENDED).await?;
        Ok(())
    }

    async fn forget_flight(mut self) -> Result<()> {
        self.write(Step::NoteThawed, crate::change::Change::landed).await
    }
}

impl Sessions {
    /// Whether somebody left the session half-way.
    pub(crate) fn is_left(&self, record: &SessionRecord, now: SystemTime) -> bool {
        match &record.details.flight {
            Some(flight) => self.is_over(flight, now),
            None => crate::life::passing(record.state) || record.state == SessionState::Deleting,
        }
    }
}
