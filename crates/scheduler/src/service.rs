//! SchedulerService.

use std::{sync::Arc, time::Instant};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, Result};
use cloud_sandbox_node_client::{Nodes, missing};
use cloud_sandbox_proto::{
    node,
    v1::{
        self, AcquireSandboxRequest, AcquireSandboxResponse, GetSandboxRequest, GetSandboxResponse,
        GetSandboxStatsRequest, GetSandboxStatsResponse, KeepAliveSandboxRequest, KeepAliveSandboxResponse,
        ListSandboxesRequest, ListSandboxesResponse, ReleaseSandboxRequest, ReleaseSandboxResponse, Sandbox,
        UpdateSandboxRequest, UpdateSandboxResponse, scheduler_service_server::SchedulerServiceServer,
    },
};
use cloud_sandbox_rpc::{CallContext, Dial, to_status, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::Directory;
use metrics::{counter, histogram};
use tonic::{Request, Response, Status};

use crate::{acquire::Acquire, listing, templates::Templates};

/// Hands out sandboxes and takes them back.
#[derive(Clone)]
pub struct SchedulerService {
    nodes: Nodes,
    templates: Templates,
}

impl SchedulerService {
    /// A service over the nodes in `directory`, called through `dial`, and what sandboxes are made from.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, templates: Templates) -> Self {
        Self { nodes: Nodes::new(directory, dial), templates }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> SchedulerServiceServer<Self> {
        SchedulerServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn acquire(&self, request: Request<AcquireSandboxRequest>) -> Result<Sandbox> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner();
        Acquire::new(&self.nodes, &self.templates, &context, &principal, &wanted)?.run().await
    }

    async fn release(&self, request: Request<ReleaseSandboxRequest>) -> Result<ReleaseSandboxResponse> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let sandbox_id = request.into_inner().sandbox_id;
        self.nodes.release(&principal, &context, &sandbox_id).await?;
        Ok(ReleaseSandboxResponse { sandbox_id, released: true })
    }

    async fn keep_alive(&self, request: Request<KeepAliveSandboxRequest>) -> Result<Sandbox> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let KeepAliveSandboxRequest { sandbox_id, timeout_seconds } = request.into_inner();
        let message = node::v1::KeepAliveSandboxRequest { sandbox_id: sandbox_id.clone(), timeout_seconds };
        let outbound = context.outbound(message);
        let call = self.nodes.call(&principal, &context, &sandbox_id, |mut node| {
            Box::pin(async move { node.keep_alive_sandbox(outbound).await })
        });
        missing(call.await?.sandbox, "sandbox")
    }

    async fn update(&self, request: Request<UpdateSandboxRequest>) -> Result<Sandbox> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let UpdateSandboxRequest { sandbox_id, network } = request.into_inner();
        if network.is_none() {
            return Err(Error::invalid("network", "must be given: it is what can be changed"));
        }
        let message = node::v1::UpdateSandboxRequest { sandbox_id: sandbox_id.clone(), network };
        let outbound = context.outbound(message);
        let call = self.nodes.call(&principal, &context, &sandbox_id, |mut node| {
            Box::pin(async move { node.update_sandbox(outbound).await })
        });
        missing(call.await?.sandbox, "sandbox")
    }

    async fn get(&self, request: Request<GetSandboxRequest>) -> Result<Sandbox> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let sandbox_id = request.into_inner().sandbox_id;
        let outbound =
            context.outbound(node::v1::GetSandboxRequest { sandbox_id: sandbox_id.clone(), with_usage: true });
        let call = self.nodes.call(&principal, &context, &sandbox_id, |mut node| {
            Box::pin(async move { node.get_sandbox(outbound).await })
        });
        missing(call.await?.sandbox, "sandbox")
    }

    async fn list(&self, request: Request<ListSandboxesRequest>) -> Result<ListSandboxesResponse> {
        let principal = Principal::of(&request)?;
        listing::list(self.nodes.directory(), principal, request.get_ref()).await
    }

    async fn stats(&self, request: Request<GetSandboxStatsRequest>) -> Result<GetSandboxStatsResponse> {
        Principal::of(&request)?;
        Ok(listing::stats(&self.nodes.directory().nodes().await?))
    }
}

#[tonic::async_trait]
impl v1::scheduler_service_server::SchedulerService for SchedulerService {
    async fn acquire_sandbox(
        &self,
        request: Request<AcquireSandboxRequest>,
    ) -> Result<Response<AcquireSandboxResponse>, Status> {
        let started = Instant::now();
        let result = self.acquire(request).await;
        let outcome = result.as_ref().map_or_else(|error| error.kind().name(), |_| "OK");
        counter!("cloud_sandbox_acquire_total", "outcome" => outcome).increment(1);
        histogram!("cloud_sandbox_acquire_duration_seconds").record(started.elapsed());
        let sandbox = result.map_err(to_status)?;
        Ok(Response::new(AcquireSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn release_sandbox(
        &self,
        request: Request<ReleaseSandboxRequest>,
    ) -> Result<Response<ReleaseSandboxResponse>, Status> {
        self.release(request).await.map(Response::new).map_err(to_status)
    }

    async fn keep_alive_sandbox(
        &self,
        request: Request<KeepAliveSandboxRequest>,
    ) -> Result<Response<KeepAliveSandboxResponse>, Status> {
        let sandbox = self.keep_alive(request).await.map_err(to_status)?;
        Ok(Response::new(KeepAliveSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn update_sandbox(
        &self,
        request: Request<UpdateSandboxRequest>,
    ) -> Result<Response<UpdateSandboxResponse>, Status> {
        let sandbox = self.update(request).await.map_err(to_status)?;
        Ok(Response::new(UpdateSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Result<Response<GetSandboxResponse>, Status> {
        let sandbox = self.get(request).await.map_err(to_status)?;
        Ok(Response::new(GetSandboxResponse { sandbox: Some(sandbox) }))
    }

    async fn list_sandboxes(
        &self,
        request: Request<ListSandboxesRequest>,
    ) -> Result<Response<ListSandboxesResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(to_status)
    }

    async fn get_sandbox_stats(
        &self,
        request: Request<GetSandboxStatsRequest>,
    ) -> Result<Response<GetSandboxStatsResponse>, Status> {
        self.stats(request).await.map(Response::new).map_err(to_status)
    }
}
