//! Saving: from an agent that reads a tree to a checkpoint in the store.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use cloud_sandbox_model::{
    CheckpointId,
    error::{Error, Result},
};
use cloud_sandbox_proto::{
    agent::v1::{
        SaveTreeBaseEnd, SaveTreeEnd, SaveTreeRequest, SaveTreeResponse, SaveTreeStart, save_tree_request,
        save_tree_response::Part,
    },
    checkpoint::v1::{Contents, LostThing, ManifestFooter, ManifestHeader, TreeEntry},
};
use cloud_sandbox_storage::WorkspaceStore;
use futures::{Stream, StreamExt, stream};

use crate::{
    damage::{hex, nonsense},
    manifest::{self, Checkpoint, Hash},
    rules::{CHUNK_MAX, Walk, check_length, check_roots, hash_of},
    upload::{Packed, Packs, Room},
    writer::{Stored, Writer},
};

/// Chunks that are hashed and compressed at once.
const COMPRESSING: usize = 4;
/// New chunks of one checkpoint: each costs some memory while it is saved.
const CHUNKS_MAX: usize = 1 << 21;
/// Things that are named as lost; of more there is the number.
const LOST_MAX: usize = 256;
/// The longest word in one of them, in bytes.
const LOST_WORD_MAX: usize = 16 << 10;

/// A checkpoint in the making.
pub struct Save {
    store: Arc<dyn WorkspaceStore>,
    id: CheckpointId,
    roots: Vec<String>,
    base: Option<Arc<Checkpoint>>,
    contents: Contents,
    bytes_max: u64,
}

/// A checkpoint that is complete in the store.
#[derive(Debug, Clone, PartialEq)]
pub struct Saved {
    /// the checkpoint
    pub id: CheckpointId,
    /// BLAKE3 of its manifest
    pub digest: Hash,
    /// entries in it
    pub files: u64,
    /// bytes of the files in it
    pub bytes: u64,
    /// bytes that were written to the store
    pub stored_bytes: u64,
    /// the checkpoints in whose packs its chunks lie, in order
    pub pack_checkpoints: Vec<CheckpointId>,
    /// what ran in the sandbox, with what the agent could not read
    pub contents: Contents,
}

impl Save {
    /// A checkpoint of these folders, ascending, under an id that the store has nothing of. An agent that tells of more
    /// than `bytes_max` bytes, the most that the sandbox can hold, is not believed.
    ///
    /// # Errors
    /// When these are no folders, or out of order.
    pub fn new(
        store: Arc<dyn WorkspaceStore>,
        id: CheckpointId,
        roots: Vec<String>,
        contents: Contents,
        bytes_max: u64,
    ) -> Result<Self> {
        check_roots(&roots).map_err(|what| Error::invalid("roots", format!("must be folders in order: {what}")))?;
        Ok(Self { store, id, roots, base: None, contents, bytes_max })
    }

    /// What this one has is not stored again.
    #[must_use]
    pub fn with_base(mut self, base: Option<Arc<Checkpoint>>) -> Self {
        self.base = base;
        self
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.id
    }

    /// What the agent is to be sent, for it to answer with the stream that [`Self::run`] takes.
    pub fn requests(&self) -> impl Stream<Item = SaveTreeRequest> + Send + 'static + use<> {
        let start = save_tree_request::Part::Start(SaveTreeStart { roots: self.roots.clone() });
        let mut base = self.base.clone().map(|base| (base, 0));
        let files = std::iter::from_fn(move || {
            let (base, next) = base.as_mut()?;
            loop {
                let entry = base.entry(*next)?;
                *next += 1;
                if !entry.extents.is_empty() {
                    let TreeEntry { path, extents, .. } = entry;
                    return Some(save_tree_request::Part::Base(TreeEntry { path, extents, ..Default::default() }));
                }
            }
        });
        let end = save_tree_request::Part::BaseEnd(SaveTreeBaseEnd {});
        let parts = std::iter::once(start).chain(files).chain(std::iter::once(end));
        stream::iter(parts.map(|part| SaveTreeRequest { part: Some(part) }))
    }

    /// Takes the tree from the agent and stores it. Dropped, or after an error, it leaves no checkpoint.
    ///
    /// # Errors
    /// The stream's own; INTERNAL for one that is no tree; the store's; RESOURCE_EXHAUSTED for more files than a
    /// manifest holds.
    pub async fn run(self, tree: impl Stream<Item = Result<SaveTreeResponse>> + Send) -> Result<Saved> {
        let mut gate = Gate { base: self.base.clone(), seen: HashSet::new(), left: self.bytes_max };
        let room = Room::new();
        let pieces = tree.map(move |message| gate.admit(message?)).then(move |admitted| {
            let room = room.clone();
            async move {
                Ok::<_, Error>(match admitted? {
                    Admitted::New(hash, chunk) => Piece::Packing(room.take(hash, chunk).await),
                    Admitted::Known => Piece::Known,
                    Admitted::Part(part) => Piece::Part(part),
                })
            }
        });
        let mut pieces = std::pin::pin!(pieces.map(Piece::settle).buffered(COMPRESSING));
        let mut saving = Saving::new(self)?;
        loop {
            tokio::select! {
                outcome = saving.packs.arrived() => outcome?,
                piece = pieces.next() => match piece {
                    Some(piece) => saving.take(piece?).await?,
                    None => return saving.finish().await,
                }
            }
        }
    }
}

/// What of an agent's message goes on.
enum Admitted {
    New(Hash, cloud_sandbox_proto::agent::v1::ChunkData),
    Known,
    Part(Part),
}

/// Lets in the data of chunks that are new, once, and no more of it than there can be.
struct Gate {
    base: Option<Arc<Checkpoint>>,
    seen: HashSet<Hash>,
    left: u64,
}

impl Gate {
    fn admit(&mut self, message: SaveTreeResponse) -> Result<Admitted> {
        let chunk = match message.part.ok_or_else(|| nonsense("an empty message"))? {
            Part::Chunk(chunk) => chunk,
            part => return Ok(Admitted::Part(part)),
        };
        let hash = hash_of(&chunk.hash).map_err(nonsense)?;
        let length = u32::try_from(chunk.data.len()).unwrap_or(u32::MAX);
        check_length(length).map_err(nonsense)?;
        if self.seen.contains(&hash) || self.base.as_ref().is_some_and(|base| base.place(&hash).is_some()) {
            return Ok(Admitted::Known);
        }
        self.left = self.left.checked_sub(length.into()).ok_or_else(|| nonsense("more data than it can hold"))?;
        if self.seen.len() >= CHUNKS_MAX {
            return Err(nonsense(format!("more than {CHUNKS_MAX} chunks")));
        }
        self.seen.insert(hash);
        Ok(Admitted::New(hash, chunk))
    }
}

/// A message on its way through compression, where none overtakes another.
enum Piece {
    Packing(tokio::task::JoinHandle<Result<Packed>>),
    Known,
    Part(Part),
}

/// A message that is ready to be written down.
enum Settled {
    Chunk(Packed),
    Known,
    Part(Part),
}

impl Piece {
    async fn settle(piece: Result<Self>) -> Result<Settled> {
        Ok(match piece? {
            Self::Packing(task) => {
                Settled::Chunk(task.await.map_err(|error| Error::internal("compress a chunk", error))??)
            }
            Self::Known => Settled::Known,
            Self::Part(part) => Settled::Part(part),
        })
    }
}

/// What is written down so far.
struct Saving {
    save: Save,
    packs: Packs,
    writer: Writer,
    walk: Walk,
    /// where new chunks lie
    stored: HashMap<Hash, Stored>,
    /// how many of them no entry has yet
    unused: usize,
    lost: u64,
    ended: bool,
}

impl Saving {
    fn new(save: Save) -> Result<Self> {
        Ok(Self {
            packs: Packs::new(Arc::clone(&save.store), save.id),
            writer: Writer::new()?,
            walk: Walk::new(save.roots.clone()),
            stored: HashMap::new(),
            unused: 0,
            lost: 0,
            ended: false,
            save,
        })
    }

    async fn take(&mut self, settled: Settled) -> Result<()> {
        if self.ended {
            return Err(nonsense("a message after the last"));
        }
        match settled {
            Settled::Chunk(packed) => {
                let hash = packed.hash;
                let stored = self.packs.add(packed).await?;
                self.stored.insert(hash, stored);
                self.unused += 1;
                Ok(())
            }
            Settled::Known => Ok(()),
            Settled::Part(Part::Entry(entry)) => self.entry(entry),
            Settled::Part(Part::Lost(lost)) => self.lose(lost),
            Settled::Part(Part::End(end)) => self.end(&end),
            Settled::Part(Part::Chunk(_)) => unreachable!("chunks are taken apart from the others"),
        }
    }

    fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.walk.enter(&entry).map_err(nonsense)?;
        if self.walk.bytes() > self.save.bytes_max {
            return Err(nonsense("more data than it can hold"));
        }
        for chunk in entry.extents.iter().flat_map(|extent| &extent.chunks) {
            let hash = hash_of(&chunk.hash).map_err(nonsense)?;
            let new = self.stored.get(&hash).copied();
            let stored = new.or_else(|| self.in_base(&hash));
            let stored = stored.filter(|stored| stored.length == chunk.length);
            let stored = stored.ok_or_else(|| nonsense(format!("no data of chunk {}", hex(&hash))))?;
            if self.writer.chunk(hash, stored)? && new.is_some() {
                self.unused -= 1;
            }
        }
        self.writer.entry(entry)
    }

    fn in_base(&self, hash: &Hash) -> Option<Stored> {
        let base = self.save.base.as_ref()?;
        let place = base.place(hash)?;
        let (pack, offset) = (base.pack(place), place.offset);
        Some(Stored { pack, offset, stored_length: place.stored_length, length: place.length })
    }

    fn lose(&mut self, lost: LostThing) -> Result<()> {
        if [&lost.kind, &lost.what, &lost.reason].iter().any(|word| word.len() > LOST_WORD_MAX) {
            return Err(nonsense("a lost thing in too many words"));
        }
        self.lost += 1;
        if self.lost <= LOST_MAX as u64 {
            self.save.contents.lost.push(lost);
        }
        Ok(())
    }

    fn end(&mut self, end: &SaveTreeEnd) -> Result<()> {
        self.walk.finish().map_err(nonsense)?;
        let (entries, bytes) = (self.walk.entries(), self.walk.bytes());
        if (end.entries, end.bytes) != (entries, bytes) {
            let told = format!("{} entries of {} bytes", end.entries, end.bytes);
            return Err(nonsense(format!("{entries} entries of {bytes} bytes, and says {told}")));
        }
        if self.unused > 0 {
            return Err(nonsense(format!("{} chunks that are in no file", self.unused)));
        }
        if let Some(more) = self.lost.checked_sub(LOST_MAX as u64).filter(|more| *more > 0) {
            let what = format!("{more} more");
            let reason = format!("only {LOST_MAX} are named");
            self.save.contents.lost.push(LostThing { kind: "file".to_owned(), what, reason });
        }
        self.ended = true;
        Ok(())
    }

    async fn finish(mut self) -> Result<Saved> {
        if !self.ended {
            return Err(nonsense("a tree that is cut off"));
        }
        self.packs.finish().await?;
        let Save { store, id, roots, contents, .. } = self.save;
        let (files, bytes, pack_checkpoints) = (self.walk.entries(), self.walk.bytes(), self.writer.pack_checkpoints());
        let header = ManifestHeader {
            format: manifest::FORMAT,
            checkpoint_id: id.to_string(),
            roots,
            contents: Some(contents.clone()),
        };
        let manifest: Bytes = self.writer.finish(header, ManifestFooter { entries: files, bytes })?;
        let digest = *blake3::hash(&manifest).as_bytes();
        let stored_bytes = self.packs.bytes() + manifest.len() as u64;
        store.put(id, manifest::NAME, manifest).await?;
        Ok(Saved { id, digest, files, bytes, stored_bytes, pack_checkpoints, contents })
    }
}

const _: () = assert!(CHUNK_MAX as usize <= crate::upload::PACK_BYTES, "a chunk fits a pack");
