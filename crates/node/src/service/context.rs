//! `ContextService` of a node's own sandboxes.

use std::sync::Arc;

use cloud_sandbox_model::error::Result;
use cloud_sandbox_proto::v1::{
    self,
    context_service_server::{self, ContextServiceServer},
};
use cloud_sandbox_rpc::{to_status, upstream::MESSAGE_MAX};
use tonic::{Request, Response};
use tracing::instrument;

use super::{Answer, find};
use crate::{contexts, node::Shared, sandbox::Sandbox};

/// The `ContextService` of `cloud_sandbox.v1` for the sandboxes of one node, cheap to clone.
#[derive(Clone)]
pub struct ContextService {
    node: Arc<Shared>,
}

impl ContextService {
    pub(crate) fn server(node: &Arc<Shared>) -> ContextServiceServer<Self> {
        let server = ContextServiceServer::new(Self { node: Arc::clone(node) });
        server.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    /// Does something with a sandbox.
    async fn within<T>(
        &self,
        sandbox: Result<Arc<Sandbox>>,
        act: impl AsyncFnOnce(Arc<Sandbox>) -> Result<T>,
    ) -> Answer<T> {
        let sandbox = sandbox.map_err(to_status)?;
        let _in_use = sandbox.activity().begin();
        act(sandbox).await.map(Response::new).map_err(to_status)
    }
}

#[tonic::async_trait]
impl context_service_server::ContextService for ContextService {
    #[instrument(skip_all, fields(sandbox_id))]
    async fn create_context(&self, request: Request<v1::CreateContextRequest>) -> Answer<v1::CreateContextResponse> {
        let request = request.into_inner();
        let sandbox = find(&self.node, &request);
        let create = async |sandbox| {
            let context = Some(contexts::create(&self.node, &sandbox, request).await?);
            Ok(v1::CreateContextResponse { context })
        };
        self.within(sandbox, create).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn list_contexts(&self, request: Request<v1::ListContextsRequest>) -> Answer<v1::ListContextsResponse> {
        let list = async |sandbox: Arc<Sandbox>| {
            sandbox.usable()?;
            Ok(v1::ListContextsResponse { contexts: sandbox.contexts.list(sandbox.id) })
        };
        self.within(find(&self.node, request.get_ref()), list).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn get_context(&self, request: Request<v1::GetContextRequest>) -> Answer<v1::GetContextResponse> {
        let request = request.into_inner();
        let get = async |sandbox: Arc<Sandbox>| {
            sandbox.usable()?;
            let context = Some(contexts::get(&sandbox, &request.context_id)?);
            Ok(v1::GetContextResponse { context })
        };
        self.within(find(&self.node, &request), get).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn restart_context(&self, request: Request<v1::RestartContextRequest>) -> Answer<v1::RestartContextResponse> {
        let request = request.into_inner();
        let restart = async |sandbox: Arc<Sandbox>| {
            let context = Some(contexts::restart(&sandbox, &request.context_id).await?);
            Ok(v1::RestartContextResponse { context })
        };
        self.within(find(&self.node, &request), restart).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn interrupt_context(
        &self,
        request: Request<v1::InterruptContextRequest>,
    ) -> Answer<v1::InterruptContextResponse> {
        let request = request.into_inner();
        let interrupt = async |sandbox: Arc<Sandbox>| {
            let (running, interrupted) = contexts::interrupt(&sandbox, &request.context_id).await?;
            Ok(v1::InterruptContextResponse { running, interrupted })
        };
        self.within(find(&self.node, &request), interrupt).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn delete_context(&self, request: Request<v1::DeleteContextRequest>) -> Answer<v1::DeleteContextResponse> {
        let request = request.into_inner();
        let delete = async |sandbox: Arc<Sandbox>| {
            contexts::delete(&sandbox, &request.context_id).await?;
            Ok(v1::DeleteContextResponse { context_id: request.context_id.clone(), deleted: true })
        };
        self.within(find(&self.node, &request), delete).await
    }
}
