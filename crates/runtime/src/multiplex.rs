//! Connections to an agent that has standard input and output and no more: streams of one yamux session.
//!
//! The agent's end of it is `cloud-sandbox-agent --stdio`. One task drives the session; whoever wants a connection asks
//! it for one by [`Streams::connect`].
//!
//! Invariant: what the other end sends is bounded, and nothing it sends can have this end do more than end the session. The
//! agent opens no streams, so one that it opens is reset.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};
use yamux::{Connection, Mode};

use crate::BoxedStream;

/// How many connections may be open at once: a node has two and, while they break, two more.
const MAX_OPEN: usize = 32;
/// How many streams a session may have. More than may be open, since one that was dropped counts until the session could
/// say so to the other end, which a frozen sandbox keeps it from.
const MAX_STREAMS: usize = 512;
/// What a stream that is not read may hold at first, as the protocol has it. HTTP/2 reads whatever comes and has bounds
/// of its own, so that no stream fills even this.
const STREAM_WINDOW: usize = 256 * 1024;
/// What the windows of those streams together may grow by that are read faster than they are filled.
const GROWTH: usize = 8 * 1024 * 1024;
/// What goes into one frame. Larger than usual: each costs a system call, and there is no slow line that others wait for.
const FRAME: usize = 64 * 1024;

/// Opens connections within a session; cheap to clone. When the last one is dropped, the session ends.
#[derive(Clone, Debug)]
pub struct Streams {
    requests: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    places: Arc<Semaphore>,
    over: watch::Receiver<()>,
}

/// Begins a session over what carries an agent's standard input (written) and output (read). The future drives it:
/// somebody has to poll it until it is ready, which it is once the agent or all of [`Streams`] are gone. Why it ended is
/// its result.
pub fn multiplex<T>(io: T) -> (Streams, impl Future<Output = io::Result<()>> + Send)
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (requests, queue) = mpsc::channel(MAX_OPEN);
    let (running, over) = watch::channel(());
    let session = Connection::new(io.compat(), config(), Mode::Client);
    let driven = async move {
        let ended = drive(session, queue).await;
        drop(running);
        ended
    };
    (Streams { requests, places: Arc::new(Semaphore::new(MAX_OPEN)), over }, driven)
}

impl Streams {
    /// A new connection. Nothing is sent before something is written to it.
    ///
    /// # Errors
    /// `NotConnected` when the session has ended; `ResourceBusy` when too many connections are open.
    pub async fn connect(&self) -> io::Result<BoxedStream> {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let place = place.map_err(|_| io::Error::from(io::ErrorKind::ResourceBusy))?;
        let gone = || io::Error::from(io::ErrorKind::NotConnected);
        let (reply, stream) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| gone())?;
        let stream = stream.await.map_err(|_| gone())?.compat();
        Ok(Box::new(Stream { stream, _place: place }))
    }

    /// Resolves when the session has ended: the agent, or what led to it, is gone. Waiting for that does not keep it from
    /// ending.
    pub fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut over = self.over.clone();
        async move {
            // an error says that its driver is gone; nothing is ever sent
            let _ = over.changed().await;
        }
    }
}

fn config() -> yamux::Config {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * STREAM_WINDOW + GROWTH));
    config.set_split_send_size(FRAME);
    config
}

type Session<T> = Connection<Compat<T>>;

/// Opens what is asked for until one of both ends is gone.
async fn drive<T>(mut session: Session<T>, mut queue: mpsc::Receiver<oneshot::Sender<yamux::Stream>>) -> io::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let ended = poll_fn(|context| poll_session(&mut session, &mut queue, context)).await;
    match ended {
        Some(error) => Err(io::Error::other(error)),
        None => poll_fn(|context| session.poll_close(context)).await.map_err(io::Error::other),
    }
}

/// Ready when the session has ended, or nobody is there any more who could ask for something.
fn poll_session<T>(
    session: &mut Session<T>,
    queue: &mut mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
    context: &mut Context<'_>,
) -> Poll<Option<yamux::ConnectionError>>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        // first, since it also does away with streams that were dropped
        match session.poll_next_inbound(context) {
            Poll::Ready(Some(Ok(unwanted))) => {
                drop(unwanted);
                continue;
            }
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(error)),
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending => {}
        }
        let Poll::Ready(request) = queue.poll_recv(context) else { return Poll::Pending };
        let Some(reply) = request else { return Poll::Ready(None) };
        match session.poll_new_outbound(context) {
            // whoever asked may have gone: the stream is dropped then
            Poll::Ready(Ok(stream)) => drop(reply.send(stream)),
            Poll::Ready(Err(error)) => return Poll::Ready(Some(error)),
            // the other end has yet to say a word about very many streams: it is frozen, or does not keep to the protocol
            Poll::Pending => drop(reply),
        }
    }
}

/// A stream and its place among those that may be open.
struct Stream {
    stream: Compat<yamux::Stream>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, task::Waker};

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PIPE: usize = 4096;

    fn session() -> (Streams, Connection<Compat<DuplexStream>>) {
        let (ours, theirs) = duplex(PIPE);
        let (streams, driven) = multiplex(ours);
        tokio::spawn(driven);
        (streams, Connection::new(theirs.compat(), config(), Mode::Server))
    }

    /// Sends back what comes on each stream, and stops reading on those whose first byte says so.
    async fn echo(mut agent: Connection<Compat<DuplexStream>>) {
        let unread = Arc::new(Mutex::new(Vec::new()));
        while let Some(Ok(stream)) = poll_fn(|context| agent.poll_next_inbound(context)).await {
            let (mut stream, unread) = (stream.compat(), Arc::clone(&unread));
            tokio::spawn(async move {
                let first = stream.read_u8().await.unwrap_or(b'q');
                if first == b'q' {
                    unread.lock().unwrap().push(stream);
                    return;
                }
                let (mut read, mut write) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    }

    async fn echoes(streams: &Streams, bytes: usize) {
        let mut stream = streams.connect().await.unwrap();
        stream.write_all(b"e").await.unwrap();
        let (mut read, mut write) = tokio::io::split(stream);
        let writer = tokio::spawn(async move {
            write.write_all(&vec![b'x'; bytes]).await.unwrap();
            write.shutdown().await.unwrap();
        });
        let mut back = Vec::new();
        read.read_to_end(&mut back).await.unwrap();
        assert_eq!(back.len(), bytes);
        writer.await.unwrap();
    }

    #[tokio::test]
    async fn connections_carry_bytes_both_ways_and_end_one_way_at_a_time() {
        let (streams, agent) = session();
        tokio::spawn(echo(agent));
        let megabyte = 1024 * 1024;
        tokio::join!(echoes(&streams, 3 * megabyte), echoes(&streams, megabyte), echoes(&streams, 0));
    }

    #[tokio::test]
    async fn a_connection_that_nobody_reads_holds_up_no_other() {
        let (streams, agent) = session();
        tokio::spawn(echo(agent));
        let mut unread = streams.connect().await.unwrap();
        unread.write_all(b"q").await.unwrap();
        let mut taken = 0;
        // all that its window has room for, and then no more
        loop {
            let piece = [0; PIPE];
            let mut context = Context::from_waker(Waker::noop());
            match Pin::new(&mut unread).poll_write(&mut context, &piece) {
                Poll::Ready(written) => taken += written.unwrap(),
                Poll::Pending if taken + PIPE >= STREAM_WINDOW => break,
                Poll::Pending => tokio::task::yield_now().await,
            }
        }
        assert!(taken <= STREAM_WINDOW);
        echoes(&streams, 1024 * 1024).await;
    }

    #[tokio::test]
    async fn connections_are_bounded_and_given_back() {
        let (streams, agent) = session();
        tokio::spawn(echo(agent));
        let mut open = Vec::new();
        for _ in 0..MAX_OPEN {
            open.push(streams.connect().await.unwrap());
        }
        assert_eq!(streams.connect().await.err().map(|error| error.kind()), Some(io::ErrorKind::ResourceBusy));
        // many times what a session may have
        for _ in 0..3 * MAX_STREAMS {
            open.pop();
            open.push(streams.connect().await.unwrap());
        }
        open.clear();
        echoes(&streams, 1).await;
    }

    #[tokio::test]
    async fn an_agent_that_is_gone_ends_the_session_and_its_connections() {
        let (streams, agent) = session();
        let echo = tokio::spawn(echo(agent));
        let mut stream = streams.connect().await.unwrap();
        stream.write_all(b"ea").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'a');
        echo.abort();
        streams.ended().await;
        assert!(stream.read_u8().await.is_err());
        assert_eq!(streams.connect().await.err().map(|error| error.kind()), Some(io::ErrorKind::NotConnected));
    }

    #[tokio::test]
    async fn an_agent_that_talks_nonsense_ends_the_session_alone() {
        let (ours, mut theirs) = duplex(PIPE);
        let (streams, driven) = multiplex(ours);
        let driven = tokio::spawn(driven);
        theirs.write_all(b"Segmentation fault (core dumped)").await.unwrap();
        assert!(driven.await.unwrap().is_err());
        streams.ended().await;
    }

    #[tokio::test]
    async fn a_stream_of_the_agents_own_is_refused() {
        let (streams, mut agent) = session();
        let opened = poll_fn(|context| agent.poll_new_outbound(context)).await.unwrap();
        tokio::spawn(echo(agent));
        let mut opened = opened.compat();
        opened.write_all(b"x").await.unwrap();
        assert!(opened.read_u8().await.is_err());
        echoes(&streams, 1).await;
    }

    #[tokio::test]
    async fn the_session_ends_with_the_last_of_its_users() {
        let (streams, agent) = session();
        let other = streams.clone();
        let agent = tokio::spawn(echo(agent));
        drop(streams);
        echoes(&other, 1).await;
        drop(other);
        agent.await.unwrap();
    }
}
