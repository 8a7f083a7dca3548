//! Services whose answers depend on what they are asked, and who remember what reached them.

mod contexts;
pub mod files;
mod templates;

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_stream::stream;
use bytes::Bytes;
use cloud_sandbox_auth::{AuthLayer, Tokens};
use cloud_sandbox_gateway_rest::Upstreams;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use cloud_sandbox_proto::v1::{
    Context as CodeContext, context_service_server::*, exec_event::Event, exec_output::Content, exec_request::Input,
    exec_service_server::*, file_service_server::*, scheduler_service_server::*, session_service_server::*,
    template_service_server::*, *,
};
use cloud_sandbox_rpc::{in_process, to_status};
use futures::{Stream, StreamExt};
use http::HeaderMap;
use tonic::{Request, Response, Status, Streaming, async_trait, service::Routes};
use tower::Layer;

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What reached the services.
#[derive(Debug, Default)]
pub struct Seen {
    pub headers: Mutex<HeaderMap>,
    pub request: Mutex<String>,
    /// the ranges of files that were asked for
    pub downloads: Mutex<Vec<(u64, u64)>>,
    pub uploaded: Mutex<files::Uploaded>,
    /// calls that were dropped before they ended, and those of files that ended
    pub dropped: AtomicUsize,
}

impl Seen {
    fn note<T: std::fmt::Debug>(&self, request: &Request<T>) {
        *self.headers.lock().unwrap() = request.metadata().clone().into_headers();
        *self.request.lock().unwrap() = format!("{:?}", request.get_ref());
    }

    pub fn header(&self, name: &str) -> Option<String> {
        let headers = self.headers.lock().unwrap();
        headers.get(name).map(|value| value.to_str().unwrap().to_owned())
    }

    pub fn request(&self) -> String {
        self.request.lock().unwrap().clone()
    }

    /// Waits until a request with this in it is there.
    pub async fn assert_seen(&self, part: &str) {
        eventually(&format!("a call of {part} comes"), || self.request().contains(part)).await;
    }

    pub async fn assert_dropped(&self) {
        eventually("a call whose caller is gone ends", || self.dropped.load(Ordering::SeqCst) > 0).await;
    }
}

/// Waits until something holds.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}

struct CountDrop(Arc<Seen>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

#[derive(Clone)]
pub struct Fake(pub Arc<Seen>);

/// Upstreams that verify tokens again, as the real services do.
pub fn upstreams(tokens: &Tokens, seen: &Arc<Seen>) -> Upstreams {
    let fake = Fake(Arc::clone(seen));
    let auth = AuthLayer::new(tokens.clone());
    let exec = Routes::new(ExecServiceServer::new(fake.clone()))
        .add_service(ContextServiceServer::new(fake.clone()))
        .add_service(FileServiceServer::new(fake.clone()).max_decoding_message_size(8 << 20));
    let scheduler = Routes::new(SchedulerServiceServer::new(fake.clone()));
    let scheduler = scheduler.add_service(TemplateServiceServer::new(fake.clone()));
    Upstreams {
        scheduler: in_process(auth.layer(scheduler.prepare())),
        session: in_process(auth.layer(SessionServiceServer::new(fake))),
        exec: in_process(auth.layer(exec.prepare())),
    }
}

fn sandbox(id: &str, template: &str) -> Sandbox {
    let limits = ResourceLimits {
        memory_bytes: 9_007_199_254_740_993,
        cpu_millis: 1000,
        pids: 4,
        disk_bytes: 1,
        ..Default::default()
    };
    Sandbox {
        sandbox_id: id.to_owned(),
        template: template.to_owned(),
        state: SandboxState::Acquired.into(),
        limits: Some(limits),
        create_time: Some(prost_reflect::prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 }),
        ..Default::default()
    }
}

#[async_trait]
impl SchedulerService for Fake {
    async fn acquire_sandbox(&self, request: Request<AcquireSandboxRequest>) -> Answer<AcquireSandboxResponse> {
        self.0.note(&request);
        let wanted = request.into_inner();
        let mut sandbox = sandbox("sb1", if wanted.template.is_empty() { "host" } else { &wanted.template });
        sandbox.metadata = wanted.metadata;
        Ok(Response::new(AcquireSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn release_sandbox(&self, request: Request<ReleaseSandboxRequest>) -> Answer<ReleaseSandboxResponse> {
        self.0.note(&request);
        let sandbox_id = request.into_inner().sandbox_id;
        Ok(Response::new(ReleaseSandboxResponse { sandbox_id, released: true }))
    }

    async fn keep_alive_sandbox(&self, request: Request<KeepAliveSandboxRequest>) -> Answer<KeepAliveSandboxResponse> {
        self.0.note(&request);
        Ok(Response::new(KeepAliveSandboxResponse { sandbox: Some(sandbox(&request.into_inner().sandbox_id, "host")) }))
    }

    async fn update_sandbox(&self, request: Request<UpdateSandboxRequest>) -> Answer<UpdateSandboxResponse> {
        self.0.note(&request);
        let request = request.into_inner();
        let mut sandbox = sandbox(&request.sandbox_id, "host");
        sandbox.network = request.network;
        Ok(Response::new(UpdateSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Answer<GetSandboxResponse> {
        self.0.note(&request);
        let id = request.into_inner().sandbox_id;
        match id.as_str() {
            "missing" => Err(to_status(Error::sandbox_not_found(&id))),
            "expired" => Err(Status::cancelled("Timeout expired")),
            "faulty" => Err(Status::unknown("postgres://user:secret@db")),
            "panicking" => panic!("postgres://user:secret@db"),
            "full" => {
                let error = Error::new(ErrorKind::ResourceExhausted, reason::CAPACITY, "no room");
                Err(to_status(error.with_retry_after(Duration::from_millis(2500))))
            }
            "slow" => {
                let _count = CountDrop(Arc::clone(&self.0));
                tokio::time::sleep(Duration::from_secs(60)).await;
                Err(Status::internal("nobody came"))
            }
            _ => Ok(Response::new(GetSandboxResponse { sandbox: Some(sandbox(&id, "host")) })),
        }
    }

    async fn list_sandboxes(&self, request: Request<ListSandboxesRequest>) -> Answer<ListSandboxesResponse> {
        self.0.note(&request);
        Ok(Response::new(ListSandboxesResponse::default()))
    }

    async fn get_sandbox_stats(&self, request: Request<GetSandboxStatsRequest>) -> Answer<GetSandboxStatsResponse> {
        self.0.note(&request);
        let nodes = vec![NodeStats { node_id: "n1".into(), ..Default::default() }];
        Ok(Response::new(GetSandboxStatsResponse { total: 3, nodes, ..Default::default() }))
    }
}

fn session(id: &str, state: SessionState) -> Option<Session> {
    Some(Session { session_id: id.to_owned(), state: state.into(), ..Default::default() })
}

#[async_trait]
impl SessionService for Fake {
    async fn create_session(&self, request: Request<CreateSessionRequest>) -> Answer<CreateSessionResponse> {
        self.0.note(&request);
        Ok(Response::new(CreateSessionResponse { session: session("se1", SessionState::Running) }))
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Answer<GetSessionResponse> {
        self.0.note(&request);
        let id = request.into_inner().session_id;
        Ok(Response::new(GetSessionResponse { session: session(&id, SessionState::Running) }))
    }

    async fn list_sessions(&self, request: Request<ListSessionsRequest>) -> Answer<ListSessionsResponse> {
        self.0.note(&request);
        Ok(Response::new(ListSessionsResponse::default()))
    }

    async fn pause_session(&self, request: Request<PauseSessionRequest>) -> Answer<PauseSessionResponse> {
        self.0.note(&request);
        let id = request.into_inner().session_id;
        Ok(Response::new(PauseSessionResponse { session: session(&id, SessionState::Paused) }))
    }

    async fn resume_session(&self, request: Request<ResumeSessionRequest>) -> Answer<ResumeSessionResponse> {
        self.0.note(&request);
        let id = request.into_inner().session_id;
        Ok(Response::new(ResumeSessionResponse { session: session(&id, SessionState::Running) }))
    }

    async fn delete_session(&self, request: Request<DeleteSessionRequest>) -> Answer<DeleteSessionResponse> {
        self.0.note(&request);
        let session_id = request.into_inner().session_id;
        Ok(Response::new(DeleteSessionResponse { session_id, deleted: true }))
    }

    async fn update_session(&self, request: Request<UpdateSessionRequest>) -> Answer<UpdateSessionResponse> {
        self.0.note(&request);
        let id = request.into_inner().session_id;
        let lost = LostItem { kind: "process".into(), ..Default::default() };
        let resume_manifest = Some(ResumeManifest { files: 2, lost: vec![lost], ..Default::default() });
        let session = session(&id, SessionState::Running).map(|session| Session { resume_manifest, ..session });
        Ok(Response::new(UpdateSessionResponse { session }))
    }

    async fn create_checkpoint(
        &self,
        _: Request<CreateCheckpointRequest>,
    ) -> Result<Response<CreateCheckpointResponse>, Status> {
        Err(Status::unimplemented("create_checkpoint"))
    }

    async fn list_checkpoints(
        &self,
        _: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        Err(Status::unimplemented("list_checkpoints"))
    }

    async fn fork_session(&self, _: Request<ForkSessionRequest>) -> Result<Response<ForkSessionResponse>, Status> {
        Err(Status::unimplemented("fork_session"))
    }

    async fn list_session_events(
        &self,
        _: Request<ListSessionEventsRequest>,
    ) -> Result<Response<ListSessionEventsResponse>, Status> {
        Err(Status::unimplemented("list_session_events"))
    }
}

fn event(event: Event) -> ExecEvent {
    ExecEvent { event: Some(event) }
}

fn printed(content: Content) -> ExecEvent {
    event(Event::Stdout(ExecOutput { offset: 0, content: Some(content) }))
}

#[async_trait]
impl ExecService for Fake {
    async fn execute(&self, request: Request<ExecuteRequest>) -> Answer<ExecuteResponse> {
        self.0.note(&request);
        let stdout = request.into_inner().code().to_owned();
        let stdout_bytes = stdout.len() as u64;
        Ok(Response::new(ExecuteResponse { execution_id: "ex1".into(), stdout, stdout_bytes, ..Default::default() }))
    }

    type ExecuteStreamStream = Events<ExecuteStreamResponse>;

    async fn execute_stream(&self, request: Request<ExecuteStreamRequest>) -> Answer<Self::ExecuteStreamStream> {
        self.0.note(&request);
        let code = request.into_inner().request.unwrap_or_default().code().to_owned();
        if code == "refused" {
            return Err(to_status(Error::sandbox_not_found("sb1")));
        }
        let seen = Arc::clone(&self.0);
        let events = stream! {
            let answer = |event| Ok(ExecuteStreamResponse { event: Some(event) });
            yield answer(event(Event::Started(ExecStarted { execution_id: "ex1".into(), pid: 7 })));
            if code == "broken" {
                yield Err(to_status(Error::new(ErrorKind::Unavailable, reason::SANDBOX_GONE, "the node is gone")));
                return;
            }
            if code == "endless" {
                let _count = CountDrop(seen);
                loop {
                    yield answer(printed(Content::Text("tick".into())));
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            yield answer(printed(Content::Text("a\nb".into())));
            yield answer(printed(Content::Data(vec![0xff].into())));
            yield answer(event(Event::Exited(ExecExited { exit_code: 3, ..Default::default() })));
        };
        Ok(Response::new(Box::pin(events)))
    }

    type ExecStream = Events<ExecResponse>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Answer<Self::ExecStream> {
        let mut inputs = request.into_inner();
        let echoed = stream! {
            while let Some(input) = inputs.next().await {
                if let Ok(ExecRequest { input: Some(Input::Stdin(data)) }) = input {
                    yield Ok(ExecResponse { event: Some(printed(Content::Data(data))) });
                }
            }
        };
        Ok(Response::new(Box::pin(echoed)))
    }

    async fn start_execution(&self, request: Request<StartExecutionRequest>) -> Answer<StartExecutionResponse> {
        self.0.note(&request);
        Ok(Response::new(StartExecutionResponse { execution: execution("ex1") }))
    }

    async fn list_executions(&self, request: Request<ListExecutionsRequest>) -> Answer<ListExecutionsResponse> {
        self.0.note(&request);
        Ok(Response::new(ListExecutionsResponse::default()))
    }

    async fn get_execution(&self, request: Request<GetExecutionRequest>) -> Answer<GetExecutionResponse> {
        self.0.note(&request);
        Ok(Response::new(GetExecutionResponse { execution: execution(&request.into_inner().execution_id) }))
    }

    type AttachExecutionStream = Events<AttachExecutionResponse>;

    async fn attach_execution(&self, request: Request<AttachExecutionRequest>) -> Answer<Self::AttachExecutionStream> {
        self.0.note(&request);
        let AttachExecutionRequest { execution_id, stdout_offset, stderr_offset, .. } = request.into_inner();
        let events = stream! {
            let answer = |event| Ok(AttachExecutionResponse { event: Some(ExecEvent { event: Some(event) }) });
            let output = |offset, content| ExecOutput { offset, content: Some(content) };
            yield answer(Event::Started(ExecStarted { execution_id, pid: 7 }));
            yield answer(Event::Stdout(output(stdout_offset, Content::Text("ä\n".into()))));
            yield answer(Event::Stderr(output(stderr_offset, Content::Data(vec![0xff].into()))));
            yield answer(Event::Gap(ExecGap {
                stream: OutputStream::Stdout.into(),
                offset: stdout_offset + 3,
                length: 100,
                results: 0,
            }));
            yield answer(Event::Exited(ExecExited::default()));
        };
        Ok(Response::new(Box::pin(events)))
    }

    async fn read_execution_output(
        &self,
        request: Request<ReadExecutionOutputRequest>,
    ) -> Answer<ReadExecutionOutputResponse> {
        self.0.note(&request);
        let content = Some(read_execution_output_response::Content::Text("a".into()));
        Ok(Response::new(ReadExecutionOutputResponse { content, next_offset: 1, ..Default::default() }))
    }

    async fn grep_execution_output(
        &self,
        request: Request<GrepExecutionOutputRequest>,
    ) -> Answer<GrepExecutionOutputResponse> {
        self.0.note(&request);
        Ok(Response::new(GrepExecutionOutputResponse::default()))
    }

    async fn write_execution_stdin(
        &self,
        request: Request<WriteExecutionStdinRequest>,
    ) -> Answer<WriteExecutionStdinResponse> {
        self.0.note(&request);
        Ok(Response::new(WriteExecutionStdinResponse { stdin_bytes: 1 }))
    }

    async fn signal_execution(&self, request: Request<SignalExecutionRequest>) -> Answer<SignalExecutionResponse> {
        self.0.note(&request);
        Ok(Response::new(SignalExecutionResponse {}))
    }

    async fn resize_execution_terminal(
        &self,
        request: Request<ResizeExecutionTerminalRequest>,
    ) -> Answer<ResizeExecutionTerminalResponse> {
        self.0.note(&request);
        Ok(Response::new(ResizeExecutionTerminalResponse {}))
    }
}

fn execution(id: &str) -> Option<Execution> {
    Some(Execution { execution_id: id.to_owned(), state: ExecutionState::Running.into(), ..Default::default() })
}
