//! What a sandbox reaches of the network, served by its node.
//!
//! A sandbox has no way out of its own. What it says on a port of its loopback ([`Egress::serve`], mode `egress`) or sends
//! over its interface ([`Egress::serve_packets`], mode `open`) is read here, in the node's process, and carried on over
//! sockets of the host, once the policy has allowed it: decisions are the model's
//! ([`NetworkPolicy`](cloud_sandbox_model::NetworkPolicy)), and this crate is the one way to a socket.
//!
//! Invariants:
//! - Nothing is connected but the very address that was decided. When the policy changes, what it does not allow any more is
//!   cut at once.
//! - Everything is bounded for each sandbox: connections, lookups, headers, buffers, lines in the log. Who reads slowly, or
//!   not at all, holds its own buffers.
//! - When the sandbox ends, so does all that is carried for it; `serve` returns when nothing is left.

#![forbid(unsafe_code)]

mod flow;
mod gate;
mod log;
mod metered;
mod open;
mod proxy;
mod upstream;

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use cloud_sandbox_model::{
    NetworkMode, NetworkPolicy, SandboxId,
    network::{Decision, HostAddresses},
};
use cloud_sandbox_runtime::{BoxedPackets, Interface, Listener};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub use upstream::{SystemUpstream, TEST_UPSTREAM, Upstream, from_environment};

/// The port that the proxy is asked for on a sandbox's loopback.
pub const PROXY_PORT: u16 = 3128;
/// The most connections of one sandbox to its proxy at once.
pub const CONNECTIONS_MAX: usize = 256;
/// The most TCP connections of one sandbox over its interface at once, and the most exchanges of datagrams.
pub const FLOWS_MAX: usize = 256;
/// The most names that are looked up at once for one sandbox: each takes a thread until its resolver gives up.
const LOOKUPS_MAX: usize = 8;

/// What has gone over the network so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// connections that were allowed, and made
    pub allowed: u64,
    /// connections that were refused
    pub denied: u64,
    /// bytes sent over them
    pub sent: u64,
    /// bytes received over them
    pub received: u64,
}

/// The network of one sandbox. Clones are the same network.
#[derive(Clone)]
pub struct Egress {
    network: Arc<Network>,
}

impl Egress {
    /// The network of a sandbox under a policy, which may change at any time; when its sender is dropped, nothing is allowed
    /// any more. `own` are the addresses of the host.
    #[must_use]
    pub fn new(
        sandbox_id: SandboxId,
        policy: watch::Receiver<NetworkPolicy>,
        own: Arc<HostAddresses>,
        upstream: Arc<dyn Upstream>,
    ) -> Self {
        let network = Network {
            sandbox_id,
            policy,
            own,
            upstream,
            counters: Counters::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            log: log::Log::new(sandbox_id),
            sent: metrics::counter!("cloud_sandbox_network_bytes_total", "direction" => "sent"),
            received: metrics::counter!("cloud_sandbox_network_bytes_total", "direction" => "received"),
        };
        Self { network: Arc::new(network) }
    }

    /// Serves the proxy until the sandbox ends: `cancel` says so, or the listener does. Nothing is left when it returns; what
    /// is carried is cut when the future is dropped.
    pub async fn serve(&self, listener: Box<dyn Listener>, cancel: CancellationToken) {
        proxy::serve(&self.network, listener, &cancel).await;
    }

    /// Carries what a sandbox sends over its interface, where the policy's mode is `open`, until `cancel` or the packets say that
    /// the sandbox has ended. Nothing is left when it returns; what is carried is cut when the future is dropped.
    pub async fn serve_packets(&self, packets: BoxedPackets, interface: Interface, cancel: CancellationToken) {
        open::serve(&self.network, packets, interface, &cancel).await;
    }

    /// What has gone over the network so far.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.network.counters.read()
    }
}

/// The variables by which programs find the proxy.
#[must_use]
pub fn proxy_environment(port: u16) -> Vec<(&'static str, String)> {
    let proxy = format!("http://127.0.0.1:{port}");
    let named = ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"];
    let direct = ["NO_PROXY", "no_proxy"];
    let mut variables: Vec<_> = named.into_iter().map(|name| (name, proxy.clone())).collect();
    variables.extend(direct.into_iter().map(|name| (name, "localhost,127.0.0.1,::1".to_owned())));
    // without it Node.js knows none of them
    variables.push(("NODE_USE_ENV_PROXY", "1".to_owned()));
    variables
}

/// What all connections of one sandbox share.
struct Network {
    sandbox_id: SandboxId,
    policy: watch::Receiver<NetworkPolicy>,
    own: Arc<HostAddresses>,
    upstream: Arc<dyn Upstream>,
    counters: Counters,
    lookups: Arc<Semaphore>,
    log: log::Log,
    sent: metrics::Counter,
    received: metrics::Counter,
}

impl Network {
    fn add_sent(&self, bytes: u64) {
        self.counters.sent.fetch_add(bytes, Ordering::Relaxed);
        self.sent.increment(bytes);
    }

    fn add_received(&self, bytes: u64) {
        self.counters.received.fetch_add(bytes, Ordering::Relaxed);
        self.received.increment(bytes);
    }

    fn decide(&self, policy: &NetworkPolicy, mode: &'static str, host: &str, address: IpAddr, port: u16) -> Decision {
        // an interface that is still there when the mode has changed is no way to what the proxy may reach
        if mode == open::MODE && policy.mode() != NetworkMode::Open {
            return Decision::ModeNone;
        }
        policy.decide_address(host, address, port, &self.own)
    }

    /// Resolves when a connection that was decided by the policy as `policy` has seen it last is not allowed any more.
    async fn revoked(
        &self,
        mut policy: watch::Receiver<NetworkPolicy>,
        mode: &'static str,
        host: &str,
        address: IpAddr,
        port: u16,
    ) -> Decision {
        loop {
            if policy.changed().await.is_err() {
                return Decision::ModeNone;
            }
            let decision = self.decide(&policy.borrow_and_update(), mode, host, address, port);
            if !decision.is_allowed() {
                return decision;
            }
        }
    }
}

#[derive(Default)]
struct Counters {
    allowed: AtomicU64,
    denied: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counters {
    fn read(&self) -> Traffic {
        Traffic {
            allowed: self.allowed.load(Ordering::Relaxed),
            denied: self.denied.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_of_the_proxy_in_either_case() {
        let variables = proxy_environment(3129);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            for name in [name.to_owned(), name.to_lowercase()] {
                assert!(
                    variables.iter().any(|(own, value)| *own == name && value == "http://127.0.0.1:3129"),
                    "{name}"
                );
            }
        }
        let direct: Vec<_> = variables.iter().filter(|(name, _)| name.eq_ignore_ascii_case("no_proxy")).collect();
        assert_eq!(direct.len(), 2);
        assert!(direct.iter().all(|(_, value)| value.split(',').any(|host| host == "localhost")));
    }
}
