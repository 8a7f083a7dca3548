//! Checkpoints with the real agent, whose sandbox is a folder of this machine, and a store whose faults tests choose.

use std::{
    fs,
    ops::Range,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sandbox_agent::{Agent, Children, serve_agent};
use cloud_sandbox_model::{CheckpointId, SandboxId};
use cloud_sandbox_proto::{
    node::v1::{
        CheckpointRef, CheckpointSandboxRequest, CheckpointSandboxResponse, GetSandboxRequest, PauseSandboxRequest,
        ReleaseSandboxRequest, RestoreSandboxRequest, ResumeSandboxRequest,
    },
    v1::{
        AcquireSandboxRequest, ExecuteRequest, ExecuteResponse, Execution, ReadExecutionOutputRequest, ResumeManifest,
        StartExecutionRequest,
    },
};
use cloud_sandbox_runtime::{FakeRuntime, Usage};
use cloud_sandbox_storage::{FileWorkspaces, StorageError, WorkspaceStore};
use tempfile::TempDir;
use tokio::{
    io::{DuplexStream, copy_bidirectional},
    net::{UnixListener, UnixStream},
    sync::Notify,
    time::sleep,
};

use super::harness::*;

/// A store that fails or hangs when it is to write.
pub(super) struct TestStore {
    inner: FileWorkspaces,
    failing: AtomicBool,
    hanging: AtomicBool,
    reached: Notify,
}

#[async_trait]
impl WorkspaceStore for TestStore {
    async fn put(&self, folder: CheckpointId, name: &str, content: Bytes) -> Result<(), StorageError> {
        self.reached.notify_one();
        if self.hanging.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.failing.load(SeqCst) {
            return Err(StorageError::Unavailable { store: "workspaces", source: "made to fail".into() });
        }
        self.inner.put(folder, name, content).await
    }

    async fn get(&self, folder: CheckpointId, name: &str) -> Result<Option<Bytes>, StorageError> {
        self.inner.get(folder, name).await
    }

    async fn read(&self, folder: CheckpointId, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StorageError> {
        self.inner.read(folder, name, range).await
    }

    async fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, StorageError> {
        self.inner.folders(after, limit).await
    }

    async fn delete(&self, folder: CheckpointId) -> Result<(), StorageError> {
        self.inner.delete(folder).await
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.inner.check().await
    }
}

/// A node whose sandboxes are all the same folder, one after the other.
pub(super) struct Bench {
    world: World,
    pub(super) store: Arc<TestStore>,
    folder: TempDir,
}

impl Bench {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("workspace")).unwrap();
        let sockets = folder.path().to_owned();
        let agents = move |id: SandboxId, mut ours: DuplexStream| {
            let socket = sockets.join(format!("{id}.sock"));
            // each sandbox has an agent of its own, which a standstill is kept by
            if !socket.exists() {
                tokio::spawn(serve_agent(UnixListener::bind(&socket).unwrap(), Agent::new(Children::own()).unwrap()));
            }
            tokio::spawn(async move {
                let mut agents = UnixStream::connect(socket).await.unwrap();
                copy_bidirectional(&mut ours, &mut agents).await
            });
        };
        let linux = Arc::new(FakeRuntime::new(agents.clone()));
        let docker = Arc::new(FakeRuntime::named("docker", agents));
        for runtime in [&linux, &docker] {
            runtime.set_writable_folders(vec![folder.path().join("workspace")]);
        }
        let store = Arc::new(TestStore {
            inner: FileWorkspaces::open(&folder.path().join("store")).await.unwrap(),
            failing: AtomicBool::new(false),
            hanging: AtomicBool::new(false),
            reached: Notify::new(),
        });
        let options = options_in(&folder.path().join("journal"), 0, 2);
        let workspaces = Arc::clone(&store) as _;
        let world =
            World::start_with_all(options, [&linux, &docker], Arc::default(), Arc::default(), workspaces, None).await;
        Self { world, store, folder }
    }

    pub(super) async fn acquire(&self) -> SandboxId {
        id_of(&self.world.try_acquire(AcquireSandboxRequest::default()).await.unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("workspace").join(name)
    }

    fn line(&self, id: SandboxId, line: &str) -> ExecuteRequest {
        let cwd = self.path("").to_str().unwrap().to_owned();
        ExecuteRequest { sandbox_id: id.to_string(), command: Some(line.into()), cwd, ..Default::default() }
    }

    async fn run(&self, id: SandboxId, line: &str) -> Result<ExecuteResponse, Failure> {
        self.world.execute(self.line(id, line)).await
    }

    /// Starts a program that goes on, and returns once it runs.
    async fn background(&self, id: SandboxId, line: &str) -> Execution {
        let request = Some(self.line(id, line));
        let started = self.world.exec().start_execution(StartExecutionRequest { request }).await.unwrap();
        started.into_inner().execution.unwrap()
    }

    pub(super) async fn checkpoint(
        &self,
        id: SandboxId,
        base: Option<&CheckpointRef>,
        keep_stopped: bool,
    ) -> Result<CheckpointSandboxResponse, Failure> {
        let request = CheckpointSandboxRequest {
            sandbox_id: id.to_string(),
            checkpoint_id: CheckpointId::generate().to_string(),
            base: base.cloned(),
            keep_stopped,
        };
        let answer = self.world.client().checkpoint_sandbox(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    async fn restore(&self, id: SandboxId, checkpoint: &CheckpointRef) -> Result<ResumeManifest, Failure> {
        let (sandbox_id, checkpoint) = (id.to_string(), Some(checkpoint.clone()));
        let request = RestoreSandboxRequest { sandbox_id, checkpoint, restart_commands: false };
        let answer = self.world.client().restore_sandbox(request).await;
        let answer = answer.map_err(|status| Failure::of(&status))?;
        Ok(answer.into_inner().manifest.unwrap())
    }

    async fn release(&self, id: SandboxId, keep_journal: bool) {
        let request = ReleaseSandboxRequest { sandbox_id: id.to_string(), keep_journal };
        self.world.client().release_sandbox(request).await.unwrap();
    }
}

/// Whether a process stands still, by the letter of its state (proc_pid_stat(5)).
fn stands_still(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].starts_with('T')
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn sandbox_goes_on_elsewhere_as_it_was() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    let printed = bench.run(id, "echo hello | tee a; ln -s a link; mkdir -p deep/er; echo printed").await.unwrap();
    fs::write(bench.path("deep/er/large"), blake(200_000)).unwrap();
    let sleeper = bench.background(id, "sleep 2000 & exec sleep 1000").await;

    let first = bench.checkpoint(id, None, false).await.unwrap();
    // the root, two files, a link, two folders
    assert_eq!((first.files, first.bytes), (6, 6 + 200_000));
    assert!(!stands_still(sleeper.pid));
    assert_eq!(bench.run(id, "cat a").await.unwrap().stdout, "hello\n");

    bench.run(id, "echo more >> a; rm link").await.unwrap();
    let second = bench.checkpoint(id, first.checkpoint.as_ref(), true).await.unwrap();
    assert!(second.stored_bytes < 3000 && second.pack_checkpoint_ids.len() == 2, "{second:?}");
    assert!(stands_still(sleeper.pid));
    assert_eq!(bench.run(id, "true").await.unwrap_err().words(), ("FAILED_PRECONDITION", "SANDBOX_BUSY"));

    bench.release(id, true).await;
    let (sandbox_id, execution_id) = (id.to_string(), printed.execution_id);
    let read = ReadExecutionOutputRequest { sandbox_id, execution_id, ..Default::default() };
    bench.world.exec().read_execution_output(read).await.unwrap();
    let error = bench.run(id, "true").await.unwrap_err();
    assert!(error.words().1 == "SANDBOX_GONE" && error.message.contains("its session was paused"), "{error:?}");
    // asked again, it is kept on; without, it goes
    bench.release(id, true).await;
    bench.release(id, false).await;

    fs::remove_file(bench.path("a")).unwrap();
    fs::write(bench.path("not-saved"), "x").unwrap();
    let next = bench.acquire().await;
    let manifest = bench.restore(next, second.checkpoint.as_ref().unwrap()).await.unwrap();
    assert_eq!((manifest.files, manifest.bytes), (second.files, second.bytes));
    assert_eq!(manifest.checkpoint_id, second.checkpoint.unwrap().checkpoint_id);
    assert_eq!(manifest.commands[0].execution_id, sleeper.execution_id);
    let lost: Vec<_> = manifest.lost.iter().map(|lost| (lost.kind.as_str(), lost.what.as_str())).collect();
    assert_eq!(lost, [("process", "sleep 2000")]);
    assert_eq!(bench.run(next, "cat a; ls").await.unwrap().stdout, "hello\nmore\na\ndeep\n");
    assert!(fs::read(bench.path("deep/er/large")).unwrap() == blake(200_000));

    let error = bench.restore(next, first.checkpoint.as_ref().unwrap()).await.unwrap_err();
    assert_eq!(error.words(), ("FAILED_PRECONDITION", "SANDBOX_USED"));
}

#[tokio::test]
async fn checkpoint_of_one_runtime_is_restored_on_another() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    bench.run(id, "echo hello > a").await.unwrap();
    let saved = bench.checkpoint(id, None, true).await.unwrap().checkpoint.unwrap();
    bench.release(id, false).await;
    fs::remove_file(bench.path("a")).unwrap();

    let request = AcquireSandboxRequest { template: "docker".into(), ..Default::default() };
    let sandbox = bench.world.try_acquire(request).await.unwrap().sandbox.unwrap();
    assert_eq!(sandbox.runtime, "docker");
    let next = sandbox.sandbox_id.parse().unwrap();
    bench.restore(next, &saved).await.unwrap();
    assert_eq!(bench.run(next, "cat a; echo more >> a").await.unwrap().stdout, "hello\n");
    // and what is new there is saved over it
    let saved = bench.checkpoint(next, Some(&saved), true).await.unwrap();
    bench.release(next, false).await;
    let back = bench.acquire().await;
    bench.restore(back, &saved.checkpoint.unwrap()).await.unwrap();
    assert_eq!(bench.run(back, "cat a").await.unwrap().stdout, "hello\nmore\n");
}

/// Data that nothing compresses, the same each time.
fn blake(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[tokio::test]
async fn store_that_fails_leaves_processes_running() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    let sleeper = bench.background(id, "exec sleep 1000").await;
    bench.store.failing.store(true, SeqCst);
    let error = bench.checkpoint(id, None, true).await.unwrap_err();
    assert_eq!(error.words(), ("UNAVAILABLE", "STORE_UNAVAILABLE"));
    assert!(!stands_still(sleeper.pid));
    bench.run(id, "echo x > a").await.unwrap();
    bench.store.failing.store(false, SeqCst);
    bench.checkpoint(id, None, false).await.unwrap();
}

#[tokio::test]
async fn caller_that_hangs_up_leaves_processes_running() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    let sleeper = bench.background(id, "exec sleep 1000").await;
    bench.store.hanging.store(true, SeqCst);
    {
        let mut call = std::pin::pin!(bench.checkpoint(id, None, true));
        tokio::select! {
            _ = &mut call => panic!("the store hangs"),
            () = bench.store.reached.notified() => {}
        }
        assert!(stands_still(sleeper.pid));
        assert_eq!(bench.run(id, "true").await.unwrap_err().words(), ("ABORTED", "SANDBOX_BUSY"));
        let pause = PauseSandboxRequest { sandbox_id: id.to_string() };
        let refused = bench.world.client().pause_sandbox(pause).await.unwrap_err();
        assert_eq!(Failure::of(&refused).words(), ("ABORTED", "SANDBOX_BUSY"));
    }
    until(|| !stands_still(sleeper.pid)).await;
    bench.store.hanging.store(false, SeqCst);
    // another one may begin at once
    while let Err(error) = bench.checkpoint(id, None, false).await {
        assert_eq!(error.words(), ("ABORTED", "SANDBOX_BUSY"));
    }
    assert_eq!(bench.run(id, "echo on").await.unwrap().stdout, "on\n");
}

#[tokio::test]
async fn paused_sandbox_is_paused_after_its_checkpoint_and_goes_on_when_resumed() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    let sleeper = bench.background(id, "exec sleep 1000").await;
    let sandbox_id = id.to_string();
    bench.world.client().pause_sandbox(PauseSandboxRequest { sandbox_id: sandbox_id.clone() }).await.unwrap();
    bench.checkpoint(id, None, false).await.unwrap();
    assert!(bench.world.runtime.is_frozen(id) && stands_still(sleeper.pid));
    assert_eq!(bench.run(id, "true").await.unwrap_err().words(), ("FAILED_PRECONDITION", "SANDBOX_PAUSED"));
    bench.world.client().resume_sandbox(ResumeSandboxRequest { sandbox_id }).await.unwrap();
    assert!(!bench.world.runtime.is_frozen(id) && !stands_still(sleeper.pid));
    assert_eq!(bench.run(id, "echo on").await.unwrap().stdout, "on\n");
}

#[tokio::test]
async fn sandbox_that_stands_still_goes_on_when_resumed() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    bench.checkpoint(id, None, true).await.unwrap();
    bench.world.client().resume_sandbox(ResumeSandboxRequest { sandbox_id: id.to_string() }).await.unwrap();
    assert_eq!(bench.run(id, "echo on").await.unwrap().stdout, "on\n");
}

#[tokio::test]
async fn damaged_checkpoint_is_said_and_the_sandbox_is_of_no_use() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    bench.run(id, "echo hello > a").await.unwrap();
    let saved = bench.checkpoint(id, None, false).await.unwrap();
    let reference = saved.checkpoint.unwrap();
    bench.release(id, false).await;
    fs::remove_file(bench.folder.path().join("store").join(&reference.checkpoint_id).join("pack-00000")).unwrap();
    let next = bench.acquire().await;
    let error = bench.restore(next, &reference).await.unwrap_err();
    assert_eq!(error.words(), ("DATA_LOSS", "CHECKPOINT_DAMAGED"));
    assert!(error.message.contains("pack-00000") && error.message.contains("workspace/a"), "{error:?}");
    assert_eq!(bench.run(next, "true").await.unwrap_err().words(), ("FAILED_PRECONDITION", "SANDBOX_BUSY"));
}

#[tokio::test]
async fn references_that_cannot_be_are_refused() {
    let bench = Bench::start().await;
    let id = bench.acquire().await;
    let good = CheckpointRef { checkpoint_id: CheckpointId::generate().to_string(), digest: vec![0; 32].into() };
    let short = CheckpointRef { digest: Bytes::new(), ..good.clone() };
    let nameless = CheckpointRef { checkpoint_id: "x".into(), ..good.clone() };
    for (reference, field) in [(&short, "base.digest"), (&nameless, "base.checkpoint_id")] {
        let error = bench.checkpoint(id, Some(reference), false).await.unwrap_err();
        assert!(error.words().0 == "INVALID_ARGUMENT" && error.message.starts_with(field), "{error:?}");
    }
    let error = bench.checkpoint(id, Some(&good), false).await.unwrap_err();
    assert_eq!(error.words(), ("DATA_LOSS", "CHECKPOINT_DAMAGED"));
    // none of it touched the sandbox
    bench.run(id, "true").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn processes_that_take_cpu_time_keep_a_sandbox_in_use() {
    let world = World::start(1, 1).await;
    let id = id_of(&world.try_acquire(AcquireSandboxRequest::default()).await.unwrap());
    let last = async || -> SystemTime {
        let got = world
            .client()
            .get_sandbox(GetSandboxRequest { sandbox_id: id.to_string(), with_usage: false })
            .await
            .unwrap();
        got.into_inner().activity.unwrap().last_active_time.unwrap().try_into().unwrap()
    };
    let used = |seconds| Usage { cpu_time: Some(Duration::from_secs(seconds)), ..Usage::default() };
    world.runtime.set_usage(id, used(1));
    sleep(Duration::from_secs(11)).await;
    let acquired = last().await;
    // this clock is not the test's
    std::thread::sleep(Duration::from_millis(2));
    sleep(Duration::from_secs(11)).await;
    assert_eq!(last().await, acquired, "idle");
    world.runtime.set_usage(id, used(2));
    sleep(Duration::from_secs(6)).await;
    assert!(last().await > acquired);
}
