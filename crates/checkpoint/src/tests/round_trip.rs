//! What is saved comes back, and only what is new is stored.

use std::{collections::BTreeMap, sync::Arc};

use cloud_sandbox_model::CheckpointId;
use cloud_sandbox_proto::{
    agent::v1::save_tree_response::Part,
    checkpoint::v1::{Contents, LostThing, SavedContext},
};
use futures::{StreamExt, stream};
use proptest::{collection::vec, prelude::*};

use super::{
    BYTES_MAX,
    agent::{self, Node, Tree, file, folder, noise},
    open, restored, save, save_of,
    store::FakeStore,
};
use crate::Save;

/// A tree with one of everything.
pub(super) fn small() -> Tree {
    let work = folder([
        ("a.txt", file("hello")),
        ("b", folder([("deep", folder([("noise", file(noise(1, 1500)))])), ("empty", file(""))])),
        ("b-after-b", Node::Symlink(b"nowhere".to_vec())),
        ("holes", Node::File(vec![(4096, noise(2, 700)), (1 << 40, noise(3, 10))], 1 << 41)),
        ("link", Node::Link),
        ("pipe", Node::Fifo),
        ("same", file("hello")),
        ("zeros", file(vec![0; 3000])),
    ]);
    Tree::new([("/tmp", folder([])), ("/workspace", work)])
}

#[tokio::test]
async fn tree_comes_back_as_it_was() {
    let (store, tree) = (Arc::new(FakeStore::default()), small());
    let saved = save(&store, &tree, None).await.unwrap();
    assert_eq!((saved.files, saved.bytes), (13, 5 + 1500 + 710 + 5 + 3000));
    assert_eq!(saved.pack_checkpoints, [saved.id]);
    assert_eq!(saved.stored_bytes, store.written());
    assert_eq!(store.names(saved.id), ["manifest", "pack-00000"]);
    let checkpoint = open(&store, &saved).await.unwrap();
    assert_eq!((checkpoint.files(), checkpoint.bytes()), (saved.files, saved.bytes));
    assert_eq!(restored(&store, &checkpoint).await.unwrap(), tree.seen());
}

#[tokio::test]
async fn unchanged_tree_writes_no_pack() {
    let (store, tree) = (Arc::new(FakeStore::default()), small());
    let first = save(&store, &tree, None).await.unwrap();
    let base = open(&store, &first).await.unwrap();
    let second = save(&store, &tree, Some(&base)).await.unwrap();
    assert_eq!(store.names(second.id), ["manifest"]);
    assert_eq!(second.pack_checkpoints, [first.id]);
    // and a third on top of it still points to the first
    let base = open(&store, &second).await.unwrap();
    let third = save(&store, &tree, Some(&base)).await.unwrap();
    assert_eq!(third.pack_checkpoints, [first.id]);
    store.remove(second.id, "manifest");
    assert_eq!(restored(&store, &open(&store, &third).await.unwrap()).await.unwrap(), tree.seen());
}

#[tokio::test]
async fn only_what_changed_is_stored() {
    let store = Arc::new(FakeStore::default());
    let large = noise(7, 200 * agent::CHUNK);
    let mut changed = large.to_vec();
    changed[100 * agent::CHUNK + 5] ^= 1;
    let before = Tree::new([("/w", folder([("large", file(large.clone()))]))]);
    // one chunk differs, and the old data lies at another path too
    let after = Tree::new([("/w", folder([("large", file(changed)), ("moved", file(large))]))]);
    let first = save(&store, &before, None).await.unwrap();
    let second = save(&store, &after, Some(&open(&store, &first).await.unwrap())).await.unwrap();
    assert_eq!(store.object(second.id, "pack-00000").len(), agent::CHUNK);
    assert_eq!(second.pack_checkpoints, [first.id, second.id]);
    assert_eq!(restored(&store, &open(&store, &second).await.unwrap()).await.unwrap(), after.seen());
}

#[tokio::test]
async fn same_data_is_stored_once() {
    let store = Arc::new(FakeStore::default());
    let copies: BTreeMap<_, _> = (0..50u8).map(|n| (vec![b'a' + n], file(noise(7, 5000)))).collect();
    let tree = Tree { roots: [("/w".to_owned(), Node::Folder(copies))].into(), chunk: agent::CHUNK };
    let saved = save(&store, &tree, None).await.unwrap();
    assert_eq!(store.object(saved.id, "pack-00000").len(), 5000);
    assert_eq!(restored(&store, &open(&store, &saved).await.unwrap()).await.unwrap(), tree.seen());
}

#[tokio::test]
async fn no_pack_is_kept_for_what_is_gone() {
    let store = Arc::new(FakeStore::default());
    let first = save(&store, &small(), None).await.unwrap();
    let other = Tree::new([("/tmp", folder([])), ("/workspace", folder([("new", file(noise(9, 900)))]))]);
    let second = save(&store, &other, Some(&open(&store, &first).await.unwrap())).await.unwrap();
    assert_eq!(second.pack_checkpoints, [second.id]);
    let nothing = Tree::new([("/tmp", folder([])), ("/workspace", folder([]))]);
    let third = save(&store, &nothing, Some(&open(&store, &second).await.unwrap())).await.unwrap();
    assert_eq!((third.files, third.bytes, third.pack_checkpoints.len()), (2, 0, 0));
}

#[tokio::test]
async fn contents_and_lost_things_are_in_the_checkpoint() {
    let store = Arc::new(FakeStore::default());
    let contents = Contents {
        contexts: vec![SavedContext { context_id: "cx".into(), values: noise(1, 100), ..Default::default() }],
        ..Default::default()
    };
    let tree = small();
    let id = CheckpointId::generate();
    let save = Save::new(Arc::clone(&store) as _, id, tree.root_names(), contents.clone(), BYTES_MAX).unwrap();
    let lost = |n: u32| LostThing { kind: "socket".into(), what: format!("/tmp/{n}"), reason: "a socket".into() };
    let losses = stream::iter((0..300).map(lost).map(|lost| agent::message(Part::Lost(lost))));
    let sent = agent::save(&tree, save.requests()).await;
    let saved = save.run(losses.chain(sent)).await.unwrap();
    let found = open(&store, &saved).await.unwrap().contents();
    assert_eq!((&found.contexts, &found), (&contents.contexts, &saved.contents));
    assert_eq!((found.lost.len(), &found.lost[255], found.lost[256].what.as_str()), (257, &lost(255), "44 more"));
}

#[tokio::test]
async fn base_is_sent_as_files_with_data_alone() {
    let store = Arc::new(FakeStore::default());
    let saved = save(&store, &small(), None).await.unwrap();
    let base = open(&store, &saved).await.unwrap();
    let asked: Vec<_> = save_of(&store, &small(), Some(base)).requests().collect().await;
    // the start, five files with data, the end
    assert_eq!(asked.len(), 1 + 5 + 1);
}

fn arb_data() -> impl Strategy<Value = bytes::Bytes> {
    (0..4u64, 1..4000usize, any::<bool>())
        .prop_map(|(seed, length, plain)| if plain { vec![seed as u8; length].into() } else { noise(seed, length) })
}

fn arb_node() -> impl Strategy<Value = Node> {
    let holes = vec((1..5000u64, arb_data()), 0..4).prop_map(|runs| {
        let mut end = 0;
        let runs: Vec<_> = runs
            .into_iter()
            .map(|(gap, data)| {
                let offset = end + gap;
                end = offset + data.len() as u64;
                (offset, data)
            })
            .collect();
        Node::File(runs, end + 77)
    });
    let leaf = prop_oneof![
        arb_data().prop_map(file),
        holes,
        Just(file("")),
        Just(Node::Fifo),
        Just(Node::Link),
        vec(1..=255u8, 1..20).prop_map(Node::Symlink),
    ];
    let name = vec(prop_oneof![Just(b'a'), Just(b'-'), Just(b'.'), Just(0xff), Just(1)], 1..4)
        .prop_filter("no name", |name| name != b"." && name != b"..");
    leaf.prop_recursive(4, 40, 6, move |inner| {
        proptest::collection::btree_map(name.clone(), inner, 0..6).prop_map(Node::Folder)
    })
}

fn arb_tree() -> impl Strategy<Value = Tree> {
    let root = || proptest::collection::btree_map(vec(b'a'..=b'e', 1..3), arb_node(), 0..6).prop_map(Node::Folder);
    (root(), root()).prop_map(|(one, other)| Tree::new([("/home/user", one), ("/tmp", other)]))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_comes_back_alone_and_on_top_of_any_other(trees in vec(arb_tree(), 3)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (store, mut base) = (Arc::new(FakeStore::default()), None);
            for tree in &trees {
                let saved = save(&store, tree, base.as_ref()).await.unwrap();
                let checkpoint = open(&store, &saved).await.unwrap();
                prop_assert_eq!(restored(&store, &checkpoint).await.unwrap(), tree.seen());
                base = Some(checkpoint);
            }
            Ok(())
        })?;
    }
}
