//! A world of one simulated node, and what tests say to it.

use std::{fmt::Display, sync::Arc};

use cloud_sandbox_auth::{Principal, Role};
use cloud_sandbox_exec::{ContextService, ExecService, FileService};
use cloud_sandbox_model::Error;
use cloud_sandbox_proto::v1::{
    ExecEvent, ExecRequest, ExecStart, ExecuteRequest, ExecuteStreamRequest, UploadCommit, UploadFileHeader,
    UploadFileRequest, context_service_client::ContextServiceClient, exec_event::Event, exec_request::Input,
    exec_service_client::ExecServiceClient, file_service_client::FileServiceClient,
    session_service_server::SessionServiceServer, upload_file_request::Part,
};
use cloud_sandbox_rpc::{Dial, LocalDial, Upstream, from_status, in_process, upstream::MESSAGE_MAX};
use cloud_sandbox_sim_node::{SimNode, principal};
use cloud_sandbox_storage::MemoryDirectory;
use tonic::{
    Request, Status,
    service::{Routes, interceptor::InterceptedService},
};

use crate::fake_sessions::FakeSessions;

pub struct World {
    pub node: SimNode,
    pub directory: Arc<MemoryDirectory>,
    pub dial: LocalDial,
    pub sessions: FakeSessions,
}

impl World {
    pub async fn new() -> Self {
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let node = SimNode::start(directory.clone(), &dial, 5, 9).await;
        let sessions = FakeSessions::of(node.clone());
        Self { node, directory, dial, sessions }
    }

    /// The three services as `who` reaches them, calling nodes through `dial`.
    pub fn routes(&self, who: Principal, dial: Arc<dyn Dial>) -> Routes {
        self.identified(dial, move |_| who.clone())
    }

    /// The same as users reach them who say who they are.
    fn routes_for_whom(&self) -> Routes {
        self.identified(Arc::new(self.dial.clone()), |request| {
            principal(request.metadata().get("authorization").unwrap().to_str().unwrap(), Role::User)
        })
    }

    fn identified(
        &self,
        dial: Arc<dyn Dial>,
        who: impl Fn(&Request<()>) -> Principal + Clone + Send + Sync + 'static,
    ) -> Routes {
        let identify = move |mut request: Request<()>| {
            let who = who(&request);
            // what the session manager is shown as the caller's token
            request.metadata_mut().insert("authorization", who.user.parse().unwrap());
            request.extensions_mut().insert(who);
            Ok(request)
        };
        let session = in_process(Routes::new(SessionServiceServer::new(self.sessions.clone())).prepare());
        let exec = ExecService::new(self.directory.clone(), dial.clone(), session.clone()).grpc();
        let contexts = ContextService::new(self.directory.clone(), dial.clone(), session.clone()).grpc();
        let files = FileService::new(self.directory.clone(), dial, session).grpc();
        Routes::new(InterceptedService::new(exec, identify.clone()))
            .add_service(InterceptedService::new(contexts, identify.clone()))
            .add_service(InterceptedService::new(files, identify))
    }

    pub fn as_principal(&self, who: Principal) -> Clients {
        Clients::over(in_process(self.routes(who, Arc::new(self.dial.clone())).prepare()))
    }

    pub fn by(&self, user: &str) -> Clients {
        self.as_principal(principal(user, Role::User))
    }

    /// Clients of one relay, for whoever is named: a call says who makes it.
    pub fn shared(&self) -> impl Fn(&str) -> Clients {
        let upstream = in_process(self.routes_for_whom().prepare());
        move |user| {
            let user: http::HeaderValue = user.parse().unwrap();
            Clients::over(upstream.clone().authorized(move || Ok(user.clone())))
        }
    }

    pub fn ada(&self) -> Clients {
        self.by("ada")
    }
}

/// A caller's clients.
#[derive(Clone)]
pub struct Clients {
    pub exec: ExecServiceClient<Upstream>,
    pub contexts: ContextServiceClient<Upstream>,
    pub files: FileServiceClient<Upstream>,
}

impl Clients {
    pub fn over(upstream: Upstream) -> Self {
        Self {
            exec: ExecServiceClient::new(upstream.clone()),
            contexts: ContextServiceClient::new(upstream.clone()),
            files: FileServiceClient::new(upstream).max_decoding_message_size(MESSAGE_MAX),
        }
    }
}

/// The ids of a request about `id`: a sandbox, a session, or both with a `+` between.
pub fn ids(id: impl Display) -> (String, String) {
    let id = id.to_string();
    match id.split_once('+') {
        Some((sandbox, session)) => (sandbox.to_owned(), session.to_owned()),
        None if id.starts_with("se") => (String::new(), id),
        None => (id, String::new()),
    }
}

pub fn code(id: impl Display, code: &str) -> ExecuteRequest {
    let (sandbox_id, session_id) = ids(id);
    ExecuteRequest { sandbox_id, session_id, code: Some(code.into()), ..ExecuteRequest::default() }
}

pub fn streamed(id: impl Display, text: &str) -> ExecuteStreamRequest {
    ExecuteStreamRequest { request: Some(code(id, text)) }
}

pub fn input(input: Input) -> ExecRequest {
    ExecRequest { input: Some(input) }
}

pub fn start(id: impl Display) -> ExecRequest {
    input(Input::Start(ExecStart { request: Some(code(id, "")), ..ExecStart::default() }))
}

pub fn header(id: impl Display) -> UploadFileRequest {
    let (sandbox_id, session_id) = ids(id);
    let header = UploadFileHeader { sandbox_id, session_id, path: "/a".into(), ..UploadFileHeader::default() };
    UploadFileRequest { part: Some(Part::Header(header)) }
}

pub fn data(bytes: impl Into<bytes::Bytes>) -> UploadFileRequest {
    UploadFileRequest { part: Some(Part::Data(bytes.into())) }
}

pub fn commit() -> UploadFileRequest {
    UploadFileRequest { part: Some(Part::Commit(UploadCommit {})) }
}

/// What kind of event, in a word.
pub fn word(event: Option<ExecEvent>) -> String {
    match event.and_then(|event| event.event) {
        Some(Event::Started(_)) => "started".into(),
        Some(Event::Stdout(output)) => format!("stdout {:?}", output.content.unwrap()),
        Some(Event::Exited(_)) => "exited".into(),
        other => format!("{other:?}"),
    }
}

pub fn error<T: std::fmt::Debug>(result: Result<T, Status>) -> Error {
    from_status(&result.unwrap_err())
}
