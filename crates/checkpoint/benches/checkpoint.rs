//! How fast a checkpoint is saved to local disk and read back, without an agent: `cargo bench -p cloud-sandbox-checkpoint`.
//! 100 MiB in 1,000 files, half of it compressible, as an agent would send it.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use cloud_sandbox_checkpoint::{Checkpoint, Save, Saved, restore};
use cloud_sandbox_model::CheckpointId;
use cloud_sandbox_proto::{
    agent::v1::{ChunkData, SaveTreeEnd, SaveTreeResponse, restore_tree_request, save_tree_response::Part},
    checkpoint::v1::{Chunk, Contents, EntryKind, Extent, TreeEntry},
};
use cloud_sandbox_storage::{FileWorkspaces, WorkspaceStore};
use futures::{StreamExt, stream};

const FILES: u64 = 1000;
const FILE_BYTES: usize = 100 << 20 >> 10;
const RUNS: usize = 5;
const ROOT: &str = "/workspace";

fn content(file: u64) -> Bytes {
    let mut data = vec![0; FILE_BYTES];
    blake3::Hasher::new().update(&file.to_le_bytes()).finalize_xof().fill(&mut data);
    for word in data[FILE_BYTES / 2..].chunks_mut(16) {
        word[1..].fill(b' ');
    }
    data.into()
}

/// What an agent sends: all of it at first, then entries alone.
fn parts(data: bool) -> Vec<Part> {
    let root = TreeEntry { path: ROOT.into(), kind: EntryKind::Folder.into(), ..Default::default() };
    let mut parts = vec![Part::Entry(root)];
    for file in 0..FILES {
        let chunk = content(file);
        let hash = Bytes::copy_from_slice(blake3::hash(&chunk).as_bytes());
        let chunks = vec![Chunk { hash: hash.clone(), length: FILE_BYTES as u32 }];
        if data {
            parts.push(Part::Chunk(ChunkData { hash, data: chunk }));
        }
        parts.push(Part::Entry(TreeEntry {
            path: format!("{ROOT}/{file:06}").into(),
            kind: EntryKind::File.into(),
            size: FILE_BYTES as u64,
            extents: vec![Extent { offset: 0, chunks }],
            ..Default::default()
        }));
    }
    parts.push(Part::End(SaveTreeEnd { entries: FILES + 1, bytes: FILES * FILE_BYTES as u64 }));
    parts
}

async fn save(store: &Arc<dyn WorkspaceStore>, parts: Vec<Part>, base: Option<Arc<Checkpoint>>) -> Saved {
    let roots = vec![ROOT.to_owned()];
    let save = Save::new(Arc::clone(store), CheckpointId::generate(), roots, Contents::default(), 1 << 30);
    let sent = stream::iter(parts.into_iter().map(|part| Ok(SaveTreeResponse { part: Some(part) })));
    save.expect("the root is one").with_base(base).run(sent).await.expect("the store takes it")
}

async fn read(store: &Arc<dyn WorkspaceStore>, saved: &Saved) -> u64 {
    let checkpoint = Checkpoint::open(store.as_ref(), saved.id, &saved.digest).await.expect("it was saved");
    let mut sent = std::pin::pin!(restore(Arc::clone(store), checkpoint));
    let mut bytes = 0;
    while let Some(request) = sent.next().await {
        if let Some(restore_tree_request::Part::Data(data)) = request.expect("it was saved").part {
            bytes += data.len() as u64;
        }
    }
    bytes
}

fn tell(what: &str, begun: Instant) {
    let (seconds, mib) = (begun.elapsed().as_secs_f64(), FILES as f64 * FILE_BYTES as f64 / f64::from(1 << 20));
    println!("{what:<24} {:>7.1} ms {:>7.0} MiB/s", seconds * 1000.0, mib / seconds);
}

#[tokio::main]
async fn main() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let store = FileWorkspaces::open(folder.path()).await.expect("the folder is empty");
    let store: Arc<dyn WorkspaceStore> = Arc::new(store);
    for _ in 0..RUNS {
        let (all, entries) = (parts(true), parts(false));
        let begun = Instant::now();
        let saved = save(&store, all, None).await;
        tell("first save", begun);
        let begun = Instant::now();
        let base = Checkpoint::open(store.as_ref(), saved.id, &saved.digest).await.expect("it was saved");
        save(&store, entries, Some(base)).await;
        tell("save without a change", begun);
        let begun = Instant::now();
        assert_eq!(read(&store, &saved).await, saved.bytes);
        tell("restore", begun);
    }
}
