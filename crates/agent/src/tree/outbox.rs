//! What a save sends, in batches: handing over each small entry by itself would cost more than making it.

use bytes::Bytes;
use cloud_sandbox_proto::{
    agent::v1::{ChunkData, SaveTreeResponse, save_tree_response::Part},
    checkpoint::v1::TreeEntry,
};
use tokio::sync::mpsc;
use tonic::Status;

/// When a batch is handed over, in bytes.
const FULL: usize = 256 * 1024;
/// What a message costs that has hardly any bytes.
const MESSAGE: usize = 256;
/// What a chunk of an entry costs.
const CHUNK: usize = 80;

pub(super) type Batch = Vec<Result<SaveTreeResponse, Status>>;

pub(super) struct Outbox {
    batches: mpsc::Sender<Batch>,
    batch: Batch,
    weight: usize,
}

impl Outbox {
    pub(super) fn new(batches: mpsc::Sender<Batch>) -> Self {
        Self { batches, batch: Vec::new(), weight: 0 }
    }

    /// Sends the data of a chunk.
    pub(super) fn chunk(&mut self, hash: Bytes, data: Bytes) -> Result<(), Status> {
        let weight = data.len();
        self.put(Part::Chunk(ChunkData { hash, data }), weight)
    }

    /// Sends an entry.
    pub(super) fn entry(&mut self, entry: TreeEntry) -> Result<(), Status> {
        let chunks: usize = entry.extents.iter().map(|extent| 1 + extent.chunks.len()).sum();
        let attributes: usize = entry.xattrs.iter().map(|attribute| attribute.value.len()).sum();
        let weight = entry.path.len() + chunks * CHUNK + attributes;
        self.put(Part::Entry(entry), weight)
    }

    /// Sends anything else.
    pub(super) fn put(&mut self, part: Part, weight: usize) -> Result<(), Status> {
        self.batch.push(Ok(SaveTreeResponse { part: Some(part) }));
        self.weight += MESSAGE + weight;
        if self.weight < FULL { Ok(()) } else { self.flush() }
    }

    pub(super) fn flush(&mut self) -> Result<(), Status> {
        self.weight = 0;
        self.batches.blocking_send(std::mem::take(&mut self.batch)).map_err(|_| gone())
    }

    /// Ends with what went wrong.
    pub(super) fn fail(mut self, status: Status) {
        self.batch.push(Err(status));
        // Nobody may wait any more.
        let _ = self.flush();
    }

    /// Ends the work with an error once nobody waits for it.
    pub(super) fn check(&self) -> Result<(), Status> {
        if self.batches.is_closed() { Err(gone()) } else { Ok(()) }
    }
}

fn gone() -> Status {
    Status::cancelled("the call has ended")
}
