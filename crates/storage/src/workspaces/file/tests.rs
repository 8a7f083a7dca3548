//! The conformance suite on a folder, and what only a disk can do: be full, be shared, be left half written.

use std::{fs, os::unix::fs::PermissionsExt};

use super::*;
use crate::{
    small_disk::SmallDisk,
    workspaces::conformance::{content, test_each, workspace_cases},
};

async fn store() -> (tempfile::TempDir, FileWorkspaces) {
    let folder = tempfile::tempdir().unwrap();
    let store = FileWorkspaces::open(&folder.path().join("workspaces")).await.unwrap();
    (folder, store)
}

workspace_cases!(test_each!(store().await));

/// Everything in a folder, in order.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn nobody_else_may_look_into_a_workspace() {
    let (_guard, store) = store().await;
    let folder = CheckpointId::generate();
    store.put(folder, "manifest", content(0, 10)).await.unwrap();
    let root = &store.root;
    for (path, mode) in
        [(root.path.clone(), 0o700), (root.folder(folder), 0o700), (root.object(folder, "manifest"), 0o600)]
    {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[tokio::test]
async fn objects_survive_a_restart_and_what_was_half_done_does_not() {
    let (_guard, store) = store().await;
    let (folder, root) = (CheckpointId::generate(), store.root.path.clone());
    store.put(folder, "manifest", content(0, 10)).await.unwrap();
    drop(store);
    fs::write(root.join(".put-1"), "half").unwrap();
    fs::create_dir(root.join(".delete-1")).unwrap();
    fs::write(root.join(".delete-1/pack-00000"), "half").unwrap();
    fs::write(root.join("notes.txt"), "somebody else's").unwrap();

    let store = FileWorkspaces::open(&root).await.unwrap();
    assert_eq!(store.get(folder, "manifest").await.unwrap(), Some(content(0, 10)));
    assert_eq!(names(&root), [folder.to_string(), "notes.txt".into()]);
}

#[tokio::test]
async fn what_another_living_process_has_half_done_is_left_alone() {
    let (_guard, first) = store().await;
    let root = first.root.path.clone();
    let draft = root.join(".put-1");
    fs::write(&draft, "half").unwrap();
    let second = FileWorkspaces::open(&root).await.unwrap();
    assert!(draft.exists());
    drop(first);
    let third = FileWorkspaces::open(&root).await.unwrap();
    assert!(draft.exists(), "the second one may have written it");
    drop((second, third));
    FileWorkspaces::open(&root).await.unwrap();
    assert!(!draft.exists());
}

#[tokio::test]
async fn what_is_no_folder_of_ours_is_passed_over() {
    let (_guard, store) = store().await;
    let (folder, root) = (CheckpointId::generate(), store.root.path.clone());
    store.put(folder, "manifest", content(0, 10)).await.unwrap();
    let (file, link, wide) = (CheckpointId::generate(), CheckpointId::generate(), CheckpointId::generate());
    fs::write(root.join(file.to_string()), "").unwrap();
    std::os::unix::fs::symlink("/", root.join(link.to_string())).unwrap();
    for name in ["lost+found".to_owned(), wide.to_string().to_uppercase(), format!("{wide}0")] {
        fs::create_dir(root.join(name)).unwrap();
    }
    assert_eq!(store.folders(None, 10).await.unwrap(), [folder]);
}

#[tokio::test]
async fn nothing_half_done_is_left_by_what_went_well() {
    let (_guard, store) = store().await;
    let folder = CheckpointId::generate();
    store.put(folder, "manifest", content(0, 10)).await.unwrap();
    store.check().await.unwrap();
    store.delete(CheckpointId::generate()).await.unwrap();
    assert_eq!(names(&store.root.path), [folder.to_string()]);
    store.delete(folder).await.unwrap();
    assert_eq!(names(&store.root.path), [""; 0]);
}

#[tokio::test]
async fn full_disk_is_told_apart_and_leaves_no_part_of_an_object() {
    let Some(disk) = SmallDisk::mount("1m") else { return };
    let root = disk.path().join("workspaces");
    let store = FileWorkspaces::open(&root).await.unwrap();
    let (kept, failed) = (CheckpointId::generate(), CheckpointId::generate());
    store.put(kept, "manifest", content(0, 1000)).await.unwrap();
    let full = store.put(failed, "pack-00000", content(1, 2 << 20)).await;
    assert!(matches!(full, Err(StorageError::Full { .. })), "{full:?}");
    assert_eq!(names(&root), [kept.to_string()], "a put that failed gives back what it took");
    let full = store.put(kept, "manifest", content(1, 2 << 20)).await;
    assert!(matches!(full, Err(StorageError::Full { .. })), "{full:?}");
    assert_eq!(store.get(kept, "manifest").await.unwrap(), Some(content(0, 1000)), "the old one stays");

    let other = disk.fill();
    let full = store.check().await.unwrap_err();
    assert_eq!(full.to_string(), "the workspace folder is full");
    // room is made where there is none
    store.delete(kept).await.unwrap();
    fs::remove_file(other).unwrap();
    store.check().await.unwrap();

    disk.make_read_only();
    let read_only = store.check().await;
    assert!(matches!(read_only, Err(StorageError::Unavailable { .. })), "{read_only:?}");
}

#[tokio::test]
async fn place_that_cannot_be_used_is_named() {
    let (guard, _store) = store().await;
    let file = guard.path().join("file");
    fs::write(&file, "").unwrap();
    let error = FileWorkspaces::open(&file.join("workspaces")).await.unwrap_err();
    let text = cloud_sandbox_model::error::chain(&error);
    assert!(text.contains(file.to_str().unwrap()), "{text}");
}
