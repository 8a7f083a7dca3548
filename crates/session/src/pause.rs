//! Pausing: frozen, or saved to a checkpoint; and saving a session that goes on.

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{CheckpointId, Error, ErrorKind, Result, SandboxId, SessionState, error::reason};
use cloud_sandbox_proto::node::v1::{CheckpointSandboxRequest, CheckpointSandboxResponse};
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::{
    CheckpointRecord, SessionRecord,
    sessions::{Depth, Paused, to_millis},
};

use crate::{
    bring_up::{is_known, reference},
    change::{Change, event},
    hosts::is_gone,
    life::{SANDBOX_ENDED, Sessions, not_found, now, overtaken, wrong_state},
    pilot::Pilot,
    retention,
    steps::Step,
};

/// How a session is to be paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    Frozen,
    Checkpointed,
    Auto,
}

impl Sessions {
    pub(crate) async fn pause(
        &self,
        who: &Principal,
        context: &CallContext,
        id: &str,
        wanted: Wanted,
    ) -> Result<SessionRecord> {
        loop {
            let record = self.find_settled(who, context, id).await?;
            let depth = record.details.paused.map(|paused| paused.depth);
            let paused = match (record.state, wanted, depth) {
                (SessionState::Running, Wanted::Frozen | Wanted::Auto, _) => {
                    self.freeze(context, &record, wanted == Wanted::Auto).await?
                }
                (SessionState::Running, Wanted::Checkpointed, _)
                | (SessionState::Paused, Wanted::Checkpointed, Some(Depth::Frozen)) => {
                    self.save(context, &record, After::Paused, (event::PAUSED, "paused, checkpointed".into())).await?
                }
                (SessionState::Paused, _, _) => return self.note_wish(record, wanted).await,
                _ => return Err(wrong_state(&record, "paused")),
            };
            if let Some(paused) = paused {
                return Ok(paused);
            }
        }
    }

    /// A frozen session stays frozen for as long as the latest wish says.
    async fn note_wish(&self, record: SessionRecord, wanted: Wanted) -> Result<SessionRecord> {
        let auto = wanted == Wanted::Auto;
        match record.details.paused {
            Some(paused) if paused.depth == Depth::Frozen && paused.auto != auto => {
                self.apply(record, |change| {
                    Ok(change.with(|session| {
                        if let Some(paused) = &mut session.details.paused {
                            paused.auto = auto;
                        }
                    }))
                })
                .await
            }
            _ => Ok(record),
        }
    }

    /// Saves a running session and lets it go on.
    pub(crate) async fn save_running(
        &self,
        who: &Principal,
        context: &CallContext,
        id: &str,
    ) -> Result<(SessionRecord, CheckpointRecord)> {
        loop {
            let record = self.find_settled(who, context, id).await?;
            if record.state != SessionState::Running {
                return Err(wrong_state(&record, "saved while it runs"));
            }
            let told = (event::CHECKPOINTED, String::new());
            if let Some(saved) = self.save(context, &record, After::Running, told).await? {
                let checkpoint = saved.details.checkpoint.ok_or_else(|| overtaken(saved.id))?;
                let checkpoint = self.checkpoint(saved.id, checkpoint).await?;
                return Ok((saved, checkpoint));
            }
        }
    }

    async fn freeze(&self, context: &CallContext, record: &SessionRecord, auto: bool) -> Result<Option<SessionRecord>> {
        let sandbox = sandbox_of(record, "paused")?;
        let begun = Pilot::begin(self, record, Step::BeginFreeze, |change, flight| {
            let since_ms = to_millis(change.next.updated_at);
            change.state(SessionState::Pausing).with(|session| {
                session.details.flight = Some(flight);
                // also for whoever finds it frozen when this one has ended
                session.details.paused = Some(Paused { depth: Depth::Frozen, auto, since_ms });
            })
        });
        let Some(pilot) = begun.await? else { return Ok(None) };
        self.fly(context, pilot.freeze(sandbox, auto)).await.map(Some)
    }

    /// Saves the session. `None` when somebody else did something with it first.
    pub(crate) async fn save(
        &self,
        context: &CallContext,
        record: &SessionRecord,
        after: After,
        told: (&'static str, String),
    ) -> Result<Option<SessionRecord>> {
        match self.begin_save(record, after).await? {
            Some((pilot, base, sandbox)) => self.fly(context, pilot.save(base, sandbox, after, told)).await.map(Some),
            None => Ok(None),
        }
    }

    async fn begin_save(
        &self,
        record: &SessionRecord,
        after: After,
    ) -> Result<Option<(Pilot, Option<CheckpointRecord>, SandboxId)>> {
        let sandbox = sandbox_of(record, if after == After::Paused { "paused" } else { "saved" })?;
        let base = match record.details.checkpoint {
            Some(id) => Some(self.checkpoint(record.id, id).await?),
            None => None,
        };
        let id = CheckpointId::generate();
        let may_need = base.iter().flat_map(|base| base.packs.iter().copied().chain([base.folder]));
        let writing = CheckpointRecord {
            id,
            session: record.id,
            complete: false,
            folder: id,
            digest: Vec::new(),
            parent: base.as_ref().map(|base| base.id),
            packs: may_need.chain([id]).collect(),
            files: 0,
            bytes: 0,
            stored_bytes: 0,
            created_at: now(),
        };
        let begun = Pilot::begin(self, record, Step::BeginSave, |change, mut flight| {
            flight.checkpoint = Some(id);
            flight.before = record.details.paused;
            change
                .state(SessionState::Pausing)
                .with(|session| session.details.flight = Some(flight.clone()))
                .checkpoint(writing.clone())
        });
        Ok(begun.await?.map(|pilot| (pilot, base, sandbox)))
    }
}

/// How a session goes on when it has been saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    Paused,
    Running,
}

fn sandbox_of(record: &SessionRecord, asked: &str) -> Result<SandboxId> {
    record.sandbox.ok_or_else(|| wrong_state(record, asked))
}

impl Pilot {
    async fn freeze(mut self, sandbox: SandboxId, auto: bool) -> Result<SessionRecord> {
        let node = self.record.details.node;
        let (hosts, steps) = (self.sessions.hosts.clone(), self.sessions.steps.clone());
        let frozen = self.during(None, steps.take(Step::Freeze, || hosts.freeze(sandbox, node))).await;
        if let Err(error) = frozen {
            return self.turn_back(error, SessionState::Running, "paused").await;
        }
        self.write(Step::NoteFrozen, |change| {
            let how = if auto { "paused: frozen, to be checkpointed after a while" } else { "paused, frozen" };
            let since_ms = to_millis(change.next.updated_at);
            let paused = Paused { depth: Depth::Frozen, auto, since_ms };
            let frozen = change.state(SessionState::Paused).with(|session| {
                session.details.paused = Some(paused);
                session.details.running_since = None;
            });
            frozen.landed().event(event::PAUSED, how)
        })
        .await?;
        Ok(self.record)
    }

    /// After a step at the node that failed: the session is what it was before, or has failed with its sandbox, or is left
    /// to the keeper where nobody knows whether the step was taken.
    pub(crate) async fn turn_back(mut self, error: Error, state: SessionState, asked: &str) -> Result<SessionRecord> {
        if is_gone(&error) {
            let failed = self.sessions.fail(self.record, SANDBOX_ENDED).await?;
            return Err(wrong_state(&failed, asked));
        }
        if is_known(&error) {
            self.write(Step::NoteThawed, |change| {
                change.state(state).landed().with(|session| {
                    if state == SessionState::Running {
                        session.details.paused = None;
                    }
                })
            })
            .await?;
        }
        Err(error)
    }

    async fn save(
        mut self,
        mut base: Option<CheckpointRecord>,
        sandbox: SandboxId,
        after: After,
        told: (&'static str, String),
    ) -> Result<SessionRecord> {
        let id = self.record.details.flight.as_ref().and_then(|flight| flight.checkpoint);
        let id = id.ok_or_else(|| overtaken(self.record.id))?;
        let mut request = CheckpointSandboxRequest {
            sandbox_id: sandbox.to_string(),
            checkpoint_id: id.to_string(),
            base: base.as_ref().map(reference),
            keep_stopped: after == After::Paused,
        };
        let mut saved = self.save_at_node(&request, sandbox).await;
        if base.is_some() && saved.as_ref().is_err_and(|error| error.reason() == reason::CHECKPOINT_DAMAGED) {
            // what runs is whole, and all that there is now: it is saved on its own
            (base, request.base) = (None, None);
            saved = self.save_at_node(&request, sandbox).await;
        }
        let saved = match saved.and_then(|saved| Saved::of(saved, id)) {
            Ok(saved) => saved,
            Err(error) => return self.undo_save(error, sandbox).await,
        };
        let kept = self.sessions.store.checkpoints(self.record.id).await?;
        let complete = saved.record(&self.record, id, base.as_ref());
        let old = retention::superfluous(&kept, &complete, &self.sessions.options);
        let noted = self.write(Step::NoteSaved, |change| {
            let message = format!(
                "checkpoint {id}: {} entries, {} bytes, of which {} were stored",
                complete.files, complete.bytes, complete.stored_bytes
            );
            let since_ms = to_millis(change.next.updated_at);
            let mut change = change.checkpoint(complete.clone()).event(event::CHECKPOINTED, message);
            for removed in &old {
                change = change.event(event::CHECKPOINT_REMOVED, format!("checkpoint {removed} is not kept any more"));
            }
            let change = change.without(old.iter().copied()).with(|session| session.details.checkpoint = Some(id));
            match after {
                After::Running => change.state(SessionState::Running).landed(),
                After::Paused => {
                    let paused = Paused { depth: Depth::Checkpointed, auto: false, since_ms };
                    let paused = change.state(SessionState::Paused).discard_sandbox().with(|session| {
                        session.details.paused = Some(paused);
                        session.details.running_since = None;
                    });
                    paused.landed().event(told.0, told.1.clone())
                }
            }
        });
        if let Err(error) = noted.await {
            return self.let_go_on(error, sandbox).await;
        }
        if !old.is_empty() {
            self.sessions.superfluous.notify_one();
        }
        self.release_discarded().await;
        Ok(self.record)
    }

    async fn save_at_node(
        &mut self,
        request: &CheckpointSandboxRequest,
        sandbox: SandboxId,
    ) -> Result<CheckpointSandboxResponse> {
        let node = self.record.details.node;
        let (hosts, steps) = (self.sessions.hosts.clone(), self.sessions.steps.clone());
        let saving = steps.take(Step::Save, || hosts.save(request.clone(), sandbox, node));
        self.during(None, saving).await
    }

    /// After a save that is not wanted any more: whoever took the session over may have had its processes go on before
    /// they were stopped for the end of the save.
    async fn let_go_on(self, error: Error, sandbox: SandboxId) -> Result<SessionRecord> {
        let stored = self.sessions.store.get(self.record.id).await?.ok_or_else(|| not_found(self.record.id))?;
        if stored.state == SessionState::Running && stored.sandbox == Some(sandbox) {
            self.sessions.hosts.thaw(sandbox, stored.details.node).await?;
        }
        Err(error)
    }

    /// Lets the session be what it was before, with its processes as they were.
    async fn undo_save(mut self, error: Error, sandbox: SandboxId) -> Result<SessionRecord> {
        if is_gone(&error) {
            return self.turn_back(error, SessionState::Running, "saved").await;
        }
        if error.kind() == ErrorKind::Aborted && error.reason() == overtaken(self.record.id).reason() {
            return Err(error);
        }
        let before = self.record.details.flight.as_ref().and_then(|flight| flight.before);
        if !is_known(&error) {
            // the node lets them go on when it hears that nobody waits; this is in case it does not
            let node = self.record.details.node;
            let hosts = self.sessions.hosts.clone();
            let again =
                if before.is_some() { hosts.freeze(sandbox, node).await } else { hosts.thaw(sandbox, node).await };
            if let Err(unreachable) = again {
                tracing::warn!(session_id = %self.record.id, error = %unreachable, "a session's node does not answer; the keeper goes on");
                return Err(error);
            }
        }
        let checkpoint = self.record.details.flight.as_ref().and_then(|flight| flight.checkpoint);
        self.write(Step::NoteThawed, |change| undone(change, before).without(checkpoint)).await?;
        self.sessions.superfluous.notify_one();
        Err(error)
    }
}

/// The session as it was before a save that came to nothing.
pub(crate) fn undone(change: Change, before: Option<Paused>) -> Change {
    let state = if before.is_some() { SessionState::Paused } else { SessionState::Running };
    let change = change.state(state).with(|session| {
        session.details.paused = before;
        session.details.missing_since = None;
    });
    change.landed()
}

/// What a node says of a checkpoint that it has written, read.
struct Saved {
    answer: CheckpointSandboxResponse,
    digest: Vec<u8>,
    packs: Vec<CheckpointId>,
}

impl Saved {
    fn of(answer: CheckpointSandboxResponse, id: CheckpointId) -> Result<Self> {
        let wrong = |what: &str| Error::internal("read a node's answer", format!("{what} of checkpoint {id}"));
        let checkpoint = answer.checkpoint.as_ref().ok_or_else(|| wrong("no reference"))?;
        if checkpoint.checkpoint_id != id.to_string() || checkpoint.digest.len() != 32 {
            return Err(wrong("a wrong reference"));
        }
        let packs = answer.pack_checkpoint_ids.iter().map(|pack| pack.parse()).collect::<Result<_>>();
        let (digest, packs) = (checkpoint.digest.to_vec(), packs.map_err(|_| wrong("a wrong pack"))?);
        Ok(Self { answer, digest, packs })
    }

    fn record(&self, session: &SessionRecord, id: CheckpointId, base: Option<&CheckpointRecord>) -> CheckpointRecord {
        CheckpointRecord {
            id,
            session: session.id,
            complete: true,
            folder: id,
            digest: self.digest.clone(),
            parent: base.map(|base| base.id),
            packs: self.packs.iter().copied().collect(),
            files: self.answer.files,
            bytes: self.answer.bytes,
            stored_bytes: self.answer.stored_bytes,
            created_at: now(),
        }
    }
}
