//! Agents that send what no tree is.

use std::sync::Arc;

use bytes::Bytes;
use cloud_sandbox_model::{
    CheckpointId, ErrorKind,
    error::{Error, chain},
};
use cloud_sandbox_proto::{
    agent::v1::{ChunkData, SaveTreeEnd, SaveTreeResponse, save_tree_response::Part},
    checkpoint::v1::{Chunk, Contents, EntryKind, Extent, LostThing, TreeEntry, Xattr},
};
use futures::stream;
use proptest::{collection::vec, prelude::*};

use super::{agent::chunk_of, store::FakeStore};
use crate::{Save, Saved};

const MAX: u64 = 10_000;

fn entry(path: &str, kind: EntryKind) -> TreeEntry {
    TreeEntry { path: Bytes::copy_from_slice(path.as_bytes()), kind: kind.into(), ..Default::default() }
}

fn dir(path: &str) -> Part {
    Part::Entry(entry(path, EntryKind::Folder))
}

fn data() -> ChunkData {
    chunk_of(Bytes::from_static(b"some data"))
}

fn extent(offset: u64) -> Extent {
    Extent { offset, chunks: vec![Chunk { hash: data().hash, length: 9 }] }
}

fn with(path: &str, extents: Vec<Extent>, size: u64) -> Part {
    Part::Entry(TreeEntry { extents, size, ..entry(path, EntryKind::File) })
}

fn link(path: &str, to: &str) -> TreeEntry {
    TreeEntry { path: path.to_owned().into(), hard_link: to.to_owned().into(), ..Default::default() }
}

fn end(entries: u64, bytes: u64) -> Part {
    Part::End(SaveTreeEnd { entries, bytes })
}

async fn run(store: &Arc<FakeStore>, parts: Vec<Option<Part>>) -> Result<Saved, Error> {
    let roots = vec!["/tmp".to_owned(), "/w".to_owned()];
    let save = Save::new(Arc::clone(store) as _, CheckpointId::generate(), roots, Contents::default(), MAX).unwrap();
    save.run(stream::iter(parts.into_iter().map(|part| Ok(SaveTreeResponse { part })))).await
}

/// A tree with these parts in its second root, and the right end.
async fn run_inside(inside: Vec<Part>) -> Result<Saved, Error> {
    let entries = 2 + inside.iter().filter(|part| matches!(part, Part::Entry(_))).count() as u64;
    let files = inside.iter().filter_map(|part| match part {
        Part::Entry(entry) => Some(entry.extents.iter().flat_map(|extent| &extent.chunks)),
        _ => None,
    });
    let bytes = files.flatten().map(|chunk| u64::from(chunk.length)).sum();
    let parts = [dir("/tmp"), dir("/w")].into_iter().chain(inside).chain([end(entries, bytes)]);
    run(&Arc::new(FakeStore::default()), parts.map(Some).collect()).await
}

fn assert_nonsense(outcome: Result<Saved, Error>, what: &str) {
    let error = outcome.expect_err(what);
    assert_eq!(error.kind(), ErrorKind::Internal, "{what}");
    assert!(chain(&error).contains("what no tree is"), "{what}: {}", chain(&error));
}

#[tokio::test]
async fn tree_with_the_same_parts_in_order_is_taken() {
    let parts = vec![
        dir("/w/a"),
        Part::Chunk(data()),
        with("/w/a/f", vec![extent(0), extent(20)], 30),
        with("/w/b", vec![extent(0)], 9),
        Part::Entry(link("/w/c", "/w/b")),
    ];
    assert_eq!(run_inside(parts).await.unwrap().bytes, 27);
}

#[tokio::test]
async fn paths_outside_or_out_of_order_are_refused() {
    let file = |path: &str| Part::Entry(entry(path, EntryKind::File));
    let wrong = [
        vec![file("/etc/passwd")],
        vec![file("w")],
        vec![file("")],
        vec![file("/")],
        vec![file("/w/")],
        vec![file("/w//a")],
        vec![file("/w/.")],
        vec![file("/w/..")],
        vec![file("/w/../etc")],
        vec![file("/w/a\0b")],
        vec![file(&format!("/w/{}", "n".repeat(256)))],
        vec![file("/w/a/b")],
        vec![file("/w/a"), file("/w/a/b")],
        vec![file("/w/b"), file("/w/a")],
        vec![file("/w/a"), file("/w/a")],
        vec![dir("/w/a"), file("/w/b"), file("/w/a/c")],
        // the first root is over
        vec![file("/tmp/a")],
        vec![dir("/w")],
    ];
    for parts in wrong {
        let what = format!("{parts:?}");
        assert_nonsense(run_inside(parts).await, &what);
    }
}

#[tokio::test]
async fn fields_beyond_their_bounds_are_refused() {
    let of = |kind, change: fn(&mut TreeEntry)| {
        let mut entry = entry("/w/x", kind);
        change(&mut entry);
        vec![Part::Entry(entry)]
    };
    let xattr = |name: &str, size| Xattr { name: name.to_owned().into(), value: vec![0; size].into() };
    let with_xattr = |xattr| {
        let xattrs = vec![xattr];
        vec![Part::Entry(TreeEntry { xattrs, ..entry("/w/x", EntryKind::File) })]
    };
    let wrong = [
        of(EntryKind::Unspecified, |_| {}),
        of(EntryKind::File, |entry| entry.kind = 99),
        of(EntryKind::File, |entry| entry.mode = 0o10000),
        of(EntryKind::File, |entry| entry.mtime_nanos = 1_000_000_000),
        of(EntryKind::File, |entry| entry.size = u64::MAX),
        of(EntryKind::File, |entry| entry.target = "x".into()),
        of(EntryKind::Symlink, |_| {}),
        of(EntryKind::Symlink, |entry| entry.target = "a\0b".into()),
        of(EntryKind::Symlink, |entry| (entry.target, entry.size) = ("x".into(), 1)),
        of(EntryKind::Folder, |entry| entry.extents = vec![extent(0)]),
        of(EntryKind::Fifo, |entry| entry.size = 5),
        with_xattr(xattr("security.capability", 1)),
        with_xattr(xattr("user.", 1)),
        with_xattr(xattr("user.x", (64 << 10) + 1)),
        with_xattr(xattr(&format!("user.{}", "x".repeat(300)), 1)),
        vec![Part::Entry(link("/w/x", "/w/nothing"))],
        vec![Part::Entry(link("/w/x", "/w"))],
        vec![Part::Entry(link("/w/x", "/w/x"))],
        vec![Part::Entry(entry("/w/a", EntryKind::File)), Part::Entry(TreeEntry { mode: 1, ..link("/w/x", "/w/a") })],
        vec![Part::Lost(LostThing { what: "x".repeat(20_000), ..Default::default() })],
    ];
    for parts in wrong {
        let what = format!("{:?}", parts.last()).chars().take(200).collect::<String>();
        assert_nonsense(run_inside(parts).await, &what);
    }
}

#[tokio::test]
async fn data_that_does_not_fit_is_refused() {
    let chunk = |hash: &'static [u8], length| Chunk { hash: Bytes::from_static(hash), length };
    let one = |chunk| vec![Extent { offset: 0, chunks: vec![chunk] }];
    let unknown = chunk(&[7; 32], 9);
    let wrong = [
        vec![Part::Chunk(data()), with("/w/x", vec![extent(20), extent(0)], 100)],
        vec![Part::Chunk(data()), with("/w/x", vec![extent(0), extent(8)], 100)],
        vec![Part::Chunk(data()), with("/w/x", vec![extent(0)], 8)],
        vec![Part::Chunk(data()), with("/w/x", vec![extent(u64::MAX)], i64::MAX as u64)],
        vec![with("/w/x", vec![Extent { offset: 0, chunks: Vec::new() }], 100)],
        vec![with("/w/x", one(unknown), 100)],
        vec![with("/w/x", one(chunk(&[7; 31], 9)), 100)],
        vec![with("/w/x", one(chunk(&[7; 32], 0)), 100)],
        vec![with("/w/x", one(chunk(&[7; 32], (4 << 20) + 1)), 100 << 20)],
        vec![Part::Chunk(data()), with("/w/x", one(Chunk { hash: data().hash, length: 8 }), 100)],
        // another hash, no hash, no data, too much of it, nobody's
        vec![Part::Chunk(ChunkData { hash: Bytes::from_static(&[7; 32]), ..data() })],
        vec![Part::Chunk(ChunkData { hash: Bytes::new(), ..data() })],
        vec![Part::Chunk(chunk_of(Bytes::new()))],
        vec![Part::Chunk(chunk_of(vec![0; (4 << 20) + 1].into()))],
        vec![Part::Chunk(data())],
        // more than the sandbox can hold
        vec![Part::Chunk(chunk_of(vec![0; MAX as usize + 1].into()))],
        vec![Part::Chunk(data()), with("/w/x", (0..=MAX / 9).map(|n| extent(n * 9)).collect(), MAX * 2)],
    ];
    for parts in wrong {
        let what = format!("{parts:?}").chars().take(300).collect::<String>();
        assert_nonsense(run_inside(parts).await, &what);
    }
}

#[tokio::test]
async fn streams_without_their_right_end_are_refused() {
    let both = || vec![Some(dir("/tmp")), Some(dir("/w"))];
    let then = |parts: Vec<Option<Part>>| both().into_iter().chain(parts).collect::<Vec<_>>();
    let wrong = [
        vec![],
        both(),
        then(vec![None]),
        then(vec![Some(end(3, 0))]),
        then(vec![Some(end(2, 1))]),
        then(vec![Some(end(2, 0)), Some(end(2, 0))]),
        then(vec![Some(end(2, 0)), Some(dir("/w/a"))]),
        vec![Some(dir("/tmp")), Some(end(1, 0))],
        vec![Some(dir("/w")), Some(dir("/tmp")), Some(end(2, 0))],
        vec![Some(Part::Entry(entry("/tmp", EntryKind::File))), Some(dir("/w")), Some(end(2, 0))],
    ];
    for parts in wrong {
        let what = format!("{parts:?}");
        let store = Arc::new(FakeStore::default());
        assert_nonsense(run(&store, parts).await, &what);
        assert_eq!(store.puts(), 0, "{what}");
    }
}

#[tokio::test]
async fn error_of_the_stream_is_the_error_of_the_save() {
    let store = Arc::new(FakeStore::default());
    let roots = vec!["/w".to_owned()];
    let save = Save::new(Arc::clone(&store) as _, CheckpointId::generate(), roots, Contents::default(), MAX).unwrap();
    let failing = stream::iter([Err(Error::new(ErrorKind::Aborted, "CHANGED", "a file changed"))]);
    assert_eq!(save.run(failing).await.unwrap_err().message(), "a file changed");
    assert_eq!(store.puts(), 0);
}

#[tokio::test]
async fn roots_that_are_no_folders_in_order_are_refused() {
    let store = Arc::new(FakeStore::default());
    for roots in [&[][..], &["tmp"], &["/"], &["/tmp/"], &["/a/../b"], &["/b", "/a"], &["/a", "/a"]] {
        let roots: Vec<_> = roots.iter().map(|root| (*root).to_owned()).collect();
        let made =
            Save::new(Arc::clone(&store) as _, CheckpointId::generate(), roots.clone(), Contents::default(), MAX);
        assert_eq!(made.err().unwrap().kind(), ErrorKind::InvalidArgument, "{roots:?}");
    }
}

fn arb_part() -> impl Strategy<Value = Part> {
    let path = prop_oneof![Just("/w"), Just("/tmp"), Just("/w/a"), Just("/w/a/b"), Just("/w/c"), Just("/x"), Just("")];
    let extents = vec((0..40u64, vec((0..3usize, 0..20u32), 0..3)), 0..3).prop_map(|extents| {
        let chunk = |(hash, length): (usize, u32)| Chunk {
            hash: [data().hash, Bytes::new(), vec![1; 32].into()][hash].clone(),
            length,
        };
        let extent =
            |(offset, chunks): (u64, Vec<_>)| Extent { offset, chunks: chunks.into_iter().map(chunk).collect() };
        extents.into_iter().map(extent).collect()
    });
    let entry = (path.clone(), 0..6i32, extents, 0..50u64, prop_oneof![4 => Just(""), 1 => path]).prop_map(
        |(path, kind, extents, size, hard_link)| {
            let (path, hard_link) = (path.into(), hard_link.into());
            Part::Entry(TreeEntry { path, kind, extents, size, hard_link, ..Default::default() })
        },
    );
    prop_oneof![6 => entry, 1 => Just(Part::Chunk(data())), 1 => (0..5u64, 0..30u64).prop_map(|(n, b)| end(n, b))]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_stream_is_a_panic_and_none_that_is_taken_cannot_be_read(parts in vec(arb_part(), 0..8)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let store = Arc::new(FakeStore::default());
            let parts = [dir("/tmp"), dir("/w")].into_iter().chain(parts).map(Some).collect();
            if let Ok(saved) = run(&store, parts).await {
                super::open(&store, &saved).await.unwrap();
            }
        });
    }
}
