//! What a node sends, message by message, as the caller receives it. Each piece is taken when the caller has room for
//! it, and dropping the caller's stream drops the node's.

use std::pin::Pin;

use cloud_sandbox_model::Error;
use cloud_sandbox_node_client::deadline_exceeded;
use cloud_sandbox_rpc::to_status;
use futures::Stream;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tonic::{Status, Streaming};

use crate::{about::Repeat, measure::Measure, place::Place, relay::Relay};

/// What a caller receives.
pub(crate) type Events<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Where a stream comes from, and until when it may.
pub(crate) struct Source {
    pub(crate) relay: Relay,
    pub(crate) place: Place,
    /// when the caller's deadline passes
    pub(crate) deadline: Option<Instant>,
    /// what may be done when it breaks before its first message
    pub(crate) repeat: Repeat,
    /// dropped with this, which ends the input that goes the other way
    pub(crate) _alive: Option<oneshot::Sender<()>>,
}

impl Source {
    /// The node's messages, as the caller receives them.
    pub(crate) fn messages<R: Send + 'static>(self, stream: Streaming<R>, measure: Measure) -> Events<R> {
        let (mut source, mut stream, mut measure) = (self, stream, measure);
        Box::pin(async_stream::stream! {
            let mut deadline = std::pin::pin!(passed(source.deadline));
            loop {
                // the timer alone would never come to pass while the next message is always there
                let over = source.deadline.is_some_and(|at| at <= Instant::now());
                let next = tokio::select! {
                    biased;
                    () = std::future::ready(()), if over => Err(deadline_exceeded()),
                    message = stream.message() => match message {
                        Ok(message) => Ok(message),
                        Err(status) => Err(source.failed(&status).await),
                    },
                    () = &mut deadline => Err(deadline_exceeded()),
                };
                match next {
                    Ok(Some(message)) => {
                        // whoever has the first message knows what to ask for
                        source.repeat = Repeat::ByCaller;
                        yield Ok(message);
                    }
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

    async fn failed(&self, status: &Status) -> Error {
        self.relay.failed(&self.place, self.repeat, status).await
    }
}

/// Ends at the deadline. One timer for the whole stream: the pieces of a file are many.
async fn passed(deadline: Option<Instant>) {
    match deadline {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
