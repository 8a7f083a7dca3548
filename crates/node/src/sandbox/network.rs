//! What of the network a sandbox sees: the ways out that its node serves, and the policy that decides about each connection.

use std::{collections::HashMap, sync::Arc};

use cloud_sandbox_egress::{Egress, PROXY_PORT, proxy_environment};
use cloud_sandbox_model::{
    SandboxId,
    error::{Error, Result},
    network::{NetworkMode, NetworkPolicy},
};
use cloud_sandbox_runtime::{INTERFACE, Runtime, RuntimeError};
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::runtime_error;
use crate::{agent::Agent, node::Shared};

/// The ways out of one sandbox. Its owner alone changes them.
pub(super) struct Network {
    id: SandboxId,
    runtime: Arc<dyn Runtime>,
    policy: watch::Sender<NetworkPolicy>,
    egress: Egress,
    /// the proxy's port, once there is one
    proxy: Option<u16>,
    /// takes the interface away, once there is one
    interface: Option<CancellationToken>,
    /// cancelled with the sandbox
    ended: CancellationToken,
}

impl Network {
    pub(super) fn new(node: &Shared, id: SandboxId, runtime: Arc<dyn Runtime>, ended: CancellationToken) -> Self {
        let (policy, watched) = watch::channel(NetworkPolicy::default());
        let egress = Egress::new(id, watched, node.own_addresses.now(), Arc::clone(&node.upstream));
        Self { id, runtime, policy, egress, proxy: None, interface: None, ended }
    }

    /// What went through, for whoever has only the sandbox's handle.
    pub(super) fn egress(&self) -> Egress {
        self.egress.clone()
    }

    /// Puts a policy in force, and makes the way out that it needs. The new policy holds for what is under way too.
    /// On an error the one before stays.
    pub(super) async fn apply(&mut self, node: &Shared, agent: &Agent, policy: NetworkPolicy) -> Result<()> {
        match policy.mode() {
            NetworkMode::None => {}
            NetworkMode::Egress => self.serve_proxy(node, agent).await?,
            NetworkMode::Open => self.attach_interface(node).await?,
        }
        if policy.mode() != NetworkMode::Open
            && let Some(interface) = self.interface.take()
        {
            interface.cancel();
        }
        self.policy.send_replace(policy);
        Ok(())
    }

    /// The variables by which programs find the proxy, in mode `egress`.
    pub(super) fn environment(&self) -> HashMap<String, String> {
        let port = self.proxy.filter(|_| self.policy.borrow().mode() == NetworkMode::Egress);
        let variables = port.into_iter().flat_map(proxy_environment);
        variables.map(|(name, value)| (name.to_owned(), value)).collect()
    }

    /// The proxy stays when the mode changes: whoever asks it then is told why it refuses.
    async fn serve_proxy(&mut self, node: &Shared, agent: &Agent) -> Result<()> {
        if self.proxy.is_some() {
            return Ok(());
        }
        let port = match self.runtime.listen(self.id, PROXY_PORT).await {
            // the agent can everywhere; what goes through it is slower
            Err(RuntimeError::Unsupported(_)) => {
                let listening = timeout(node.options.agent_deadline, agent.listen(PROXY_PORT)).await;
                let failed = |cause: Status| Error::internal("listen on a port of a sandbox", cause);
                listening.map_err(|_| failed(Status::deadline_exceeded("the agent did not answer")))?.map_err(failed)?
            }
            listening => listening.map_err(runtime_error)?,
        };
        let (egress, ended) = (self.egress.clone(), self.ended.clone());
        node.tasks.spawn(async move { egress.serve(port.listener, ended).await });
        self.proxy = Some(port.number);
        Ok(())
    }

    async fn attach_interface(&mut self, node: &Shared) -> Result<()> {
        if self.interface.is_some() {
            return Ok(());
        }
        let packets = self.runtime.attach_interface(self.id, INTERFACE).await.map_err(runtime_error)?;
        let cancel = self.ended.child_token();
        let (egress, cancelled) = (self.egress.clone(), cancel.clone());
        node.tasks.spawn(async move { egress.serve_packets(packets, INTERFACE, cancelled).await });
        self.interface = Some(cancel);
        Ok(())
    }
}
