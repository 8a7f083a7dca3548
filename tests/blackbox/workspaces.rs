//! Where checkpoints are kept: a bucket that goes away, a bucket that is not there, a disk that is full.

use std::process::{Command, Stdio};

use crate::{
    harness::{Server, command, eventually},
    s3_server::{BUCKET, KEY, KEY_ID, S3Server, left_out},
};

async fn readiness(server: &Server) -> (u16, String) {
    let answer = reqwest::get(format!("{}/readyz", server.url)).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn is_not_ready(server: &Server, why: &str) -> bool {
    let (status, text) = readiness(server).await;
    status == 503 && text.contains(why)
}

#[tokio::test]
async fn bucket_that_is_away_is_named_and_found_again() {
    if left_out() {
        return;
    }
    let mut bucket = S3Server::start();
    let url = bucket.url();
    let settings = [
        ("S3_ENDPOINT", url.as_str()),
        ("S3_BUCKET", BUCKET),
        ("S3_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", KEY),
    ];
    let server = Server::with(&settings).await;
    assert!(!server.data_dir.join("workspaces").exists());
    bucket.kill();
    eventually("the store is named", || is_not_ready(&server, "workspaces: s3 is unavailable")).await;
    bucket.start_again();
    eventually("ready again", || async { readiness(&server).await.0 == 200 }).await;
    assert!(!server.log().contains(KEY), "{}", server.log());
}

#[test]
fn bucket_that_is_not_there_or_not_ours_ends_the_start() {
    if left_out() {
        return;
    }
    let bucket = S3Server::start();
    for (name, key, named) in [("nowhere", KEY, "there is no bucket"), (BUCKET, "wrong-key", "SignatureDoesNotMatch")] {
        let folder = tempfile::tempdir().unwrap();
        let output =
            command(&["serve", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--s3-bucket", name])
                .env("DATA_DIR", folder.path())
                .env("POOL_MIN_SIZE", "0")
                .env("S3_ENDPOINT", bucket.url())
                .env("S3_ACCESS_KEY_ID", KEY_ID)
                .env("S3_SECRET_ACCESS_KEY", key)
                .output()
                .unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{text}");
        assert!(text.contains("s3_bucket") && text.contains(named), "{text}");
        assert!(!text.contains("wrong-key") && !text.contains(KEY), "{text}");
    }
}

/// A file system of its own in a folder, until it is dropped.
struct SmallDisk(std::path::PathBuf);

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn disk_that_is_full_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("data/workspaces");
    std::fs::create_dir_all(&place).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "workspaces-test"])
        .arg(&place)
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    }
    let _disk = SmallDisk(place.clone());
    let server = Server::in_folder(folder, &[]).await;
    std::fs::write(place.join("other"), vec![0; 2 << 20]).unwrap_err();
    eventually("the disk is named", || is_not_ready(&server, "workspaces: the workspace folder is full")).await;
    std::fs::remove_file(place.join("other")).unwrap();
    eventually("ready again", || async { readiness(&server).await.0 == 200 }).await;
}
