//! Disks that fill, calls that are given up, and calls at once.

use std::{fs, process::Command, sync::Arc};

use cloud_sandbox_images::{ImageError, ImageStore};
use cloud_sandbox_model::template::{Progress, Source};

use crate::{
    pack::pack,
    rig::{LARGE, REFERENCE, Rig, eventually, give_up_while, large, names, options},
    small_disk::SmallDisk,
};

#[tokio::test]
async fn a_full_disk_is_said_and_nothing_is_left() {
    let Some(disk) = SmallDisk::mount("4m") else { return };
    let folder = tempfile::tempdir().unwrap();
    let store = ImageStore::open(options(&disk.path().join("store"))).await.unwrap();
    let large = folder.path().join("large");
    fs::create_dir(&large).unwrap();
    fs::write(large.join("file"), vec![1; 6 << 20]).unwrap();
    let tarball = folder.path().join("large.tar");
    fs::write(&tarball, pack().file("file", &"x".repeat(6 << 20)).bytes()).unwrap();
    for source in [Source::Folder { path: large }, Source::Tarball { path: tarball }] {
        let error = store.prepare(REFERENCE, &source, &Arc::default()).await.unwrap_err();
        assert!(matches!(error, ImageError::DiskFull(_)), "{error:?}");
        assert!(error.to_string().contains(&disk.path().display().to_string()), "{error}");
        for part in ["trees", "layers", "work"] {
            assert_eq!(names(&disk.path().join("store").join(part)), [""; 0]);
        }
    }
    let small = folder.path().join("small.tar");
    fs::write(&small, pack().file("file", "x").bytes()).unwrap();
    store.prepare(REFERENCE, &Source::Tarball { path: small }, &Arc::default()).await.unwrap();
}

#[tokio::test]
async fn a_call_that_is_given_up_leaves_nothing() {
    let rig = Rig::new().await;
    let tarball = rig.tarball(&large());
    give_up_while(&rig, &tarball, "unpacking").await;
    eventually("the thread ends", async || names(&rig.path("work")).is_empty()).await;
    rig.assert_empty();
    rig.prepare(&tarball).await.unwrap();
    rig.assert_holds(&[REFERENCE], 0);
}

#[tokio::test]
async fn a_copy_that_is_given_up_leaves_nothing() {
    let rig = Rig::new().await;
    let image = rig.prepare(&rig.tarball(&large())).await.unwrap();
    let copied = rig.folder.path().join("copied");
    assert!(Command::new("cp").arg("-a").args([&image.root, &copied]).status().unwrap().success());
    rig.store.remove(REFERENCE).await.unwrap();
    give_up_while(&rig, &Source::Folder { path: copied }, "copying").await;
    eventually("the thread ends", async || names(&rig.path("work")).is_empty()).await;
    rig.assert_empty();
}

#[tokio::test]
async fn progress_says_what_is_done_and_how_much_there_is() {
    // just too little room, so that the last phase is the one that is left
    let rig = Rig::limited(LARGE * 8192 - 1, LARGE * 2).await;
    let bytes = large();
    let tarball = rig.tarball(&bytes);
    let progress = Arc::new(Progress::default());
    rig.store.prepare(REFERENCE, &tarball, &progress).await.unwrap_err();
    let (phase, done, total) = progress.now();
    assert_eq!((phase, total), ("unpacking", bytes.len() as u64));
    assert!(done > total / 2 && done <= total, "{done} of {total}");

    let folder = rig.folder.path().join("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a"), vec![1; 1 << 20]).unwrap();
    fs::write(folder.join("b"), vec![1; usize::try_from(LARGE).unwrap() * 8192]).unwrap();
    rig.store.prepare(REFERENCE, &Source::Folder { path: folder }, &progress).await.unwrap_err();
    let (phase, done, _) = progress.now();
    assert_eq!(phase, "copying");
    assert!(done >= 1 << 20, "{done}");

    let small = rig.tarball(&pack().file("a", "1").bytes());
    rig.prepare(&small).await.unwrap();
    let progress = Arc::new(Progress::default());
    rig.store.prepare("other@1", &small, &progress).await.unwrap();
    assert_eq!(progress.now().0, "syncing");
}

#[tokio::test]
async fn calls_for_one_image_at_once_make_it_once() {
    let rig = Rig::new().await;
    let tarball = rig.tarball(&large());
    let progress: Vec<_> = (0..4).map(|_| Arc::new(Progress::default())).collect();
    let calls = progress.iter().map(|progress| rig.store.prepare(REFERENCE, &tarball, progress));
    let images = futures::future::try_join_all(calls).await.unwrap();
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    let worked = progress.iter().filter(|progress| progress.now().0 == "syncing").count();
    let waited = progress.iter().filter(|progress| progress.now().0 == "waiting").count();
    assert_eq!((worked, waited), (1, 3));
    rig.assert_holds(&[REFERENCE], 0);
}
