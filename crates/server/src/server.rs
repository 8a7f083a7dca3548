//! A process that serves: from the first call to the clean end.
//!
//! Invariant: the end is the start in reverse. Readiness goes first, then the ports, then the calls under way, then the
//! sessions are saved, then the sandboxes go; what the process held is held until nobody uses it any more.

use std::time::Duration;

use anyhow::bail;
use axum::Router;
use cloud_sandbox_gateway_rest::Gateway;
use cloud_sandbox_node::Node;
use tokio::{task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    listener::Port,
    operational::Readiness,
    signals::Signals,
    system::{DESTROY_PATIENCE, Scheduling, Sessions},
};

/// How long calls that had no more time may take to say so.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// How long saving the sessions may take before their sandboxes go.
const EVACUATE_WITHIN: Duration = Duration::from_secs(60);

/// What a process serves, and what ends with it.
pub struct Server {
    pub ports: Vec<(Port, Router)>,
    pub gateway: Option<Gateway>,
    pub readiness: Vec<Readiness>,
    pub scheduling: Option<Scheduling>,
    pub sessions: Option<Sessions>,
    pub node: Option<Node>,
    pub drain_timeout: Duration,
}

impl Server {
    /// Serves until a signal, then ends cleanly. An error says what was left behind.
    pub async fn run(self, mut signals: Signals) -> anyhow::Result<()> {
        let stop = CancellationToken::new();
        let mut ports = JoinSet::new();
        for (port, router) in self.ports {
            ports.spawn(port.serve(router, stop.clone(), self.drain_timeout + CLOSING_TIME));
        }
        let mut reporting = JoinSet::new();
        for readiness in &self.readiness {
            reporting.spawn(readiness.clone().keep_reported());
        }
        let keeping =
            self.sessions.as_ref().map(|sessions| tokio::spawn(sessions.keeper().run(stop.clone().cancelled_owned())));
        let publishing = self
            .scheduling
            .as_ref()
            .map(|scheduling| tokio::spawn(scheduling.publisher().run(stop.clone().cancelled_owned())));
        let (signal, _) = signals.next().await;
        tracing::info!(signal, seconds = self.drain_timeout.as_secs(), "stopping: calls under way may end");
        signals.exit_at_the_next();
        if let Some(gateway) = &self.gateway {
            gateway.set_draining();
        }
        for readiness in &self.readiness {
            readiness.set_draining().await;
        }
        if let Some(node) = &self.node {
            node.set_draining();
        }
        stop.cancel();
        let mut ended = std::pin::pin!(ports.join_all());
        let cut = match timeout(self.drain_timeout, &mut ended).await {
            Ok(cut) => cut,
            Err(_) => {
                if let Some(gateway) = &self.gateway {
                    gateway.close();
                }
                ended.await
            }
        };
        let cut: usize = cut.into_iter().sum();
        if cut > 0 {
            tracing::warn!(connections = cut, "cut what did not end in time");
        }
        for (task, name) in [(keeping, "the session keeper"), (publishing, "the publisher of templates")] {
            if let Some(task) = task
                && let Err(error) = task.await
            {
                tracing::error!(%error, "{name} did not end by itself");
            }
        }
        if let (Some(sessions), Some(node)) = (&self.sessions, &self.node) {
            // the sandboxes end with this process, the sessions do not
            let evacuated = timeout(EVACUATE_WITHIN, sessions.keeper().evacuate(node.id())).await;
            if evacuated.is_err() {
                tracing::warn!("not every session could be saved in time; those fail with their sandboxes");
            }
        }
        let left = match &self.node {
            Some(node) => node.shutdown(DESTROY_PATIENCE).await,
            None => 0,
        };
        if let Some(sessions) = self.sessions {
            sessions.close().await;
        }
        if let Some(scheduling) = self.scheduling {
            scheduling.store.close().await;
        }
        if left > 0 {
            bail!("{left} sandboxes could not be destroyed; the next start reclaims them");
        }
        tracing::info!("stopped");
        Ok(())
    }
}
