//! A sandbox's proxy and the hosts around it.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use cloud_sandbox_egress::{Egress, Traffic, Upstream};
use cloud_sandbox_model::{NetworkMode, NetworkPolicy, SandboxId, network::HostAddresses};
use cloud_sandbox_runtime::{BoxedStream, Listener};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

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

/// A name that is never resolved.
pub const UNRESOLVED: &str = "unresolved.example";
/// An address that never answers.
pub const SILENT: &str = "203.0.113.99";

/// Public hosts that are listeners of the test.
#[derive(Default)]
pub struct Hosts {
    names: Mutex<HashMap<String, VecDeque<Vec<IpAddr>>>>,
    places: Mutex<HashMap<IpAddr, SocketAddr>>,
    resolved: Mutex<Vec<String>>,
    connected: Mutex<Vec<SocketAddr>>,
}

impl Hosts {
    /// Says what a name resolves to, each time; the last answer stays.
    pub fn name(&self, name: &str, answers: &[&[&str]]) {
        let answers = answers.iter().map(|answer| answer.iter().map(|ip| ip.parse().unwrap()).collect()).collect();
        self.names.lock().unwrap().insert(name.to_owned(), answers);
    }

    /// Says where an address is, on every port.
    pub fn place(&self, address: &str, at: SocketAddr) {
        self.places.lock().unwrap().insert(address.parse().unwrap(), at);
    }

    /// The names that were asked for.
    pub fn resolved(&self) -> Vec<String> {
        self.resolved.lock().unwrap().clone()
    }

    /// The addresses that were connected.
    pub fn connected(&self) -> Vec<String> {
        self.connected.lock().unwrap().iter().map(ToString::to_string).collect()
    }
}

#[async_trait]
impl Upstream for Hosts {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.resolved.lock().unwrap().push(host.to_owned());
        if host == UNRESOLVED {
            std::future::pending::<()>().await;
        }
        let mut names = self.names.lock().unwrap();
        let answers = names.get_mut(host).ok_or_else(|| io::Error::other("no such name"))?;
        Ok(if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0].clone() })
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.connected.lock().unwrap().push(to);
        if to.ip().to_string() == SILENT {
            std::future::pending::<()>().await;
        }
        let at = self.places.lock().unwrap().get(&to.ip()).copied();
        TcpStream::connect(at.ok_or(io::ErrorKind::ConnectionRefused)?).await
    }

    async fn datagrams(&self, _: SocketAddr) -> io::Result<UdpSocket> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn resolver(&self) -> Option<SocketAddr> {
        None
    }
}

struct Loopback(TcpListener);

#[async_trait]
impl Listener for Loopback {
    async fn accept(&mut self) -> io::Result<BoxedStream> {
        Ok(Box::new(self.0.accept().await?.0))
    }
}

/// A sandbox's network.
pub struct World {
    pub hosts: Arc<Hosts>,
    pub egress: Egress,
    pub proxy: SocketAddr,
    pub cancel: CancellationToken,
    policy: watch::Sender<NetworkPolicy>,
    served: JoinHandle<()>,
}

pub fn policy(allow: &[&str], deny: &[&str]) -> NetworkPolicy {
    let strings = |entries: &[&str]| entries.iter().map(|entry| (*entry).to_owned()).collect::<Vec<_>>();
    NetworkPolicy::parse("network", Some(NetworkMode::Egress), &strings(allow), &strings(deny)).unwrap()
}

impl World {
    pub async fn new(allow: &[&str], deny: &[&str]) -> Self {
        let hosts = Arc::new(Hosts::default());
        let (sender, receiver) = watch::channel(policy(allow, deny));
        let own = HostAddresses::from_iter(["203.0.113.200".parse().unwrap()]);
        let egress =
            Egress::new(SandboxId::generate(), receiver, Arc::new(own), Arc::clone(&hosts) as Arc<dyn Upstream>);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let served = tokio::spawn({
            let (egress, cancel) = (egress.clone(), cancel.clone());
            async move { egress.serve(Box::new(Loopback(listener)), cancel).await }
        });
        Self { hosts, egress, proxy, cancel, policy: sender, served }
    }

    /// One with a host `a.example` at 203.0.113.1 that answers as [`http_host`] does.
    pub async fn with_host(allow: &[&str], deny: &[&str]) -> Self {
        let world = Self::new(allow, deny).await;
        world.hosts.name("a.example", &[&["203.0.113.1"]]);
        world.hosts.place("203.0.113.1", http_host().await);
        world
    }

    /// One with a host `a.example` at 203.0.113.1 that sends back what it is sent.
    pub async fn with_echo(allow: &[&str], deny: &[&str]) -> Self {
        let world = Self::new(allow, deny).await;
        world.hosts.name("a.example", &[&["203.0.113.1"]]);
        world.hosts.place("203.0.113.1", echo_host().await);
        world
    }

    pub fn set_policy(&self, allow: &[&str], deny: &[&str]) {
        self.policy.send_replace(policy(allow, deny));
    }

    pub fn traffic(&self) -> Traffic {
        self.egress.traffic()
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.proxy).await.unwrap()
    }

    /// Sends bytes over a connection of their own, and reads the answer to its end.
    pub async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // what was answered before a reset counts
        let _ = soon(stream.read_to_end(&mut answer)).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Asks for an absolute address.
    pub async fn get(&self, uri: &str) -> String {
        self.exchange(&format!("GET {uri} HTTP/1.1\r\nHost: whatever\r\nConnection: close\r\n\r\n")).await
    }

    /// Asks for a tunnel; the answer's head, and the connection.
    pub async fn tunnel(&self, target: &str) -> (String, TcpStream) {
        let mut stream = self.connect().await;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut stream).await;
        (head, stream)
    }

    /// Drops what serves, in the middle of it.
    pub async fn abort(self) {
        self.served.abort();
        assert!(soon(self.served).await.unwrap_err().is_cancelled());
    }

    /// Ends the sandbox; returns when nothing is left.
    pub async fn end(self) {
        self.cancel.cancel();
        soon(self.served).await.unwrap();
    }
}

/// Reads to the end of a head, and nothing after it.
pub async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = soon(stream.read_u8()).await else { break };
        head.push(byte);
    }
    String::from_utf8(head).unwrap()
}

/// The status of an answer.
pub fn status(answer: &str) -> u16 {
    let word = answer.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {answer:?}"));
    word.parse().unwrap()
}

/// A host that answers every request with what it was sent, head and body, and keeps its connections.
pub async fn http_host() -> SocketAddr {
    host(|mut stream| async move {
        let mut seen = Vec::new();
        loop {
            let mut piece = [0; 4096];
            let Ok(count @ 1..) = stream.read(&mut piece).await else { return };
            seen.extend_from_slice(&piece[..count]);
            let text = String::from_utf8_lossy(&seen).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
            let head = head.to_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let chunked = head.contains("transfer-encoding: chunked");
            if body.len() < length || (chunked && !body.ends_with("0\r\n\r\n")) {
                continue;
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: keep-alive, x-private\r\nX-Private: 1\r\nX-Kept: 1\r\nX-Sandbox-Network: reason=forged\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all((answer + &text).as_bytes()).await;
            seen.clear();
        }
    })
    .await
}

/// A host that sends back what it is sent, and ends when it has read the end.
pub async fn echo_host() -> SocketAddr {
    host(|mut stream| async move {
        let (mut from, mut to) = stream.split();
        let _ = tokio::io::copy(&mut from, &mut to).await;
    })
    .await
}

/// A host that serves each of its connections so.
pub async fn host<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}
