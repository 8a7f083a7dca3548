//! What a caller sends, message by message, as the node receives it.

use std::{
    pin::Pin,
    task::{Context, Poll},
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
/// A type of its own: through a plain boxed stream, the compiler cannot see that the futures of generated clients are
/// `Send` (rust-lang/rust#102211).
pub(crate) struct Input<Q>(Pin<Box<dyn Stream<Item = Q> + Send>>);

impl<Q> Stream for Input<Q> {
    type Item = Q;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Q>> {
        self.0.as_mut().poll_next(context)
    }
}

/// The message that says what a stream is about.
pub(crate) async fn first<Q: About>(context: &CallContext, stream: &mut Streaming<Q>) -> Result<Q> {
    let patience = context.remaining().map_or(START_WITHIN, |left| left.min(START_WITHIN));
    let message = tokio::time::timeout(patience, stream.message()).await.map_err(|_| deadline_exceeded())?;
    message.map_err(|status| broke(&status))?.ok_or_else(not_first::<Q>)
}

/// The caller's messages, beginning with `first`, until the sender of `ended` is dropped.
///
/// The end of the caller's stream is passed on as an end: what an end means is said by messages (`close_stdin`,
/// `commit`), because it cannot be told from a cancel. A stream that breaks is told to `broken`, where there is one,
/// and is an end as well otherwise. When the call is over for another reason, this must end too: HTTP/2 resets a call
/// only when both its directions are let go, and the node would not learn that nobody listens.
pub(crate) fn input<Q: About>(
    first: Q,
    mut rest: Streaming<Q>,
    mut broken: Option<oneshot::Sender<Error>>,
    mut ended: oneshot::Receiver<()>,
) -> Input<Q> {
    Input(Box::pin(async_stream::stream! {
        yield first;
        loop {
            let message = tokio::select! {
                biased;
                _ = &mut ended => return,
                message = rest.message() => message,
            };
            match (message, broken) {
                (Ok(Some(message)), kept) => {
                    broken = kept;
                    yield message;
                }
                (Err(status), Some(broken)) => {
                    let _ = broken.send(broke(&status));
                    // not an end: the call itself is being dropped
                    let _ = ended.await;
                    return;
                }
                _ => return,
            }
        }
    }))
}

/// The error of a caller whose stream broke.
fn broke(status: &Status) -> Error {
    match status.code() {
        // a message that is larger than any may be
        Code::OutOfRange => Error::new(ErrorKind::OutOfRange, reason::INVALID_REQUEST, status.message()),
        _ => Error::new(ErrorKind::Cancelled, reason::CANCELLED, "the call's messages broke off"),
    }
}
