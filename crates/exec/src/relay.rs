//! Streams from a node to the caller and back. Each piece is taken when the other side has room for it, and dropping
//! the caller's stream drops the node's.

use std::pin::Pin;

use cloud_sandbox_model::Error;
use cloud_sandbox_node_client::{Nodes, deadline_exceeded, missing};
use cloud_sandbox_proto::{node, v1};
use cloud_sandbox_rpc::{CallContext, to_status};
use cloud_sandbox_storage::SandboxEntry;
use futures::Stream;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tonic::{Status, Streaming};

use crate::measure::Measure;

/// What a caller receives.
pub(crate) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One message of a node's stream, unwrapped.
pub(crate) trait FromNode<N>: Sized {
    fn from_node(message: N) -> Option<Self>;
}

impl FromNode<node::v1::ExecuteStreamResponse> for v1::ExecuteStreamResponse {
    fn from_node(message: node::v1::ExecuteStreamResponse) -> Option<Self> {
        message.event.map(|event| Self { event: Some(event) })
    }
}

impl FromNode<node::v1::ExecResponse> for v1::ExecResponse {
    fn from_node(message: node::v1::ExecResponse) -> Option<Self> {
        message.event.map(|event| Self { event: Some(event) })
    }
}

/// Where a stream comes from, and until when it may.
pub(crate) struct Source {
    nodes: Nodes,
    entry: SandboxEntry,
    deadline: Option<Instant>,
    /// dropped with this, which ends the [`input`] that goes the other way
    _alive: Option<oneshot::Sender<()>>,
}

impl Source {
    pub(crate) fn new(nodes: &Nodes, entry: SandboxEntry, context: &CallContext) -> Self {
        let deadline = context.remaining().map(|left| Instant::now() + left);
        Self { nodes: nodes.clone(), entry, deadline, _alive: None }
    }

    /// The same, with an input that ends when this does.
    pub(crate) fn with_input(self, alive: oneshot::Sender<()>) -> Self {
        Self { _alive: Some(alive), ..self }
    }

    /// The next message; `None` at the end.
    async fn next<N, T: FromNode<N>>(&self, stream: &mut Streaming<N>) -> Result<Option<T>, Error> {
        let message = match self.deadline {
            // a time-out alone would never come to pass while the next message is always there
            Some(at) if at <= Instant::now() => return Err(deadline_exceeded()),
            Some(at) => timeout_at(at, stream.message()).await.map_err(|_| deadline_exceeded())?,
            None => stream.message().await,
        };
        match message {
            Ok(None) => Ok(None),
            Ok(Some(message)) => missing(T::from_node(message), "event").map(Some),
            Err(status) => Err(self.nodes.failed(&self.entry, &status).await),
        }
    }
}

/// The node's events, as the caller receives them.
pub(crate) fn events<N, T>(source: Source, mut stream: Streaming<N>, mut measure: Measure) -> Events<T>
where
    N: Send + 'static,
    T: FromNode<N> + Send + 'static,
{
    Box::pin(async_stream::stream! {
        loop {
            let next = source.next::<N, T>(&mut stream).await;
            match next {
                Ok(Some(message)) => yield Ok(message),
                Ok(None) => {
                    measure.ended(&Ok(()));
                    return;
                }
                Err(error) => {
                    // whoever reads the error may keep what is left of this stream; the node's call ends now
                    drop((stream, source));
                    let failed = Err::<(), _>(error);
                    measure.ended(&failed);
                    if let Err(error) = failed {
                        yield Err(to_status(error));
                    }
                    return;
                }
            }
        }
    })
}

/// The caller's messages, as the node receives them, beginning with `first`, until `ended`.
///
/// The end of the caller's stream, clean or not, is passed on as an end: it does not close the process's standard
/// input, `close_stdin` does. When the events end or are dropped, this must end too: HTTP/2 resets a call only when
/// both its directions are let go, and the node would not learn that nobody listens.
pub(crate) fn input(
    first: v1::ExecRequest,
    mut rest: Streaming<v1::ExecRequest>,
    mut ended: oneshot::Receiver<()>,
) -> impl Stream<Item = node::v1::ExecRequest> + Send + 'static {
    async_stream::stream! {
        yield node::v1::ExecRequest { request: Some(first) };
        loop {
            let message = tokio::select! {
                message = rest.message() => message,
                _ = &mut ended => return,
            };
            let Ok(Some(message)) = message else { return };
            yield node::v1::ExecRequest { request: Some(message) };
        }
    }
}
