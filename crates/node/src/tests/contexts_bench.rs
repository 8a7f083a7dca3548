//! A sandbox with the real agent and a place of its own: what is to start in `/workspace` starts in a folder of the
//! test, and a test may change what is started at all.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_sandbox_agent::{Agent, Children, serve_agent};
use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    agent::v1::{
        CheckRequest, CheckResponse, CompareSnapshotRequest, CompareSnapshotResponse, ProveWallsRequest,
        ProveWallsResponse, RunRequest, RunResponse, SignalRequest, SignalResponse, Start, TakeSnapshotRequest,
        TakeSnapshotResponse,
        agent_service_client::AgentServiceClient,
        agent_service_server::{AgentService, AgentServiceServer},
        run_request::Input,
    },
    v1::{
        AcquireSandboxRequest, Context, CreateContextRequest, DeleteContextRequest, ExecuteRequest, ExecuteResponse,
        GetContextRequest, InterruptContextRequest, ListContextsRequest, RestartContextRequest,
        context_service_client::ContextServiceClient,
    },
};
use cloud_sandbox_rpc::{Upstream, in_process};
use cloud_sandbox_runtime::FakeRuntime;
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tempfile::TempDir;
use tokio::{
    net::{UnixListener, UnixStream},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

use super::harness::*;
use crate::Options;

/// Changes what a process is started with.
type Change = Arc<Mutex<Option<Box<dyn FnMut(&mut Start) + Send>>>>;

pub(super) struct Bench {
    pub(super) world: World,
    pub(super) id: SandboxId,
    folder: TempDir,
    change: Change,
}

/// The real agent, told otherwise.
struct Proxy {
    agent: AgentServiceClient<Channel>,
    workspace: String,
    change: Change,
}

#[tonic::async_trait]
impl AgentService for Proxy {
    type RunStream = Streaming<RunResponse>;

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.agent.clone().check(request.into_inner()).await
    }

    async fn prove_walls(&self, request: Request<ProveWallsRequest>) -> Result<Response<ProveWallsResponse>, Status> {
        self.agent.clone().prove_walls(request.into_inner()).await
    }

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let (workspace, change) = (self.workspace.clone(), Arc::clone(&self.change));
        let mut messages = request.into_inner();
        let (forward, forwarded) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(mut message)) = messages.message().await {
                if let Some(Input::Start(start)) = &mut message.input {
                    if start.cwd == "/workspace" {
                        start.cwd.clone_from(&workspace);
                    }
                    if let Some(change) = &mut *change.lock().unwrap() {
                        change(start);
                    }
                }
                if forward.send(message).await.is_err() {
                    return;
                }
            }
        });
        self.agent.clone().run(ReceiverStream::new(forwarded)).await
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        self.agent.clone().signal(request.into_inner()).await
    }

    async fn take_snapshot(&self, _: Request<TakeSnapshotRequest>) -> Result<Response<TakeSnapshotResponse>, Status> {
        self.agent.clone().take_snapshot(TakeSnapshotRequest { path: self.workspace.clone() }).await
    }

    async fn compare_snapshot(
        &self,
        request: Request<CompareSnapshotRequest>,
    ) -> Result<Response<CompareSnapshotResponse>, Status> {
        self.agent.clone().compare_snapshot(request.into_inner()).await
    }

    async fn stop_processes(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::StopProcessesRequest>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::StopProcessesResponse>, Status> {
        Err(Status::unimplemented("stop_processes"))
    }

    async fn continue_processes(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::ContinueProcessesRequest>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::ContinueProcessesResponse>, Status> {
        Err(Status::unimplemented("continue_processes"))
    }

    type SaveTreeStream = futures::stream::Empty<Result<cloud_sandbox_proto::agent::v1::SaveTreeResponse, Status>>;

    async fn save_tree(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::SaveTreeRequest>>,
    ) -> Result<Response<Self::SaveTreeStream>, Status> {
        Err(Status::unimplemented("save_tree"))
    }

    async fn restore_tree(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::RestoreTreeRequest>>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::RestoreTreeResponse>, Status> {
        Err(Status::unimplemented("restore_tree"))
    }

    type ListenStream = futures::stream::Empty<Result<cloud_sandbox_proto::agent::v1::ListenResponse, Status>>;

    async fn listen(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::ListenRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        Err(Status::unimplemented("listen"))
    }

    type AcceptStream = futures::stream::Empty<Result<cloud_sandbox_proto::agent::v1::AcceptResponse, Status>>;

    async fn accept(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::AcceptRequest>>,
    ) -> Result<Response<Self::AcceptStream>, Status> {
        Err(Status::unimplemented("accept"))
    }
}

impl Bench {
    pub(super) async fn start() -> Self {
        Self::start_with(options(1, 1), AcquireSandboxRequest::default()).await
    }

    pub(super) async fn start_with(options: Options, acquire: AcquireSandboxRequest) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let workspace = folder.path().join("workspace");
        std::fs::create_dir(&workspace).unwrap();
        let socket = folder.path().join("agent.sock");
        tokio::spawn(serve_agent(UnixListener::bind(&socket).unwrap(), Agent::new(Children::own()).unwrap()));
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let agent =
            AgentServiceClient::new(Endpoint::from_static("http://agent").connect_with_connector_lazy(connector));
        let agent = agent.max_decoding_message_size(32 << 20).max_encoding_message_size(32 << 20);
        let change = Change::default();
        let (workspace, changing) = (workspace.to_str().unwrap().to_owned(), Arc::clone(&change));
        let runtime = Arc::new(FakeRuntime::new(move |_, ours| {
            let proxy = Proxy { agent: agent.clone(), workspace: workspace.clone(), change: Arc::clone(&changing) };
            let service = AgentServiceServer::new(proxy).max_decoding_message_size(32 << 20);
            let served = http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(ours), TowerToHyperService::new(service));
            tokio::spawn(served);
        }));
        let world = World::start_on(options, runtime, Arc::default()).await;
        while world.node.counts().ready == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let id = id_of(&world.try_acquire(acquire).await.unwrap());
        Self { world, id, folder, change }
    }

    /// Has `change` see every process before it is started.
    pub(super) fn change_starts(&self, change: impl FnMut(&mut Start) + Send + 'static) {
        *self.change.lock().unwrap() = Some(Box::new(change));
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("workspace").join(name)
    }

    pub(super) fn contexts(&self) -> ContextServiceClient<Upstream> {
        ContextServiceClient::new(in_process(self.world.node.context_service()))
    }

    pub(super) fn creating(&self, language: &str) -> CreateContextRequest {
        let sandbox_id = self.id.to_string();
        CreateContextRequest { sandbox_id, language: language.into(), ..Default::default() }
    }

    pub(super) async fn create(&self, request: CreateContextRequest) -> Result<Context, Failure> {
        let answer = self.contexts().create_context(request).await;
        answer.map(|answer| answer.into_inner().context.unwrap()).map_err(|status| Failure::of(&status))
    }

    /// Creates a context and gives its id.
    pub(super) async fn context(&self, language: &str) -> String {
        self.create(self.creating(language)).await.unwrap().context_id
    }

    pub(super) async fn list(&self) -> Vec<Context> {
        let request = ListContextsRequest { sandbox_id: self.id.to_string(), ..Default::default() };
        self.contexts().list_contexts(request).await.unwrap().into_inner().contexts
    }

    pub(super) async fn get(&self, context_id: &str) -> Result<Context, Failure> {
        let request =
            GetContextRequest { sandbox_id: self.id.to_string(), context_id: context_id.into(), ..Default::default() };
        let answer = self.contexts().get_context(request).await;
        answer.map(|answer| answer.into_inner().context.unwrap()).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn restart(&self, context_id: &str) -> Result<Context, Failure> {
        let request = RestartContextRequest {
            sandbox_id: self.id.to_string(),
            context_id: context_id.into(),
            ..Default::default()
        };
        let answer = self.contexts().restart_context(request).await;
        answer.map(|answer| answer.into_inner().context.unwrap()).map_err(|status| Failure::of(&status))
    }

    /// Whether something ran, and whether it has ended.
    pub(super) async fn interrupt(&self, context_id: &str) -> Result<(bool, bool), Failure> {
        let request = InterruptContextRequest {
            sandbox_id: self.id.to_string(),
            context_id: context_id.into(),
            ..Default::default()
        };
        let answer = self.contexts().interrupt_context(request).await.map_err(|status| Failure::of(&status))?;
        let answer = answer.into_inner();
        Ok((answer.running, answer.interrupted))
    }

    pub(super) async fn delete(&self, context_id: &str) -> Result<(), Failure> {
        let request = DeleteContextRequest {
            sandbox_id: self.id.to_string(),
            context_id: context_id.into(),
            ..Default::default()
        };
        self.contexts().delete_context(request).await.map(drop).map_err(|status| Failure::of(&status))
    }

    /// Code for a context.
    pub(super) fn cell(&self, context_id: &str, text: &str) -> ExecuteRequest {
        ExecuteRequest { context_id: context_id.into(), ..code(self.id, "", text) }
    }

    pub(super) async fn run(&self, context_id: &str, text: &str) -> ExecuteResponse {
        self.world.execute(self.cell(context_id, text)).await.unwrap()
    }

    /// Runs an expression and gives the text of its value.
    pub(super) async fn value(&self, context_id: &str, text: &str) -> String {
        let answer = self.run(context_id, text).await;
        assert!(answer.error.is_none(), "{:?}", answer.error);
        answer.results.into_iter().find(|result| result.is_main).map(|result| result.text).unwrap_or_default()
    }

    /// Waits until a file is there.
    pub(super) async fn until_there(&self, name: &str) {
        for _ in 0..3000 {
            if self.path(name).exists() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{name} does not come");
    }
}

/// The name of the error that an execution ended with.
pub(super) fn error_of(answer: &ExecuteResponse) -> (&str, &str) {
    answer.error.as_ref().map_or(("", ""), |error| (&error.name, &error.value))
}
