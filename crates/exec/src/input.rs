//! What a caller sends, message by message, as the node receives it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use cloud_sandbox_model::{Error, ErrorKind, Result, error::reason};
use cloud_sandbox_node_client::deadline_exceeded;
use cloud_sandbox_rpc::CallContext;
use futures::Stream;
use tokio::sync::oneshot;
use tonic::{Code, Status, Streaming};

use crate::about::{About, not_first};

/// How long a caller may take to say what its stream is about.
const START_WITHIN: Duration = Duration::from_secs(30);

/// What a node receives.
///
/// The end of the caller's stream is passed on as an end: what an end means is said by messages (`close_stdin`,
/// `commit`), because it cannot be told from a cancel. A stream that breaks is told to `broken`, where there is one,
/// and is an end as well otherwise. When the call is over for another reason, this must end too: HTTP/2 resets a call
/// only when both its directions are let go, and the node would not learn that nobody listens.
pub(crate) struct Input<Q> {
    first: Option<Q>,
    rest: Rest<Q>,
    broken: Option<oneshot::Sender<Error>>,
    /// its sender is dropped with the call
    ended: oneshot::Receiver<()>,
    state: Flow,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Open,
    /// the caller's stream broke, and the call itself is being dropped: an end would mean something else
    Broken,
    Over,
}

impl<Q> Input<Q> {
    /// The caller's messages, beginning with `first`, until the sender of `ended` is dropped.
    pub(crate) fn new(
        first: Q,
        rest: Rest<Q>,
        broken: Option<oneshot::Sender<Error>>,
        ended: oneshot::Receiver<()>,
    ) -> Self {
        Self { first: Some(first), rest, broken, ended, state: Flow::Open }
    }
}

impl<Q: Unpin> Stream for Input<Q> {
    type Item = Q;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Q>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        if self.state == Flow::Over {
            return Poll::Ready(None);
        }
        if Pin::new(&mut self.ended).poll(context).is_ready() {
            self.state = Flow::Over;
            return Poll::Ready(None);
        }
        if self.state == Flow::Broken {
            return Poll::Pending;
        }
        match ready!(self.rest.poll_next(context)) {
            Some(Ok(message)) => Poll::Ready(Some(message)),
            Some(Err(status)) if let Some(broken) = self.broken.take() => {
                self.state = Flow::Broken;
                let _ = broken.send(broke(&status));
                Poll::Pending
            }
            _ => {
                self.state = Flow::Over;
                Poll::Ready(None)
            }
        }
    }
}

/// What a caller sends after its first message. As long as nobody has read of it, it can be given to another node.
pub(crate) struct Rest<Q>(Arc<Mutex<Unread<Q>>>);

struct Unread<Q> {
    /// none when it was taken back, or has ended
    messages: Option<Streaming<Q>>,
    is_read: bool,
}

impl<Q> Clone for Rest<Q> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<Q> Rest<Q> {
    pub(crate) fn new(messages: Streaming<Q>) -> Self {
        Self(Arc::new(Mutex::new(Unread { messages: Some(messages), is_read: false })))
    }

    /// The same for another node, unless this one has read of it. This one reads nothing from now on.
    pub(crate) fn take_back(&self) -> Option<Self> {
        let mut unread = self.lock();
        let messages = unread.messages.take();
        (!unread.is_read).then(|| Self(Arc::new(Mutex::new(Unread { messages, is_read: false }))))
    }

    fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Result<Q, Status>>> {
        let mut unread = self.lock();
        let Some(messages) = &mut unread.messages else { return Poll::Ready(None) };
        let message = ready!(Pin::new(messages).poll_next(context));
        match &message {
            Some(_) => unread.is_read = true,
            // an end is no message, and another node is told it just the same
            None => unread.messages = None,
        }
        Poll::Ready(message)
    }

    fn lock(&self) -> MutexGuard<'_, Unread<Q>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The message that says what a stream is about.
pub(crate) async fn first<Q: About>(context: &CallContext, stream: &mut Streaming<Q>) -> Result<Q> {
    let patience = context.remaining().map_or(START_WITHIN, |left| left.min(START_WITHIN));
    let message = tokio::time::timeout(patience, stream.message()).await.map_err(|_| deadline_exceeded())?;
    message.map_err(|status| broke(&status))?.ok_or_else(not_first::<Q>)
}

/// The error of a caller whose stream broke.
fn broke(status: &Status) -> Error {
    match status.code() {
        // a message that is larger than any may be
        Code::OutOfRange => Error::new(ErrorKind::OutOfRange, reason::INVALID_REQUEST, status.message()),
        _ => Error::new(ErrorKind::Cancelled, reason::CANCELLED, "the call's messages broke off"),
    }
}
