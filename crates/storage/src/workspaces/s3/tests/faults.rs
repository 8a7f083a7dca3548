//! Connections that break at every part of a request and of an answer.

use super::{
    proxy::{Fault, Proxy},
    *,
};

const SLOW_DOWN: &str = "HTTP/1.1 503 Slow Down\r\ncontent-type: application/xml\r\ncontent-length: 71\r\n\
                         connection: close\r\n\r\n\
                         <Error><Code>SlowDown</Code><Message>reduce your rate</Message></Error>";
const NO_ROOM: &str = "HTTP/1.1 507 Insufficient Storage\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const ONE_BY_ONE: &str = "HTTP/1.1 501 Not Implemented\r\ncontent-type: application/xml\r\ncontent-length: 62\r\n\
                          connection: close\r\n\r\n\
                          <Error><Code>NotImplemented</Code><Message>x</Message></Error>";
const NOT_OURS: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\nconnection: close\r\n\r\nnot found";

async fn world() -> (S3Server, Proxy, S3Workspaces) {
    let server = S3Server::start();
    let proxy = Proxy::before(server.address()).await;
    let store = S3Workspaces::connect(options(proxy.url())).await.unwrap();
    (server, proxy, store)
}

#[tokio::test]
async fn upload_that_is_cut_anywhere_is_repeated_or_leaves_nothing() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    let folder = CheckpointId::generate();
    let whole = content(1, 2 * MIB);
    for cut in [0, 1, 100, 600, 1000, 64 << 10, MIB, whole.len() - 1, whole.len()] {
        let name = format!("pack-{cut}");
        proxy.set(Fault::CutUp(cut), 1).await;
        store.put(folder, &name, whole.clone()).await.unwrap();
        assert_eq!(proxy.faults(), 1, "cut at {cut}");
        assert!(store.get(folder, &name).await.unwrap().unwrap() == whole, "cut at {cut}");

        let name = format!("never-{cut}");
        proxy.set(Fault::CutUp(cut), usize::MAX).await;
        let refused = store.put(folder, &name, whole.clone()).await;
        assert!(is_unavailable(&refused), "cut at {cut}: {refused:?}");
        assert!(proxy.faults() > 1, "cut at {cut}: it was not tried again");
        proxy.set(Fault::Silence, 0).await;
        assert_eq!(store.get(folder, &name).await.unwrap(), None, "cut at {cut}");
    }
}

#[tokio::test]
async fn object_stays_whole_when_what_would_replace_it_is_cut() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    let folder = CheckpointId::generate();
    store.put(folder, "manifest", content(1, 1000)).await.unwrap();
    proxy.set(Fault::CutUp(MIB), usize::MAX).await;
    assert!(is_unavailable(&store.put(folder, "manifest", content(2, 2 * MIB)).await));
    proxy.set(Fault::Silence, 0).await;
    assert_eq!(store.get(folder, "manifest").await.unwrap(), Some(content(1, 1000)));
}

#[tokio::test]
async fn download_that_is_cut_anywhere_is_begun_again_or_fails() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    let folder = CheckpointId::generate();
    let whole = content(1, 2 * MIB);
    let range = 1000..MIB as u64 + 1000;
    let part = whole.slice(1000..MIB + 1000);
    store.put(folder, "pack-00000", whole.clone()).await.unwrap();
    for cut in [0, 1, 100, 1000, 64 << 10, MIB - 1] {
        proxy.set(Fault::CutDown(cut), 2).await;
        assert!(store.get(folder, "pack-00000").await.unwrap().unwrap() == whole, "cut at {cut}");
        assert_eq!(proxy.faults(), 2, "cut at {cut}");
        proxy.set(Fault::CutDown(cut), 2).await;
        assert!(store.read(folder, "pack-00000", range.clone()).await.unwrap().unwrap() == part, "cut at {cut}");
    }
    proxy.set(Fault::CutDown(MIB / 2), usize::MAX).await;
    for broken in [store.get(folder, "pack-00000").await, store.read(folder, "pack-00000", range).await] {
        assert!(is_unavailable(&broken), "a part is never given for the whole: {broken:?}");
    }
}

#[tokio::test]
async fn busy_server_is_asked_again_later() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    let folder = CheckpointId::generate();
    proxy.set(Fault::Answer("PUT", SLOW_DOWN), 2).await;
    store.put(folder, "manifest", content(1, 1000)).await.unwrap();
    assert_eq!(proxy.faults(), 2);
    proxy.set(Fault::Answer("PUT", SLOW_DOWN), usize::MAX).await;
    let refused = store.put(folder, "manifest", content(1, 1000)).await;
    assert!(is_unavailable(&refused), "{refused:?}");
    assert!(format!("{refused:?}").contains("SlowDown: reduce your rate"), "{refused:?}");
}

#[tokio::test]
async fn server_without_room_is_told_apart() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    proxy.set(Fault::Answer("PUT", NO_ROOM), usize::MAX).await;
    let full = store.put(CheckpointId::generate(), "manifest", content(1, 1000)).await;
    assert!(matches!(full, Err(StorageError::Full { .. })), "{full:?}");
}

#[tokio::test]
async fn folder_is_deleted_where_many_cannot_be_at_once() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    let folder = CheckpointId::generate();
    for name in ["manifest", "pack-00000", "pack-00001"] {
        store.put(folder, name, content(1, 10)).await.unwrap();
    }
    proxy.set(Fault::Answer("POST", ONE_BY_ONE), usize::MAX).await;
    store.delete(folder).await.unwrap();
    assert!(proxy.faults() > 0);
    assert_eq!(store.folders(None, 10).await.unwrap(), []);
}

#[tokio::test]
async fn what_stands_between_is_not_taken_for_a_lost_checkpoint() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    let folder = CheckpointId::generate();
    store.put(folder, "manifest", content(1, 10)).await.unwrap();
    proxy.set(Fault::Answer("GET", NOT_OURS), usize::MAX).await;
    for answer in [store.get(folder, "manifest").await, store.read(folder, "manifest", 0..1).await] {
        assert!(answer.is_err(), "{answer:?}");
    }
}

#[tokio::test]
async fn check_does_not_wait_for_a_server_that_is_silent() {
    if left_out() {
        return;
    }
    let (_server, proxy, store) = world().await;
    proxy.set(Fault::Silence, usize::MAX).await;
    let silent = store.check().await;
    assert!(is_unavailable(&silent) && proxy.faults() > 0, "{silent:?}");
    proxy.set(Fault::Silence, 0).await;
    store.check().await.unwrap();
}
