//! Whoever takes a session through a saga.
//!
//! Invariant: a saga writes that it begins before it does anything, says again and again that it is still at it, and
//! writes only while the flight in the row is its own. So at most one acts on a session; of one that fell silent, another
//! finds in the row how far it had come.

use std::{future::Future, time::SystemTime};

use cloud_sandbox_model::{Result, SandboxId, SessionId};
use cloud_sandbox_node_client::deadline_exceeded;
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::{
    SessionRecord,
    sessions::{Flight, to_millis},
};

use crate::{
    change::Change,
    life::{Sessions, overtaken},
    steps::Step,
};

/// The lease of a sandbox that no row names yet, in seconds: nobody else would release it.
pub(crate) const FIRST_LEASE: u32 = 120;

/// A saga under way.
pub(crate) struct Pilot {
    pub(crate) sessions: Sessions,
    pub(crate) record: SessionRecord,
}

impl Sessions {
    /// A flight of this process that begins now.
    pub(crate) fn flight(&self) -> Flight {
        Flight {
            pilot: format!("{}/{}", self.process, SessionId::generate()),
            until_ms: self.flight_end(),
            checkpoint: None,
            sandbox: None,
            before: None,
            failure: String::new(),
        }
    }

    fn flight_end(&self) -> i64 {
        to_millis(SystemTime::now() + self.options.flight_lease)
    }

    /// Whether nobody is at it any more.
    pub(crate) fn is_over(&self, flight: &Flight, now: SystemTime) -> bool {
        let now = to_millis(now);
        let lease = to_millis(SystemTime::UNIX_EPOCH + self.options.flight_lease);
        let of_another_life = self.options.alone && !flight.pilot.starts_with(&self.process);
        // an end that far ahead was written under another clock
        of_another_life || flight.until_ms <= now || flight.until_ms > now + 2 * lease
    }

    /// Runs a saga to its end although its caller may leave, and waits for it as long as the caller does.
    pub(crate) async fn fly<T: Send + 'static>(
        &self,
        context: &CallContext,
        saga: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let flying = self.tasks.spawn(saga);
        let landed = match context.remaining() {
            Some(left) => tokio::time::timeout(left, flying).await.map_err(|_| deadline_exceeded())?,
            None => flying.await,
        };
        landed.unwrap_or_else(|error| Err(cloud_sandbox_model::Error::internal("end a saga", error)))
    }
}

impl Pilot {
    /// Begins a saga by writing so. `None` when somebody else was quicker.
    pub(crate) async fn begin(
        sessions: &Sessions,
        record: &SessionRecord,
        step: Step,
        change: impl Fn(Change, Flight) -> Change,
    ) -> Result<Option<Self>> {
        let flight = sessions.flight();
        let begun = change(Change::of(record), flight);
        let written = sessions.steps.take(step, || sessions.commit(&begun)).await?;
        Ok(written.map(|record| Self { sessions: sessions.clone(), record }))
    }

    fn flight(&self) -> Option<&Flight> {
        self.record.details.flight.as_ref()
    }

    /// Writes the next step. What others wrote meanwhile without taking the flight over stays.
    pub(crate) async fn write(&mut self, step: Step, change: impl Fn(Change) -> Change) -> Result<()> {
        let pilot = self.flight().map(|flight| flight.pilot.clone());
        loop {
            let next = change(Change::of(&self.record));
            let sessions = &self.sessions;
            if let Some(written) = sessions.steps.take(step, || sessions.commit(&next)).await? {
                self.record = written;
                return Ok(());
            }
            self.reread(pilot.as_deref()).await?;
        }
    }

    /// Does something that takes its time.
    pub(crate) async fn during<T>(
        &mut self,
        kept_alive: Option<SandboxId>,
        action: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut action = std::pin::pin!(action);
        loop {
            tokio::select! {
                done = &mut action => return done,
                () = tokio::time::sleep(self.sessions.options.flight_lease / 3) => self.renew(kept_alive).await?,
            }
        }
    }

    /// Says that it is still at it. A store that is away for a moment is asked again at the next time.
    async fn renew(&mut self, kept_alive: Option<SandboxId>) -> Result<()> {
        if let Some(sandbox) = kept_alive {
            // a failure shows in what is being done there
            let _ = self.sessions.hosts.keep_alive(sandbox, None, FIRST_LEASE).await;
        }
        let until_ms = self.sessions.flight_end();
        let updated_at = self.record.updated_at;
        let change = Change::of(&self.record).with(|session| {
            session.updated_at = updated_at;
            if let Some(flight) = &mut session.details.flight {
                flight.until_ms = until_ms;
            }
        });
        match self.sessions.commit(&change).await {
            Ok(Some(written)) => self.record = written,
            Ok(None) => {
                let pilot = self.flight().map(|flight| flight.pilot.clone());
                self.reread(pilot.as_deref()).await?;
            }
            Err(error) => {
                let over = self.flight().is_none_or(|flight| self.sessions.is_over(flight, SystemTime::now()));
                if over {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn reread(&mut self, pilot: Option<&str>) -> Result<()> {
        let id = self.record.id;
        let stored = self.sessions.store.get(id).await?.ok_or_else(|| overtaken(id))?;
        if stored.details.flight.as_ref().map(|flight| flight.pilot.as_str()) != pilot {
            return Err(overtaken(id));
        }
        self.record = stored;
        Ok(())
    }

    /// Releases what is not the session's any more. What cannot be released now is tried again at the next look.
    pub(crate) async fn release_discarded(&mut self) {
        match self.sessions.release_discarded(&self.record).await {
            Ok(released) => self.record = released,
            Err(error) => {
                let error = cloud_sandbox_model::error::chain(&error);
                tracing::warn!(session_id = %self.record.id, error, "failed to release a session's old sandbox; it is tried again");
            }
        }
    }
}

impl Sessions {
    /// Releases the sandboxes that the session has had, keeping what they printed, and writes that it did.
    pub(crate) async fn release_discarded(&self, record: &SessionRecord) -> Result<SessionRecord> {
        let discarded = record.details.discarded.clone();
        if discarded.is_empty() {
            return Ok(record.clone());
        }
        for sandbox in &discarded {
            self.steps.take(Step::Release, || self.hosts.release(*sandbox, true)).await?;
        }
        let note = || {
            self.apply(record.clone(), |change| {
                let updated_at = record.updated_at;
                Ok(change.with(|session| {
                    session.updated_at = updated_at;
                    session.details.discarded.retain(|sandbox| !discarded.contains(sandbox));
                }))
            })
        };
        self.steps.take(Step::NoteReleased, note).await
    }
}
