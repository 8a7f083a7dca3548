//! Folders as a whole: `SaveTree` reads them, `RestoreTree` makes them what was read.
//!
//! A thread does the work, one tree at a time, and short queues of batches hold it to the pace of the call. Memory stays
//! the same however large a tree is: entries come and go in one order on both sides, so that a base is merged as it
//! comes. Only files with several names are remembered, until all of their names were seen.
//!
//! Invariant: nothing outside of the roots is read or changed. Every step is taken by descriptor, and no link is followed.

mod base;
mod chunks;
mod meta;
mod opened;
mod outbox;
mod parts;
mod restore;
mod roots;
mod runs;
mod save;
mod verify;

use cloud_sandbox_proto::agent::v1::{
    RestoreTreeRequest, RestoreTreeResponse, SaveTreeRequest, SaveTreeResponse, restore_tree_request, save_tree_request,
};
use futures::{StreamExt, stream, stream::BoxStream};
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::worker;
use base::Base;
use outbox::Outbox;
use parts::Parts;
use roots::Roots;

/// The largest chunk, in bytes, as the contract has it.
const MAX_CHUNK: usize = 4 * 1024 * 1024;
/// Batches between the call and the thread.
const QUEUE: usize = 1;

/// The buffers of two at once would be too much for a small sandbox.
static TURN: Semaphore = Semaphore::const_new(1);

pub(crate) type Saved = BoxStream<'static, Result<SaveTreeResponse, Status>>;

/// Whoever was cut off comes back at once, while the work for the lost call still ends.
async fn turn() -> Result<SemaphorePermit<'static>, Status> {
    TURN.acquire().await.map_err(|_| Status::internal("the agent takes no more work"))
}

/// Streams the folders that the first message names.
pub(crate) async fn save(mut parts: Streaming<SaveTreeRequest>) -> Result<Saved, Status> {
    let first = parts.message().await?.and_then(|message| message.part);
    let Some(save_tree_request::Part::Start(start)) = first else {
        return Err(Status::invalid_argument("the first message of a save must be start"));
    };
    let roots = Roots::parse(&start.roots)?;
    let turn = turn().await?;
    let (batches, stream) = mpsc::channel(QUEUE);
    let base = Base::new(Parts::relay(parts));
    worker::spawn(move || {
        save::save(&roots, base, Outbox::new(batches));
        drop(turn);
    })?;
    Ok(ReceiverStream::new(stream).flat_map(stream::iter).boxed())
}

/// Makes the folders that the first message names hold what comes.
pub(crate) async fn restore(mut parts: Streaming<RestoreTreeRequest>) -> Result<RestoreTreeResponse, Status> {
    let first = parts.message().await?.and_then(|message| message.part);
    let Some(restore_tree_request::Part::Start(start)) = first else {
        return Err(Status::invalid_argument("the first message of a restore must be start"));
    };
    let roots = Roots::parse(&start.roots)?;
    let turn = turn().await?;
    let parts = Parts::relay(parts);
    worker::run(move |call| {
        let restored = restore::restore(&roots, parts, call);
        drop(turn);
        restored
    })
    .await
}
