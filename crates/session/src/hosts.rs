//! Calls about a session's sandbox to the node that hosts it, on the session's behalf.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{Error, ErrorKind, NodeId, Result, SandboxId, error::reason};
use cloud_sandbox_node_client::{Answer, NodeClient, Nodes, unreachable};
use cloud_sandbox_proto::{node::v1 as node, v1};
use cloud_sandbox_rpc::Dial;
use cloud_sandbox_storage::{Directory, NodeEntry, SandboxEntry};
use tonic::Request;

/// Everything but saving and restoring.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// A whole disk at the pace of a slow store.
pub(crate) const TREE_WITHIN: Duration = Duration::from_secs(3600);

/// The nodes that host sandboxes of sessions.
#[derive(Clone)]
pub(crate) struct Hosts {
    nodes: Nodes,
    /// what is missing from the directory is gone: nobody else writes it
    certain: bool,
}

/// Where a sandbox is.
enum Whereabouts {
    At(Box<SandboxEntry>),
    Gone,
    /// the directory does not know it, and may have lost its content
    Missing,
}

impl Hosts {
    pub(crate) fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, certain: bool) -> Self {
        Self { nodes: Nodes::new(directory, dial), certain }
    }

    /// The nodes that are alive.
    pub(crate) async fn alive(&self) -> Result<Vec<NodeEntry>> {
        Ok(self.nodes.directory().nodes().await?)
    }

    /// The node that has a sandbox in the directory.
    pub(crate) async fn node_of(&self, sandbox: SandboxId) -> Result<Option<NodeId>> {
        Ok(self.nodes.directory().sandbox(sandbox).await?.filter(|entry| !entry.ended).map(|entry| entry.node))
    }

    async fn find(&self, sandbox: SandboxId, node: Option<NodeId>) -> Result<Whereabouts> {
        let directory = self.nodes.directory();
        if let Some(entry) = directory.sandbox(sandbox).await? {
            return Ok(if entry.ended { Whereabouts::Gone } else { Whereabouts::At(Box::new(entry)) });
        }
        let Some(node) = node else { return Ok(if self.certain { Whereabouts::Gone } else { Whereabouts::Missing }) };
        let Some(host) = directory.nodes().await?.into_iter().find(|entry| entry.id == node) else {
            return Ok(if self.certain { Whereabouts::Gone } else { Whereabouts::Missing });
        };
        // the node knows what the directory has forgotten
        let mut client: NodeClient = self.nodes.client(&host.address)?;
        let mut request = Request::new(node::GetSandboxRequest { sandbox_id: sandbox.to_string(), with_usage: false });
        request.set_timeout(ANSWER_WITHIN);
        match tokio::time::timeout(ANSWER_WITHIN, client.get_sandbox(request)).await.map_err(unreachable)? {
            // it puts the sandbox into the directory again by itself; until then it cannot be used
            Ok(_) => Ok(Whereabouts::Missing),
            Err(status) if is_gone(&cloud_sandbox_node_client::failure(&status)) => Ok(Whereabouts::Gone),
            Err(status) => Err(cloud_sandbox_node_client::failure(&status)),
        }
    }

    /// Makes a call about `sandbox` to its node. [`is_gone`] tells of the error that it is not there any more,
    /// [`is_missing`] that nobody knows where it is.
    pub(crate) async fn call<Q, R>(
        &self,
        sandbox: SandboxId,
        node: Option<NodeId>,
        within: Duration,
        message: Q,
        call: impl FnOnce(NodeClient, Request<Q>) -> Answer<R>,
    ) -> Result<R> {
        let entry = match self.find(sandbox, node).await? {
            Whereabouts::At(entry) => entry,
            Whereabouts::Gone => return Err(gone(sandbox)),
            Whereabouts::Missing => return Err(missing(sandbox)),
        };
        match self.ask(&entry, within, message, call).await {
            Err(error) if self.is_silent(&entry, &error).await => Err(missing(sandbox)),
            answered => answered,
        }
    }

    async fn ask<Q, R>(
        &self,
        entry: &SandboxEntry,
        within: Duration,
        message: Q,
        call: impl FnOnce(NodeClient, Request<Q>) -> Answer<R>,
    ) -> Result<R> {
        let client = self.nodes.client(&entry.node_address)?;
        let mut request = Request::new(message);
        request.set_timeout(within);
        match tokio::time::timeout(within, call(client, request)).await.map_err(unreachable)? {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.nodes.failed(entry, &status).await),
        }
    }

    /// Whether a node that did not answer has also stopped reporting itself. Its sandboxes stay in the directory until
    /// their leases end, which may be long.
    async fn is_silent(&self, entry: &SandboxEntry, error: &Error) -> bool {
        error.reason() == reason::NODE_UNREACHABLE
            && self.alive().await.is_ok_and(|nodes| nodes.iter().all(|node| node.id != entry.node))
    }

    /// The sandbox as its node knows it.
    pub(crate) async fn look(&self, sandbox: SandboxId, node: Option<NodeId>) -> Result<node::GetSandboxResponse> {
        let request = node::GetSandboxRequest { sandbox_id: sandbox.to_string(), with_usage: false };
        self.call(sandbox, node, ANSWER_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.get_sandbox(request).await })
        })
        .await
    }

    /// Gives the sandbox a lease of so many seconds from now.
    pub(crate) async fn keep_alive(&self, sandbox: SandboxId, node: Option<NodeId>, seconds: u32) -> Result<()> {
        let request = node::KeepAliveSandboxRequest { sandbox_id: sandbox.to_string(), timeout_seconds: seconds };
        let call = self.call(sandbox, node, ANSWER_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.keep_alive_sandbox(request).await })
        });
        call.await.map(drop)
    }

    /// Changes what of the network the sandbox sees.
    pub(crate) async fn set_network(
        &self,
        sandbox: SandboxId,
        node: Option<NodeId>,
        network: v1::NetworkPolicy,
    ) -> Result<()> {
        let request = node::UpdateSandboxRequest { sandbox_id: sandbox.to_string(), network: Some(network) };
        let call = self.call(sandbox, node, ANSWER_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.update_sandbox(request).await })
        });
        call.await.map(drop)
    }

    pub(crate) async fn freeze(&self, sandbox: SandboxId, node: Option<NodeId>) -> Result<()> {
        let request = node::PauseSandboxRequest { sandbox_id: sandbox.to_string() };
        let call = self.call(sandbox, node, ANSWER_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.pause_sandbox(request).await })
        });
        call.await.map(drop)
    }

    /// Lets the sandbox's processes go on, whatever they were stopped by.
    pub(crate) async fn thaw(&self, sandbox: SandboxId, node: Option<NodeId>) -> Result<()> {
        let request = node::ResumeSandboxRequest { sandbox_id: sandbox.to_string() };
        let call = self.call(sandbox, node, ANSWER_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.resume_sandbox(request).await })
        });
        call.await.map(drop)
    }

    pub(crate) async fn save(
        &self,
        request: node::CheckpointSandboxRequest,
        sandbox: SandboxId,
        node: Option<NodeId>,
    ) -> Result<node::CheckpointSandboxResponse> {
        self.call(sandbox, node, TREE_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.checkpoint_sandbox(request).await })
        })
        .await
    }

    pub(crate) async fn restore(
        &self,
        request: node::RestoreSandboxRequest,
        sandbox: SandboxId,
        node: Option<NodeId>,
    ) -> Result<node::RestoreSandboxResponse> {
        self.call(sandbox, node, TREE_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.restore_sandbox(request).await })
        })
        .await
    }

    /// Releases the sandbox; one that is gone is released, unless its journal is to go too. One that is missing, or whose
    /// node is not alive any more, is left to its lease.
    pub(crate) async fn release(&self, sandbox: SandboxId, keep_journal: bool) -> Result<()> {
        let Some(entry) = self.nodes.directory().sandbox(sandbox).await? else { return Ok(()) };
        if entry.ended && keep_journal {
            return Ok(());
        }
        let request = node::ReleaseSandboxRequest { sandbox_id: sandbox.to_string(), keep_journal };
        let released = self.ask(&entry, ANSWER_WITHIN, request, |mut node, request| {
            Box::pin(async move { node.release_sandbox(request).await })
        });
        match released.await {
            Err(error) if self.is_silent(&entry, &error).await => {
                tracing::warn!(sandbox_id = %sandbox, node_id = %entry.node, "a sandbox is left to its lease: its node is gone");
                Ok(())
            }
            Err(error) if !is_gone(&error) => Err(error),
            _ => {
                if !keep_journal {
                    self.nodes.forget(sandbox).await;
                }
                Ok(())
            }
        }
    }
}

fn gone(sandbox: SandboxId) -> Error {
    Error::new(ErrorKind::NotFound, reason::SANDBOX_GONE, format!("sandbox {sandbox} is gone"))
}

fn missing(sandbox: SandboxId) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        reason::SANDBOX_MISSING,
        format!("the directory does not know where sandbox {sandbox} is"),
    )
    .with_retry_after(Duration::from_secs(1))
}

/// Whether the sandbox is not there any more.
pub(crate) fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && matches!(error.reason(), reason::SANDBOX_GONE | reason::SANDBOX_NOT_FOUND)
}

/// Whether nobody knows where the sandbox is.
pub(crate) fn is_missing(error: &Error) -> bool {
    error.reason() == reason::SANDBOX_MISSING
}
