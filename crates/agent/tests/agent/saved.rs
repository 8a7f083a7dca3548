//! Saves and restores for tests, and what a folder looks like from outside.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt},
    },
    path::{Path, PathBuf},
};

use bytes::Bytes;
use cloud_sandbox_proto::{
    agent::v1::{
        RestoreTreeCommit, RestoreTreeRequest, RestoreTreeResponse, RestoreTreeStart, SaveTreeBaseEnd, SaveTreeEnd,
        SaveTreeRequest, SaveTreeResponse, SaveTreeStart, agent_service_client::AgentServiceClient,
        restore_tree_request, save_tree_request, save_tree_response::Part,
    },
    checkpoint::v1::{LostThing, TreeEntry},
};
use futures::stream;
use tonic::{Status, Streaming, transport::Channel};

use crate::rig::Agent;

/// What a save sent.
#[derive(Default)]
pub struct Saved {
    pub entries: Vec<TreeEntry>,
    pub chunks: HashMap<Bytes, Bytes>,
    pub lost: Vec<LostThing>,
    pub end: SaveTreeEnd,
}

impl Saved {
    /// How many bytes of data there were, each chunk once.
    pub fn sent(&self) -> usize {
        self.chunks.values().map(Bytes::len).sum()
    }

    /// A file's content, put together.
    pub fn content(&self, entry: &TreeEntry) -> Vec<u8> {
        let mut content = vec![0; entry.size as usize];
        for extent in &entry.extents {
            let mut offset = extent.offset as usize;
            for chunk in &extent.chunks {
                let data = &self.chunks[&chunk.hash];
                assert_eq!(data.len(), chunk.length as usize);
                content[offset..][..data.len()].copy_from_slice(data);
                offset += data.len();
            }
        }
        content
    }

    /// The messages that restore it, but the first.
    pub fn to_requests(&self) -> Vec<RestoreTreeRequest> {
        let mut parts = Vec::new();
        for entry in &self.entries {
            parts.push(restore_tree_request::Part::Entry(entry.clone()));
            let chunks = entry.extents.iter().flat_map(|extent| &extent.chunks);
            parts.extend(chunks.map(|chunk| restore_tree_request::Part::Data(self.chunks[&chunk.hash].clone())));
        }
        parts.push(restore_tree_request::Part::Commit(RestoreTreeCommit {}));
        parts.into_iter().map(|part| RestoreTreeRequest { part: Some(part) }).collect()
    }
}

pub async fn save(agent: &Agent, roots: &[&Path]) -> Saved {
    save_over(agent, roots, &[]).await
}

/// Saves with a base.
pub async fn save_over(agent: &Agent, roots: &[&Path], base: &[TreeEntry]) -> Saved {
    collect(agent.client_of_node().await, roots, base).await.unwrap()
}

pub async fn collect(
    client: AgentServiceClient<Channel>,
    roots: &[&Path],
    base: &[TreeEntry],
) -> Result<Saved, Status> {
    let mut stream = try_save(client, roots, base, true).await?;
    let mut saved = Saved::default();
    while let Some(message) = stream.message().await? {
        match message.part.unwrap() {
            Part::Chunk(chunk) => {
                assert_eq!(blake3::hash(&chunk.data).as_bytes(), &*chunk.hash);
                saved.chunks.insert(chunk.hash, chunk.data);
            }
            Part::Entry(entry) => saved.entries.push(entry),
            Part::Lost(lost) => saved.lost.push(lost),
            Part::End(end) => {
                saved.end = end;
                assert!(stream.message().await?.is_none(), "end is last");
                return Ok(saved);
            }
        }
    }
    panic!("the save was cut off");
}

pub async fn try_save(
    client: AgentServiceClient<Channel>,
    roots: &[&Path],
    base: &[TreeEntry],
    with_end: bool,
) -> Result<Streaming<SaveTreeResponse>, Status> {
    let start = save_tree_request::Part::Start(SaveTreeStart { roots: names(roots) });
    let files = base.iter().filter(|entry| !entry.extents.is_empty() || entry.mode == 0).map(|entry| {
        let (path, extents) = (entry.path.clone(), entry.extents.clone());
        save_tree_request::Part::Base(TreeEntry { path, extents, ..Default::default() })
    });
    let end = with_end.then_some(save_tree_request::Part::BaseEnd(SaveTreeBaseEnd {}));
    let parts = std::iter::once(start).chain(files).chain(end);
    let requests: Vec<_> = parts.map(|part| SaveTreeRequest { part: Some(part) }).collect();
    let mut client = client.max_decoding_message_size(16 << 20);
    Ok(client.save_tree(stream::iter(requests)).await?.into_inner())
}

/// Restores what `requests` say after the first message.
pub async fn restore(
    agent: &Agent,
    roots: &[&Path],
    mut requests: Vec<RestoreTreeRequest>,
) -> Result<RestoreTreeResponse, Status> {
    let start = restore_tree_request::Part::Start(RestoreTreeStart { roots: names(roots) });
    if !matches!(requests.first(), Some(RestoreTreeRequest { part: Some(restore_tree_request::Part::Start(_)) })) {
        requests.insert(0, RestoreTreeRequest { part: Some(start) });
    }
    let answer = agent.client.clone().restore_tree(stream::iter(requests)).await;
    answer.map(tonic::Response::into_inner)
}

pub fn restore_requests(roots: &[&Path], parts: Vec<restore_tree_request::Part>) -> Vec<RestoreTreeRequest> {
    let start = restore_tree_request::Part::Start(RestoreTreeStart { roots: names(roots) });
    std::iter::once(start).chain(parts).map(|part| RestoreTreeRequest { part: Some(part) }).collect()
}

fn names(roots: &[&Path]) -> Vec<String> {
    roots.iter().map(|root| root.to_str().unwrap().to_owned()).collect()
}

/// Bytes that nothing repeats.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// All that the file system says of a folder and what is in it.
pub fn fingerprint(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut inodes = HashMap::new();
    describe(root, &mut inodes, &mut found);
    found
}

fn describe(path: &Path, inodes: &mut HashMap<u64, usize>, found: &mut BTreeMap<PathBuf, String>) {
    let it = path.symlink_metadata().unwrap();
    let kind = it.file_type();
    let (number, next) = (inodes.get(&it.ino()).copied(), inodes.len());
    let number =
        if it.nlink() > 1 && !it.is_dir() { *inodes.entry(it.ino()).or_insert(number.unwrap_or(next)) } else { 0 };
    let content = if it.is_file() {
        blake3::hash(&fs::read(path).unwrap()).to_string()
    } else if it.is_symlink() {
        format!("{:?}", fs::read_link(path).unwrap())
    } else {
        String::new()
    };
    let size = if it.is_dir() { 0 } else { it.len() };
    let xattrs = ["user.note", "user.root"].map(|name| xattr(path, name));
    let line = format!(
        "{:o} {}:{} {}.{} {size} link {number}/{} fifo {} {xattrs:?} {content}",
        it.mode(),
        it.uid(),
        it.gid(),
        it.mtime(),
        it.mtime_nsec(),
        if it.is_dir() { 0 } else { it.nlink() },
        kind.is_fifo(),
    );
    found.insert(path.to_owned(), line);
    if it.is_dir() {
        let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        entries.iter().for_each(|entry| describe(entry, inodes, found));
    }
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    // SAFETY: both strings end with NUL, and the value has as many bytes as it says.
    unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) == 0 }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let (path, name) = (CString::new(path.as_os_str().as_bytes()).unwrap(), CString::new(name).unwrap());
    let mut value = vec![0; 4096];
    // SAFETY: both strings end with NUL, and the value has as many bytes as it says.
    let length = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(length).ok()?);
    Some(value)
}
