//! The messages of a call on their way to a thread.

use std::vec;

use futures::StreamExt;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::QUEUE;

/// How many messages that have come are handed over at once. Flow control bounds their bytes.
const BATCH: usize = 64;

/// The messages; reading waits, so it is for threads.
pub(super) struct Parts<T> {
    batches: mpsc::Receiver<Vec<Result<T, Status>>>,
    batch: vec::IntoIter<Result<T, Status>>,
}

impl<T: Send + 'static> Parts<T> {
    /// Reads ahead by a batch, until the messages end or nobody wants them.
    pub(super) fn relay(messages: Streaming<T>) -> Self {
        let (sender, batches) = mpsc::channel(QUEUE);
        // It ends with the call or with its reader.
        tokio::spawn(async move {
            let mut messages = messages.ready_chunks(BATCH);
            loop {
                let batch = tokio::select! {
                    batch = messages.next() => batch,
                    () = sender.closed() => None,
                };
                let Some(batch) = batch else { return };
                if sender.send(batch).await.is_err() {
                    return;
                }
            }
        });
        Self { batches, batch: Vec::new().into_iter() }
    }

    /// The next message; none at the end of the stream.
    pub(super) fn next(&mut self) -> Result<Option<T>, Status> {
        loop {
            if let Some(message) = self.batch.next() {
                return message.map(Some);
            }
            match self.batches.blocking_recv() {
                Some(batch) => self.batch = batch.into_iter(),
                None => return Ok(None),
            }
        }
    }

    /// Whether a message is here that was not asked for yet.
    pub(super) fn has_more(&self) -> bool {
        self.batch.len() > 0
    }
}
