//! Exchanges of datagrams: one socket of the host for each port of the sandbox and each address it sends to.

use std::{net::SocketAddr, net::SocketAddrV4, sync::Arc, time::Duration};

use tokio::{net::UdpSocket, sync::mpsc};

use super::{
    Carrier, MODE, Way,
    packet::{self, FlowKey},
    stack::Shared,
};
use crate::metered::Meter;

/// How long an exchange may be silent.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How many datagrams wait to be sent; beyond, they are dropped.
const QUEUE: usize = 32;

/// Gives up the place of an exchange when it ends, however that comes.
struct Registered {
    stack: Shared,
    key: FlowKey,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.stack.end_exchange(self.key);
    }
}

impl Carrier {
    /// Carries a datagram, as one of an exchange or as the first of a new one.
    pub(super) fn exchange(&self, key: FlowKey, payload: &[u8]) {
        if let Some(queue) = self.stack.queue(key) {
            let _ = queue.try_send(payload.to_vec());
            return;
        }
        let (out, resolver) = match self.way(key.to) {
            Way::Refused(decision) => return self.note(key.to, decision),
            Way::Resolver(resolver) => (resolver, true),
            Way::Out => (SocketAddr::V4(key.to), false),
        };
        let (queue, sent) = mpsc::channel(QUEUE);
        let _ = queue.try_send(payload.to_vec());
        if !self.stack.begin_exchange(key, queue) {
            return;
        }
        let registered = Registered { stack: self.stack.clone(), key };
        let carrier = self.clone();
        self.tasks.spawn(async move {
            let _registered = registered;
            if resolver {
                let meter = Arc::new(Meter::new(Arc::clone(&carrier.network)));
                tokio::select! {
                    () = carrier.stop.cancelled() => {}
                    () = meter.idle(IDLE_TIMEOUT) => {}
                    () = carrier.closed() => {}
                    () = carrier.relay_datagrams(key, out, sent, &meter) => {}
                }
                return;
            }
            match carrier.network.admit(MODE, out.ip(), out.port()) {
                Ok(flow) => {
                    let meter = flow.meter();
                    let relay = carrier.relay_datagrams(key, out, sent, &meter);
                    flow.run(relay, IDLE_TIMEOUT, carrier.stop.clone()).await;
                }
                Err(decision) => carrier.note(key.to, decision),
            }
        });
    }

    async fn relay_datagrams(&self, key: FlowKey, out: SocketAddr, mut sent: mpsc::Receiver<Vec<u8>>, meter: &Meter) {
        let Ok(socket) = self.network.upstream.datagrams(out).await else { return };
        let to = SocketAddrV4::new(self.interface.address, key.from);
        let mut buffer = vec![0; usize::from(self.interface.mtu)];
        loop {
            tokio::select! {
                payload = sent.recv() => {
                    let Some(payload) = payload else { return };
                    // an error is the network's, which may lose anything
                    if let Ok(length) = socket.send(&payload).await {
                        meter.add_sent(length);
                    }
                }
                length = receive(&socket, &mut buffer) => {
                    let Some(length) = length else { continue };
                    meter.add_received(length);
                    // what is longer than fits was cut when it was read, and is dropped whole
                    if length + packet::HEADERS <= buffer.len() {
                        self.stack.send(packet::datagram(key.to, to, &buffer[..length]));
                    }
                }
            }
        }
    }
}

/// The length of the next datagram. An error says that one that was sent before was refused.
async fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Option<usize> {
    socket.recv(buffer).await.ok()
}
