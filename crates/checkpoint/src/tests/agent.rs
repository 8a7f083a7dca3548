//! An agent that is a tree in memory.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use cloud_sandbox_model::error::Result;
use cloud_sandbox_proto::{
    agent::v1::{
        ChunkData, RestoreTreeRequest, SaveTreeEnd, SaveTreeRequest, SaveTreeResponse,
        restore_tree_request as restoring, save_tree_request as asked, save_tree_response::Part,
    },
    checkpoint::v1::{Chunk, EntryKind, Extent, TreeEntry, Xattr},
};
use futures::{Stream, StreamExt, stream};

/// How long the agent's chunks are.
pub(super) const CHUNK: usize = 512;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Folder(BTreeMap<Vec<u8>, Node>),
    /// data in runs, and the size
    File(Vec<(u64, Bytes)>, u64),
    Symlink(Vec<u8>),
    Fifo,
    /// the same file as the one that comes first, if any does
    Link,
}

/// A tree with its roots, and how long the chunks are that its files are cut into.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) roots: BTreeMap<String, Node>,
    pub(super) chunk: usize,
}

/// What a tree looks like from outside: its entries without chunks, and their data.
pub(super) type Seen = Vec<(TreeEntry, Vec<(u64, Bytes)>)>;

/// A file without holes.
pub(super) fn file(data: impl Into<Bytes>) -> Node {
    let data = data.into();
    let size = data.len() as u64;
    Node::File(if data.is_empty() { Vec::new() } else { vec![(0, data)] }, size)
}

/// Data that nothing compresses.
pub(super) fn noise(seed: u64, length: usize) -> Bytes {
    let mut data = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut data);
    data.into()
}

pub(super) fn folder<const N: usize>(entries: [(&str, Node); N]) -> Node {
    Node::Folder(entries.into_iter().map(|(name, node)| (name.as_bytes().to_vec(), node)).collect())
}

impl Tree {
    pub(super) fn new<const N: usize>(roots: [(&str, Node); N]) -> Self {
        Self { roots: roots.into_iter().map(|(name, node)| (name.to_owned(), node)).collect(), chunk: CHUNK }
    }

    pub(super) fn root_names(&self) -> Vec<String> {
        self.roots.keys().cloned().collect()
    }

    pub(super) fn seen(&self) -> Seen {
        let mut seen = Vec::new();
        for (name, node) in &self.roots {
            look(name.as_bytes(), node, &mut seen);
        }
        seen
    }
}

fn look(path: &[u8], node: &Node, seen: &mut Seen) {
    let number = seen.len() as u32;
    let mut entry = TreeEntry { path: Bytes::copy_from_slice(path), ..Default::default() };
    let linkable = |(entry, _): &&(TreeEntry, _)| entry.kind != EntryKind::Folder as i32 && entry.hard_link.is_empty();
    if *node == Node::Link
        && let Some((first, _)) = seen.iter().find(linkable)
    {
        entry.hard_link = first.path.clone();
        return seen.push((entry, Vec::new()));
    }
    (entry.mode, entry.uid, entry.gid) = (0o7000 | (number % 0o1000), number, number / 2);
    (entry.mtime_seconds, entry.mtime_nanos) = (i64::from(number) * 1_000_000_000 - 5, number % 1_000_000_000);
    if number.is_multiple_of(3) {
        entry.xattrs = vec![Xattr { name: "user.note".into(), value: Bytes::copy_from_slice(path) }];
    }
    let (kind, mut data) = (
        match node {
            Node::Folder(_) => EntryKind::Folder,
            Node::File(..) => EntryKind::File,
            Node::Symlink(_) => EntryKind::Symlink,
            Node::Fifo | Node::Link => EntryKind::Fifo,
        },
        Vec::new(),
    );
    entry.kind = kind.into();
    match node {
        Node::File(runs, size) => (entry.size, data) = (*size, runs.clone()),
        Node::Symlink(target) => entry.target = target.clone().into(),
        _ => {}
    }
    seen.push((entry, data));
    if let Node::Folder(inside) = node {
        for (name, node) in inside {
            look(&[path, b"/", name].concat(), node, seen);
        }
    }
}

pub(super) fn message(part: Part) -> Result<SaveTreeResponse> {
    Ok(SaveTreeResponse { part: Some(part) })
}

pub(super) fn chunk_of(data: Bytes) -> ChunkData {
    ChunkData { hash: Bytes::copy_from_slice(blake3::hash(&data).as_bytes()), data }
}

/// What the agent answers: all entries, and the chunks that the base's file of the same path does not have.
pub(super) async fn save(
    tree: &Tree,
    requests: impl Stream<Item = SaveTreeRequest>,
) -> impl Stream<Item = Result<SaveTreeResponse>> + Send + 'static {
    let (base, roots) = read_requests(requests).await;
    assert_eq!(roots, tree.root_names());
    let (entries, chunk) = (tree.seen(), tree.chunk);
    let (count, mut bytes) = (entries.len() as u64, 0);
    bytes += entries.iter().flat_map(|(_, runs)| runs).map(|(_, data)| data.len() as u64).sum::<u64>();
    let parts = entries.into_iter().flat_map(move |(mut entry, runs)| {
        let known = base.get(&entry.path);
        let mut parts = Vec::new();
        for (offset, data) in runs {
            let pieces: Vec<_> = data.chunks(chunk).map(|piece| chunk_of(data.slice_ref(piece))).collect();
            let chunks = pieces
                .iter()
                .map(|piece| Chunk { hash: piece.hash.clone(), length: piece.data.len() as u32 })
                .collect();
            entry.extents.push(Extent { offset, chunks });
            let new = pieces.into_iter().filter(|piece| known.is_none_or(|known| !known.contains(&piece.hash)));
            parts.extend(new.map(Part::Chunk));
        }
        parts.push(Part::Entry(entry));
        parts
    });
    let end = Part::End(SaveTreeEnd { entries: count, bytes });
    stream::iter(parts.chain([end]).map(message))
}

type Base = HashMap<Bytes, HashSet<Bytes>>;

async fn read_requests(requests: impl Stream<Item = SaveTreeRequest>) -> (Base, Vec<String>) {
    let mut requests = std::pin::pin!(requests);
    let Some(asked::Part::Start(start)) = requests.next().await.unwrap().part else { panic!("no start") };
    let mut base = Base::new();
    loop {
        match requests.next().await.unwrap().part.unwrap() {
            asked::Part::Base(entry) => {
                let chunks = entry.extents.iter().flat_map(|extent| &extent.chunks);
                base.insert(entry.path.clone(), chunks.map(|chunk| chunk.hash.clone()).collect());
            }
            asked::Part::BaseEnd(_) => break,
            asked::Part::Start(_) => panic!("two starts"),
        }
    }
    assert!(requests.next().await.is_none());
    (base, start.roots)
}

/// What the agent makes of a restore.
pub(super) async fn restore(requests: impl Stream<Item = Result<RestoreTreeRequest>>) -> Result<Seen> {
    let mut requests = std::pin::pin!(requests);
    let Some(restoring::Part::Start(_)) = requests.next().await.unwrap()?.part else { panic!("no start") };
    let mut seen: Seen = Vec::new();
    let mut left: Vec<u8> = Vec::new();
    while let Some(request) = requests.next().await {
        match request?.part.unwrap() {
            restoring::Part::Entry(entry) => {
                settle(&mut seen, &mut left);
                seen.push((entry, Vec::new()));
            }
            restoring::Part::Data(data) => {
                assert!(!data.is_empty() && data.len() <= 4 << 20);
                left.extend_from_slice(&data);
            }
            restoring::Part::Commit(_) => {
                settle(&mut seen, &mut left);
                assert!(requests.next().await.is_none());
                return Ok(seen);
            }
            restoring::Part::Start(_) => panic!("two starts"),
        }
    }
    panic!("no commit");
}

fn settle(seen: &mut Seen, data: &mut Vec<u8>) {
    let mut data = Bytes::from(std::mem::take(data));
    if let Some((entry, runs)) = seen.last_mut() {
        for extent in std::mem::take(&mut entry.extents) {
            let length: u32 = extent.chunks.iter().map(|chunk| chunk.length).sum();
            runs.push((extent.offset, data.split_to(length as usize)));
        }
    }
    assert!(data.is_empty(), "data beyond the entry's");
}
