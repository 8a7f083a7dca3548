//! Restoring: from a checkpoint in the store to what an agent makes a tree of.

use std::sync::Arc;

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, Result};
use cloud_sandbox_proto::agent::v1::{
    RestoreTreeCommit, RestoreTreeRequest, RestoreTreeStart, restore_tree_request::Part,
};
use cloud_sandbox_storage::WorkspaceStore;
use futures::{Stream, StreamExt, stream};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    compress::decompress,
    damage::{damaged, hex, shown},
    manifest::Checkpoint,
    plan::{Batch, Item, Piece, Plan},
};

/// Batches that are read ahead. Each is 4 MiB at most, and as much again while it is decompressed.
const AHEAD: usize = 8;

/// All that an agent is to be sent. After an error there is nothing more; the agent, which then gets no commit, is to be
/// hung up on.
///
/// # Errors
/// In the stream: `CHECKPOINT_DAMAGED` that names chunk, pack and file for what is not there or not what was saved; the
/// store's own.
pub fn restore(
    store: Arc<dyn WorkspaceStore>,
    checkpoint: Arc<Checkpoint>,
) -> impl Stream<Item = Result<RestoreTreeRequest>> + Send + 'static {
    let start = Part::Start(RestoreTreeStart { roots: checkpoint.roots().to_vec() });
    let batches = stream::iter(Plan::new(Arc::clone(&checkpoint))).map(move |batch| {
        // in a task of its own, so that it goes on while the agent is busy with what came before
        let load = AbortOnDropHandle::new(tokio::spawn(load(Arc::clone(&store), Arc::clone(&checkpoint), batch)));
        async move { load.await.map_err(|error| Error::internal("read a checkpoint", error))? }
    });
    let parts = batches.buffered(AHEAD).flat_map(|loaded| {
        let (parts, error) = match loaded {
            Ok(parts) => (parts, None),
            Err(error) => (Vec::new(), Some(error)),
        };
        stream::iter(parts.into_iter().map(Ok).chain(error.map(Err)))
    });
    let start = stream::iter([Ok(start)]);
    let commit = stream::iter([Ok(Part::Commit(RestoreTreeCommit {}))]);
    let all = start.chain(parts).chain(commit).map(|part| part.map(|part| RestoreTreeRequest { part: Some(part) }));
    let mut failed = false;
    all.take_while(move |part| {
        let over = failed;
        failed |= part.is_err();
        std::future::ready(!over)
    })
}

async fn load(store: Arc<dyn WorkspaceStore>, checkpoint: Arc<Checkpoint>, batch: Batch) -> Result<Vec<Part>> {
    let stored = match &batch.read {
        None => Bytes::new(),
        Some((pack, range)) => match store.read(pack.checkpoint, &pack.name(), range.clone()).await? {
            Some(stored) => stored,
            None => return Err(missing(&checkpoint, &batch)),
        },
    };
    if batch.read.is_none() {
        return unpack(&checkpoint, batch, &stored);
    }
    let unpacking = tokio::task::spawn_blocking(move || unpack(&checkpoint, batch, &stored));
    unpacking.await.map_err(|error| Error::internal("decompress a checkpoint", error))?
}

fn missing(checkpoint: &Checkpoint, batch: &Batch) -> Error {
    let first = batch.items.iter().find_map(|item| match item {
        Item::Piece(piece) => Some(piece),
        Item::Entry(_) => None,
    });
    match first {
        Some(piece) => broken(checkpoint, piece, "the pack is missing or cut off"),
        None => damaged(checkpoint.id(), "a pack is missing"),
    }
}

fn broken(checkpoint: &Checkpoint, piece: &Piece, what: &str) -> Error {
    let (pack, chunk, path) = (checkpoint.pack(piece.place), hex(&piece.hash), shown(&piece.path));
    damaged(checkpoint.id(), format!("chunk {chunk} in {pack} of file {path}: {what}"))
        .with_metadata("chunk", chunk)
        .with_metadata("pack", pack.to_string())
        .with_metadata("path", String::from_utf8_lossy(&piece.path))
}

/// Decompresses and verifies what was read. Pieces of a file that follow one another become one message.
fn unpack(checkpoint: &Checkpoint, batch: Batch, stored: &Bytes) -> Result<Vec<Part>> {
    let begin = batch.read.as_ref().map_or(0, |(_, range)| range.start);
    let mut data = vec![0; usize::try_from(batch.bytes).expect("a batch fits memory")];
    let mut end = 0;
    for item in &batch.items {
        let Item::Piece(piece) = item else { continue };
        let from = usize::try_from(piece.place.offset - begin).expect("a batch fits memory");
        let packed = stored.get(from..from + piece.place.stored_length as usize);
        let packed = packed.ok_or_else(|| broken(checkpoint, piece, "the pack is cut off"))?;
        let room = &mut data[end..end + piece.place.length as usize];
        if piece.place.stored_length == piece.place.length {
            room.copy_from_slice(packed);
        } else if !decompress(packed, room) {
            return Err(broken(checkpoint, piece, "it cannot be decompressed"));
        }
        let found = blake3::hash(room);
        if found != piece.hash {
            return Err(broken(checkpoint, piece, &format!("its data has the hash {}", found.to_hex())));
        }
        end += room.len();
    }
    let data = Bytes::from(data);
    let mut parts = Vec::with_capacity(batch.items.len());
    let (mut begin, mut end) = (0, 0);
    for item in batch.items {
        match item {
            Item::Piece(piece) => end += piece.place.length as usize,
            Item::Entry(entry) => {
                if end > begin {
                    parts.push(Part::Data(data.slice(begin..end)));
                    begin = end;
                }
                parts.push(Part::Entry(entry));
            }
        }
    }
    if end > begin {
        parts.push(Part::Data(data.slice(begin..end)));
    }
    Ok(parts)
}
