//! What a node finds of the one before it, and what it does when there is nobody to tell, or nothing to write on.

use std::{
    fs,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::{Duration, SystemTime},
};

use cloud_sandbox_journal::Journal;
use cloud_sandbox_model::{ExecutionId, SandboxId, error::chain};
use cloud_sandbox_proto::v1::ExecExited;
use prost::Message;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use super::harness::*;
use crate::{
    Node, Options,
    executions::Owned,
    executions::record::{Head, Tail},
};

/// A journal with one execution in each of `count` sandboxes, all of which have ended.
fn left(journal: &Path, count: usize) -> Vec<SandboxId> {
    let (journal, _) = Journal::open(cloud_sandbox_journal::Options::new(journal)).unwrap();
    let owned = Owned { tenant: "default".into(), user: "alice".into(), cause: "lease".into(), ..Default::default() };
    let ids: Vec<_> = (0..count).map(|_| SandboxId::generate()).collect();
    for id in &ids {
        journal.describe_sandbox(*id, &owned.encode_to_vec()).unwrap();
        let log = journal.create(*id, ExecutionId::generate(), &Head::default().encode_to_vec()).unwrap();
        let tail = Tail { exited: Some(ExecExited::default()), ..Default::default() };
        log.finish(&tail.encode_to_vec());
    }
    ids
}

fn short(journal: &Path) -> Options {
    let mut options = options_in(journal, 0, 5);
    options.journal.sweep_interval = Duration::from_millis(50);
    options
}

async fn start(options: Options, directory: &Arc<TestDirectory>) -> World {
    let script = Arc::default();
    World::start_with_directory(options, runtime(&script), script, Arc::clone(directory)).await
}

#[tokio::test(start_paused = true)]
async fn directory_that_hangs_does_not_hold_up_the_start() {
    let folder = TempDir::new().unwrap();
    let ids = left(folder.path(), 300);
    let directory: Arc<TestDirectory> = Arc::default();
    directory.hanging.store(true, Ordering::SeqCst);
    let options = short(folder.path());
    let deadline = options.directory_deadline;
    let begun = Instant::now();
    let world = start(options, &directory).await;
    assert!(begun.elapsed() <= deadline + Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(world.get(ids[0]).await.unwrap_err().reason, "SANDBOX_GONE", "it can be asked all the same");
    let before = directory.writes.load(Ordering::SeqCst);
    sleep(deadline * 10).await;
    // one a round, and the reports of the node itself
    assert!(directory.writes.load(Ordering::SeqCst) - before <= 30);
    directory.hanging.store(false, Ordering::SeqCst);
    sleep(deadline + Duration::from_secs(1)).await;
    for id in ids {
        assert!(world.in_directory(id).await.unwrap().ended);
    }
}

#[tokio::test(start_paused = true)]
async fn directory_that_hangs_does_not_hold_up_the_journal() {
    let folder = TempDir::new().unwrap();
    let mut options = short(folder.path());
    // longer than a busy machine takes to start the node
    options.journal.retention = Duration::from_secs(3);
    let ids = left(folder.path(), 50);
    let directory: Arc<TestDirectory> = Arc::default();
    let world = start(options, &directory).await;
    assert!(world.in_directory(ids[0]).await.unwrap().ended);
    directory.hanging.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(3100));
    sleep(Duration::from_secs(20)).await;
    assert!(ids.iter().all(|id| !folder.path().join(id.to_string()).exists()));
}

#[tokio::test(start_paused = true)]
async fn last_log_that_goes_takes_the_entry_of_a_recovered_sandbox_along() {
    let folder = TempDir::new().unwrap();
    let ids = left(folder.path(), 2);
    let mut options = short(folder.path());
    // room for none
    options.journal.execution_bytes = 1;
    options.journal.total_bytes = 1;
    let directory: Arc<TestDirectory> = Arc::default();
    directory.failing.store(true, Ordering::SeqCst);
    assert_eq!(start(short(folder.path()), &directory).await.node.shutdown(Duration::from_secs(1)).await, 0);
    directory.failing.store(false, Ordering::SeqCst);
    let world = start(short(folder.path()), &directory).await;
    let entry = world.in_directory(ids[0]).await.unwrap();
    let ended = SystemTime::now() + crate::options::JOURNAL_RETENTION;
    assert!(entry.expires_at <= ended && entry.expires_at + Duration::from_secs(60) > ended);
    assert_eq!(world.node.shutdown(Duration::from_secs(1)).await, 0);
    drop(world);
    let world = start(options, &directory).await;
    world.settle().await;
    assert_eq!(world.get(ids[0]).await.unwrap_err().reason, "SANDBOX_NOT_FOUND");
    assert!(world.in_directory(ids[0]).await.is_none());
    assert!(!folder.path().join(ids[0].to_string()).exists());
}

#[tokio::test(start_paused = true)]
async fn what_is_past_its_time_is_not_taken_up() {
    let folder = TempDir::new().unwrap();
    let ids = left(folder.path(), 2);
    let long_ago = SystemTime::now() - Duration::from_secs(100_000);
    for entry in fs::read_dir(folder.path().join(ids[0].to_string())).unwrap() {
        let file = fs::OpenOptions::new().write(true).open(entry.unwrap().path()).unwrap();
        file.set_modified(long_ago).unwrap();
    }
    let world = start(short(folder.path()), &Arc::default()).await;
    assert!(world.in_directory(ids[0]).await.is_none() && world.in_directory(ids[1]).await.is_some());
    assert_eq!(world.get(ids[0]).await.unwrap_err().reason, "SANDBOX_NOT_FOUND");
    assert!(!folder.path().join(ids[0].to_string()).exists());
}

#[tokio::test(start_paused = true)]
async fn node_that_cannot_write_its_journal_says_so() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, b"").unwrap();
    let script = Arc::default();
    let runtime = runtime(&script);
    for dir in [file.clone(), file.join("journal"), "/proc/journal".into()] {
        let directory: Arc<TestDirectory> = Arc::default();
        let store = workspaces(&folder.path().join("journal")).await;
        let started = Node::start(options_in(&dir, 0, 5), runtimes(&[&runtime]), directory as _, store).await;
        let said = chain(&started.err().unwrap());
        assert!(said.contains("failed to open the journal") && said.contains(dir.to_str().unwrap()), "{said}");
    }
}
