//! Manifests as they are read: all of one is checked before any of it is used.

use std::{collections::HashMap, io::Read, sync::Arc};

use bytes::{Buf, Bytes};
use cloud_sandbox_model::{
    CheckpointId,
    error::{Error, Result},
};
use cloud_sandbox_proto::checkpoint::v1::{
    ChunkPlace, Contents, ManifestFooter, ManifestHeader, ManifestRecord, Pack, TreeEntry, manifest_record::Record,
};
use cloud_sandbox_storage::WorkspaceStore;
use prost::Message;

use crate::{
    damage::{damaged, hex},
    pack::PackId,
    rules::{Walk, check_length, check_roots, hash_of},
};

/// BLAKE3 of a chunk, or of a manifest as it is stored.
pub type Hash = [u8; 32];

/// The object's name in its folder.
pub(crate) const NAME: &str = "manifest";
/// The format of this version.
pub(crate) const FORMAT: u32 = 1;
/// The largest manifest, in bytes before it is compressed: about a million files.
pub const MANIFEST_MAX: usize = 256 << 20;

/// Where a chunk lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// the pack, among those of the manifest
    pub pack: u32,
    /// where it begins there
    pub offset: u64,
    /// its bytes there
    pub stored_length: u32,
    /// its bytes in a file
    pub length: u32,
}

/// A checkpoint whose manifest was read and found whole.
pub struct Checkpoint {
    id: CheckpointId,
    header: ManifestHeader,
    footer: ManifestFooter,
    packs: Vec<PackId>,
    places: HashMap<Hash, Place>,
    /// the records one after the other, each behind its length
    records: Bytes,
    /// where entries begin among the records
    entries: Vec<u32>,
}

impl Checkpoint {
    /// Reads a checkpoint's manifest, which must have the given digest.
    ///
    /// # Errors
    /// `CHECKPOINT_DAMAGED` for a manifest that is missing, or not what was saved; the store's own failures.
    pub async fn open(store: &dyn WorkspaceStore, id: CheckpointId, digest: &[u8]) -> Result<Arc<Self>> {
        let digest = hash_of(digest).map_err(|_| Error::invalid("digest", "must have 32 bytes"))?;
        let stored = store.get(id, NAME).await?.ok_or_else(|| damaged(id, "its manifest is missing"))?;
        let reading = tokio::task::spawn_blocking(move || Self::read(id, &digest, &stored));
        let read = reading.await.map_err(|error| Error::internal("read a checkpoint's manifest", error))?;
        read.map(Arc::new)
    }

    fn read(id: CheckpointId, digest: &Hash, stored: &[u8]) -> Result<Self> {
        let found = blake3::hash(stored);
        if found != *digest {
            let what = format!("its manifest's hash is {}, and {} was saved", found.to_hex(), hex(digest));
            return Err(damaged(id, what));
        }
        let records = unpack(stored).map_err(|what| damaged(id, format!("its manifest {what}")))?;
        parse(id, records).map_err(|what| damaged(id, format!("its manifest has {what}")))
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> CheckpointId {
        self.id
    }

    /// The folders that were saved.
    #[must_use]
    pub fn roots(&self) -> &[String] {
        &self.header.roots
    }

    /// What ran in the sandbox.
    #[must_use]
    pub fn contents(&self) -> Contents {
        self.header.contents.clone().unwrap_or_default()
    }

    /// How many entries there are.
    #[must_use]
    pub fn files(&self) -> u64 {
        self.footer.entries
    }

    /// Bytes of all files, each counted once, holes not at all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.footer.bytes
    }

    /// The packs that its chunks lie in.
    #[must_use]
    pub fn packs(&self) -> &[PackId] {
        &self.packs
    }

    /// Where a chunk lies.
    #[must_use]
    pub fn place(&self, hash: &Hash) -> Option<Place> {
        self.places.get(hash).copied()
    }

    /// The pack of a place in this checkpoint.
    #[must_use]
    pub fn pack(&self, place: Place) -> PackId {
        // every place's pack was looked for when the manifest was read
        self.packs[place.pack as usize]
    }

    /// An entry by its number, counted from 0. Entries share the manifest's memory.
    #[must_use]
    pub fn entry(&self, number: usize) -> Option<TreeEntry> {
        let mut rest = self.records.slice(*self.entries.get(number)? as usize..);
        match next_record(&mut rest) {
            Ok(Some(Record::Entry(entry))) => Some(entry),
            _ => unreachable!("an entry was read there before"),
        }
    }

    /// All entries, in order.
    pub fn entries(&self) -> impl Iterator<Item = TreeEntry> + '_ {
        (0..self.entries.len()).map_while(|number| self.entry(number))
    }
}

fn unpack(stored: &[u8]) -> Result<Bytes, String> {
    let decoder =
        zstd::stream::read::Decoder::with_buffer(stored).map_err(|error| format!("cannot be read: {error}"))?;
    let mut records = Vec::new();
    let read = decoder.take(MANIFEST_MAX as u64 + 1).read_to_end(&mut records);
    read.map_err(|error| format!("cannot be decompressed: {error}"))?;
    if records.len() > MANIFEST_MAX {
        return Err(format!("is larger than {MANIFEST_MAX} bytes"));
    }
    Ok(records.into())
}

/// Takes the next record; `None` at the end.
fn next_record(rest: &mut Bytes) -> Result<Option<Record>, String> {
    if rest.is_empty() {
        return Ok(None);
    }
    let length = prost::decode_length_delimiter(&mut *rest).map_err(|_| "a record without a length")?;
    if length > rest.len() {
        return Err("a record that is cut off".to_owned());
    }
    let record = ManifestRecord::decode(rest.split_to(length)).map_err(|error| format!("a broken record: {error}"))?;
    record.record.map(Some).ok_or_else(|| "a record of no known kind".to_owned())
}

fn parse(id: CheckpointId, records: Bytes) -> Result<Checkpoint, String> {
    let mut rest = records.clone();
    let header = match next_record(&mut rest)? {
        Some(Record::Header(header)) => check_header(id, header)?,
        _ => return Err("no header".to_owned()),
    };
    let mut walk = Walk::new(header.roots.clone());
    let (mut packs, mut places, mut entries) = (Vec::new(), HashMap::new(), Vec::new());
    let footer = loop {
        let begin = records.len() - rest.remaining();
        match next_record(&mut rest)?.ok_or("no footer")? {
            Record::Pack(pack) => packs.push(check_pack(&packs, &pack)?),
            Record::Chunk(chunk) => {
                let (hash, place) = check_place(&packs, &chunk)?;
                if places.insert(hash, place).is_some() {
                    return Err(format!("chunk {} twice", hex(&hash)));
                }
            }
            Record::Entry(entry) => {
                walk.enter(&entry)?;
                check_chunks(&places, &entry)?;
                entries.push(u32::try_from(begin).expect("a manifest is smaller than 4 GiB"));
            }
            Record::Footer(footer) => break footer,
            Record::Header(_) => return Err("two headers".to_owned()),
        }
    };
    if !rest.is_empty() {
        return Err("records after its footer".to_owned());
    }
    walk.finish()?;
    if (footer.entries, footer.bytes) != (walk.entries(), walk.bytes()) {
        return Err(format!(
            "{} entries of {} bytes, and should have {} of {}",
            walk.entries(),
            walk.bytes(),
            footer.entries,
            footer.bytes
        ));
    }
    Ok(Checkpoint { id, header, footer, packs, places, records, entries })
}

fn check_header(id: CheckpointId, header: ManifestHeader) -> Result<ManifestHeader, String> {
    if header.format != FORMAT {
        return Err(format!("format {}, and this version knows {FORMAT} alone", header.format));
    }
    if header.checkpoint_id.parse().ok() != Some(id) {
        return Err(format!("the id {:?}", header.checkpoint_id));
    }
    check_roots(&header.roots)?;
    Ok(header)
}

fn check_pack(packs: &[PackId], pack: &Pack) -> Result<PackId, String> {
    let checkpoint = pack.checkpoint_id.parse().map_err(|_| format!("a pack of {:?}", pack.checkpoint_id))?;
    let pack = PackId { checkpoint, number: pack.number };
    if packs.contains(&pack) { Err(format!("pack {pack} twice")) } else { Ok(pack) }
}

fn check_place(packs: &[PackId], chunk: &ChunkPlace) -> Result<(Hash, Place), String> {
    let hash = hash_of(&chunk.hash)?;
    check_length(chunk.length)?;
    let known = (chunk.pack as usize) < packs.len();
    let ends = chunk.offset.checked_add(chunk.stored_length.into()).is_some();
    if !known || !ends || chunk.stored_length == 0 || chunk.stored_length > chunk.length {
        return Err(format!("a place of chunk {} that cannot be", hex(&hash)));
    }
    let ChunkPlace { pack, offset, stored_length, length, .. } = *chunk;
    Ok((hash, Place { pack, offset, stored_length, length }))
}

fn check_chunks(places: &HashMap<Hash, Place>, entry: &TreeEntry) -> Result<(), String> {
    for chunk in entry.extents.iter().flat_map(|extent| &extent.chunks) {
        let place = places.get(&hash_of(&chunk.hash)?);
        if place.is_none_or(|place| place.length != chunk.length) {
            return Err(format!("no place of chunk {}", hex(&chunk.hash)));
        }
    }
    Ok(())
}
