//! How fast a tree is saved and restored. Nothing is asserted: `cargo nextest run --release -p cloud-sandbox-agent
//! --run-ignored only --no-capture tree_speed`.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use cloud_sandbox_proto::{agent::v1::save_tree_response::Part, checkpoint::v1::TreeEntry};

use crate::{
    rig::Agent,
    saved::{Saved, noise, restore, try_save},
};

const MIB: usize = 1024 * 1024;

/// Saves and throws the data away; the entries, how many bytes came, and how long it took.
async fn timed(agent: &Agent, root: &Path, base: &[TreeEntry]) -> (Vec<TreeEntry>, usize, Duration) {
    let client = agent.client_of_node().await;
    let began = Instant::now();
    let mut stream = try_save(client, &[root], base, true).await.unwrap();
    let (mut entries, mut sent) = (Vec::new(), 0);
    while let Some(message) = stream.message().await.unwrap() {
        match message.part.unwrap() {
            Part::Chunk(chunk) => sent += chunk.data.len(),
            Part::Entry(entry) => entries.push(entry),
            _ => {}
        }
    }
    (entries, sent, began.elapsed())
}

async fn measure(what: &str, files: usize, size: usize) {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    for number in 0..files {
        fs::write(folder.path().join(number.to_string()), noise(number as u64, size)).unwrap();
    }
    let (entries, sent, first) = timed(&agent, folder.path(), &[]).await;
    let rate = sent as f64 / 1e6 / first.as_secs_f64();
    println!("{what}: first save {first:?}, {rate:.0} MB/s, {} KiB of memory", agent.memory_kib());
    for _ in 0..3 {
        let (_, sent, again) = timed(&agent, folder.path(), &entries).await;
        println!("{what}: nothing changed {again:?}, {sent} bytes sent");
    }
}

#[tokio::test]
#[ignore = "a measurement"]
async fn one_gibibyte() {
    measure("1 file of 1 GiB", 1, 1024 * MIB).await;
    measure("1024 files of 1 MiB", 1024, MIB).await;
    measure("10000 files of 100 KiB", 10_000, 100 * 1024).await;
}

#[tokio::test]
#[ignore = "a measurement"]
async fn restoring_256_mebibytes() {
    let agent = Agent::start().await;
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    for number in 0..64 {
        fs::write(folder.path().join(number.to_string()), noise(number, 4 * MIB)).unwrap();
    }
    let saved: Saved = crate::saved::save(&agent, &[folder.path()]).await;
    let requests = saved.to_requests();
    let began = Instant::now();
    restore(&agent, &[folder.path()], requests).await.unwrap();
    println!("restored 256 MiB in {:?}", began.elapsed());
}
