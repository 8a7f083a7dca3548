//! The conformance suite on a private server, and what only a server can do: refuse, break, fall silent.

use super::*;
use crate::workspaces::conformance::{content, run_all, workspace_cases};

mod faults;
mod proxy;
#[path = "../../../../../tests/setup/s3.rs"]
mod server;

use server::{BUCKET, KEY, KEY_ID, S3Server, left_out};

const MIB: usize = 1 << 20;

fn options(endpoint: String) -> S3Options {
    S3Options {
        endpoint: Some(endpoint),
        region: "us-east-1".into(),
        bucket: BUCKET.into(),
        access_key_id: KEY_ID.into(),
        secret_access_key: KEY.into(),
        force_path_style: true,
        ..S3Options::default()
    }
}

async fn store(server: &S3Server, prefix: &str) -> S3Workspaces {
    let options = S3Options { prefix: prefix.into(), ..options(server.url()) };
    S3Workspaces::connect(options).await.unwrap_or_else(|error| panic!("{error:?}: {}", server.log()))
}

fn is_unavailable<T>(result: &Result<T, StorageError>) -> bool {
    matches!(result, Err(StorageError::Unavailable { .. }))
}

#[tokio::test]
async fn s3_does_what_every_workspace_store_must() {
    if left_out() {
        return;
    }
    let server = S3Server::start();
    let mut number = 0;
    workspace_cases!(run_all!({
        number += 1;
        store(&server, &format!("some/where/case{number}")).await
    }));
    // and where nothing stands before the names
    let bare = store(&server, "").await;
    let folder = CheckpointId::generate();
    bare.put(folder, "manifest", content(0, 10)).await.unwrap();
    assert_eq!(bare.folders(None, 10).await.unwrap(), [folder]);
    assert!(server.bucket().join(folder.to_string()).join("manifest").exists());
}

#[tokio::test]
async fn more_than_one_listing_gives_is_listed_and_deleted() {
    if left_out() {
        return;
    }
    let server = S3Server::start();
    let (full, mut folders) = (CheckpointId::generate(), vec![]);
    let put = |folder: CheckpointId, name: &str| {
        let folder = server.bucket().join("many").join(folder.to_string());
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), "x").unwrap();
    };
    for number in 0..BATCH + 200 {
        put(full, &format!("pack-{number:05}"));
        folders.push(CheckpointId::generate());
        put(folders[number], "manifest");
    }
    folders.push(full);
    folders.sort();
    let store = store(&server, "many").await;
    assert_eq!(store.folders(None, 10_000).await.unwrap(), folders);
    assert_eq!(store.folders(Some(folders[99]), 1050).await.unwrap(), folders[100..1150]);
    store.delete(full).await.unwrap();
    folders.retain(|folder| *folder != full);
    assert_eq!(store.folders(None, 10_000).await.unwrap(), folders);
}

#[tokio::test]
async fn what_is_no_folder_of_ours_is_passed_over() {
    if left_out() {
        return;
    }
    let server = S3Server::start();
    let (folder, file) = (CheckpointId::generate(), CheckpointId::generate());
    for name in ["notes.txt", "lost+found/x", "0/manifest", "zz/manifest", &file.to_string(), &format!("{file}0/x")] {
        let path = server.bucket().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, "x").unwrap();
    }
    let store = store(&server, "").await;
    store.put(folder, "manifest", content(0, 1)).await.unwrap();
    assert_eq!(store.folders(None, 1).await.unwrap(), [folder]);
    assert_eq!(store.folders(Some(folder), 10).await.unwrap(), []);
}

#[tokio::test]
async fn what_is_set_wrongly_is_named_and_no_key_is() {
    if left_out() {
        return;
    }
    let server = S3Server::start();
    let right = options(server.url());
    for (wrong, named) in [
        (S3Options { bucket: "nowhere".into(), ..right.clone() }, "there is no bucket \"nowhere\""),
        (S3Options { access_key_id: "eve".into(), ..right.clone() }, "InvalidAccessKeyId"),
        (S3Options { secret_access_key: "wrong-key".into(), ..right.clone() }, "SignatureDoesNotMatch"),
    ] {
        let text = format!("{wrong:?}");
        assert!(!text.contains("key") && !text.contains(KEY), "{text}");
        let refused = S3Workspaces::connect(wrong).await;
        assert!(matches!(refused, Err(StorageError::Refused { .. })), "{refused:?}");
        let error = refused.unwrap_err();
        let text = format!("{error:?} {error}");
        assert!(text.contains(named), "{text}");
        assert!(!text.contains("wrong-key") && !text.contains(KEY), "{text}");
    }
    let nobody = S3Workspaces::connect(options("http://127.0.0.1:1".into())).await;
    assert!(is_unavailable(&nobody), "{nobody:?}");
}

#[tokio::test]
async fn check_tells_within_a_moment_that_the_server_is_gone_and_back() {
    if left_out() {
        return;
    }
    let mut server = S3Server::start();
    let store = store(&server, "").await;
    for was_written in [false, true] {
        assert_eq!(store.was_written(), was_written);
        store.check().await.unwrap();
    }
    server.kill();
    let gone = store.check().await;
    assert!(is_unavailable(&gone), "{gone:?}");
    server.start_again();
    store.check().await.unwrap();
    *store.written.lock().unwrap() = None;
    server.kill();
    assert!(is_unavailable(&store.check().await), "by a write as well");
}
