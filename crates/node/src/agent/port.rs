//! A port that the agent listens on for its node: what programs connect to there, as byte streams.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use cloud_sandbox_proto::agent::v1::{
    AcceptRequest, AcceptResponse, ListenRequest, ListenResponse, Listening, accept_request, accept_response::Part,
    agent_service_client::AgentServiceClient, listen_response::Event,
};
use cloud_sandbox_runtime::{BoxedStream, Listener, Port};
use futures::StreamExt;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
    time::timeout,
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::PollSender;
use tonic::{Code, Status, Streaming, transport::Channel};

/// Messages on their way to a program. Few: what it does not read must hold back who sends it.
const QUEUE: usize = 2;
/// How long a program may take to read what was sent to it last, and to close.
const LAST_BYTES: Duration = Duration::from_secs(10);
/// The most that goes into one.
const PIECE: usize = 32 * 1024;

/// Has an agent listen.
pub(super) async fn listen(mut client: AgentServiceClient<Channel>, port: u16) -> Result<Port, Status> {
    let mut events = client.listen(ListenRequest { port: port.into() }).await?.into_inner();
    let first = events.message().await?.and_then(|response| response.event);
    let Some(Event::Listening(Listening { port })) = first else {
        return Err(Status::internal("the agent did not say where it listens"));
    };
    let number = u16::try_from(port).map_err(|_| Status::internal("the agent listens where there is no port"))?;
    Ok(Port { number, listener: Box::new(AgentListener { client, events }) })
}

struct AgentListener {
    client: AgentServiceClient<Channel>,
    events: Streaming<ListenResponse>,
}

#[tonic::async_trait]
impl Listener for AgentListener {
    async fn accept(&mut self) -> io::Result<BoxedStream> {
        loop {
            let event = self.events.message().await.map_err(io::Error::other)?;
            let event = event.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected))?.event;
            let Some(Event::Connection(number)) = event else { continue };
            match take_up(&mut self.client, number).await {
                Ok(connection) => return Ok(Box::new(connection)),
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => return Err(io::Error::other(status)),
            }
        }
    }
}

async fn take_up(client: &mut AgentServiceClient<Channel>, number: u64) -> Result<Connection, Status> {
    let (requests, queue) = mpsc::channel(QUEUE);
    let first = request(accept_request::Part::Connection(number));
    requests.try_send(first).expect("the queue holds the first message");
    let responses = client.accept(ReceiverStream::new(queue)).await?.into_inner();
    let requests = PollSender::new(requests);
    Ok(Connection { requests, responses: Some(responses), left: Bytes::new(), ended: false })
}

/// A connection of a program. Dropped, it is closed as a socket is: the program is given what was sent to it, and its end.
struct Connection {
    requests: PollSender<AcceptRequest>,
    /// there until it is dropped
    responses: Option<Streaming<AcceptResponse>>,
    /// what has come and was not read
    left: Bytes,
    /// the program sends no more
    ended: bool,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.left.is_empty() && !self.ended {
            let Some(responses) = &mut self.responses else { break };
            match ready!(responses.poll_next_unpin(context)) {
                Some(Ok(AcceptResponse { part: Some(Part::Data(data)) })) => self.left = data,
                Some(Ok(AcceptResponse { part: Some(Part::End(_)) })) => self.ended = true,
                // a message of a newer agent says nothing
                Some(Ok(AcceptResponse { part: None })) => {}
                Some(Err(status)) => return Poll::Ready(Err(cut(status))),
                // it says so before it ends well
                None => return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        }
        let length = self.left.len().min(buffer.remaining());
        buffer.put_slice(&self.left[..length]);
        self.left.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.requests.poll_reserve(context)).map_err(gone)?;
        let piece = &bytes[..bytes.len().min(PIECE)];
        let data = accept_request::Part::Data(Bytes::copy_from_slice(piece));
        self.requests.send_item(request(data)).map_err(gone)?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // what is in the queue is sent before the end
        self.requests.close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Connection {
    /// The end of the answers cancels the request, with what of it waits to be sent. So they are heard to their end, which comes
    /// when the program has been given all of it and has closed. What it says meanwhile is for nobody.
    fn drop(&mut self) {
        let heard = self.responses.take();
        if let (Some(mut responses), Ok(runtime)) = (heard, tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                let end = async { while let Some(Ok(_)) = responses.next().await {} };
                // one that takes longer is cut
                timeout(LAST_BYTES, end).await
            });
        }
    }
}

fn cut(status: Status) -> io::Error {
    let kind = if status.code() == Code::Aborted { io::ErrorKind::ConnectionReset } else { io::ErrorKind::Other };
    io::Error::new(kind, status)
}

fn request(part: accept_request::Part) -> AcceptRequest {
    AcceptRequest { part: Some(part) }
}
