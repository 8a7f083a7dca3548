//! The server's side of what the jailer makes in a sandbox's network: a socket belongs to the network it was made in, whoever
//! accepts on it, and an interface to the one it was made in, whoever reads its packets.

use std::{
    fs::OpenOptions,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use async_trait::async_trait;
use cloud_sandbox_jailer::{self as jailer, TUN};
use cloud_sandbox_runtime::{BoxedPackets, BoxedStream, Interface, Listener, Port, RuntimeError};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd},
    net::TcpListener,
};

use crate::{launch::Launcher, sandbox::Process};

/// Makes things in the networks of sandboxes, by the jailer's second mode: of any sandbox that is a process of this host.
pub struct Networks(Arc<Launcher>);

impl Networks {
    /// By a jailer of their own.
    pub fn new(jailer: &[u8]) -> io::Result<Self> {
        Launcher::new(jailer).map(|launcher| Self(Arc::new(launcher)))
    }

    pub(crate) const fn of(launcher: Arc<Launcher>) -> Self {
        Self(launcher)
    }

    /// Listens on a port of the loopback of the sandbox whose first process is given.
    pub async fn listen(&self, process: &Process, port: u16) -> Result<Port, RuntimeError> {
        let (number, listener) = self.0.make(&jailer::Order::Listen { port }, process).await?;
        let listener = listener_on(listener, process.clone());
        let listener = listener.map_err(|error| RuntimeError::host(format!("listen on port {number}"), error))?;
        Ok(Port { number, listener })
    }

    /// Gives it an interface.
    pub async fn attach(&self, process: &Process, interface: Interface) -> Result<BoxedPackets, RuntimeError> {
        available()?;
        let (_, descriptor) = self.0.make(&order(interface), process).await?;
        packets(descriptor).map_err(|error| RuntimeError::host("read the packets of an interface", error))
    }
}

/// Whether interfaces can be made here; why not otherwise.
fn available() -> Result<(), RuntimeError> {
    let opened = OpenOptions::new().read(true).write(true).open(TUN);
    let missing = |error: io::Error| {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => "let this user read and write it, or run as root",
            _ => "modprobe tun; in a container, add that device",
        };
        RuntimeError::Unsupported(format!("give a sandbox a network interface: {TUN}: {error}; {remedy}"))
    };
    opened.map(drop).map_err(missing)
}

/// What the jailer is told of an interface.
fn order(interface: Interface) -> jailer::Order {
    let Interface { address, gateway, prefix, mtu } = interface;
    jailer::Order::Attach(jailer::Interface { name: "eth0".to_owned(), address, gateway, prefix, mtu })
}

/// Accepts on a listening socket until the sandbox ends.
fn listener_on(socket: OwnedFd, process: Process) -> io::Result<Box<dyn Listener>> {
    let socket = std::net::TcpListener::from(socket);
    socket.set_nonblocking(true)?;
    Ok(Box::new(Accepting { socket: TcpListener::from_std(socket)?, process }))
}

struct Accepting {
    socket: TcpListener,
    process: Process,
}

#[async_trait]
impl Listener for Accepting {
    async fn accept(&mut self) -> io::Result<BoxedStream> {
        tokio::select! {
            accepted = self.socket.accept() => Ok(Box::new(accepted?.0)),
            () = self.process.ended() => Err(io::Error::new(io::ErrorKind::NotConnected, "the sandbox has ended")),
        }
    }
}

/// The packets of an interface.
fn packets(descriptor: OwnedFd) -> io::Result<BoxedPackets> {
    fcntl(&descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let file = std::fs::File::from(descriptor);
    // SAFETY: a File keeps its one descriptor open for as long as it lives, which is as long as the result does.
    let file = unsafe { AsyncFd::register(file) }.map_err(io::Error::from)?;
    Ok(Box::new(Packets(file)))
}

/// One packet for each read and write.
struct Packets(AsyncFd<std::fs::File>);

impl AsyncRead for Packets {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            let read = ready.try_io(|file| file.get_ref().read(buffer.initialize_unfilled()));
            if let Ok(read) = read {
                return Poll::Ready(read.map(|read| buffer.advance(read)));
            }
        }
    }
}

impl AsyncWrite for Packets {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, packet: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = ready.try_io(|file| file.get_ref().write(packet)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
