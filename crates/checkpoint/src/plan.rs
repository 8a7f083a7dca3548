//! How a checkpoint is read: in the order of its entries, chunks that lie side by side in one read.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use cloud_sandbox_proto::checkpoint::v1::TreeEntry;

use crate::{
    manifest::{Checkpoint, Hash, Place},
    pack::PackId,
};

/// The most that one batch makes, in bytes.
const BATCH_BYTES: u64 = 4 << 20;
/// The most that is in one, entries and chunks together: small ones and empty ones cost memory too.
const BATCH_ITEMS: usize = 4096;

/// A chunk of a file.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    pub(crate) hash: Hash,
    pub(crate) place: Place,
    /// the file's path, for an error to name
    pub(crate) path: Bytes,
}

#[derive(Debug)]
pub(crate) enum Item {
    Entry(TreeEntry),
    Piece(Piece),
}

/// What comes from one read, or from none.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    /// bytes of all its pieces
    pub(crate) bytes: u64,
    pub(crate) read: Option<(PackId, Range<u64>)>,
}

impl Batch {
    /// Takes an item if it fits.
    fn take(&mut self, item: Item, checkpoint: &Checkpoint) -> Result<(), Item> {
        if self.items.len() >= BATCH_ITEMS {
            return Err(item);
        }
        if let Item::Piece(Piece { place, .. }) = &item {
            let (pack, end) = (checkpoint.pack(*place), place.offset + u64::from(place.stored_length));
            let bytes = self.bytes + u64::from(place.length);
            match &mut self.read {
                None => self.read = Some((pack, place.offset..end)),
                Some((same, range)) if *same == pack && range.end == place.offset && bytes <= BATCH_BYTES => {
                    range.end = end;
                }
                Some(_) => return Err(item),
            }
            self.bytes = bytes;
        }
        self.items.push(item);
        Ok(())
    }
}

/// All batches of a checkpoint, made as they are asked for.
pub(crate) struct Plan {
    checkpoint: Arc<Checkpoint>,
    next_entry: usize,
    /// the last entry, and the place of the next of its chunks: the extent's number and the chunk's in it
    open: Option<(TreeEntry, usize, usize)>,
    left_over: Option<Item>,
}

impl Plan {
    pub(crate) fn new(checkpoint: Arc<Checkpoint>) -> Self {
        Self { checkpoint, next_entry: 0, open: None, left_over: None }
    }

    fn next_item(&mut self) -> Option<Item> {
        if let Some(item) = self.left_over.take() {
            return Some(item);
        }
        while let Some((entry, extent, chunk)) = &mut self.open {
            let Some(chunks) = entry.extents.get(*extent).map(|extent| &extent.chunks) else { break };
            if let Some(found) = chunks.get(*chunk) {
                *chunk += 1;
                let hash: Hash = found.hash[..].try_into().expect("a manifest's hashes were checked when it was read");
                let place = self.checkpoint.place(&hash).expect("a manifest's chunks were found when it was read");
                return Some(Item::Piece(Piece { hash, place, path: entry.path.clone() }));
            }
            (*extent, *chunk) = (*extent + 1, 0);
        }
        let entry = self.checkpoint.entry(self.next_entry)?;
        self.next_entry += 1;
        self.open = Some((entry.clone(), 0, 0));
        Some(Item::Entry(entry))
    }
}

impl Iterator for Plan {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::default();
        while let Some(item) = self.next_item() {
            if let Err(item) = batch.take(item, &Arc::clone(&self.checkpoint)) {
                self.left_over = Some(item);
                break;
            }
        }
        (!batch.items.is_empty()).then_some(batch)
    }
}
