//! The network of a sandbox with an interface: its packets become connections of the host.
//!
//! One task reads packets, runs the TCP/IP stack and writes packets; each connection and each exchange of datagrams is a task beside it.
//! A connection is decided and made before its first packet is answered: what is refused is reset at once, and so is what cannot be
//! reached, as the sandbox's own kernel would see it without anything between.
//!
//! What is no whole IPv4 packet of TCP or UDP from the interface's own address is dropped: there is no IPv6, no ICMP, and no
//! fragment. The gateway answers on port 53 alone, with what the host's own resolver says.

mod datagrams;
mod inside;
mod packet;
mod stack;

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    sync::Arc,
    time::Duration,
};

use cloud_sandbox_model::{NetworkMode, network::Decision};
use cloud_sandbox_runtime::{BoxedPackets, Interface};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional_with_sizes, split},
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Network,
    gate::Refusal,
    metered::{Meter, Metered},
};
use inside::Inside;
use packet::{FlowKey, Packet};
use stack::{Shared, Taken};

/// What the log and metrics call connections over the interface.
pub(crate) const MODE: &str = "open";
/// How long a TCP connection may carry nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// How long connecting to the host's resolver may take.
const RESOLVER_TIMEOUT: Duration = Duration::from_secs(5);
/// What a connection holds in either direction, beside the stack's buffers.
const COPY_BUFFER: usize = 16 * 1024;
/// How long the stack may sleep when it waits for nothing.
const SLEEP_MAX: Duration = Duration::from_secs(60);
const DNS_PORT: u16 = 53;

/// Carries packets until `cancel` or the end of the packets, and ends all that it began.
pub(crate) async fn serve(
    network: &Arc<Network>,
    packets: BoxedPackets,
    interface: Interface,
    cancel: &CancellationToken,
) {
    let stop = cancel.child_token();
    // also where this future is dropped
    let _cut = stop.clone().drop_guard();
    let carrier = Carrier {
        network: Arc::clone(network),
        resolver: network.upstream.resolver(),
        stack: Shared::new(interface),
        interface,
        stop: stop.clone(),
        tasks: TaskTracker::new(),
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = carrier.carry(packets) => {}
    }
    stop.cancel();
    carrier.tasks.close();
    carrier.tasks.wait().await;
}

/// Where a packet may go.
enum Way {
    /// to the host's resolver
    Resolver(SocketAddr),
    /// to its destination
    Out,
    Refused(Decision),
}

#[derive(Clone)]
struct Carrier {
    network: Arc<Network>,
    resolver: Option<SocketAddr>,
    stack: Shared,
    interface: Interface,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Carrier {
    async fn carry(&self, packets: BoxedPackets) {
        let (mut from, mut to) = split(packets);
        let mut buffer = vec![0; usize::from(self.interface.mtu)];
        loop {
            let wait = self.stack.turn();
            while let Some(packet) = self.stack.next_outgoing() {
                if to.write_all(&packet).await.is_err() {
                    return;
                }
            }
            tokio::select! {
                read = from.read(&mut buffer) => match read {
                    Ok(length @ 1..) => self.take(&buffer[..length]),
                    Ok(0) | Err(_) => return,
                },
                () = self.stack.woken() => {}
                () = tokio::time::sleep(wait.unwrap_or(SLEEP_MAX)) => {}
            }
        }
    }

    /// Takes a packet of the sandbox.
    fn take(&self, bytes: &[u8]) {
        match packet::read(bytes, self.interface.address) {
            None => {}
            Some(Packet::Tcp { key, begins: false }) => self.stack.deliver(key, bytes),
            Some(Packet::Tcp { key, begins: true }) => self.begin(key, bytes),
            Some(Packet::Udp { key, payload }) => self.exchange(key, payload),
        }
    }

    fn way(&self, to: SocketAddrV4) -> Way {
        let address = *to.ip();
        let policy = self.network.policy.borrow();
        if policy.mode() != NetworkMode::Open {
            return Way::Refused(Decision::ModeNone);
        }
        if address == self.interface.gateway
            && to.port() == DNS_PORT
            && let Some(resolver) = self.resolver
        {
            return Way::Resolver(resolver);
        }
        let mask = u32::MAX.checked_shl(32 - u32::from(self.interface.prefix)).unwrap_or(0);
        if address.to_bits() & mask == self.interface.address.to_bits() & mask {
            return Way::Refused(Decision::NeverReachable("the network of the interface itself"));
        }
        let address = IpAddr::V4(address);
        match self.network.decide(&policy, MODE, &address.to_string(), address, to.port()) {
            Decision::Allowed => Way::Out,
            refused => Way::Refused(refused),
        }
    }

    /// Resolves when the policy's mode is `open` no more.
    async fn closed(&self) {
        // an error is that there is no policy any more
        let _ = self.network.policy.clone().wait_for(|policy| policy.mode() != NetworkMode::Open).await;
    }

    fn note(&self, to: SocketAddrV4, decision: Decision) {
        let address = IpAddr::V4(*to.ip());
        let refusal = Refusal::Denied(decision);
        self.network.note_refusal(MODE, &address.to_string(), to.port(), Some(address), &refusal, Instant::now());
    }

    /// Begins a TCP connection, with the packet that asks for it.
    fn begin(&self, key: FlowKey, syn: &[u8]) {
        let way = match self.stack.begin(key) {
            Taken::Known => return self.stack.deliver(key, syn),
            Taken::Full => return self.stack.refuse(key, syn),
            Taken::New => self.way(key.to),
        };
        if let Way::Refused(decision) = way {
            self.note(key.to, decision);
            return self.stack.refuse(key, syn);
        }
        let (carrier, syn) = (self.clone(), syn.to_vec());
        self.tasks.spawn(async move {
            tokio::select! {
                () = carrier.stop.cancelled() => {}
                () = carrier.connect(key, &syn, way) => {}
            }
        });
    }

    async fn connect(&self, key: FlowKey, syn: &[u8], way: Way) {
        if let Way::Resolver(resolver) = way {
            match timeout(RESOLVER_TIMEOUT, self.network.upstream.connect(resolver)).await {
                Ok(Ok(outside)) => {
                    let Some(inside) = self.stack.open(key, syn) else { return };
                    let meter = Arc::new(Meter::new(Arc::clone(&self.network)));
                    let outside = Metered::new(outside, Arc::clone(&meter));
                    tokio::select! {
                        () = relay(inside, outside) => {}
                        () = meter.idle(IDLE_TIMEOUT) => {}
                        () = self.closed() => {}
                    }
                }
                Ok(Err(_)) | Err(_) => self.stack.refuse(key, syn),
            }
            return;
        }
        match self.network.dial(MODE, &key.to.ip().to_string(), key.to.port()).await {
            Ok((flow, outside)) => {
                let Some(inside) = self.stack.open(key, syn) else { return };
                flow.run(relay(inside, outside), IDLE_TIMEOUT, self.stop.clone()).await;
            }
            Err(_) => self.stack.refuse(key, syn),
        }
    }
}

async fn relay<S: AsyncRead + AsyncWrite + Unpin>(mut inside: Inside, mut outside: Metered<S>) {
    if copy_bidirectional_with_sizes(&mut inside, &mut outside, COPY_BUFFER, COPY_BUFFER).await.is_ok() {
        inside.finish();
    }
}
