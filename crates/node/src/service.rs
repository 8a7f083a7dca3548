//! What a node serves: `NodeService` for the lives of its sandboxes, and for what is done inside them the public
//! contracts themselves. Here requests are taken apart and handed on; whoever calls has been let in before.

mod addressed;
mod context;
mod exec;
mod file;

use std::{collections::HashSet, pin::Pin, sync::Arc};

use cloud_sandbox_model::{
    SandboxId, Template,
    error::{Error, Result},
    input::Violations,
};
use cloud_sandbox_proto::{
    node::v1::{
        self as node,
        node_service_server::{self, NodeServiceServer},
    },
    v1,
};
use cloud_sandbox_rpc::{network_policy, template, to_status, upstream::MESSAGE_MAX};
use futures::Stream;
use tonic::{Request, Response, Status};
use tracing::{field, instrument};

use crate::{
    acquire, checkpoints,
    node::Shared,
    sandbox::{Busy, Sandbox},
    templates::Templates,
};

pub(crate) use addressed::{Addressed, addressed};
pub use context::ContextService;
pub use exec::ExecService;
pub use file::FileService;

type Answer<T> = Result<Response<T>, Status>;
type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The sandbox that a request is about, which the log line of the call then names.
pub(crate) fn find(node: &Shared, request: &impl Addressed) -> Result<Arc<Sandbox>> {
    node.sandbox(addressed(request)?)
}

/// Takes a sandbox's id apart, for the log line of the call too.
pub(crate) fn sandbox_id(id: &str) -> Result<SandboxId> {
    let id: SandboxId = id.parse()?;
    tracing::Span::current().record("sandbox_id", field::display(id));
    Ok(id)
}

/// The templates of a list, each with a reference of its own.
fn templates(messages: Vec<v1::Template>) -> Result<Vec<Template>> {
    let mut violations = Violations::default();
    let mut seen = HashSet::new();
    let read = messages.into_iter().enumerate().filter_map(|(index, message)| {
        let field = format!("templates[{index}]");
        let template =
            violations.take(template::read(message).map_err(|error| Error::invalid(&field, error.message())))?;
        violations.check(template.version > 0, &format!("{field}.version"), "must be at least 1");
        violations.check(seen.insert(template.reference()), &field, "must not be listed twice");
        Some(template)
    });
    let read = read.collect();
    violations.finish()?;
    Ok(read)
}

/// The `NodeService` of `cloud_sandbox.node.v1`, cheap to clone.
#[derive(Clone)]
pub struct NodeService {
    node: Arc<Shared>,
}

impl NodeService {
    pub(crate) fn server(node: &Arc<Shared>) -> NodeServiceServer<Self> {
        let server = NodeServiceServer::new(Self { node: Arc::clone(node) });
        server.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    fn find(&self, id: &str) -> Result<Arc<Sandbox>> {
        self.node.sandbox(sandbox_id(id)?)
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

    async fn update(&self, request: &node::UpdateSandboxRequest) -> Result<v1::Sandbox> {
        let sandbox = self.find(&request.sandbox_id)?;
        let policy = network_policy("network", request.network.as_ref())?;
        let view = sandbox.set_network(policy).await?;
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
        if sandbox.busy() == Some(Busy::Stopped) {
            checkpoints::go_on(&sandbox).await?;
        }
        sandbox.describe_view(&view, &self.node.options)
    }
}

#[tonic::async_trait]
impl node_service_server::NodeService for NodeService {
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
        let request = request.get_ref();
        let id = sandbox_id(&request.sandbox_id).map_err(to_status)?;
        self.node.release(id, request.keep_journal).await.map_err(to_status)?;
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
        let found = self.find(&request.get_ref().sandbox_id).map_err(to_status)?;
        let mut sandbox = self.describe(&found).map_err(to_status)?;
        if request.get_ref().with_usage {
            sandbox.usage = Some(found.usage().await);
        }
        let sandbox = Some(sandbox);
        let activity = Some(node::Activity { last_active_time: Some(found.activity().last().into()) });
        Ok(Response::new(node::GetSandboxResponse { sandbox, activity }))
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn update_sandbox(
        &self,
        request: Request<node::UpdateSandboxRequest>,
    ) -> Answer<node::UpdateSandboxResponse> {
        let sandbox = Some(self.update(request.get_ref()).await.map_err(to_status)?);
        Ok(Response::new(node::UpdateSandboxResponse { sandbox }))
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
    async fn checkpoint_sandbox(
        &self,
        request: Request<node::CheckpointSandboxRequest>,
    ) -> Answer<node::CheckpointSandboxResponse> {
        checkpoints::checkpoint(&self.node, request.into_inner()).await.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn restore_sandbox(
        &self,
        request: Request<node::RestoreSandboxRequest>,
    ) -> Answer<node::RestoreSandboxResponse> {
        checkpoints::restore(&self.node, request.into_inner()).await.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all)]
    async fn set_templates(&self, request: Request<node::SetTemplatesRequest>) -> Answer<node::SetTemplatesResponse> {
        let request = request.into_inner();
        let templates = templates(request.templates).map_err(to_status)?;
        Templates::set(&self.node, request.revision, templates);
        Ok(Response::new(node::SetTemplatesResponse {}))
    }
}
