use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use cloud_sandbox_model::{NetworkMode, NetworkPolicy, SandboxId, network::HostAddresses};
use cloud_sandbox_runtime::{INTERFACE, Interface};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::super::{
    inside::Inside,
    packet::{self, FlowKey, Packet},
    stack::Shared,
};
use crate::{Egress, Traffic, Upstream};

/// Far more than anything here takes: who waits this long has found a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// What must come to an end.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("hangs")
}

/// Waits until something holds.
pub async fn until(mut holds: impl FnMut() -> bool) {
    soon(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// Public hosts that are sockets of the test.
#[derive(Default)]
pub struct Hosts {
    places: Mutex<HashMap<IpAddr, SocketAddr>>,
    reached: Mutex<Vec<SocketAddr>>,
    resolver: Mutex<Option<SocketAddr>>,
}

impl Hosts {
    fn at(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        self.reached.lock().unwrap().push(to);
        if *self.resolver.lock().unwrap() == Some(to) {
            return Ok(to);
        }
        self.places.lock().unwrap().get(&to.ip()).copied().ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
    }
}

#[async_trait]
impl Upstream for Hosts {
    async fn resolve(&self, _: &str) -> io::Result<Vec<IpAddr>> {
        Err(io::Error::other("names are not seen here"))
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        // an address that never answers
        if to.ip() == IpAddr::from([203, 0, 113, 99]) {
            std::future::pending::<()>().await;
        }
        TcpStream::connect(self.at(to)?).await
    }

    async fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        socket.connect(self.at(to)?).await?;
        Ok(socket)
    }

    fn resolver(&self) -> Option<SocketAddr> {
        *self.resolver.lock().unwrap()
    }
}

/// The node's end of the packets.
struct Pipe {
    from: mpsc::Receiver<Vec<u8>>,
    to: mpsc::UnboundedSender<Vec<u8>>,
}

impl AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.from.poll_recv(cx).map(|packet| {
            if let Some(packet) = packet {
                buf.put_slice(&packet[..packet.len().min(buf.remaining())]);
            }
            Ok(())
        })
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        assert!(buf.len() <= usize::from(INTERFACE.mtu), "too long for the interface");
        let sent = self.to.send(buf.to_vec());
        Poll::Ready(sent.map(|()| buf.len()).map_err(|_| io::ErrorKind::BrokenPipe.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A sandbox with an interface.
pub struct World {
    pub hosts: Arc<Hosts>,
    pub cancel: CancellationToken,
    egress: Egress,
    policy: watch::Sender<NetworkPolicy>,
    served: JoinHandle<()>,
    kernel: Shared,
    turned: JoinHandle<()>,
    /// packets that come from nowhere in particular
    pub raw: mpsc::Sender<Vec<u8>>,
    /// what came back that is no TCP
    datagrams: Arc<Mutex<Vec<Vec<u8>>>>,
    /// how many resets came back
    resets: Arc<Mutex<usize>>,
    port: Mutex<u16>,
}

pub fn policy(mode: NetworkMode, allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    let strings = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
    NetworkPolicy::parse("network", Some(mode), &strings(allow), &strings(deny)).unwrap()
}

impl World {
    pub fn new(allow: &[&str], deny: &[&str]) -> Self {
        let hosts = Arc::new(Hosts::default());
        Self::with(hosts, allow, deny)
    }

    /// One whose gateway asks a resolver, which answers with what it was asked, over TCP and UDP.
    pub async fn with_resolver(deny: &[&str]) -> Self {
        let hosts = Arc::new(Hosts::default());
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        *hosts.resolver.lock().unwrap() = Some(tcp.local_addr().unwrap());
        echo(tcp, udp);
        Self::with(hosts, &[], deny)
    }

    fn with(hosts: Arc<Hosts>, allow: &[&str], deny: &[&str]) -> Self {
        let (sender, receiver) = watch::channel(policy(NetworkMode::Open, allow, deny));
        let own = HostAddresses::from_iter(["203.0.113.200".parse().unwrap()]);
        let egress =
            Egress::new(SandboxId::generate(), receiver, Arc::new(own), Arc::clone(&hosts) as Arc<dyn Upstream>);
        let (raw, from) = mpsc::channel(64);
        let (to, back) = mpsc::unbounded_channel();
        let cancel = CancellationToken::new();
        let served = tokio::spawn({
            let (egress, cancel) = (egress.clone(), cancel.clone());
            async move { egress.serve_packets(Box::new(Pipe { from, to }), INTERFACE, cancel).await }
        });
        // seen from the sandbox, its own address is this end's
        let kernel = Shared::new(Interface { gateway: INTERFACE.address, ..INTERFACE });
        let (datagrams, resets) = (Arc::default(), Arc::default());
        let turned = tokio::spawn(turn(kernel.clone(), raw.clone(), back, Arc::clone(&datagrams), Arc::clone(&resets)));
        let port = Mutex::new(40_000);
        Self { hosts, cancel, egress, policy: sender, served, kernel, turned, raw, datagrams, resets, port }
    }

    /// A host that sends back what it is sent, over TCP and UDP and on every port.
    pub async fn echo_at(&self, address: &str) {
        let (tcp, udp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()).await {
                break (tcp, udp);
            }
        };
        self.hosts.places.lock().unwrap().insert(address.parse().unwrap(), tcp.local_addr().unwrap());
        echo(tcp, udp);
    }

    pub fn set_policy(&self, policy: NetworkPolicy) {
        self.policy.send_replace(policy);
    }

    pub fn traffic(&self) -> Traffic {
        self.egress.traffic()
    }

    /// The addresses that were reached.
    pub fn reached(&self) -> Vec<String> {
        self.hosts.reached.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    pub fn resets(&self) -> usize {
        *self.resets.lock().unwrap()
    }

    fn next_port(&self) -> u16 {
        let mut port = self.port.lock().unwrap();
        *port += 1;
        *port
    }

    /// Connects as a program of the sandbox does; `None` is a reset.
    pub async fn connect(&self, to: &str) -> Option<Inside> {
        let key = FlowKey { from: self.next_port(), to: to.parse().unwrap() };
        let buffer = || SocketBuffer::new(vec![0; 65_536]);
        let handle = {
            let mut stack = self.kernel.lock();
            let mut socket = Socket::new(buffer(), buffer());
            socket.connect(stack.context(), key.to, key.from).unwrap();
            stack.sockets.add(socket)
        };
        self.kernel.wake();
        let inside = Inside::new(self.kernel.clone(), key, handle);
        let state = || self.kernel.lock().sockets.get::<Socket<'_>>(handle).state();
        until(|| state() != State::SynSent).await;
        (state() != State::Closed).then_some(inside)
    }

    /// Whether a connection carries.
    pub async fn echoes(&self, stream: &mut Inside) -> bool {
        let mut echoed = [0; 4];
        stream.write_all(b"ping").await.is_ok()
            && soon(stream.read_exact(&mut echoed)).await.is_ok()
            && &echoed == b"ping"
    }

    /// Sends a datagram from a port of the sandbox.
    pub async fn send(&self, from: u16, to: &str, payload: &[u8]) {
        let from = SocketAddrV4::new(INTERFACE.address, from);
        self.raw.send(packet::datagram(from, to.parse().unwrap(), payload)).await.unwrap();
    }

    /// The datagrams that have come from an address: to which port, and what.
    pub fn received(&self, from: &str) -> Vec<(u16, Vec<u8>)> {
        let from: SocketAddrV4 = from.parse().unwrap();
        let datagrams = self.datagrams.lock().unwrap();
        let read = |bytes: &Vec<u8>| match packet::read(bytes, *from.ip()) {
            Some(Packet::Udp { key, payload }) if key.from == from.port() => Some((key.to.port(), payload.to_vec())),
            _ => None,
        };
        datagrams.iter().filter_map(read).collect()
    }

    /// Ends the sandbox; returns when nothing is left.
    pub async fn end(self) {
        self.cancel.cancel();
        soon(self.served).await.unwrap();
        self.turned.abort();
    }
}

/// Sends back what comes.
fn echo(tcp: TcpListener, udp: UdpSocket) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            });
        }
    });
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let _ = udp.send_to(&buffer[..length], from).await;
        }
    });
}

/// Runs the sandbox's stack.
async fn turn(
    kernel: Shared,
    to: mpsc::Sender<Vec<u8>>,
    mut from: mpsc::UnboundedReceiver<Vec<u8>>,
    datagrams: Arc<Mutex<Vec<Vec<u8>>>>,
    resets: Arc<Mutex<usize>>,
) {
    let any = FlowKey { from: 0, to: SocketAddrV4::new(INTERFACE.address, 0) };
    loop {
        let wait = kernel.turn();
        while let Some(packet) = kernel.next_outgoing() {
            if to.send(packet).await.is_err() {
                return;
            }
        }
        tokio::select! {
            packet = from.recv() => match packet {
                None => return,
                // the protocol's number, and the flags of TCP behind a head without options
                Some(packet) if packet[9] == 17 => datagrams.lock().unwrap().push(packet),
                Some(packet) => {
                    *resets.lock().unwrap() += usize::from(packet[33] & 4 != 0);
                    kernel.deliver(any, &packet);
                }
            },
            () = kernel.woken() => {}
            () = tokio::time::sleep(wait.unwrap_or(Duration::from_millis(50))) => {}
        }
    }
}
