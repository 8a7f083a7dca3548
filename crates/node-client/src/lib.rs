//! How the control plane finds the node of a sandbox, and calls it on behalf of whoever may use that sandbox.
//!
//! Invariant: nobody is told of a sandbox that is not its own; it is not found, as one that never was. The directory
//! says where a sandbox is and whose; whether it still exists is the node's to say, at every call, so that a copy of
//! an entry may be a little old.
//!
//! A sandbox that has ended stays in the directory while its node can tell what it printed. To the calls about its life
//! ([`Nodes::call`]) it is gone; a release of it goes to the node all the same, which then drops what it kept.

mod client;
mod copies;
mod failure;

use std::{future::Future, pin::Pin, sync::Arc};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{Error, ErrorKind, Result, SandboxId, error::reason};
use cloud_sandbox_proto::node::v1::ReleaseSandboxRequest;
use cloud_sandbox_rpc::{CallContext, Dial};
use cloud_sandbox_storage::{Directory, SandboxEntry};
use tonic::{Response, Status};

pub use client::{ContextClient, ExecClient, FileClient, NodeApi, NodeClient};
use copies::Copies;
pub use failure::{deadline_exceeded, failure, lost, missing, unreachable, within};

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

    /// The sandbox that `principal` calls `sandbox_id`; it may have ended. NOT_FOUND when there is none or it is somebody
    /// else's.
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

    /// Makes a call about the life of `sandbox_id` to its node, if `principal` may, within the caller's deadline.
    pub async fn call<T>(
        &self,
        principal: &Principal,
        context: &CallContext,
        sandbox_id: &str,
        call: impl FnOnce(NodeClient) -> Answer<T>,
    ) -> Result<T> {
        let entry = self.locate(principal, sandbox_id).await?;
        if entry.ended {
            let message = format!("sandbox {sandbox_id} is gone");
            return Err(Error::new(ErrorKind::NotFound, reason::SANDBOX_GONE, message));
        }
        self.ask(context, &entry, call).await
    }

    /// Releases `sandbox_id`, if `principal` may. One that has ended is released too, which drops what it printed; one
    /// that its node does not know is NOT_FOUND, and forgotten.
    pub async fn release(&self, principal: &Principal, context: &CallContext, sandbox_id: &str) -> Result<()> {
        let entry = self.locate(principal, sandbox_id).await?;
        self.release_entry(context, &entry).await
    }

    /// The same for whoever has the entry already.
    pub async fn release_entry(&self, context: &CallContext, entry: &SandboxEntry) -> Result<()> {
        let outbound =
            context.outbound(ReleaseSandboxRequest { sandbox_id: entry.id.to_string(), keep_journal: false });
        let call =
            |mut node: NodeClient| -> Answer<_> { Box::pin(async move { node.release_sandbox(outbound).await }) };
        let released = self.ask(context, entry, call).await.map(drop);
        let over = released.as_ref().map_or_else(gone, |()| true);
        if over {
            // the node has removed it already, unless the directory was away just then
            self.forget(entry.id).await;
        }
        released
    }

    async fn ask<T>(
        &self,
        context: &CallContext,
        entry: &SandboxEntry,
        call: impl FnOnce(NodeClient) -> Answer<T>,
    ) -> Result<T> {
        let client = self.client(&entry.node_address)?;
        match within(context, call(client)).await? {
            Ok(response) => Ok(response.into_inner()),
            Err(status) => Err(self.failed(entry, &status).await),
        }
    }

    /// A client of one of the services of the node at `address`.
    pub fn client<C: NodeApi>(&self, address: &str) -> Result<C> {
        self.dial.dial(address).map(C::over).map_err(unreachable)
    }

    /// What a node's answer about a sandbox means to the caller. A sandbox that its node does not know is forgotten.
    ///
    /// One that its node calls gone is kept: the node knows it, and may still tell what it printed.
    pub async fn failed(&self, entry: &SandboxEntry, status: &Status) -> Error {
        let error = failure(status);
        if gone(&error) {
            if error.reason() == reason::SANDBOX_NOT_FOUND {
                self.forget(entry.id).await;
            } else {
                // the copy may be of a time when it lived
                self.copies.remove(entry.id);
            }
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

/// Whether the sandbox itself is not there; a file that is not found says nothing about that.
fn gone(error: &Error) -> bool {
    error.kind() == ErrorKind::NotFound && matches!(error.reason(), reason::SANDBOX_NOT_FOUND | reason::SANDBOX_GONE)
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
        let request = v1::GetSandboxRequest { sandbox_id: entry.id.to_string(), with_usage: false };
        match nodes.client::<NodeClient>(&entry.node_address)?.get_sandbox(request).await {
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
    async fn ended_sandbox_is_found_and_stays_known_though_an_old_copy_says_that_it_lives() {
        let (nodes, node) = simulated().await;
        let ada = principal("ada", Role::User);
        let id = node.host("ada").await;
        let lived = nodes.locate(&ada, &id.to_string()).await.unwrap();
        node.end(id).await;
        assert_eq!(get(&nodes, &lived).await.unwrap_err().reason(), reason::SANDBOX_GONE);
        assert!(nodes.locate(&ada, &id.to_string()).await.unwrap().ended, "the old copy is gone");
    }

    #[tokio::test]
    async fn ended_sandbox_is_gone_to_calls_about_its_life_and_released_once() {
        let (nodes, node) = simulated().await;
        let (ada, context) = (principal("ada", Role::User), CallContext::default());
        let id = node.host("ada").await;
        node.end(id).await;
        let call = |mut node: NodeClient| -> Answer<_> {
            Box::pin(async move { node.get_sandbox(v1::GetSandboxRequest::default()).await })
        };
        let gone = nodes.call(&ada, &context, &id.to_string(), call).await.unwrap_err();
        assert_eq!((gone.kind(), gone.reason()), (ErrorKind::NotFound, reason::SANDBOX_GONE));
        assert_eq!(node.calls(), [""; 0]);

        node.fail("ReleaseSandbox", Fault::LoseOneReply);
        let lost = nodes.release(&ada, &context, &id.to_string()).await.unwrap_err();
        assert_eq!(lost.kind(), ErrorKind::Unavailable);
        let again = nodes.release(&ada, &context, &id.to_string()).await.unwrap_err();
        assert_eq!(again.reason(), reason::SANDBOX_NOT_FOUND, "the first was heard");
        assert_eq!(nodes.directory().sandbox(id).await.unwrap(), None);
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
        let mut client = nodes.client::<NodeClient>("http://127.0.0.1:9").unwrap();
        let request = v1::GetSandboxRequest { sandbox_id: node.id().to_string(), with_usage: false };
        let error = failure(&client.get_sandbox(request).await.unwrap_err());
        assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
    }
}
