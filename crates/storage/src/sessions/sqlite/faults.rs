//! A disk that is full or read-only, a database that another holds.

use std::fs;

use super::*;
use crate::{sessions::conformance::record, small_disk::SmallDisk};

#[tokio::test]
async fn full_disk_is_told_apart_and_damages_nothing() {
    let Some(disk) = SmallDisk::mount("2m") else { return };
    let path = disk.path().join("sessions.db");
    let store = SqliteSessions::open(&path).await.unwrap();
    let kept = record("ada", None);
    store.insert(&kept, &Along::default()).await.unwrap();
    let other = disk.fill();

    let mut refused = None;
    let large = SessionRecord { failure: "x".repeat(100_000), ..record("bob", None) };
    // what the log has room for from before is taken
    for _ in 0..100 {
        match store.insert(&SessionRecord { id: SessionId::generate(), ..large.clone() }, &Along::default()).await {
            Ok(_) => {}
            Err(error) => refused = Some(error),
        }
        if refused.is_some() {
            break;
        }
    }
    assert!(matches!(refused, Some(StorageError::Full { .. })), "{refused:?}");
    assert_eq!(store.get(kept.id).await.unwrap().as_ref(), Some(&kept), "what is there can be read");

    fs::remove_file(other).unwrap();
    assert_eq!(store.insert(&record("bob", None), &Along::default()).await.unwrap(), Inserted::New);
    let sound: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&store.database.pool).await.unwrap();
    assert_eq!(sound, "ok");
    store.close().await;
    let store = SqliteSessions::open(&path).await.unwrap();
    assert_eq!(store.get(kept.id).await.unwrap(), Some(kept));
}

#[tokio::test]
async fn read_only_disk_is_told_at_the_start() {
    let Some(disk) = SmallDisk::mount("2m") else { return };
    let path = disk.path().join("sessions.db");
    SqliteSessions::open(&path).await.unwrap().close().await;
    disk.make_read_only();
    let opened = SqliteSessions::open(&path).await;
    assert!(matches!(opened, Err(StorageError::Unavailable { .. })), "{opened:?}");
}

#[tokio::test]
async fn write_that_another_process_holds_up_is_given_up_and_works_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sessions.db");
    let store = SqliteSessions::open(&path).await.unwrap();
    let (there, waiting) = (record("ada", None), record("bob", None));
    store.insert(&there, &Along::default()).await.unwrap();

    let another = SqliteSessions::open(&path).await.unwrap();
    let mut holder = another.database.pool.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *holder).await.unwrap();
    let refused = store.insert(&waiting, &Along::default()).await;
    assert!(matches!(refused, Err(StorageError::Unavailable { .. })), "{refused:?}");
    assert_eq!(store.get(there.id).await.unwrap(), Some(there), "reads go on");

    sqlx::query("ROLLBACK").execute(&mut *holder).await.unwrap();
    assert_eq!(store.insert(&waiting, &Along::default()).await.unwrap(), Inserted::New);
}
