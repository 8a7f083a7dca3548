//! A session manager that has what a test puts there. A caller is known by its `authorization`, which is its name.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cloud_sandbox_model::{Error, ErrorKind, SandboxId, SessionId, error::reason};
use cloud_sandbox_proto::v1::{session_service_server::SessionService, *};
use cloud_sandbox_rpc::to_status;
use cloud_sandbox_sim_node::SimNode;
use tonic::{Request, Response, Status};

#[derive(Clone)]
pub struct FakeSessions {
    node: SimNode,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    sessions: HashMap<String, Session>,
    calls: Vec<&'static str>,
    /// where sessions are after they were looked at once more
    moves: HashMap<String, SandboxId>,
    /// where a resume brings sessions that have no sandbox
    next: Option<SandboxId>,
    held: bool,
    late: bool,
}

impl FakeSessions {
    pub fn of(node: SimNode) -> Self {
        Self { node, state: Arc::default() }
    }

    /// A running session of `user`.
    pub fn running(&self, user: &str, sandbox: SandboxId) -> String {
        let session_id = SessionId::generate().to_string();
        let session = Session {
            session_id: session_id.clone(),
            user_id: user.into(),
            state: SessionState::Running.into(),
            sandbox_id: sandbox.to_string(),
            ..Session::default()
        };
        self.state().sessions.insert(session_id.clone(), session);
        session_id
    }

    pub fn change(&self, id: &str, change: impl FnOnce(&mut Session)) {
        change(self.state().sessions.get_mut(id).unwrap());
    }

    /// The session has `sandbox` from now on.
    pub fn put(&self, id: &str, sandbox: SandboxId) {
        self.change(id, |session| session.sandbox_id = sandbox.to_string());
    }

    /// The session has `sandbox` as soon as somebody has been told what it has now.
    pub fn put_later(&self, id: &str, sandbox: SandboxId) {
        self.state().moves.insert(id.to_owned(), sandbox);
    }

    /// Pauses a session, without its sandbox if `next` is the one that a resume brings.
    pub fn pause(&self, id: &str, auto_resume: bool, next: Option<SandboxId>) {
        self.change(id, |session| {
            session.state = SessionState::Paused.into();
            session.auto_resume = auto_resume;
            if next.is_some() {
                session.sandbox_id.clear();
            }
        });
        self.state().next = next;
    }

    /// Whether resumes wait.
    pub fn hold(&self, held: bool) {
        self.state().held = held;
    }

    /// The next resume comes too late: another one has been quicker.
    pub fn come_late(&self) {
        self.state().late = true;
    }

    pub fn called(&self, method: &str) -> usize {
        self.state().calls.iter().filter(|call| **call == method).count()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn enter<T>(&self, method: &'static str, request: &Request<T>, id: &str) -> Result<Session, Status> {
        let mut state = self.state();
        state.calls.push(method);
        let user = request.metadata().get("authorization").and_then(|user| user.to_str().ok()).unwrap_or_default();
        let found = state.sessions.get(id).filter(|session| session.user_id == user).cloned();
        found.ok_or_else(|| {
            to_status(Error::new(ErrorKind::NotFound, reason::SESSION_NOT_FOUND, format!("session {id} not found")))
        })
    }

    fn resumed(&self, id: &str) -> Session {
        let next = self.state().next;
        self.change(id, |session| {
            session.state = SessionState::Running.into();
            if session.sandbox_id.is_empty() {
                session.sandbox_id = next.unwrap().to_string();
            }
        });
        let session = self.state().sessions[id].clone();
        self.node.thaw(session.sandbox_id.parse().unwrap());
        session
    }
}

/// The whole service: the methods that are called, and the others. One macro around all of it, as `async_trait` does not
/// see into those within.
macro_rules! service {
    ($($unused:ident($request:ident) -> $response:ident;)* { $($used:tt)* }) => {
        #[tonic::async_trait]
        impl SessionService for FakeSessions {
            $(
                async fn $unused(&self, _: Request<$request>) -> Result<Response<$response>, Status> {
                    Err(Status::unimplemented("nobody calls it"))
                }
            )*

            $($used)*
        }
    };
}

service! {
    create_session(CreateSessionRequest) -> CreateSessionResponse;
    list_sessions(ListSessionsRequest) -> ListSessionsResponse;
    update_session(UpdateSessionRequest) -> UpdateSessionResponse;
    pause_session(PauseSessionRequest) -> PauseSessionResponse;
    delete_session(DeleteSessionRequest) -> DeleteSessionResponse;
    create_checkpoint(CreateCheckpointRequest) -> CreateCheckpointResponse;
    list_checkpoints(ListCheckpointsRequest) -> ListCheckpointsResponse;
    fork_session(ForkSessionRequest) -> ForkSessionResponse;
    list_session_events(ListSessionEventsRequest) -> ListSessionEventsResponse;
    {
        async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
            let id = &request.get_ref().session_id;
            let session = self.enter("GetSession", &request, id)?;
            let moves = self.state().moves.remove(id);
            if let Some(sandbox) = moves {
                self.put(id, sandbox);
            }
            Ok(Response::new(GetSessionResponse { session: Some(session) }))
        }

        async fn resume_session(
            &self,
            request: Request<ResumeSessionRequest>,
        ) -> Result<Response<ResumeSessionResponse>, Status> {
            let id = &request.get_ref().session_id;
            let mut session = self.enter("ResumeSession", &request, id)?;
            if std::mem::take(&mut self.state().late) {
                self.resumed(id);
                session.state = SessionState::Resuming.into();
            }
            match session.state() {
                SessionState::Running => return Ok(Response::new(ResumeSessionResponse { session: Some(session) })),
                SessionState::Paused => {}
                _ => {
                    let message = "the session was changed by another call meanwhile";
                    return Err(to_status(Error::new(ErrorKind::Aborted, reason::SESSION_STATE, message)));
                }
            }
            self.change(id, |session| session.state = SessionState::Resuming.into());
            while self.state().held {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let session = self.resumed(id);
            Ok(Response::new(ResumeSessionResponse { session: Some(session) }))
        }
    }
}
