//! Manifests as they are written. Records are compressed as they come; the header, which can be made last only, becomes a
//! frame of its own in front of them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    io::Write,
};

use bytes::Bytes;
use cloud_sandbox_model::{
    CheckpointId,
    error::{Error, ErrorKind, Result, reason},
};
use cloud_sandbox_proto::checkpoint::v1::{
    ChunkPlace, ManifestFooter, ManifestHeader, ManifestRecord, TreeEntry, manifest_record::Record,
};
use prost::Message;
use zstd::stream::write::Encoder;

use crate::{
    compress::LEVEL,
    manifest::{Hash, MANIFEST_MAX},
    pack::PackId,
};

/// Where a chunk lies, whatever the manifest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stored {
    pub(crate) pack: PackId,
    pub(crate) offset: u64,
    pub(crate) stored_length: u32,
    pub(crate) length: u32,
}

pub(crate) struct Writer {
    body: Frame,
    packs: HashMap<PackId, u32>,
    placed: HashSet<Hash>,
}

impl Writer {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { body: Frame::new(MANIFEST_MAX)?, packs: HashMap::new(), placed: HashSet::new() })
    }

    /// Says where a chunk lies, unless it was said before. Says whether it is new.
    pub(crate) fn chunk(&mut self, hash: Hash, stored: Stored) -> Result<bool> {
        if !self.placed.insert(hash) {
            return Ok(false);
        }
        let pack = match self.packs.get(&stored.pack) {
            Some(number) => *number,
            None => {
                let number = u32::try_from(self.packs.len()).map_err(|_| too_large())?;
                self.packs.insert(stored.pack, number);
                self.body.write(Record::Pack(stored.pack.record()))?;
                number
            }
        };
        let Stored { offset, stored_length, length, .. } = stored;
        let hash = Bytes::copy_from_slice(&hash);
        self.body.write(Record::Chunk(ChunkPlace { hash, pack, offset, stored_length, length }))?;
        Ok(true)
    }

    pub(crate) fn entry(&mut self, entry: TreeEntry) -> Result<()> {
        self.body.write(Record::Entry(entry))
    }

    /// The checkpoints in whose packs chunks lie.
    pub(crate) fn pack_checkpoints(&self) -> Vec<CheckpointId> {
        let all: BTreeSet<_> = self.packs.keys().map(|pack| pack.checkpoint).collect();
        all.into_iter().collect()
    }

    /// The whole manifest, as it is stored.
    pub(crate) fn finish(mut self, header: ManifestHeader, footer: ManifestFooter) -> Result<Bytes> {
        self.body.write(Record::Footer(footer))?;
        let mut head = Frame::new(self.body.left)?;
        head.write(Record::Header(header))?;
        let mut manifest = head.finish()?;
        manifest.append(&mut self.body.finish()?);
        Ok(manifest.into())
    }
}

/// Compressed records, of a bounded size before they are compressed.
struct Frame {
    encoder: Encoder<'static, Vec<u8>>,
    scratch: Vec<u8>,
    left: usize,
}

impl Frame {
    fn new(left: usize) -> Result<Self> {
        let encoder = Encoder::new(Vec::new(), LEVEL).map_err(|error| Error::internal("make a manifest", error))?;
        Ok(Self { encoder, scratch: Vec::new(), left })
    }

    fn write(&mut self, record: Record) -> Result<()> {
        self.scratch.clear();
        let record = ManifestRecord { record: Some(record) };
        record.encode_length_delimited(&mut self.scratch).map_err(|error| Error::internal("make a manifest", error))?;
        self.left = self.left.checked_sub(self.scratch.len()).ok_or_else(too_large)?;
        self.encoder.write_all(&self.scratch).map_err(|error| Error::internal("make a manifest", error))
    }

    fn finish(self) -> Result<Vec<u8>> {
        self.encoder.finish().map_err(|error| Error::internal("make a manifest", error))
    }
}

fn too_large() -> Error {
    let message = format!("the sandbox holds more files than a checkpoint can list in {} MiB", MANIFEST_MAX >> 20);
    Error::new(ErrorKind::ResourceExhausted, reason::CAPACITY, message)
}
