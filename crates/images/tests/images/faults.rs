//! Disks that fill, calls that are given up, and calls at once.

use std::{fs, sync::Arc};

use cloud_sandbox_images::{ImageError, ImageStore};
use cloud_sandbox_model::template::{Progress, Source};

use crate::{
    pack::{Pack, pack},
    rig::{REFERENCE, Rig, eventually, give_up_while, names, options},
    small_disk::SmallDisk,
};

/// Enough files to be in the middle of.
fn large() -> Pack {
    let content = "0123456789abcdef".repeat(64);
    (0..20_000).fold(pack(), |pack, number| pack.file(&format!("{}/{number}", number / 100), &content))
}

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
        assert!(error.retryable());
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
    let tarball = rig.tarball(&large().bytes());
    give_up_while(&rig, &tarball, "unpacking").await;
    eventually("the thread ends", async || names(&rig.path("work")).is_empty()).await;
    rig.assert_empty();
    let image = rig.prepare(&tarball).await.unwrap();
    give_up_copy(&rig, &image.root).await;
    rig.assert_holds(&[REFERENCE], 0);
}

async fn give_up_copy(rig: &Rig, folder: &std::path::Path) {
    let copied = rig.folder.path().join("copied");
    assert!(std::process::Command::new("cp").arg("-a").args([folder, &copied]).status().unwrap().success());
    let progress = Arc::new(Progress::default());
    let source = Source::Folder { path: copied };
    let copying = rig.store.prepare("copy@1", &source, &progress);
    let under_way = async {
        while progress.now().1 == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        made = copying => panic!("it was over too soon: {made:?}"),
        () = under_way => {}
    }
    eventually("the thread ends", async || names(&rig.path("work")).is_empty()).await;
}

#[tokio::test]
async fn progress_says_what_is_done_and_how_much_there_is() {
    let rig = Rig::new().await;
    let bytes = large().bytes();
    let total = bytes.len() as u64;
    let tarball = rig.tarball(&bytes);
    let progress = Arc::new(Progress::default());
    let mut seen = Vec::new();
    let mut preparing = std::pin::pin!(rig.store.prepare(REFERENCE, &tarball, &progress));
    let image = loop {
        tokio::select! {
            image = &mut preparing => break image.unwrap(),
            () = tokio::time::sleep(std::time::Duration::from_millis(1)) => seen.push(progress.now()),
        }
    };
    assert_eq!(image.bytes, 20_000 * 1024);
    assert!(seen.iter().any(|(phase, done, of)| *phase == "unpacking" && *done > 0 && *of == total), "{seen:?}");
    assert!(seen.iter().all(|(_, done, of)| *of == 0 || done <= of), "{seen:?}");
    assert!(seen.windows(2).all(|pair| pair[0].0 != pair[1].0 || pair[0].1 <= pair[1].1), "{seen:?}");
    assert_eq!(progress.now().0, "syncing");
}

#[tokio::test]
async fn calls_for_one_image_at_once_make_it_once() {
    let rig = Rig::new().await;
    let tarball = rig.tarball(&large().bytes());
    let progress: Vec<_> = (0..4).map(|_| Arc::new(Progress::default())).collect();
    let calls = progress.iter().map(|progress| rig.store.prepare(REFERENCE, &tarball, progress));
    let images = futures::future::try_join_all(calls).await.unwrap();
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    let worked = progress.iter().filter(|progress| progress.now().0 == "syncing").count();
    let waited = progress.iter().filter(|progress| progress.now().0 == "waiting").count();
    assert_eq!((worked, waited), (1, 3));
    rig.assert_holds(&[REFERENCE], 0);
}
