//! SessionService over a real scheduler, a real store and a simulated node.

#![allow(clippy::unwrap_used)]

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use cloud_sandbox_auth::{Role, Tokens};
use cloud_sandbox_model::{Error, ErrorKind, SandboxId, SessionId, SessionState as State, error::reason};
use cloud_sandbox_proto::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, ListSessionsRequest, PauseSessionRequest,
    ResumeSessionRequest, Session, SessionState, session_service_server::SessionService as _,
};
use cloud_sandbox_rpc::{LocalDial, from_status, in_process};
use cloud_sandbox_scheduler::SchedulerService;
use cloud_sandbox_session::{SessionReconciler, SessionService};
use cloud_sandbox_sim_node::{Fault, SimNode, assert_eventually, by, by_admin, principal};
use cloud_sandbox_storage::{Directory, MemoryDirectory, SessionRecord, SessionStore, SqliteSessions};
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

struct World {
    node: SimNode,
    directory: Arc<MemoryDirectory>,
    store: Arc<SqliteSessions>,
    service: SessionService,
    reconciler: SessionReconciler,
    _folder: tempfile::TempDir,
}

fn tokens() -> Tokens {
    Tokens::hs256(&[5; 32])
}

/// A call by `user` with its token, for what the service does in the caller's name.
fn call<T>(user: &str, message: T) -> Request<T> {
    let token = tokens().mint(&principal(user, Role::User), Duration::from_secs(60)).unwrap();
    let mut request = by(user, message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap());
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let node = SimNode::start(directory.clone(), &dial, 5, 9).await;
        let scheduler = SchedulerService::new(directory.clone(), Arc::new(dial.clone())).grpc();
        // the scheduler knows the caller by its own token, which must have come along
        let identify = |mut request: Request<()>| {
            let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            let token = header.and_then(|text| text.strip_prefix("Bearer ")).ok_or(Status::unauthenticated("no"))?;
            let principal = tokens().verify(token).map_err(cloud_sandbox_rpc::to_status)?;
            request.extensions_mut().insert(principal);
            Ok(request)
        };
        let scheduler = in_process(InterceptedService::new(scheduler, identify));
        let service = SessionService::new(store.clone(), scheduler, directory.clone(), Arc::new(dial.clone()));
        let reconciler = SessionReconciler::new(store.clone(), directory.clone(), Arc::new(dial));
        Self { node, directory, store, service, reconciler, _folder: folder }
    }

    async fn create(&self, user: &str, request: CreateSessionRequest) -> Result<Session, Error> {
        let response = self.service.create_session(call(user, request)).await;
        response.map(|response| response.into_inner().session.unwrap()).map_err(|status| from_status(&status))
    }

    async fn get(&self, id: &str) -> Result<Session, Error> {
        let response = self.service.get_session(call("ada", GetSessionRequest { session_id: id.into() })).await;
        response.map(|response| response.into_inner().session.unwrap()).map_err(|status| from_status(&status))
    }

    async fn pause(&self, id: &str) -> Result<Session, Error> {
        let request = PauseSessionRequest { session_id: id.into(), depth: 0 };
        let response = self.service.pause_session(call("ada", request)).await;
        response.map(|response| response.into_inner().session.unwrap()).map_err(|status| from_status(&status))
    }

    async fn resume(&self, id: &str) -> Result<Session, Error> {
        let response = self
            .service
            .resume_session(call("ada", ResumeSessionRequest { session_id: id.into(), ..Default::default() }))
            .await;
        response.map(|response| response.into_inner().session.unwrap()).map_err(|status| from_status(&status))
    }

    async fn delete(&self, id: &str) -> Result<(), Error> {
        let response = self.service.delete_session(call("ada", DeleteSessionRequest { session_id: id.into() })).await;
        response.map(|_| ()).map_err(|status| from_status(&status))
    }

    async fn stored(&self, id: &str) -> Option<SessionRecord> {
        self.store.get(id.parse().unwrap()).await.unwrap()
    }

    /// Leaves a session as a crash would: in `state`, for two minutes.
    async fn leave(&self, id: &str, state: State) {
        let mut record = self.stored(id).await.unwrap();
        record.state = state;
        record.updated_at = SystemTime::now() - Duration::from_secs(120);
        assert!(self.store.update(&record).await.unwrap());
    }
}

fn anything() -> CreateSessionRequest {
    CreateSessionRequest::default()
}

fn once(id: &str) -> CreateSessionRequest {
    CreateSessionRequest { request_id: id.into(), ..anything() }
}

fn error<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Error {
    from_status(&result.unwrap_err())
}

fn sandbox(session: &Session) -> SandboxId {
    session.sandbox_id.parse().unwrap()
}

#[tokio::test]
async fn session_lives_through_pause_and_resume_until_it_is_deleted() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    assert_eq!((session.state(), session.user_id.as_str()), (SessionState::Running, "ada"));
    assert_eq!(world.node.sandboxes(), [sandbox(&session)]);
    let id = session.session_id.clone();
    for _ in 0..2 {
        assert_eq!(world.pause(&id).await.unwrap().state(), SessionState::Paused);
    }
    for _ in 0..2 {
        assert_eq!(world.resume(&id).await.unwrap().state(), SessionState::Running);
    }
    assert_eq!((world.node.called("PauseSandbox"), world.node.called("ResumeSandbox")), (1, 1));
    assert_eq!(world.get(&id).await.unwrap().sandbox_id, session.sandbox_id);
    world.delete(&id).await.unwrap();
    assert_eq!(world.node.sandboxes(), []);
    for gone in [world.get(&id).await.unwrap_err(), world.delete(&id).await.unwrap_err()] {
        assert_eq!((gone.kind(), gone.reason()), (ErrorKind::NotFound, reason::SESSION_NOT_FOUND));
    }
}

#[tokio::test]
async fn request_id_makes_one_session_and_one_sandbox() {
    let world = World::new().await;
    let first = world.create("ada", once("r")).await.unwrap();
    assert_eq!(world.create("ada", once("r")).await.unwrap(), first);
    let other = CreateSessionRequest { timeout_seconds: 9, ..once("r") };
    let refused = world.create("ada", other).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED));
    assert_eq!(world.node.sandboxes().len(), 1);
    assert_ne!(world.create("bob", once("r")).await.unwrap().session_id, first.session_id);
}

#[tokio::test]
async fn create_that_is_refused_leaves_nothing() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Refuse(ErrorKind::InvalidArgument));
    assert_eq!(world.create("ada", once("r")).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    world.node.heal("AcquireSandbox");
    let list = world.service.list_sessions(call("ada", ListSessionsRequest::default())).await.unwrap();
    assert!(list.into_inner().sessions.is_empty());
    assert!(world.create("ada", once("r")).await.is_ok(), "its request id is free again");
}

#[tokio::test]
async fn bad_fields_are_named_before_anything_is_stored() {
    let world = World::new().await;
    let metadata = [("a=b".to_owned(), String::new())].into();
    let template = "x".repeat(1000);
    let bad = CreateSessionRequest { request_id: "a b".into(), metadata, template, ..anything() };
    let refused = world.create("ada", bad).await.unwrap_err();
    let fields: Vec<_> = refused.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["request_id", "metadata", "template"]);
    for id in ["", "nonsense"] {
        assert_eq!(world.get(id).await.unwrap_err().violations()[0].field, "session_id");
    }
}

#[tokio::test]
async fn retry_of_a_create_whose_reply_was_lost_gets_the_first_sandbox() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::LoseReply);
    assert_eq!(world.create("ada", once("r")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.node.heal("AcquireSandbox");
    let session = world.create("ada", once("r")).await.unwrap();
    assert_eq!(world.node.sandboxes(), [sandbox(&session)]);
}

#[tokio::test]
async fn create_whose_caller_hung_up_is_gone_on_with_or_fails() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Hang);
    let service = world.service.clone();
    let creating = tokio::spawn(async move { service.create_session(call("ada", once("r"))).await });
    assert_eventually("the acquire", || world.node.in_flight() == 1).await;
    creating.abort();
    assert_eventually("its drop", || world.node.in_flight() == 0).await;
    world.node.heal("AcquireSandbox");
    let session = world.create("ada", once("r")).await.unwrap();
    assert_eq!(session.state(), SessionState::Running);

    let left = world.create("ada", once("s")).await.unwrap().session_id;
    world.leave(&left, State::Creating).await;
    world.reconciler.reconcile().await;
    let failed = world.get(&left).await.unwrap();
    assert_eq!((failed.state(), failed.failure.as_str()), (SessionState::Failed, "its creation was interrupted"));
}

#[tokio::test]
async fn session_deleted_while_it_is_created_leaves_no_sandbox() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Hold);
    let service = world.service.clone();
    let creating = tokio::spawn(async move { service.create_session(call("ada", anything())).await });
    assert_eventually("the acquire", || world.node.in_flight() == 1).await;
    let list = world.service.list_sessions(call("ada", ListSessionsRequest::default())).await.unwrap().into_inner();
    world.delete(&list.sessions[0].session_id).await.unwrap();
    world.node.heal("AcquireSandbox");
    assert_eq!(error(creating.await.unwrap()).reason(), reason::SESSION_NOT_FOUND);
    assert_eq!((world.node.called("AcquireSandbox"), world.node.sandboxes()), (1, vec![]));
}

#[tokio::test]
async fn two_creates_at_once_with_one_request_id_make_one_session() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Hold);
    let creating = ["a", "b"].map(|_| {
        let service = world.service.clone();
        tokio::spawn(async move { service.create_session(call("ada", once("r"))).await.unwrap().into_inner() })
    });
    assert_eventually("both acquires", || world.node.in_flight() == 2).await;
    world.node.heal("AcquireSandbox");
    let [first, second] = creating;
    assert_eq!(first.await.unwrap(), second.await.unwrap());
    assert_eq!(world.node.sandboxes().len(), 1);
}

#[tokio::test]
async fn session_whose_sandbox_ended_is_failed_and_can_be_deleted() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    world.node.forget(sandbox(&session));
    let failed = world.get(&session.session_id).await.unwrap();
    assert_eq!((failed.state(), failed.failure.as_str()), (SessionState::Failed, "its sandbox ended"));
    for refused in [world.pause(&session.session_id).await, world.resume(&session.session_id).await] {
        let refused = refused.unwrap_err();
        assert_eq!((refused.kind(), refused.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE));
        assert_eq!(refused.metadata(), [("state".to_owned(), "failed".to_owned())]);
    }
    world.delete(&session.session_id).await.unwrap();
}

#[tokio::test]
async fn session_whose_sandbox_ended_fails_though_the_directory_still_knows_it() {
    let world = World::new().await;
    let [seen, paused, resuming, deleting] = {
        let mut made = Vec::new();
        for _ in 0..4 {
            let session = world.create("ada", anything()).await.unwrap();
            world.node.end(sandbox(&session)).await;
            made.push(session);
        }
        made.try_into().unwrap()
    };
    assert_eq!(world.get(&seen.session_id).await.unwrap().state(), SessionState::Failed);
    assert_eq!(world.pause(&paused.session_id).await.unwrap_err().reason(), reason::SESSION_STATE);
    world.leave(&resuming.session_id, State::Resuming).await;
    world.leave(&deleting.session_id, State::Deleting).await;
    world.reconciler.reconcile().await;
    for session in [&paused, &resuming] {
        assert_eq!(world.stored(&session.session_id).await.unwrap().state, State::Failed);
        assert!(world.directory.sandbox(sandbox(session)).await.unwrap().is_some(), "its output can be read on");
    }
    assert!(world.stored(&deleting.session_id).await.is_none());
    assert_eq!(world.directory.sandbox(sandbox(&deleting)).await.unwrap(), None, "deleting releases it");
}

#[tokio::test]
async fn pause_that_finds_the_sandbox_gone_fails_the_session() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    world.node.forget(sandbox(&session));
    assert_eq!(world.pause(&session.session_id).await.unwrap_err().reason(), reason::SESSION_STATE);
    assert_eq!(world.stored(&session.session_id).await.unwrap().state, State::Failed);
}

#[tokio::test]
async fn step_that_the_node_refuses_is_taken_back() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.node.fail("PauseSandbox", Fault::Refuse(ErrorKind::FailedPrecondition));
    assert_eq!(world.pause(&id).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Running);
    world.node.heal("PauseSandbox");
    world.pause(&id).await.unwrap();
    world.node.fail("ResumeSandbox", Fault::Refuse(ErrorKind::Internal));
    assert_eq!(world.resume(&id).await.unwrap_err().kind(), ErrorKind::Internal);
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Paused);
}

#[tokio::test]
async fn step_whose_reply_was_lost_is_settled_by_what_the_node_says() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.node.fail("PauseSandbox", Fault::LoseReply);
    assert_eq!(world.pause(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(world.pause(&id).await.unwrap_err().reason(), reason::SESSION_STATE, "it is pausing");
    world.leave(&id, State::Pausing).await;
    world.reconciler.reconcile().await;
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Paused);

    world.leave(&id, State::Resuming).await;
    world.reconciler.reconcile().await;
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Paused, "the crash came before the thaw");
}

#[tokio::test]
async fn reconciler_leaves_alone_what_is_fresh_and_what_it_cannot_ask_about() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.leave(&id, State::Pausing).await;
    world.node.fail("GetSandbox", Fault::Refuse(ErrorKind::Unavailable));
    world.reconciler.reconcile().await;
    assert_eq!(world.stored(&id).await.unwrap().state, State::Pausing);
    let mut fresh = world.stored(&id).await.unwrap();
    fresh.updated_at = SystemTime::now();
    world.store.update(&fresh).await.unwrap();
    world.node.heal("GetSandbox");
    world.reconciler.reconcile().await;
    assert_eq!(world.stored(&id).await.unwrap().state, State::Pausing);
}

#[tokio::test]
async fn session_left_on_its_way_without_a_sandbox_is_failed() {
    let world = World::new().await;
    for state in [State::Pausing, State::Resuming] {
        let session = world.create("ada", anything()).await.unwrap();
        world.leave(&session.session_id, state).await;
        world.node.forget(sandbox(&session));
        for _ in 0..2 {
            world.reconciler.reconcile().await;
            assert_eq!(world.stored(&session.session_id).await.unwrap().state, State::Failed, "{state:?}");
        }
    }
}

#[tokio::test]
async fn delete_that_was_interrupted_is_finished() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.node.fail("ReleaseSandbox", Fault::Refuse(ErrorKind::Unavailable));
    assert_eq!(world.delete(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.leave(&id, State::Deleting).await;
    world.reconciler.reconcile().await;
    assert!(world.stored(&id).await.is_some(), "its sandbox is still there");
    world.node.heal("ReleaseSandbox");
    world.reconciler.reconcile().await;
    assert_eq!((world.stored(&id).await, world.node.sandboxes()), (None, vec![]));

    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.leave(&id, State::Deleting).await;
    world.delete(&id).await.unwrap();
    assert_eq!((world.stored(&id).await, world.node.sandboxes()), (None, vec![]));
}

#[tokio::test]
async fn reconciler_acts_at_its_start_and_stops_when_told() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    world.leave(&id, State::Deleting).await;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(world.reconciler.clone().run(async { drop(stopped.await) }));
    assert_eventually("the release", || world.node.sandboxes().is_empty()).await;
    stop.send(()).unwrap();
    running.await.unwrap();
}

#[tokio::test]
async fn delete_succeeds_though_the_sandbox_is_gone() {
    let world = World::new().await;
    let session = world.create("ada", anything()).await.unwrap();
    world.node.forget(sandbox(&session));
    world.directory.remove_sandbox(sandbox(&session)).await.unwrap();
    world.delete(&session.session_id).await.unwrap();
}

#[tokio::test]
async fn somebody_elses_and_unknown_sessions_are_not_found() {
    let world = World::new().await;
    let id = world.create("ada", anything()).await.unwrap().session_id;
    for session_id in [id.clone(), SessionId::generate().to_string()] {
        let pause = PauseSessionRequest { session_id: session_id.clone(), depth: 0 };
        let resume = ResumeSessionRequest { session_id: session_id.clone(), ..Default::default() };
        for refused in [
            error(world.service.get_session(call("bob", GetSessionRequest { session_id: session_id.clone() })).await),
            error(world.service.pause_session(call("bob", pause)).await),
            error(world.service.resume_session(call("bob", resume)).await),
            error(world.service.delete_session(call("bob", DeleteSessionRequest { session_id })).await),
        ] {
            assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, reason::SESSION_NOT_FOUND));
        }
    }
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Running);
}

#[tokio::test]
async fn list_pages_and_filters() {
    let world = World::new().await;
    let mut own = Vec::new();
    for number in 0..3 {
        let metadata = [("n".to_owned(), number.to_string())].into();
        own.push(world.create("ada", CreateSessionRequest { metadata, ..anything() }).await.unwrap().session_id);
        world.create("bob", anything()).await.unwrap();
    }
    own.sort();
    world.pause(&own[1]).await.unwrap();
    let default = ListSessionsRequest::default;
    let list = async |request| {
        let page = world.service.list_sessions(call("ada", request)).await.unwrap().into_inner();
        let ids: Vec<_> = page.sessions.into_iter().map(|session| session.session_id).collect();
        (ids, page.next_page_token)
    };
    let (first, token) = list(ListSessionsRequest { page_size: 2, ..default() }).await;
    let (second, end) = list(ListSessionsRequest { page_size: 2, page_token: token, ..default() }).await;
    assert_eq!(([first, second].concat(), end.as_str()), (own.clone(), ""));
    let paused = ListSessionsRequest { state: SessionState::Paused.into(), ..default() };
    assert_eq!(list(paused).await.0, own[1..2]);
    assert_eq!(list(ListSessionsRequest { metadata: vec!["n=2".into()], ..default() }).await.0.len(), 1);
    let all = world.service.list_sessions(by_admin(default())).await.unwrap().into_inner();
    assert_eq!(all.sessions.len(), 6);
    let bad = ListSessionsRequest { page_token: "junk".into(), ..default() };
    assert_eq!(error(world.service.list_sessions(call("ada", bad)).await).violations()[0].field, "page_token");
}
