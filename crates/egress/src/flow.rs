//! A connection that was allowed, from then to its line in the log.

use std::{
    future::Future,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cloud_sandbox_model::NetworkPolicy;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Network,
    log::{Line, Outcome},
    metered::Meter,
};

/// One allowed connection. Its line is written when it is dropped, however that comes.
pub(crate) struct Flow {
    network: Arc<Network>,
    /// has seen the policy that the connection was decided by
    policy: watch::Receiver<NetworkPolicy>,
    mode: &'static str,
    host: String,
    address: IpAddr,
    port: u16,
    meter: Arc<Meter>,
    end: &'static str,
}

impl Flow {
    pub(crate) fn new(
        network: Arc<Network>,
        policy: watch::Receiver<NetworkPolicy>,
        mode: &'static str,
        host: String,
        address: IpAddr,
        port: u16,
        meter: Arc<Meter>,
    ) -> Self {
        network.counters.allowed.fetch_add(1, Ordering::Relaxed);
        Self { network, policy, mode, host, address, port, meter, end: "sandbox_ended" }
    }

    /// What counts its bytes.
    pub(crate) fn meter(&self) -> Arc<Meter> {
        Arc::clone(&self.meter)
    }

    /// Carries the connection until `carry` is done, nothing has gone through it for `patience`, the policy does not allow it any more,
    /// or `cancel` says that the sandbox has ended.
    pub(crate) async fn run(mut self, carry: impl Future<Output = ()>, patience: Duration, cancel: CancellationToken) {
        let revoked = self.network.revoked(self.policy.clone(), self.mode, &self.host, self.address, self.port);
        self.end = tokio::select! {
            biased;
            () = cancel.cancelled_owned() => "sandbox_ended",
            _ = revoked => "policy_changed",
            () = carry => "closed",
            () = self.meter.idle(patience) => "idle",
        };
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.network.log.write(&Line {
            mode: self.mode,
            host: &self.host,
            port: self.port,
            address: Some(self.address),
            outcome: Outcome::Allowed,
            reason: &self.end,
            sent: self.meter.sent(),
            received: self.meter.received(),
            duration: self.meter.duration(),
        });
    }
}
