//! A daemon that goes and comes back: it is reached through a socket that a test can cut.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use cloud_sandbox_model::{Limits, SandboxId};
use cloud_sandbox_runtime::{Runtime, RuntimeError, SandboxSpec};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{UnixListener, UnixStream},
    task::JoinHandle,
    time::timeout,
};

use crate::{
    rig::{Rig, SOON, docker, eventually, host, name},
    setup::left_out,
};

/// Carries connections to the daemon until it is cut.
pub struct Proxy {
    path: PathBuf,
    daemon: String,
    tasks: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

impl Proxy {
    fn start(folder: &Path) -> Self {
        Self::to(&host(), folder)
    }

    /// One to this daemon.
    pub fn to(daemon: &str, folder: &Path) -> Self {
        let proxy = Self { path: folder.join("proxy.sock"), daemon: daemon.to_owned(), tasks: Arc::default() };
        proxy.mend();
        proxy
    }

    pub fn host(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    pub fn mend(&self) {
        let listener = UnixListener::bind(&self.path).unwrap();
        let (tasks, daemon) = (Arc::clone(&self.tasks), self.daemon.clone());
        let accepting = tokio::spawn(async move {
            while let Ok((mut ours, _)) = listener.accept().await {
                let socket = daemon.trim_start_matches("unix://").to_owned();
                let carried = tokio::spawn(async move {
                    let mut daemon = UnixStream::connect(socket).await.unwrap();
                    let _ = copy_bidirectional(&mut ours, &mut daemon).await;
                });
                tasks.lock().unwrap().push(carried);
            }
        });
        self.tasks.lock().unwrap().push(accepting);
    }

    pub async fn cut(&self) {
        fs::remove_file(&self.path).unwrap();
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap());
        for task in tasks {
            task.abort();
            let _ = task.await;
        }
    }
}

/// A server's runtime over a daemon that can be cut off, and the folder of what does that.
fn behind_a_proxy() -> (TempDir, Proxy, Rig) {
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(folder.path());
    let rig = Rig::at(&proxy.host());
    (folder, proxy, rig)
}

/// A sandbox whose agent has answered.
async fn answering(rig: &Rig) -> SandboxId {
    let id = rig.create("docker+runc").await;
    rig.agent(id).await;
    id
}

#[tokio::test(flavor = "multi_thread")]
async fn sandboxes_outlive_a_daemon_that_comes_back_and_those_that_are_gone_end() {
    if left_out() {
        return;
    }
    let (_folder, proxy, rig) = behind_a_proxy();
    let (lives, killed) = (answering(&rig).await, answering(&rig).await);
    proxy.cut().await;
    docker(&["kill", &name(killed)]);
    assert!(matches!(rig.runtime.destroy(killed).await, Err(RuntimeError::Unavailable(_))), "it is tried again");
    assert!(matches!(rig.runtime.freeze(lives).await, Err(RuntimeError::Unavailable(_))));
    // by the end of its process, as the daemon says nothing
    timeout(SOON, rig.runtime.ended(killed)).await.unwrap();
    rig.agent(lives).await;
    proxy.mend();
    rig.runtime.destroy(killed).await.unwrap();
    docker(&["pause", &name(lives)]);
    assert!(timeout(SOON, rig.runtime.frozen_by_others(lives, false)).await.unwrap(), "events are watched again");
    rig.runtime.thaw(lives).await.unwrap();
    rig.agent(lives).await;
    rig.runtime.destroy(lives).await.unwrap();
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn release_ends_what_runs_also_while_the_daemon_is_away() {
    if left_out() {
        return;
    }
    let (_folder, proxy, rig) = behind_a_proxy();
    let id = answering(&rig).await;
    proxy.cut().await;
    assert!(matches!(rig.runtime.destroy(id).await, Err(RuntimeError::Unavailable(_))), "it is tried again");
    eventually("nothing of it runs", || rig.containers().is_empty()).await;
    rig.runtime.destroy(SandboxId::generate()).await.expect("there is none to wait for");
    proxy.mend();
    rig.runtime.destroy(id).await.unwrap();
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn pause_that_nobody_saw_is_found_after_the_daemon_came_back() {
    if left_out() {
        return;
    }
    let (_folder, proxy, rig) = behind_a_proxy();
    let id = answering(&rig).await;
    proxy.cut().await;
    docker(&["pause", &name(id)]);
    proxy.mend();
    assert!(timeout(SOON, rig.runtime.frozen_by_others(id, false)).await.unwrap());
    rig.runtime.destroy(id).await.unwrap();
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn server_starts_without_a_daemon_and_finds_leftovers_once_there_is_one() {
    if left_out() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let proxy = Proxy::start(folder.path());
    proxy.cut().await;
    let first = Rig::new();
    let left = first.create("docker+runc").await;
    first.runtime.freeze(left).await.unwrap();
    let rig = first.again_at(&proxy.host());
    assert_eq!(rig.runtime.reclaim().await.unwrap(), []);
    let why = rig.runtime.available(&"docker".parse().unwrap()).await.unwrap_err().to_string();
    assert!(why.contains("no Docker Engine listens at") && why.contains("proxy.sock"), "{why}");
    let template = first.prepared("docker+runc").await;
    let spec = SandboxSpec { template, limits: Limits::DEFAULT };
    let error = rig.runtime.create(SandboxId::generate(), &spec).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Unavailable(_)), "{error}");
    proxy.mend();
    eventually("what was left is removed", || rig.containers().is_empty()).await;
    let id = answering(&rig).await;
    rig.runtime.destroy(id).await.unwrap();
}
