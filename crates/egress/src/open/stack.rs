//! The TCP/IP stack at the node's end of an interface, and the table of what goes through it.
//!
//! The stack has any address: it is whoever the sandbox talks to. A socket exists in it only for a connection that was decided and
//! made already; whatever else arrives is answered with a reset.

use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_sandbox_runtime::Interface as InterfaceSpec;
use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp,
    time::Instant,
    wire::{HardwareAddress, IpCidr},
};
use tokio::sync::{Notify, mpsc};

use super::{inside::Inside, packet::FlowKey};
use crate::FLOWS_MAX;

/// What one connection may hold in either direction.
const BUFFER: usize = 64 * 1024;
/// The most packets that wait to be written.
const OUTGOING_MAX: usize = 256;
/// How long the other end may leave something unanswered.
const SILENCE_MAX: smoltcp::time::Duration = smoltcp::time::Duration::from_secs(60);
/// How long the sandbox may take to read what a connection that is over still holds.
const CLOSING_MAX: Duration = Duration::from_secs(5 * 60);

/// What is known of a flow that a packet asks for.
pub(super) enum Taken {
    /// it is being made, or is there
    Known,
    /// it has a place now
    New,
    /// there is no place for it
    Full,
}

/// A place in the table of connections.
enum Place {
    /// its host is being connected
    Connecting,
    Open,
    /// nobody uses it any more; until when it may close
    Closing(SocketHandle, tokio::time::Instant),
}

pub(super) struct Stack {
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    wire: Wire,
    began: tokio::time::Instant,
    connections: HashMap<FlowKey, Place>,
    /// the queues of what the sandbox sends
    datagrams: HashMap<FlowKey, mpsc::Sender<Vec<u8>>>,
}

/// The stack, for the task that turns it and for those that use it.
#[derive(Clone)]
pub(super) struct Shared(Arc<(Mutex<Stack>, Notify)>);

impl Shared {
    pub(super) fn new(spec: InterfaceSpec) -> Self {
        let mut wire = Wire { incoming: None, outgoing: VecDeque::new(), mtu: usize::from(spec.mtu) };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = RandomState::new().hash_one(());
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // a fresh interface has room for one
            let _ = addresses.push(IpCidr::new(spec.gateway.into(), spec.prefix));
        });
        interface.set_any_ip(true);
        let stack = Stack {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            began: tokio::time::Instant::now(),
            connections: HashMap::new(),
            datagrams: HashMap::new(),
        };
        Self(Arc::new((Mutex::new(stack), Notify::new())))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Stack> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the stack turned soon.
    pub(super) fn wake(&self) {
        self.0.1.notify_one();
    }

    pub(super) async fn woken(&self) {
        self.0.1.notified().await;
    }

    /// Lets the stack do what is to be done; says when there is more.
    pub(super) fn turn(&self) -> Option<Duration> {
        let mut stack = self.lock();
        stack.poll();
        stack.clear_closed();
        if !stack.wire.outgoing.is_empty() {
            return Some(Duration::ZERO);
        }
        let now = stack.now();
        let Stack { interface, sockets, .. } = &mut *stack;
        interface.poll_delay(now, sockets).map(Into::into)
    }

    pub(super) fn next_outgoing(&self) -> Option<Vec<u8>> {
        self.lock().wire.outgoing.pop_front()
    }

    /// Gives a packet of a connection to the stack, unless it is still being made.
    pub(super) fn deliver(&self, key: FlowKey, packet: &[u8]) {
        let mut stack = self.lock();
        if !matches!(stack.connections.get(&key), Some(Place::Connecting)) {
            stack.accept(packet);
        }
    }

    /// Takes a place for a connection.
    pub(super) fn begin(&self, key: FlowKey) -> Taken {
        let mut stack = self.lock();
        if stack.connections.contains_key(&key) {
            return Taken::Known;
        }
        if stack.connections.len() >= FLOWS_MAX {
            return Taken::Full;
        }
        stack.connections.insert(key, Place::Connecting);
        Taken::New
    }

    /// Resets a connection that was asked for with this packet.
    pub(super) fn refuse(&self, key: FlowKey, syn: &[u8]) {
        let mut stack = self.lock();
        if matches!(stack.connections.get(&key), Some(Place::Connecting)) {
            stack.connections.remove(&key);
        }
        stack.accept(syn);
        drop(stack);
        self.wake();
    }

    /// Answers a connection that was asked for with this packet; `None` where the packet is not right.
    pub(super) fn open(&self, key: FlowKey, syn: &[u8]) -> Option<Inside> {
        let mut stack = self.lock();
        let buffer = || tcp::SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = tcp::Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_timeout(Some(SILENCE_MAX));
        // any socket of the stack that listens would take the packet, and there is one at a time
        let listening = socket.listen(key.to).is_ok();
        let handle = stack.sockets.add(socket);
        stack.accept(syn);
        if !listening || stack.sockets.get::<tcp::Socket<'_>>(handle).is_listening() {
            stack.sockets.remove(handle);
            stack.connections.remove(&key);
            return None;
        }
        stack.connections.insert(key, Place::Open);
        drop(stack);
        self.wake();
        Some(Inside::new(self.clone(), key, handle))
    }

    /// Gives up a connection, to close as it can.
    pub(super) fn close(&self, key: FlowKey, handle: SocketHandle, abort: bool) {
        let mut stack = self.lock();
        if abort {
            stack.sockets.get_mut::<tcp::Socket<'_>>(handle).abort();
        }
        stack.connections.insert(key, Place::Closing(handle, tokio::time::Instant::now() + CLOSING_MAX));
        drop(stack);
        self.wake();
    }

    /// The queue of an exchange of datagrams that there is already.
    pub(super) fn queue(&self, key: FlowKey) -> Option<mpsc::Sender<Vec<u8>>> {
        self.lock().datagrams.get(&key).cloned()
    }

    /// Takes a place for an exchange of datagrams, if there is one.
    pub(super) fn begin_exchange(&self, key: FlowKey, queue: mpsc::Sender<Vec<u8>>) -> bool {
        let mut stack = self.lock();
        let room = stack.datagrams.len() < FLOWS_MAX;
        if room {
            stack.datagrams.insert(key, queue);
        }
        room
    }

    pub(super) fn end_exchange(&self, key: FlowKey) {
        self.lock().datagrams.remove(&key);
    }

    /// Sends a packet to the sandbox, or drops it as any network would.
    pub(super) fn send(&self, packet: Vec<u8>) {
        let mut stack = self.lock();
        if stack.wire.outgoing.len() < OUTGOING_MAX {
            stack.wire.outgoing.push_back(packet);
        }
        drop(stack);
        self.wake();
    }
}

impl Stack {
    /// What a socket needs to connect, as the sandbox's end does in tests.
    #[cfg(test)]
    pub(super) fn context(&mut self) -> &mut smoltcp::iface::Context {
        self.interface.context()
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn poll(&mut self) {
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
    }

    /// Processes one packet of the sandbox; it is dropped where its answer has no room.
    fn accept(&mut self, packet: &[u8]) {
        let now = self.now();
        self.wire.incoming = Some(packet.to_vec());
        self.interface.poll_ingress_single(now, &mut self.wire, &mut self.sockets);
        self.wire.incoming = None;
    }

    fn clear_closed(&mut self) {
        let now = tokio::time::Instant::now();
        let Self { connections, sockets, .. } = self;
        connections.retain(|_, place| {
            let Place::Closing(handle, end) = place else { return true };
            let socket = sockets.get_mut::<tcp::Socket<'_>>(*handle);
            if !socket.is_open() {
                sockets.remove(*handle);
                return false;
            }
            if now >= *end {
                // it is removed when its reset has been sent
                socket.abort();
            }
            true
        });
    }
}

/// Where the stack gets its packets from and puts them.
struct Wire {
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
    mtu: usize,
}

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        if self.outgoing.len() >= OUTGOING_MAX {
            return None;
        }
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        (self.outgoing.len() < OUTGOING_MAX).then_some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities
    }
}

struct Incoming(Vec<u8>);

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        let mut packet = vec![0; length];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
