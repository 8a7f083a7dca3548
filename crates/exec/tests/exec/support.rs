//! A world of one simulated node, and what tests say to it.

use std::{fmt::Display, sync::Arc};

use cloud_sandbox_auth::{Principal, Role};
use cloud_sandbox_exec::{ContextService, ExecService, FileService};
use cloud_sandbox_model::Error;
use cloud_sandbox_proto::v1::{
    ExecEvent, ExecRequest, ExecStart, ExecuteRequest, ExecuteStreamRequest, UploadCommit, UploadFileHeader,
    UploadFileRequest, context_service_client::ContextServiceClient, exec_event::Event, exec_request::Input,
    exec_service_client::ExecServiceClient, file_service_client::FileServiceClient, upload_file_request::Part,
};
use cloud_sandbox_rpc::{Dial, LocalDial, Upstream, from_status, in_process, upstream::MESSAGE_MAX};
use cloud_sandbox_sim_node::{SimNode, principal};
use cloud_sandbox_storage::MemoryDirectory;
use tonic::{
    Request, Status,
    service::{Routes, interceptor::InterceptedService},
};

pub struct World {
    pub node: SimNode,
    pub directory: Arc<MemoryDirectory>,
    pub dial: LocalDial,
}

impl World {
    pub async fn new() -> Self {
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let node = SimNode::start(directory.clone(), &dial, 5, 9).await;
        Self { node, directory, dial }
    }

    /// The three services as `who` reaches them, calling nodes through `dial`.
    pub fn routes(&self, who: Principal, dial: Arc<dyn Dial>) -> Routes {
        let identify = move |mut request: Request<()>| {
            request.extensions_mut().insert(who.clone());
            Ok(request)
        };
        let exec = ExecService::new(self.directory.clone(), dial.clone()).grpc();
        let contexts = ContextService::new(self.directory.clone(), dial.clone()).grpc();
        let files = FileService::new(self.directory.clone(), dial).grpc();
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

pub fn code(id: impl Display, code: &str) -> ExecuteRequest {
    ExecuteRequest { sandbox_id: id.to_string(), code: Some(code.into()), ..ExecuteRequest::default() }
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
    let header = UploadFileHeader { sandbox_id: id.to_string(), path: "/a".into(), ..UploadFileHeader::default() };
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
