//! What every [`WorkspaceStore`] must do; each implementation runs all of it.

use super::*;

/// Hands every case below to another macro.
macro_rules! workspace_cases {
    ($then:ident!($make:expr)) => {
        $then! { $make =>
            object_is_read_back_as_written,
            range_is_read_unless_the_object_ends_before_it,
            object_is_replaced_as_a_whole,
            objects_of_one_name_are_apart_in_their_folders,
            one_of_many_puts_is_there_whole,
            folders_page_without_gap_or_repeat,
            deleted_folder_is_gone_with_all_its_objects,
            folder_that_is_deleted_and_written_at_once_is_never_half_there,
            name_that_no_object_has_is_refused,
            store_answers,
        }
    };
}
pub(crate) use workspace_cases;

/// Makes one test of each case. The expression gives what the store cannot live without, and the store.
macro_rules! test_each {
    ($make:expr => $($case:ident,)*) => {$(
        #[tokio::test]
        async fn $case() {
            let (_guard, store) = $make;
            $crate::workspaces::conformance::$case(&store).await;
        }
    )*};
}
pub(crate) use test_each;

/// Runs all cases one after another, where each test of its own would cost a server. A failure names its line.
macro_rules! run_all {
    ($make:expr => $($case:ident,)*) => {$({
        let store = $make;
        $crate::workspaces::conformance::$case(&store).await;
    })*};
}
pub(crate) use run_all;

const MIB: usize = 1 << 20;

/// Bytes that say where they are from.
pub(crate) fn content(seed: usize, length: usize) -> Bytes {
    (0..length).map(|at| (at * 31 + at / 251 + seed * 7) as u8).collect()
}

pub(crate) async fn object_is_read_back_as_written(store: &dyn WorkspaceStore) {
    let folder = CheckpointId::generate();
    assert_eq!(store.get(folder, "manifest").await.unwrap(), None, "without the folder");
    let longest = "a-0".repeat(21) + "z";
    for (seed, (name, length)) in
        [("manifest", 0), ("pack-00000", 1), (longest.as_str(), 4096), ("pack-00001", 9 * MIB + 7)].iter().enumerate()
    {
        let content = content(seed, *length);
        store.put(folder, name, content.clone()).await.unwrap();
        assert!(store.get(folder, name).await.unwrap().unwrap() == content, "{name}");
    }
    assert_eq!(store.get(folder, "pack-00002").await.unwrap(), None, "beside others");
}

pub(crate) async fn range_is_read_unless_the_object_ends_before_it(store: &dyn WorkspaceStore) {
    let folder = CheckpointId::generate();
    let content = content(0, 3 * MIB);
    let size = content.len() as u64;
    store.put(folder, "pack-00000", content.clone()).await.unwrap();
    store.put(folder, "empty", Bytes::new()).await.unwrap();
    for range in [0..1, 0..size, 1..2, MIB as u64 - 1..2 * MIB as u64 + 1, size - 1..size, 0..0, 5..5, size..size] {
        let read = store.read(folder, "pack-00000", range.clone()).await.unwrap().unwrap();
        assert!(read == content[range.start as usize..range.end as usize], "{range:?}");
    }
    for range in [0..size + 1, size - 1..size + 1, size..size + 1, size + 1..size + 1, 2 * size..3 * size, 0..u64::MAX]
    {
        let read = store.read(folder, "pack-00000", range.clone()).await.unwrap();
        assert!(read.is_none(), "{range:?}");
    }
    assert_eq!(store.read(folder, "empty", 0..0).await.unwrap(), Some(Bytes::new()));
    assert_eq!(store.read(folder, "empty", 0..1).await.unwrap(), None);
    for range in [0..0, 0..1] {
        assert_eq!(store.read(folder, "pack-00001", range.clone()).await.unwrap(), None, "no object");
        assert_eq!(store.read(CheckpointId::generate(), "pack-00000", range).await.unwrap(), None, "no folder");
    }
}

pub(crate) async fn object_is_replaced_as_a_whole(store: &dyn WorkspaceStore) {
    let folder = CheckpointId::generate();
    for (seed, length) in [(1, MIB), (2, 10), (3, 2 * MIB), (4, 0)] {
        let content = content(seed, length);
        store.put(folder, "manifest", content.clone()).await.unwrap();
        assert!(store.get(folder, "manifest").await.unwrap().unwrap() == content, "{seed}");
    }
}

pub(crate) async fn objects_of_one_name_are_apart_in_their_folders(store: &dyn WorkspaceStore) {
    let folders = [(); 3].map(|()| CheckpointId::generate());
    for (seed, folder) in folders.into_iter().enumerate() {
        store.put(folder, "manifest", content(seed, 10)).await.unwrap();
        store.put(folder, "manifest-1", content(seed + 100, 10)).await.unwrap();
    }
    for (seed, folder) in folders.into_iter().enumerate() {
        assert_eq!(store.get(folder, "manifest").await.unwrap(), Some(content(seed, 10)));
    }
}

pub(crate) async fn one_of_many_puts_is_there_whole(store: &dyn WorkspaceStore) {
    let folder = CheckpointId::generate();
    let put = |seed| store.put(folder, "pack-00000", content(seed, MIB + seed));
    let (a, b, c, d) = tokio::join!(put(0), put(1), put(2), put(3));
    for done in [a, b, c, d] {
        done.unwrap();
    }
    let there = store.get(folder, "pack-00000").await.unwrap().unwrap();
    assert!(there == content(there.len() - MIB, there.len()));
}

pub(crate) async fn folders_page_without_gap_or_repeat(store: &dyn WorkspaceStore) {
    assert_eq!(store.folders(None, 10).await.unwrap(), []);
    let mut folders = [(); 11].map(|()| CheckpointId::generate());
    for folder in folders {
        store.put(folder, "manifest", content(0, 1)).await.unwrap();
        store.put(folder, "pack-00000", content(0, 1)).await.unwrap();
    }
    folders.sort();
    assert_eq!(store.folders(None, 1000).await.unwrap(), folders);
    assert_eq!(store.folders(None, 0).await.unwrap(), []);
    for limit in [1, 3, 11] {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = store.folders(after, limit).await.unwrap();
            assert!(page.len() <= limit);
            let Some(last) = page.last() else { break };
            after = Some(*last);
            seen.extend(page);
        }
        assert_eq!(seen, folders, "{limit} at a time");
    }
    // one that is gone is as good a place to go on from
    store.delete(folders[4]).await.unwrap();
    assert_eq!(store.folders(Some(folders[4]), 2).await.unwrap(), folders[5..7]);
}

pub(crate) async fn deleted_folder_is_gone_with_all_its_objects(store: &dyn WorkspaceStore) {
    let (folder, other) = (CheckpointId::generate(), CheckpointId::generate());
    for name in ["manifest", "pack-00000", "pack-00001"] {
        store.put(folder, name, content(0, 100)).await.unwrap();
        store.put(other, name, content(1, 100)).await.unwrap();
    }
    for _ in 0..2 {
        store.delete(folder).await.unwrap();
        assert_eq!(store.folders(None, 10).await.unwrap(), [other]);
        assert_eq!(store.get(folder, "manifest").await.unwrap(), None);
        assert_eq!(store.read(folder, "pack-00001", 0..1).await.unwrap(), None);
    }
    assert_eq!(store.get(other, "pack-00001").await.unwrap(), Some(content(1, 100)));
    store.put(folder, "manifest", content(2, 5)).await.unwrap();
    assert_eq!(store.get(folder, "manifest").await.unwrap(), Some(content(2, 5)));
    assert_eq!(store.get(folder, "pack-00000").await.unwrap(), None, "what was deleted stays so");
}

pub(crate) async fn folder_that_is_deleted_and_written_at_once_is_never_half_there(store: &dyn WorkspaceStore) {
    let folder = CheckpointId::generate();
    for _ in 0..10 {
        let put = store.put(folder, "manifest", content(0, 1000));
        let (put, deleted, again) = tokio::join!(put, store.delete(folder), store.delete(folder));
        put.unwrap();
        deleted.unwrap();
        again.unwrap();
        let there = store.get(folder, "manifest").await.unwrap();
        assert!(there.is_none_or(|there| there == content(0, 1000)));
    }
}

pub(crate) async fn name_that_no_object_has_is_refused(store: &dyn WorkspaceStore) {
    let folder = CheckpointId::generate();
    for name in ["", ".", "..", "../manifest", "a/b", "Manifest", "a b", "\0", "ä", &"a".repeat(65)] {
        let refused = store.put(folder, name, Bytes::new()).await;
        assert!(matches!(refused, Err(StorageError::Refused { .. })), "{name:?}: {refused:?}");
        assert_eq!(store.get(folder, name).await.unwrap(), None, "{name:?}");
        assert_eq!(store.read(folder, name, 0..0).await.unwrap(), None, "{name:?}");
    }
    assert_eq!(store.folders(None, 10).await.unwrap(), []);
}

pub(crate) async fn store_answers(store: &dyn WorkspaceStore) {
    store.check().await.unwrap();
    assert_eq!(store.folders(None, 10).await.unwrap(), [], "what a check writes is no folder");
}
