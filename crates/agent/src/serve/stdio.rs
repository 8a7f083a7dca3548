//! Connections as streams of one yamux session, which standard input and output carry.
//!
//! This is the way in where the agent and its node have no kernel in common, and so no socket. The node opens the
//! streams; its end of the session is in the crate `runtime`.
//!
//! Invariant: nothing but the session is ever written to standard output. The standard descriptors lead nowhere by the time
//! anything else runs, and the copies of them do not survive an exec.

use std::{
    fs::File,
    future::poll_fn,
    io::{self, Read, Write},
    os::fd::AsFd,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::io::{AsyncRead, AsyncWrite};
use tokio::io::{Interest, unix::AsyncFd};
use tokio_util::compat::FuturesAsyncReadCompatExt;

use super::serve_connection;
use crate::{Agent, process::nonblocking};

/// How many streams a session may have: far more than a node opens. Beyond it the session ends.
const MAX_STREAMS: usize = 512;
/// What a stream that is not read may hold at first, as the protocol has it. HTTP/2 reads whatever comes and has bounds
/// of its own, so that no stream fills even this.
const STREAM_WINDOW: usize = 256 * 1024;
/// What the windows of those streams together may grow by that are read faster than they are filled.
const GROWTH: usize = 8 * 1024 * 1024;
/// What goes into one frame. Larger than usual, as in [`super`]: there is no slow line that others wait for.
const FRAME: usize = 64 * 1024;

/// What standard input and output lead to.
pub struct Stdio {
    input: AsyncFd<File>,
    output: AsyncFd<File>,
}

impl Stdio {
    /// Takes copies of both; the caller has others put in their place. To be called within a runtime of tokio.
    pub fn take() -> io::Result<Self> {
        let input = nonblocking(io::stdin().as_fd().try_clone_to_owned()?)?;
        let output = nonblocking(io::stdout().as_fd().try_clone_to_owned()?)?;
        // SAFETY: a file keeps its one open descriptor until it is dropped.
        unsafe {
            Ok(Self {
                input: AsyncFd::register_with_interest(input, Interest::READABLE)?,
                output: AsyncFd::register_with_interest(output, Interest::WRITABLE)?,
            })
        }
    }
}

/// Serves `agent` on the streams of the session, until standard input ends.
pub async fn serve_stdio(stdio: Stdio, agent: Agent) -> io::Result<()> {
    let mut session = yamux::Connection::new(stdio, config(), yamux::Mode::Server);
    loop {
        match poll_fn(|context| session.poll_next_inbound(context)).await {
            // A stream that fails takes its runs along, as the node expects; nobody else is affected.
            Some(Ok(stream)) => drop(tokio::spawn(serve_connection(Box::new(stream.compat()), agent.clone()))),
            None => return Ok(()),
            Some(Err(error)) if is_end(&error) => return Ok(()),
            Some(Err(error)) => return Err(io::Error::other(error)),
        }
    }
}

/// Whether the node has gone while something was on its way to it.
fn is_end(error: &yamux::ConnectionError) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error, yamux::ConnectionError::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset))
}

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * STREAM_WINDOW + GROWTH));
    config.set_split_send_size(FRAME);
    config
}

impl AsyncRead for Stdio {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.input.poll_read_ready(context))?;
            match ready.try_io(|input| input.get_ref().read(buffer)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(read) => return Poll::Ready(read),
                Err(_) => {}
            }
        }
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.output.poll_write_ready(context))?;
            match ready.try_io(|output| output.get_ref().write(bytes)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(written) => return Poll::Ready(written),
                Err(_) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
