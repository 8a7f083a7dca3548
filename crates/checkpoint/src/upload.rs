//! New chunks on their way into packs and into the store. What is under way is counted in bytes, so that an agent that reads
//! faster than a store writes is held back.

use std::sync::Arc;

use bytes::Bytes;
use cloud_sandbox_model::{
    CheckpointId,
    error::{Error, Result},
};
use cloud_sandbox_proto::agent::v1::ChunkData;
use cloud_sandbox_storage::WorkspaceStore;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::{JoinHandle, JoinSet},
};

use crate::{
    compress::compress,
    damage::{hex, nonsense},
    manifest::Hash,
    pack::PackId,
    rules::CHUNK_MAX,
    writer::Stored,
};

/// About how large a pack becomes, in bytes: large enough for few objects, small enough to be read and deleted in parts.
pub(crate) const PACK_BYTES: usize = 8 << 20;
/// Packs uploaded at once.
const UPLOADS: usize = 4;
/// Chunks and packs in memory at once, in bytes: four packs on their way, one that is being filled, and one of the longest
/// chunks. With less, a pack that is being filled could wait for room that only it could give.
pub(crate) const MEMORY: usize = UPLOADS * PACK_BYTES + PACK_BYTES + 2 * CHUNK_MAX as usize;

/// Room in memory for data under way.
#[derive(Clone)]
pub(crate) struct Room(Arc<Semaphore>);

impl Room {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(MEMORY)))
    }

    /// Begins to hash and compress a chunk as soon as there is room for it.
    pub(crate) async fn take(self, hash: Hash, chunk: ChunkData) -> JoinHandle<Result<Packed>> {
        // once as it came and once compressed, which is no longer
        let room = 2 * u32::try_from(chunk.data.len()).expect("chunks are small");
        let permit = self.0.acquire_many_owned(room).await.expect("the semaphore is never closed");
        tokio::task::spawn_blocking(move || Packed::new(hash, chunk.data, permit))
    }
}

/// A chunk as it is stored.
pub(crate) struct Packed {
    pub(crate) hash: Hash,
    length: u32,
    stored: Bytes,
    permit: OwnedSemaphorePermit,
}

impl Packed {
    fn new(hash: Hash, data: Bytes, mut permit: OwnedSemaphorePermit) -> Result<Self> {
        if blake3::hash(&data) != hash {
            return Err(nonsense(format!("chunk {} with other data", hex(&hash))));
        }
        let length = u32::try_from(data.len()).expect("chunks are small");
        let stored = compress(&data).map_or(data, Bytes::from);
        drop(permit.split(permit.num_permits().saturating_sub(stored.len())));
        Ok(Self { hash, length, stored, permit })
    }
}

/// The packs of a checkpoint that is being saved.
pub(crate) struct Packs {
    store: Arc<dyn WorkspaceStore>,
    checkpoint: CheckpointId,
    filling: Vec<u8>,
    permit: Option<OwnedSemaphorePermit>,
    /// dropped, it cancels what is under way
    uploads: JoinSet<Result<()>>,
    next: u32,
    bytes: u64,
}

impl Packs {
    pub(crate) fn new(store: Arc<dyn WorkspaceStore>, checkpoint: CheckpointId) -> Self {
        Self { store, checkpoint, filling: Vec::new(), permit: None, uploads: JoinSet::new(), next: 0, bytes: 0 }
    }

    /// Bytes of all packs so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends a chunk to the pack that is being filled.
    pub(crate) async fn add(&mut self, chunk: Packed) -> Result<Stored> {
        if !self.filling.is_empty() && self.filling.len() + chunk.stored.len() > PACK_BYTES {
            self.seal().await?;
        }
        if self.filling.is_empty() {
            self.filling = Vec::with_capacity(PACK_BYTES);
        }
        let stored = Stored {
            pack: PackId { checkpoint: self.checkpoint, number: self.next },
            offset: self.filling.len() as u64,
            stored_length: u32::try_from(chunk.stored.len()).expect("chunks are small"),
            length: chunk.length,
        };
        self.filling.extend_from_slice(&chunk.stored);
        match &mut self.permit {
            Some(permit) => permit.merge(chunk.permit),
            None => self.permit = Some(chunk.permit),
        }
        Ok(stored)
    }

    /// Sends the pack on its way, once one of those before it has arrived when there are many.
    async fn seal(&mut self) -> Result<()> {
        while self.uploads.len() >= UPLOADS {
            self.arrived().await?;
        }
        let content = Bytes::from(std::mem::take(&mut self.filling));
        let (permit, store) = (self.permit.take(), Arc::clone(&self.store));
        let pack = PackId { checkpoint: self.checkpoint, number: self.next };
        self.next += 1;
        self.bytes += content.len() as u64;
        self.uploads.spawn(async move {
            store.put(pack.checkpoint, &pack.name(), content).await?;
            drop(permit);
            Ok(())
        });
        Ok(())
    }

    /// Returns when one of the packs has arrived; never when none is under way.
    pub(crate) async fn arrived(&mut self) -> Result<()> {
        match self.uploads.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Error::internal("write a pack", error)),
            None => std::future::pending().await,
        }
    }

    /// Returns when all packs have arrived.
    pub(crate) async fn finish(&mut self) -> Result<()> {
        if !self.filling.is_empty() {
            self.seal().await?;
        }
        while !self.uploads.is_empty() {
            self.arrived().await?;
        }
        Ok(())
    }
}
