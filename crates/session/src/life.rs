//! A session from step to step: reading it for its owner, writing the next state, and what a lost sandbox does to it.

use std::{sync::Arc, time::SystemTime};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, SessionId, SessionState, error::reason};
use cloud_sandbox_node_client::{Answer, NodeClient, Nodes};
use cloud_sandbox_proto::{node, v1};
use cloud_sandbox_rpc::CallContext;
use cloud_sandbox_storage::{
    SessionRecord, SessionStore,
    sessions::{from_millis, to_millis},
};

pub(crate) const SANDBOX_ENDED: &str = "its sandbox ended";

/// Sessions and the sandboxes that hold them.
#[derive(Clone)]
pub(crate) struct Sessions {
    pub(crate) store: Arc<dyn SessionStore>,
    pub(crate) nodes: Nodes,
}

/// The time now, as stores keep it.
pub(crate) fn now() -> SystemTime {
    from_millis(to_millis(SystemTime::now()))
}

pub(crate) fn not_found(id: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, reason::SESSION_NOT_FOUND, format!("session {id} not found"))
}

/// The session is in a state that does not allow what was asked for.
pub(crate) fn wrong_state(record: &SessionRecord, asked: &str) -> Error {
    let state = record.state.as_str();
    let why = if record.failure.is_empty() { String::new() } else { format!(" ({})", record.failure) };
    let message = format!("session {} is {state}{why} and cannot be {asked}", record.id);
    Error::new(ErrorKind::FailedPrecondition, reason::SESSION_STATE, message).with_metadata("state", state)
}

impl Sessions {
    /// The session that `principal` calls `id`. NOT_FOUND when there is none or it is somebody else's.
    pub(crate) async fn find(&self, principal: &Principal, id: &str) -> Result<SessionRecord> {
        if id.is_empty() {
            return Err(Error::invalid("session_id", "must be given"));
        }
        let parsed: SessionId = id.parse()?;
        let found = self.store.get(parsed).await?;
        found.filter(|record| principal.may_use(&record.tenant, &record.user)).ok_or_else(|| not_found(id))
    }

    /// Writes `record` as it becomes by `change`, and gives what is stored then; `None` when somebody else wrote it
    /// since it was read.
    pub(crate) async fn write(
        &self,
        record: &SessionRecord,
        change: impl FnOnce(&mut SessionRecord),
    ) -> Result<Option<SessionRecord>> {
        let mut next = record.clone();
        change(&mut next);
        next.updated_at = now();
        if !self.store.update(&next).await? {
            return Ok(None);
        }
        next.version += 1;
        Ok(Some(next))
    }

    /// Takes the session to `next`, or says that it is not in a state for it.
    pub(crate) async fn turn(&self, record: &SessionRecord, next: SessionState, asked: &str) -> Result<SessionRecord> {
        if !record.state.may_become(next) {
            return Err(wrong_state(record, asked));
        }
        self.write(record, |session| session.state = next).await?.ok_or_else(|| {
            let message = format!("session {} was changed by another call meanwhile", record.id);
            Error::new(ErrorKind::Aborted, reason::SESSION_STATE, message)
        })
    }

    /// Notes that the session's sandbox is gone. Gives the session as it is stored then.
    pub(crate) async fn fail(&self, record: SessionRecord, why: &str) -> Result<SessionRecord> {
        if !record.state.may_become(SessionState::Failed) {
            return Ok(record);
        }
        let failed = self.write(&record, |session| {
            session.state = SessionState::Failed;
            session.failure = why.to_owned();
            session.sandbox = None;
        });
        match failed.await? {
            Some(failed) => Ok(failed),
            None => self.store.get(record.id).await?.ok_or_else(|| not_found(record.id)),
        }
    }

    pub(crate) async fn pause(&self, who: &Principal, context: &CallContext, id: &str) -> Result<SessionRecord> {
        let record = self.find(who, id).await?;
        if record.state == SessionState::Paused {
            return Ok(record);
        }
        let pausing = self.turn(&record, SessionState::Pausing, "paused").await?;
        let request = node::v1::PauseSandboxRequest { sandbox_id: sandbox_id(&pausing) };
        let outbound = context.outbound(request);
        let call = |mut node: NodeClient| -> Answer<_> { Box::pin(async move { node.pause_sandbox(outbound).await }) };
        let done = self.nodes.call(who, context, &sandbox_id(&pausing), call).await;
        self.arrive(pausing, done, SessionState::Paused, SessionState::Running, "paused").await
    }

    pub(crate) async fn resume(&self, who: &Principal, context: &CallContext, id: &str) -> Result<SessionRecord> {
        let record = self.find(who, id).await?;
        if record.state == SessionState::Running {
            return Ok(record);
        }
        let resuming = match record.state {
            SessionState::Paused => self.turn(&record, SessionState::Resuming, "resumed").await?,
            _ => return Err(wrong_state(&record, "resumed")),
        };
        let request = node::v1::ResumeSandboxRequest { sandbox_id: sandbox_id(&resuming) };
        let outbound = context.outbound(request);
        let call = |mut node: NodeClient| -> Answer<_> { Box::pin(async move { node.resume_sandbox(outbound).await }) };
        let done = self.nodes.call(who, context, &sandbox_id(&resuming), call).await;
        self.arrive(resuming, done, SessionState::Running, SessionState::Paused, "resumed").await
    }

    /// Ends a step: on to `ahead` when it was taken, to failed when the sandbox is gone, else `back`.
    async fn arrive<T>(
        &self,
        record: SessionRecord,
        done: Result<T>,
        ahead: SessionState,
        back: SessionState,
        asked: &str,
    ) -> Result<SessionRecord> {
        match done {
            Ok(_) => self.turn(&record, ahead, asked).await,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let failed = self.fail(record, SANDBOX_ENDED).await?;
                Err(wrong_state(&failed, asked))
            }
            Err(error) => {
                // a node that took the step although its reply was lost: the reconciler asks it
                let known = !matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::DeadlineExceeded);
                if known {
                    self.turn(&record, back, asked).await?;
                }
                Err(error)
            }
        }
    }

    /// Releases the sandbox, then forgets the session. What fails between is finished by the next delete, or by the
    /// reconciler.
    pub(crate) async fn delete(&self, who: &Principal, context: &CallContext, id: &str) -> Result<()> {
        let record = self.find(who, id).await?;
        let deleting = match record.state {
            SessionState::Deleting => record,
            _ => self.turn(&record, SessionState::Deleting, "deleted").await?,
        };
        self.release(who, context, &deleting).await?;
        self.store.delete(deleting.id, deleting.version).await?;
        Ok(())
    }

    /// Releases the session's sandbox; one that is gone is released.
    pub(crate) async fn release(&self, who: &Principal, context: &CallContext, record: &SessionRecord) -> Result<()> {
        let Some(sandbox) = record.sandbox else { return Ok(()) };
        match self.nodes.release(who, context, &sandbox.to_string()).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn sandbox_id(record: &SessionRecord) -> String {
    record.sandbox.map(|id| id.to_string()).unwrap_or_default()
}

/// The session as callers see it.
pub(crate) fn shown(record: SessionRecord) -> v1::Session {
    v1::Session {
        session_id: record.id.to_string(),
        sandbox_id: sandbox_id(&record),
        user_id: record.user,
        state: wire_state(record.state).into(),
        template: record.template,
        metadata: record.metadata.into_iter().collect(),
        create_time: Some(record.created_at.into()),
        update_time: Some(record.updated_at.into()),
        failure: record.failure,
        ..Default::default()
    }
}

fn wire_state(state: SessionState) -> v1::SessionState {
    match state {
        SessionState::Creating => v1::SessionState::Creating,
        SessionState::Running => v1::SessionState::Running,
        SessionState::Pausing => v1::SessionState::Pausing,
        SessionState::Paused => v1::SessionState::Paused,
        SessionState::Resuming => v1::SessionState::Resuming,
        SessionState::Failed => v1::SessionState::Failed,
        SessionState::Deleting => v1::SessionState::Deleting,
    }
}

/// The state that a filter names; `None` for any.
pub(crate) fn state_filter(state: i32) -> Result<Option<SessionState>> {
    let state = v1::SessionState::try_from(state).map_err(|_| Error::invalid("state", "must be a known state"))?;
    Ok(SessionState::ALL.into_iter().find(|own| wire_state(*own) == state))
}
