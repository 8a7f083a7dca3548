//! `NodeService`: takes requests apart and hands them on.

use std::{pin::Pin, sync::Arc};

use cloud_sandbox_model::{
    SandboxId,
    error::{Error, Result},
    input::Violations,
};
use cloud_sandbox_proto::{
    node::v1::{
        self as node,
        node_service_server::{self, NodeServiceServer},
    },
    v1::{self, exec_request},
};
use cloud_sandbox_rpc::{to_status, upstream::MESSAGE_MAX};
use futures::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};
use tracing::{field, instrument};

use crate::{acquire, executions, files, interactive, node::Shared, sandbox::Sandbox};

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The `node.v1` service, cheap to clone.
#[derive(Clone)]
pub struct NodeService {
    node: Arc<Shared>,
}

impl NodeService {
    pub(crate) fn new(node: Arc<Shared>) -> Self {
        Self { node }
    }

    /// The service as something that can be served or called in this process, with its bounds on messages.
    #[must_use]
    pub fn into_server(self) -> NodeServiceServer<Self> {
        let server = NodeServiceServer::new(self);
        server.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    fn find(&self, id: &str) -> Result<Arc<Sandbox>> {
        let id: SandboxId = id.parse()?;
        tracing::Span::current().record("sandbox_id", field::display(id));
        self.node.sandbox(id)
    }

    fn describe(&self, sandbox: &Sandbox) -> Result<v1::Sandbox> {
        sandbox.describe(&self.node.options)
    }

    async fn keep_alive(&self, request: node::KeepAliveSandboxRequest) -> Result<v1::Sandbox> {
        let sandbox = self.find(&request.sandbox_id)?;
        let mut violations = Violations::default();
        violations.range("timeout_seconds", &request.timeout_seconds, &0, &acquire::TIMEOUT_MAX);
        violations.finish()?;
        let view = sandbox.keep_alive(request.timeout_seconds).await?;
        sandbox.describe_view(&view, &self.node.options)
    }

    async fn pause(&self, id: &str) -> Result<v1::Sandbox> {
        let sandbox = self.find(id)?;
        let view = sandbox.pause().await?;
        sandbox.describe_view(&view, &self.node.options)
    }

    async fn resume(&self, id: &str) -> Result<v1::Sandbox> {
        let sandbox = self.find(id)?;
        let view = sandbox.resume().await?;
        sandbox.describe_view(&view, &self.node.options)
    }

    async fn run(&self, request: v1::ExecuteRequest) -> Result<v1::ExecuteResponse> {
        let sandbox = self.find(&request.sandbox_id)?;
        executions::execute(&self.node, &sandbox, request)?.response().await
    }

    async fn run_stream(&self, request: v1::ExecuteRequest) -> Result<Events<node::ExecuteStreamResponse>> {
        let sandbox = self.find(&request.sandbox_id)?;
        let caller = executions::execute(&self.node, &sandbox, request)?;
        caller.started().await?;
        let events = executions::events(caller);
        Ok(events.map(|event| Ok(node::ExecuteStreamResponse { event: Some(event?) })).boxed())
    }

    async fn run_interactive(&self, mut messages: Streaming<node::ExecRequest>) -> Result<Events<node::ExecResponse>> {
        // a caller that hangs up before it has said anything gets no answer
        let first = messages.message().await.ok().flatten().and_then(|message| message.request);
        let Some(exec_request::Input::Start(start)) = first.and_then(|request| request.input) else {
            return Err(Error::invalid("start", "must be the first message"));
        };
        let sandbox = self.find(start.request.as_ref().map_or("", |request| &request.sandbox_id))?;
        let rest = messages.map(|message| message.map(|message| message.request.unwrap_or_default()));
        let events = interactive::exec(&self.node, sandbox, start, rest).await?;
        Ok(events.map(|event| Ok(node::ExecResponse { event: Some(event?) })).boxed())
    }
}

#[tonic::async_trait]
impl node_service_server::NodeService for NodeService {
    type ExecuteStreamStream = Events<node::ExecuteStreamResponse>;
    type ExecStream = Events<node::ExecResponse>;

    #[instrument(skip_all)]
    async fn acquire_sandbox(
        &self,
        request: Request<node::AcquireSandboxRequest>,
    ) -> Answer<node::AcquireSandboxResponse> {
        let request = request.into_inner();
        let (owner, wanted) = (request.owner.unwrap_or_default(), request.request.unwrap_or_default());
        let acquired = acquire::acquire(&self.node, owner, wanted).await.map_err(to_status)?;
        let sandbox = Some(self.describe(&acquired.sandbox).map_err(to_status)?);
        Ok(Response::new(node::AcquireSandboxResponse { sandbox, warm: acquired.warm }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn release_sandbox(
        &self,
        request: Request<node::ReleaseSandboxRequest>,
    ) -> Answer<node::ReleaseSandboxResponse> {
        let sandbox = self.find(&request.get_ref().sandbox_id).map_err(to_status)?;
        self.node.release(&sandbox).await.map_err(to_status)?;
        Ok(Response::new(node::ReleaseSandboxResponse {}))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn keep_alive_sandbox(
        &self,
        request: Request<node::KeepAliveSandboxRequest>,
    ) -> Answer<node::KeepAliveSandboxResponse> {
        let sandbox = Some(self.keep_alive(request.into_inner()).await.map_err(to_status)?);
        Ok(Response::new(node::KeepAliveSandboxResponse { sandbox }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn get_sandbox(&self, request: Request<node::GetSandboxRequest>) -> Answer<node::GetSandboxResponse> {
        let found = self.find(&request.get_ref().sandbox_id);
        let sandbox = Some(found.and_then(|sandbox| self.describe(&sandbox)).map_err(to_status)?);
        Ok(Response::new(node::GetSandboxResponse { sandbox }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn pause_sandbox(&self, request: Request<node::PauseSandboxRequest>) -> Answer<node::PauseSandboxResponse> {
        let sandbox = Some(self.pause(&request.get_ref().sandbox_id).await.map_err(to_status)?);
        Ok(Response::new(node::PauseSandboxResponse { sandbox }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn resume_sandbox(
        &self,
        request: Request<node::ResumeSandboxRequest>,
    ) -> Answer<node::ResumeSandboxResponse> {
        let sandbox = Some(self.resume(&request.get_ref().sandbox_id).await.map_err(to_status)?);
        Ok(Response::new(node::ResumeSandboxResponse { sandbox }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn execute(&self, request: Request<node::ExecuteRequest>) -> Answer<node::ExecuteResponse> {
        let request = request.into_inner().request.unwrap_or_default();
        let response = Some(self.run(request).await.map_err(to_status)?);
        Ok(Response::new(node::ExecuteResponse { response }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn execute_stream(&self, request: Request<node::ExecuteStreamRequest>) -> Answer<Self::ExecuteStreamStream> {
        let request = request.into_inner().request.unwrap_or_default();
        self.run_stream(request).await.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn exec(&self, request: Request<Streaming<node::ExecRequest>>) -> Answer<Self::ExecStream> {
        self.run_interactive(request.into_inner()).await.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn read_file(&self, request: Request<node::ReadFileRequest>) -> Answer<node::ReadFileResponse> {
        let request = request.into_inner().request.unwrap_or_default();
        let sandbox = self.find(&request.sandbox_id).map_err(to_status)?;
        let response = Some(files::read(&sandbox, request).await.map_err(to_status)?);
        Ok(Response::new(node::ReadFileResponse { response }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn write_file(&self, request: Request<node::WriteFileRequest>) -> Answer<node::WriteFileResponse> {
        let request = request.into_inner().request.unwrap_or_default();
        let sandbox = self.find(&request.sandbox_id).map_err(to_status)?;
        let file = Some(files::write(&sandbox, request).await.map_err(to_status)?);
        Ok(Response::new(node::WriteFileResponse { file }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn delete_file(&self, request: Request<node::DeleteFileRequest>) -> Answer<node::DeleteFileResponse> {
        let request = request.into_inner().request.unwrap_or_default();
        let sandbox = self.find(&request.sandbox_id).map_err(to_status)?;
        files::delete(&sandbox, request).await.map_err(to_status)?;
        Ok(Response::new(node::DeleteFileResponse {}))
    }
}
