//! ExecService.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, Result};
use cloud_sandbox_node_client::{Nodes, deadline_exceeded, missing};
use cloud_sandbox_proto::{
    node,
    v1::{
        self, ExecRequest, ExecResponse, ExecuteRequest, ExecuteResponse, ExecuteStreamRequest, ExecuteStreamResponse,
        exec_request::Input, exec_service_server::ExecServiceServer,
    },
};
use cloud_sandbox_rpc::{CallContext, Dial, from_status, to_status, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::Directory;
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    measure::Measure,
    relay::{self, Events, Source},
};

/// How long an interactive caller may take to say what it wants to run.
const START_WITHIN: Duration = Duration::from_secs(30);

/// Runs code in sandboxes, wherever they are.
#[derive(Clone)]
pub struct ExecService {
    nodes: Nodes,
}

impl ExecService {
    /// A service that finds sandboxes in `directory` and calls their nodes through `dial`.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Self {
        Self { nodes: Nodes::new(directory, dial) }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> ExecServiceServer<Self> {
        ExecServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn run(&self, request: Request<ExecuteRequest>) -> Result<ExecuteResponse> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner();
        let id = wanted.sandbox_id.clone();
        let outbound = context.outbound(node::v1::ExecuteRequest { request: Some(wanted) });
        let call = self
            .nodes
            .call(&principal, &context, &id, |mut node| Box::pin(async move { node.execute(outbound).await }));
        missing(call.await?.response, "response")
    }

    async fn stream(
        &self,
        request: Request<ExecuteStreamRequest>,
    ) -> Result<(Source, Streaming<node::v1::ExecuteStreamResponse>)> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner().request.ok_or_else(|| Error::invalid("request", "must be given"))?;
        let id = wanted.sandbox_id.clone();
        let outbound = context.outbound(node::v1::ExecuteStreamRequest { request: Some(wanted) });
        let call = self
            .nodes
            .open(&principal, &context, &id, |mut node| Box::pin(async move { node.execute_stream(outbound).await }));
        let (entry, stream) = call.await?;
        Ok((Source::new(&self.nodes, entry, &context), stream))
    }

    async fn interact(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<(Source, Streaming<node::v1::ExecResponse>)> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let mut input = request.into_inner();
        let first = first(&mut input).await?;
        let id = sandbox_id(&first)?.to_owned();
        let (alive, ended) = oneshot::channel();
        let outbound = context.outbound(relay::input(first, input, ended));
        let call =
            self.nodes.open(&principal, &context, &id, |mut node| Box::pin(async move { node.exec(outbound).await }));
        let (entry, stream) = call.await?;
        Ok((Source::new(&self.nodes, entry, &context).with_input(alive), stream))
    }
}

/// The message that starts an interactive execution.
async fn first(input: &mut Streaming<ExecRequest>) -> Result<ExecRequest> {
    let message = tokio::time::timeout(START_WITHIN, input.message()).await.map_err(|_| deadline_exceeded())?;
    let message = message.map_err(|status| from_status(&status))?;
    message.ok_or_else(|| Error::invalid("start", "must be the first message"))
}

/// The sandbox that the first message is about.
fn sandbox_id(first: &ExecRequest) -> Result<&str> {
    let Some(Input::Start(v1::ExecStart { request, .. })) = &first.input else {
        return Err(Error::invalid("start", "must be the first message"));
    };
    let request = request.as_ref().ok_or_else(|| Error::invalid("start.request", "must be given"))?;
    Ok(&request.sandbox_id)
}

#[tonic::async_trait]
impl v1::exec_service_server::ExecService for ExecService {
    async fn execute(&self, request: Request<ExecuteRequest>) -> Result<Response<ExecuteResponse>, Status> {
        let mut measure = Measure::start("unary");
        let result = self.run(request).await;
        measure.ended(&result);
        result.map(Response::new).map_err(to_status)
    }

    type ExecuteStreamStream = Events<ExecuteStreamResponse>;

    async fn execute_stream(
        &self,
        request: Request<ExecuteStreamRequest>,
    ) -> Result<Response<Self::ExecuteStreamStream>, Status> {
        let mut measure = Measure::start("stream");
        let result = self.stream(request).await;
        if result.is_err() {
            measure.ended(&result);
        }
        let (source, stream) = result.map_err(to_status)?;
        Ok(Response::new(relay::events(source, stream, measure)))
    }

    type ExecStream = Events<ExecResponse>;

    async fn exec(&self, request: Request<Streaming<ExecRequest>>) -> Result<Response<Self::ExecStream>, Status> {
        let mut measure = Measure::start("interactive");
        let result = self.interact(request).await;
        if result.is_err() {
            measure.ended(&result);
        }
        let (source, stream) = result.map_err(to_status)?;
        Ok(Response::new(relay::events(source, stream, measure)))
    }
}
