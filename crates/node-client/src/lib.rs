//! How the control plane finds the node of a sandbox, and calls it on behalf of whoever may use that sandbox.
//!
//! Invariant: nobody is told of a sandbox that is not its own; it is not found, as one that never was. The directory
//! says where a sandbox is and whose; whether it still exists is the node's to say, at every call, so that a copy of
//! an entry may be a little old.

mod copies;
mod failure;

use std::{future::Future, pin::Pin, sync::Arc};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, SandboxId, error::reason};
use cloud_sandbox_proto::node::v1::node_service_client::NodeServiceClient;
use cloud_sandbox_rpc::{CallContext, Dial, Upstream, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::{Directory, SandboxEntry};
use tonic::{Response, Status};

use copies::Copies;
pub use failure::{deadline_exceeded, failure, missing, unreachable, within};

/// A client of one node.
pub type NodeClient = NodeServiceClient<Upstream>;

/// What a node will answer; boxed, so that the way to a node is compiled once and not for every method.
pub type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// The nodes, as the directory knows them. Clones share their copies of entries.
#[derive(Clone)]
pub struct Nodes {
    directory: Arc<dyn Directory>,
    dial: Arc<dyn Dial>,
    copies: Arc<Copies>,
}

impl Nodes {
    /// Nodes found in `directory` and called through `dial`.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Self {
        Self { directory, dial, copies: Arc::default() }
    }

    /// The directory itself.
    #[must_use]
    pub fn directory(&self) -> &dyn Directory {
        &*self.directory
    }

    /// The sandbox that `principal` calls `sandbox_id`. NOT_FOUND when there is none or it is somebody else's.
    pub async fn locate(&self, principal: &Principal, sandbox_id: &str) -> Result<SandboxEntry> {
        if sandbox_id.is_empty() {
            return Err(Error::invalid("sandbox_id", "must be given"));
        }
        let id: SandboxId = sandbox_id.parse()?;
        let entry = match self.copies.get(id) {
            Some(entry) => Some(entry),
            None => self.fetch(id).await?,
        };
        entry
            .filter(|entry| principal.may_use(&entry.tenant, &entry.user))
            .ok_or_else(|| Error::sandbox_not_found(sandbox_id))
    }

    async fn fetch(&self, id: SandboxId) -> Result<Option<SandboxEntry>> {
        let entry = self.directory.sandbox(id).await?;
        if let Some(entry) = &entry {
            self.copies.put(entry);
        }
        Ok(entry)
    }

    /// Makes a call about `sandbox_id` to its node, if `principal` may, within the caller's deadline.
    pub async fn call<T>(
        &self,
        principal: &Principal,
        context: &CallContext,
        sandbox_id: &str,
        call: impl FnOnce(NodeClient) -> Answer<T>,
    ) -> Result<T> {
        self.open(principal, context, sandbox_id, call).await.map(|(_, answer)| answer)
    }

    /// The same for a call that goes on after its answer began: also gives the entry that [`Self::failed`] wants.
    pub async fn open<T>(
        &self,
        principal: &Principal,
        context: &CallContext,
        sandbox_id: &str,
        call: impl FnOnce(NodeClient) -> Answer<T>,
    ) -> Result<(SandboxEntry, T)> {
        let entry = self.locate(principal, sandbox_id).await?;
        let client = self.client(&entry.node_address)?;
        match within(context, call(client)).await? {
            Ok(response) => Ok((entry, response.into_inner())),
            Err(status) => Err(self.failed(&entry, &status).await),
        }
    }

    /// A client of the node at `address`.
    pub fn client(&self, address: &str) -> Result<NodeClient> {
        let upstream = self.dial.dial(address).map_err(unreachable)?;
        Ok(NodeClient::new(upstream).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX))
    }

    /// What a node's answer about a sandbox means to the caller. A sandbox that its node does not know is forgotten.
    pub async fn failed(&self, entry: &SandboxEntry, status: &Status) -> Error {
        let error = failure(status);
        // a file that is not found says nothing about the sandbox
        let gone = matches!(error.reason(), reason::SANDBOX_NOT_FOUND | reason::SANDBOX_GONE);
        if error.kind() == ErrorKind::NotFound && gone {
            self.forget(entry.id).await;
        }
        error
    }

    /// Forgets a sandbox that is gone. A directory that cannot be reached keeps it until its lease ends.
    pub async fn forget(&self, id: SandboxId) {
        self.copies.remove(id);
        if let Err(error) = self.directory.remove_sandbox(id).await {
            let error = cloud_sandbox_model::error::chain(&error);
            tracing::warn!(sandbox_id = %id, error, "failed to remove a sandbox that is gone from the directory");
        }
    }
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_auth::Role;
    use cloud_sandbox_proto::node::v1;
    use cloud_sandbox_rpc::LocalDial;
    use cloud_sandbox_sim_node::{Fault, SimNode, principal};
    use cloud_sandbox_storage::MemoryDirectory;

    use super::*;

    async fn simulated() -> (Nodes, SimNode) {
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let node = SimNode::start(directory.clone(), &dial, 1, 9).await;
        (Nodes::new(directory, Arc::new(dial)), node)
    }

    async fn get(nodes: &Nodes, entry: &SandboxEntry) -> Result<()> {
        let request = v1::GetSandboxRequest { sandbox_id: entry.id.to_string() };
        match nodes.client(&entry.node_address)?.get_sandbox(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(nodes.failed(entry, &status).await),
        }
    }

    #[tokio::test]
    async fn sandbox_is_found_by_those_who_may_use_it_alone() {
        let (nodes, node) = simulated().await;
        let id = node.host("ada").await.to_string();
        for _ in 0..2 {
            assert!(nodes.locate(&principal("ada", Role::User), &id).await.is_ok());
            assert!(nodes.locate(&principal("root", Role::Admin), &id).await.is_ok());
            let theirs = nodes.locate(&principal("bob", Role::User), &id).await.unwrap_err();
            let other = Principal { tenant: "other".into(), ..principal("root", Role::Admin) };
            assert_eq!(nodes.locate(&other, &id).await.unwrap_err().to_string(), theirs.to_string());
            assert_eq!((theirs.kind(), theirs.reason()), (ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND));
        }
    }

    #[tokio::test]
    async fn missing_and_malformed_ids_are_named() {
        let (nodes, _) = simulated().await;
        for id in ["", "nonsense", "sb../../etc"] {
            let error = nodes.locate(&principal("ada", Role::User), id).await.unwrap_err();
            assert_eq!(error.violations()[0].field, "sandbox_id", "{id}");
        }
    }

    #[tokio::test]
    async fn sandbox_that_its_node_does_not_know_is_forgotten() {
        let (nodes, node) = simulated().await;
        let ada = principal("ada", Role::User);
        let id = node.host("ada").await;
        let entry = nodes.locate(&ada, &id.to_string()).await.unwrap();
        get(&nodes, &entry).await.unwrap();
        node.forget(id);
        assert_eq!(get(&nodes, &entry).await.unwrap_err().reason(), reason::SANDBOX_NOT_FOUND);
        assert_eq!(nodes.directory().sandbox(id).await.unwrap(), None);
        assert!(nodes.locate(&ada, &id.to_string()).await.is_err());
    }

    #[tokio::test]
    async fn node_that_cannot_be_reached_is_unavailable_and_its_sandbox_stays() {
        let (nodes, node) = simulated().await;
        let id = node.host("ada").await;
        let entry = nodes.locate(&principal("ada", Role::User), &id.to_string()).await.unwrap();
        node.fail("GetSandbox", Fault::LoseReply);
        let lost = get(&nodes, &entry).await.unwrap_err();
        node.cut_off();
        let cut = get(&nodes, &entry).await.unwrap_err();
        for error in [lost, cut] {
            assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
        }
        assert!(nodes.directory().sandbox(id).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn node_that_is_not_there_is_unreachable_over_the_network_too() {
        let (_, node) = simulated().await;
        let directory: Arc<dyn Directory> = Arc::new(MemoryDirectory::new());
        let nodes = Nodes::new(directory, Arc::new(cloud_sandbox_rpc::RemoteDial::new(|upstream| upstream)));
        // port 9 (discard) of the loopback: nothing listens there
        let mut client = nodes.client("http://127.0.0.1:9").unwrap();
        let request = v1::GetSandboxRequest { sandbox_id: node.id().to_string() };
        let error = failure(&client.get_sandbox(request).await.unwrap_err());
        assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
    }
}
