//! Which sandbox a session has now, asked of the session manager in the caller's name.
//!
//! A session that a use is to resume is resumed here; one that is on its way to another state is waited for. What was
//! answered is kept for some seconds, for the one who asked alone: so executing in a session costs no more than in its
//! sandbox. An answer that is out of date is found out by its sandbox, which is paused, gone or unknown by then.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, SandboxId, SessionId, error::reason};
use cloud_sandbox_node_client::{deadline_exceeded, within};
use cloud_sandbox_proto::v1::{
    GetSessionRequest, ResumeSessionRequest, Session, SessionState, session_service_client::SessionServiceClient,
};
use cloud_sandbox_rpc::{CallContext, Upstream, from_status, upstream::MESSAGE_MAX};
use tonic::Status;

const KNOWN_FOR: Duration = Duration::from_secs(10);
const KNOWN_MAX: usize = 4096;
/// How long a session may take to arrive where it is going to, when another call brings it there.
const WAIT_MAX: Duration = Duration::from_secs(30);
const POLL_FIRST: Duration = Duration::from_millis(10);
const POLL_MAX: Duration = Duration::from_millis(500);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The session manager. Clones share what is known.
#[derive(Clone)]
pub(crate) struct Sessions {
    client: SessionServiceClient<Upstream>,
    known: Arc<Mutex<HashMap<SessionId, Known>>>,
}

/// What somebody was told not long ago.
struct Known {
    at: Instant,
    by: Principal,
    sandbox: SandboxId,
}

impl Sessions {
    pub(crate) fn new(manager: Upstream) -> Self {
        // a session tells what its last resume lost, which may be much
        let client = SessionServiceClient::new(manager).max_decoding_message_size(MESSAGE_MAX);
        Self { client, known: Arc::default() }
    }

    /// The sandbox that `principal` was told of lately.
    pub(crate) fn known(&self, principal: &Principal, id: SessionId) -> Option<SandboxId> {
        let known = self.lock();
        known
            .get(&id)
            .filter(|known| known.at.elapsed() < KNOWN_FOR && known.by == *principal)
            .map(|known| known.sandbox)
    }

    /// Forgets what is known of a session.
    pub(crate) fn forget(&self, id: SessionId) {
        self.lock().remove(&id);
    }

    /// The sandbox that the session has now, as `principal` is told.
    pub(crate) async fn ask(&self, principal: &Principal, context: &CallContext, id: SessionId) -> Result<SandboxId> {
        let mut patience = Patience::new();
        loop {
            let mut session = self.get(context, id).await?;
            if session.state() == SessionState::Paused && session.auto_resume {
                match self.resume(context, id).await {
                    Ok(resumed) => session = resumed,
                    // another call was quicker, and what it began is waited for
                    Err(error) if error.reason() == reason::SESSION_STATE => {
                        patience.wait(context, &session).await?;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            match session.state() {
                SessionState::Running => {
                    let sandbox = session.sandbox_id.parse().map_err(unreadable)?;
                    self.put(id, Known { at: Instant::now(), by: principal.clone(), sandbox });
                    return Ok(sandbox);
                }
                SessionState::Creating | SessionState::Pausing | SessionState::Resuming => {
                    patience.wait(context, &session).await?;
                }
                _ => return Err(unusable(&session)),
            }
        }
    }

    async fn get(&self, context: &CallContext, id: SessionId) -> Result<Session> {
        let request = context.outbound_as_caller(GetSessionRequest { session_id: id.to_string() });
        let answer = within(context, self.client.clone().get_session(request)).await?;
        let answer = answer.map_err(|status| manager_failure(&status))?.into_inner();
        answer.session.ok_or_else(|| unreadable("it has no session"))
    }

    async fn resume(&self, context: &CallContext, id: SessionId) -> Result<Session> {
        let request = ResumeSessionRequest { session_id: id.to_string(), ..ResumeSessionRequest::default() };
        let answer = within(context, self.client.clone().resume_session(context.outbound_as_caller(request))).await?;
        let answer = answer.map_err(|status| manager_failure(&status))?.into_inner();
        answer.session.ok_or_else(|| unreadable("it has no session"))
    }

    fn put(&self, id: SessionId, told: Known) {
        let mut known = self.lock();
        if known.len() >= KNOWN_MAX {
            known.retain(|_, known| known.at.elapsed() < KNOWN_FOR);
        }
        // more sessions than that within seconds: the rest is asked for each time
        if known.len() < KNOWN_MAX {
            known.insert(id, told);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SessionId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits longer each time, and not for ever.
struct Patience {
    began: tokio::time::Instant,
    next: Duration,
}

impl Patience {
    fn new() -> Self {
        Self { began: tokio::time::Instant::now(), next: POLL_FIRST }
    }

    /// Waits before `session` is looked at again, unless it has taken too long already or the caller's time is over.
    async fn wait(&mut self, context: &CallContext, session: &Session) -> Result<()> {
        if self.began.elapsed() >= WAIT_MAX {
            return Err(on_its_way(session));
        }
        let left = context.remaining().unwrap_or(Duration::MAX);
        tokio::time::sleep(self.next.min(left)).await;
        if left <= self.next {
            return Err(deadline_exceeded());
        }
        self.next = (self.next * 2).min(POLL_MAX);
        Ok(())
    }
}

/// The state in a word, as JSON has it.
fn word(state: SessionState) -> String {
    state.as_str_name().trim_start_matches("SESSION_STATE_").to_ascii_lowercase()
}

fn on_its_way(session: &Session) -> Error {
    let (id, state) = (&session.session_id, word(session.state()));
    Error::new(ErrorKind::Unavailable, reason::SESSION_STATE, format!("session {id} is {state} still; try again later"))
        .with_metadata("state", state)
        .with_retry_after(RETRY_AFTER)
}

/// A session in whose state nothing can be done in it.
fn unusable(session: &Session) -> Error {
    let (id, state) = (&session.session_id, word(session.state()));
    let message = match session.state() {
        SessionState::Paused => format!("session {id} is paused; resume it first, or let it have auto_resume"),
        SessionState::Failed | SessionState::Deleting if session.failure.is_empty() => {
            format!("session {id} is {state}")
        }
        SessionState::Failed | SessionState::Deleting => format!("session {id} is {state}: {}", session.failure),
        _ => return unreadable(format!("session {id} is in the unknown state {}", session.state)),
    };
    Error::new(ErrorKind::FailedPrecondition, reason::SESSION_STATE, message).with_metadata("state", state)
}

fn unreadable(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::internal("read the session manager's answer", cause)
}

/// What the session manager said, or that it cannot be reached.
fn manager_failure(status: &Status) -> Error {
    let error = from_status(status);
    if !error.reason().is_empty() {
        return error;
    }
    let cause = format!("{:?}: {}", status.code(), status.message());
    Error::new(ErrorKind::Unavailable, "SESSION_MANAGER_UNREACHABLE", "the session manager cannot be reached")
        .with_retry_after(RETRY_AFTER)
        .with_cause(cause)
}
