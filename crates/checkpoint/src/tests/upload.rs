//! Packs on their way: failures, cancellation, memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::agent::v1::save_tree_response::Part;
use futures::StreamExt;

use super::{
    agent::{self, Node, Tree, file, folder, noise},
    open, restored, save, save_of,
    store::FakeStore,
};
use crate::upload::{MEMORY, PACK_BYTES};

/// A tree of so many MiB that nothing compresses, in chunks of 256 KiB.
fn large(mib: u64) -> Tree {
    let files = (0..mib).map(|n| (format!("{n:04}").into_bytes(), file(noise(n, 1 << 20)))).collect();
    Tree { roots: [("/w".to_owned(), Node::Folder(files))].into(), chunk: 256 << 10 }
}

#[tokio::test]
async fn many_packs_come_back() {
    let (store, tree) = (Arc::new(FakeStore::default()), large(30));
    let saved = save(&store, &tree, None).await.unwrap();
    assert_eq!(store.names(saved.id), ["manifest", "pack-00000", "pack-00001", "pack-00002", "pack-00003"]);
    assert_eq!(store.object(saved.id, "pack-00000").len(), PACK_BYTES);
    assert!(restored(&store, &open(&store, &saved).await.unwrap()).await.unwrap() == tree.seen());
}

#[tokio::test]
async fn upload_that_fails_at_any_part_leaves_no_checkpoint() {
    let tree = large(30);
    for part in 1..=5 {
        let store = Arc::new(FakeStore::default());
        store.failing_put.store(part, SeqCst);
        let making = save_of(&store, &tree, None);
        let (id, sent) = (making.id(), agent::save(&tree, making.requests()).await);
        let error = making.run(sent).await.unwrap_err();
        assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::STORE_UNAVAILABLE), "{part}");
        assert!(!store.names(id).contains(&"manifest".to_owned()), "put {part} failed");
    }
}

#[tokio::test]
async fn save_that_is_dropped_leaves_no_checkpoint_and_writes_no_more() {
    let (store, tree) = (Arc::new(FakeStore::default()), large(20));
    let making = save_of(&store, &tree, None);
    let id = making.id();
    let sent = agent::save(&tree, making.requests()).await;
    // hangs before the last message
    let hanging = sent.take(20 * 4 + 21).chain(futures::stream::pending());
    let mut run = Box::pin(making.run(hanging));
    while store.puts() < 2 {
        assert!(futures::poll!(&mut run).is_pending());
        tokio::task::yield_now().await;
    }
    drop(run);
    let weak = Arc::downgrade(&store);
    drop(store);
    // the tasks are gone when nobody holds the store
    while let Some(store) = weak.upgrade() {
        assert!(!store.names(id).contains(&"manifest".to_owned()));
        drop(store);
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn agent_is_held_back_when_the_store_is_slow() {
    let (store, tree) = (Arc::new(FakeStore::default()), large(100));
    let making = save_of(&store, &tree, None);
    let sent = agent::save(&tree, making.requests()).await;
    let (pulled, most) = (AtomicU64::new(0), AtomicU64::new(0));
    let watched = sent.inspect(|message| {
        if let Ok(Some(Part::Chunk(chunk))) = message.as_ref().map(|message| &message.part) {
            let pulled = pulled.fetch_add(chunk.data.len() as u64, SeqCst) + chunk.data.len() as u64;
            most.fetch_max(pulled - store.written(), SeqCst);
        }
    });
    making.run(watched).await.unwrap();
    // one chunk waits for room
    let bound = (MEMORY + (256 << 10)) as u64;
    assert!(most.load(SeqCst) <= bound, "{most:?} of {bound}");
}

#[tokio::test]
async fn a_hundred_thousand_small_files_do_not_wait_for_each_other() {
    let files: BTreeMap<_, _> = (0..100_000u64).map(|n| (format!("{n:06}").into_bytes(), file(noise(n, 40)))).collect();
    let (store, tree) =
        (Arc::new(FakeStore::default()), Tree { roots: [("/w".to_owned(), Node::Folder(files))].into(), chunk: 512 });
    let saved = save(&store, &tree, None).await.unwrap();
    assert!(restored(&store, &open(&store, &saved).await.unwrap()).await.unwrap() == tree.seen());
}

#[tokio::test]
async fn longest_chunks_go_through() {
    let store = Arc::new(FakeStore::default());
    let files = [("a", file(noise(1, 9 << 20))), ("b", file(vec![1; 9 << 20]))];
    let tree = Tree { chunk: 4 << 20, ..Tree::new([("/w", folder(files))]) };
    let saved = save(&store, &tree, None).await.unwrap();
    assert!(restored(&store, &open(&store, &saved).await.unwrap()).await.unwrap() == tree.seen());
}
