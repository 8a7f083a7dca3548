//! A control plane with a node, and calls to it.

use std::{
    ops::Deref,
    sync::Arc,
    time::{Duration, SystemTime},
};

use cloud_sandbox_auth::{Role, Tokens};
use cloud_sandbox_model::{CheckpointId, Error, SandboxId};
use cloud_sandbox_proto::v1::{
    Checkpoint, CreateCheckpointRequest, CreateSessionRequest, DeleteSessionRequest, ForkSessionRequest,
    GetSessionRequest, ListCheckpointsRequest, ListSessionEventsRequest, PauseDepth, PauseSessionRequest,
    ResumeSessionRequest, Session, UpdateSessionRequest, session_service_server::SessionService as _,
};
use cloud_sandbox_rpc::{LocalDial, Upstream, from_status, in_process};
use cloud_sandbox_scheduler::{SchedulerService, TemplateOptions, Templates};
use cloud_sandbox_session::{Options, Parts, SessionKeeper, SessionService, Sessions, steps::Probe};
use cloud_sandbox_sim_node::{MemoryWorkspaces, SimNode, by, principal};
use cloud_sandbox_storage::{
    Directory, MemoryDirectory, MemoryTemplates, SessionFilter, SessionRecord, SessionStore, SqliteSessions,
    sessions::Along,
};
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

/// A control plane of one replica, and a node.
pub(crate) struct World {
    pub(crate) node: SimNode,
    pub(crate) dial: LocalDial,
    pub(crate) directory: Arc<MemoryDirectory>,
    pub(crate) store: Arc<SqliteSessions>,
    pub(crate) workspaces: Arc<MemoryWorkspaces>,
    pub(crate) templates: Arc<MemoryTemplates>,
    pub(crate) named: Templates,
    scheduler: Upstream,
    replica: Replica,
    _folder: tempfile::TempDir,
}

/// A replica of the control plane.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) service: SessionService,
    pub(crate) keeper: SessionKeeper,
}

impl Deref for World {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        &self.replica
    }
}

fn tokens() -> Tokens {
    Tokens::hs256(&[5; 32])
}

/// A call by `user` with its token, for what the service does in the caller's name.
pub(crate) fn call<T>(user: &str, message: T) -> Request<T> {
    let token = tokens().mint(&principal(user, Role::User), Duration::from_secs(600)).unwrap();
    let mut request = by(user, message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

pub(crate) fn outcome<T>(result: Result<Response<T>, Status>) -> Result<T, Error> {
    result.map(Response::into_inner).map_err(|status| from_status(&status))
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap());
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let workspaces = Arc::new(MemoryWorkspaces::default());
        let node = SimNode::start(directory.clone(), &dial, 5, 20).await;
        node.keep_checkpoints_in(workspaces.clone());
        let options_of_templates = TemplateOptions { default_template: "host".into(), docker_image: String::new() };
        let templates = Arc::new(MemoryTemplates::new());
        let named = Templates::new(templates.clone(), options_of_templates);
        let scheduler = SchedulerService::new(directory.clone(), Arc::new(dial.clone()), named.clone()).grpc();
        // the scheduler knows the caller by its own token, which must have come along
        let identify = |mut request: Request<()>| {
            let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
            let token = header.and_then(|text| text.strip_prefix("Bearer ")).ok_or(Status::unauthenticated("no"))?;
            let principal = tokens().verify(token).map_err(cloud_sandbox_rpc::to_status)?;
            request.extensions_mut().insert(principal);
            Ok(request)
        };
        let scheduler = in_process(InterceptedService::new(scheduler, identify));
        let parts = Parts {
            store: store.clone(),
            workspaces: workspaces.clone(),
            directory: directory.clone(),
            dial: Arc::new(dial.clone()),
            scheduler: scheduler.clone(),
        };
        let replica = Replica::of(Sessions::new(parts, options));
        Self { node, dial, directory, store, workspaces, templates, named, scheduler, replica, _folder: folder }
    }

    fn parts(&self) -> Parts {
        Parts {
            store: self.store.clone(),
            workspaces: self.workspaces.clone(),
            directory: self.directory.clone(),
            dial: Arc::new(self.dial.clone()),
            scheduler: self.scheduler.clone(),
        }
    }

    /// Another replica.
    pub(crate) fn another(&self, options: Options) -> Replica {
        Replica::of(Sessions::new(self.parts(), options))
    }

    /// Another replica whose steps are watched.
    pub(crate) fn watched(&self, options: Options, probe: Arc<dyn Probe>) -> Replica {
        Replica::of(Sessions::watched(self.parts(), options, probe))
    }

    /// Another replica with a way of its own to the store.
    pub(crate) fn over(&self, store: Arc<dyn SessionStore>, options: Options) -> Replica {
        Replica::of(Sessions::new(Parts { store, ..self.parts() }, options))
    }

    pub(crate) async fn stored(&self, id: &str) -> Option<SessionRecord> {
        self.store.get(id.parse().unwrap()).await.unwrap()
    }

    pub(crate) async fn all(&self) -> Vec<SessionRecord> {
        self.store.list(&SessionFilter::default(), None, 1000).await.unwrap()
    }

    /// Changes what is stored of a session, as time or a crash would.
    pub(crate) async fn rewrite(&self, id: &str, change: impl FnOnce(&mut SessionRecord)) {
        let mut record = self.stored(id).await.unwrap();
        change(&mut record);
        assert!(self.store.update(&record, &Along::default()).await.unwrap());
    }

    /// Makes every session due.
    pub(crate) async fn make_due(&self) {
        for record in self.all().await {
            assert!(self.store.postpone(&record, Some(SystemTime::UNIX_EPOCH)).await.unwrap());
        }
    }

    /// Has every session looked at.
    pub(crate) async fn look(&self) {
        self.look_with(&self.keeper).await;
    }

    pub(crate) async fn look_with(&self, keeper: &SessionKeeper) {
        self.make_due().await;
        keeper.round().await;
    }

    /// A running session of ada, with this done in it.
    pub(crate) async fn session_with(&self, content: &str) -> Session {
        let session = self.create("ada", CreateSessionRequest::default()).await.unwrap();
        self.node.set_content(sandbox(&session), content);
        session
    }

    /// What is in a running session.
    pub(crate) async fn content(&self, id: &str) -> String {
        let record = self.stored(id).await.unwrap();
        self.node.content(record.sandbox.unwrap())
    }

    /// Another node, with the same workspace store.
    pub(crate) async fn another_node(&self) -> SimNode {
        let node = SimNode::start(self.directory.clone(), &self.dial, 5, 20).await;
        node.keep_checkpoints_in(self.workspaces.clone());
        node
    }

    /// The node ends without a word.
    pub(crate) async fn kill_node(&self) {
        self.node.cut_off();
        self.directory.remove_node(self.node.id()).await.unwrap();
    }
}

impl Replica {
    fn of(sessions: Sessions) -> Self {
        Self { service: SessionService::new(sessions.clone()), keeper: SessionKeeper::new(sessions) }
    }

    pub(crate) async fn create(&self, user: &str, request: CreateSessionRequest) -> Result<Session, Error> {
        Ok(outcome(self.service.create_session(call(user, request)).await)?.session.unwrap())
    }

    pub(crate) async fn get(&self, id: &str) -> Result<Session, Error> {
        let request = GetSessionRequest { session_id: id.into() };
        Ok(outcome(self.service.get_session(call("ada", request)).await)?.session.unwrap())
    }

    pub(crate) async fn pause(&self, id: &str, depth: PauseDepth) -> Result<Session, Error> {
        let request = PauseSessionRequest { session_id: id.into(), depth: depth.into() };
        Ok(outcome(self.service.pause_session(call("ada", request)).await)?.session.unwrap())
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<Session, Error> {
        self.resume_from(id, "").await
    }

    pub(crate) async fn resume_from(&self, id: &str, checkpoint: &str) -> Result<Session, Error> {
        let request = ResumeSessionRequest {
            session_id: id.into(),
            checkpoint_id: checkpoint.into(),
            ..ResumeSessionRequest::default()
        };
        Ok(outcome(self.service.resume_session(call("ada", request)).await)?.session.unwrap())
    }

    pub(crate) async fn delete(&self, id: &str) -> Result<(), Error> {
        let request = DeleteSessionRequest { session_id: id.into() };
        outcome(self.service.delete_session(call("ada", request)).await).map(drop)
    }

    pub(crate) async fn update(&self, request: UpdateSessionRequest) -> Result<Session, Error> {
        Ok(outcome(self.service.update_session(call("ada", request)).await)?.session.unwrap())
    }

    pub(crate) async fn checkpoint(&self, id: &str) -> Result<Checkpoint, Error> {
        let request = CreateCheckpointRequest { session_id: id.into() };
        Ok(outcome(self.service.create_checkpoint(call("ada", request)).await)?.checkpoint.unwrap())
    }

    /// The ids of a session's checkpoints, newest first.
    pub(crate) async fn checkpoints(&self, id: &str) -> Vec<String> {
        let request = ListCheckpointsRequest { session_id: id.into() };
        let list = outcome(self.service.list_checkpoints(call("ada", request)).await).unwrap().checkpoints;
        list.into_iter().map(|checkpoint| checkpoint.checkpoint_id).collect()
    }

    pub(crate) async fn fork(&self, request: ForkSessionRequest) -> Result<Session, Error> {
        Ok(outcome(self.service.fork_session(call("ada", request)).await)?.session.unwrap())
    }

    /// What happened to a session: kinds and words.
    pub(crate) async fn events(&self, id: &str) -> Vec<(String, String)> {
        let request = ListSessionEventsRequest { session_id: id.into(), page_size: 1000, after_sequence: 0 };
        let list = outcome(self.service.list_session_events(call("ada", request)).await).unwrap().events;
        list.into_iter().map(|event| (event.kind, event.message)).collect()
    }

    pub(crate) async fn kinds(&self, id: &str) -> Vec<String> {
        self.events(id).await.into_iter().map(|(kind, _)| kind).collect()
    }
}

pub(crate) fn anything() -> CreateSessionRequest {
    CreateSessionRequest::default()
}

pub(crate) fn once(id: &str) -> CreateSessionRequest {
    CreateSessionRequest { request_id: id.into(), ..anything() }
}

pub(crate) fn fork_of(id: &str) -> ForkSessionRequest {
    ForkSessionRequest { session_id: id.into(), ..ForkSessionRequest::default() }
}

pub(crate) fn sandbox(session: &Session) -> SandboxId {
    session.sandbox_id.parse().unwrap()
}

pub(crate) fn checkpoint(id: &str) -> CheckpointId {
    id.parse().unwrap()
}

/// So many seconds ago.
pub(crate) fn ago(seconds: u64) -> SystemTime {
    SystemTime::now() - Duration::from_secs(seconds)
}
