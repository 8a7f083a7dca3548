//! The host's side of a connection: a resolver and sockets. Nothing is decided here.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _},
    sync::Arc,
};

use async_trait::async_trait;
use tokio::{
    net::{TcpStream, UdpSocket},
    sync::Semaphore,
};

/// Builds for development connect the hosts that this variable names to where it says, as `host=ip:port`, separated by commas:
/// tests have no public hosts. A name resolves to an address for documentation then; a host may be such an address itself.
/// Release builds never look.
pub const TEST_UPSTREAM: &str = "CLOUD_SANDBOX_TEST_UPSTREAM";

/// The most names that are looked up at once for all sandboxes.
const LOOKUPS_MAX: usize = 64;

/// Resolves and connects.
#[async_trait]
pub trait Upstream: Send + Sync + 'static {
    /// The addresses of a name, in the order of the host's preference.
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>>;

    /// A connection to an address that was allowed.
    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream>;

    /// A socket that exchanges datagrams with an address that was allowed, and with nobody else.
    async fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket>;

    /// The resolver that the host itself asks, for sandboxes that ask their gateway.
    fn resolver(&self) -> Option<SocketAddr>;
}

/// The host's own resolver and sockets.
pub struct SystemUpstream {
    lookups: Arc<Semaphore>,
}

impl Default for SystemUpstream {
    fn default() -> Self {
        Self { lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }
}

#[async_trait]
impl Upstream for SystemUpstream {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let permit = Arc::clone(&self.lookups).acquire_owned().await.map_err(io::Error::other)?;
        let host = host.to_owned();
        let lookup = tokio::task::spawn_blocking(move || {
            // the thread is taken until the resolver gives up, whoever has stopped waiting by then
            let _permit = permit;
            Ok((host.as_str(), 0).to_socket_addrs()?.map(|address| address.ip()).collect())
        });
        lookup.await.map_err(io::Error::other)?
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any: SocketAddr = if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(to).await?;
        Ok(socket)
    }

    fn resolver(&self) -> Option<SocketAddr> {
        first_nameserver(&std::fs::read_to_string("/etc/resolv.conf").ok()?)
    }
}

fn first_nameserver(configuration: &str) -> Option<SocketAddr> {
    let named = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<IpAddr>().ok();
    configuration.lines().find_map(named).map(|address| SocketAddr::new(address, 53))
}

/// What sandboxes are connected through in this process: the system, but for what [`TEST_UPSTREAM`] names.
pub fn from_environment() -> Result<Arc<dyn Upstream>, MalformedUpstream> {
    let system = SystemUpstream::default();
    let given = cfg!(debug_assertions).then(|| std::env::var(TEST_UPSTREAM).ok()).flatten();
    match given.filter(|text| !text.is_empty()) {
        None => Ok(Arc::new(system)),
        Some(text) => Ok(Arc::new(Mapped::parse(&text, system)?)),
    }
}

/// [`TEST_UPSTREAM`] has an entry that says nothing.
#[derive(Debug, PartialEq, Eq)]
pub struct MalformedUpstream(String);

impl fmt::Display for MalformedUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` in {TEST_UPSTREAM} is not host=ip:port", self.0)
    }
}

impl std::error::Error for MalformedUpstream {}

/// Some hosts are elsewhere.
struct Mapped {
    hosts: Vec<(String, IpAddr, SocketAddr)>,
    rest: SystemUpstream,
}

impl Mapped {
    fn parse(text: &str, rest: SystemUpstream) -> Result<Self, MalformedUpstream> {
        let malformed = |entry: &str| MalformedUpstream(entry.to_owned());
        let mut hosts = Vec::new();
        for (entry, number) in text.split(',').zip(1u8..=254) {
            let (host, to) = entry.split_once('=').ok_or_else(|| malformed(entry))?;
            let to: SocketAddr = to.parse().map_err(|_| malformed(entry))?;
            let address = host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::new(203, 0, 113, number)));
            hosts.push((host.to_ascii_lowercase(), address, to));
        }
        Ok(Self { hosts, rest })
    }

    fn mapped(&self, to: SocketAddr) -> SocketAddr {
        self.hosts.iter().find(|(_, address, _)| *address == to.ip()).map_or(to, |(_, _, to)| *to)
    }
}

#[async_trait]
impl Upstream for Mapped {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        match self.hosts.iter().find(|(own, _, _)| own == host) {
            Some((_, address, _)) => Ok(vec![*address]),
            None => self.rest.resolve(host).await,
        }
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.rest.connect(self.mapped(to)).await
    }

    async fn datagrams(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        self.rest.datagrams(self.mapped(to)).await
    }

    fn resolver(&self) -> Option<SocketAddr> {
        self.rest.resolver()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hosts_that_are_named_are_elsewhere_and_others_are_not() {
        let text = "pypi.test=127.0.0.1:8080,npm.test=127.0.0.1:8081,203.0.113.77=[::1]:53";
        let mapped = Mapped::parse(text, SystemUpstream::default()).unwrap();
        let npm = mapped.resolve("npm.test").await.unwrap();
        assert_eq!(npm, [IpAddr::from([203, 0, 113, 2])]);
        assert_eq!(mapped.mapped((npm[0], 443).into()), "127.0.0.1:8081".parse().unwrap());
        assert_eq!(mapped.mapped("203.0.113.77:9".parse().unwrap()), "[::1]:53".parse().unwrap());
        assert_eq!(mapped.mapped("198.51.100.1:9".parse().unwrap()), "198.51.100.1:9".parse().unwrap());
        assert_eq!(mapped.resolve("127.0.0.1").await.unwrap(), [IpAddr::from([127, 0, 0, 1])]);
    }

    #[test]
    fn resolver_is_the_first_that_is_an_address() {
        let text = "# nameserver 192.0.2.1\nsearch a.example\nnameserver fe80::1%eth0\nnameserver\t127.0.0.53\nnameserver 192.0.2.2\n";
        assert_eq!(first_nameserver(text), Some("127.0.0.53:53".parse().unwrap()));
        assert_eq!(first_nameserver("options edns0\n"), None);
    }

    #[test]
    fn entry_that_says_nothing_is_an_error_that_quotes_it() {
        for (text, wrong) in [("a=b", "a=b"), ("a.test=127.0.0.1:1,b.test", "b.test"), ("a=127.0.0.1", "a=127.0.0.1")] {
            let error = Mapped::parse(text, SystemUpstream::default()).err().unwrap();
            assert_eq!(error, MalformedUpstream(wrong.to_owned()));
        }
    }
}
