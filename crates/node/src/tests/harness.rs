//! A node with everything around it.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use cloud_sandbox_model::{NodeId, SandboxId};
use cloud_sandbox_proto::{
    node::v1::{self as node, Owner, node_service_client::NodeServiceClient},
    v1::{self, exec_service_client::ExecServiceClient},
};
use cloud_sandbox_rpc::{Upstream, from_status, in_process};
use cloud_sandbox_runtime::{FakeRuntime, Runtime};
use cloud_sandbox_storage::{
    Claim, Directory, FileWorkspaces, MemoryDirectory, NodeEntry, SandboxEntry, SandboxFilter, StorageError,
    WorkspaceStore,
};
use tempfile::TempDir;
use tonic::Status;

use super::agent::Script;
use crate::{JournalOptions, Node, Options, Runtimes};

/// A directory that can be made to fail.
#[derive(Default)]
pub(super) struct TestDirectory {
    inner: MemoryDirectory,
    pub(super) failing: AtomicBool,
    /// it does not answer
    pub(super) hanging: AtomicBool,
    /// how often something was to be written
    pub(super) writes: AtomicUsize,
}

impl TestDirectory {
    async fn fail(&self) -> Result<(), StorageError> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        if self.hanging.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.failing.load(Ordering::SeqCst) {
            return Err(StorageError::Unavailable { store: "directory", source: "made to fail".into() });
        }
        Ok(())
    }
}

#[async_trait]
impl Directory for TestDirectory {
    async fn put_sandbox(&self, entry: &SandboxEntry) -> Result<(), StorageError> {
        self.fail().await?;
        self.inner.put_sandbox(entry).await
    }

    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StorageError> {
        self.fail().await?;
        self.inner.remove_sandbox(id).await
    }

    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxEntry>, StorageError> {
        self.inner.sandbox(id).await
    }

    async fn sandboxes(
        &self,
        filter: &SandboxFilter,
        after: Option<SandboxId>,
        limit: usize,
    ) -> Result<Vec<SandboxEntry>, StorageError> {
        self.inner.sandboxes(filter, after, limit).await
    }

    async fn put_node(&self, entry: &NodeEntry, ttl: Duration) -> Result<(), StorageError> {
        self.fail().await?;
        self.inner.put_node(entry, ttl).await
    }

    async fn remove_node(&self, id: NodeId) -> Result<(), StorageError> {
        self.inner.remove_node(id).await
    }

    async fn nodes(&self) -> Result<Vec<NodeEntry>, StorageError> {
        self.inner.nodes().await
    }

    async fn claim(&self, key: &str, value: &str, ttl: Duration) -> Result<Claim, StorageError> {
        self.inner.claim(key, value, ttl).await
    }

    async fn unclaim(&self, key: &str, value: &str) -> Result<(), StorageError> {
        self.inner.unclaim(key, value).await
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.inner.check().await
    }
}

/// A node under test.
pub(super) struct World {
    pub(super) node: Node,
    pub(super) runtime: Arc<FakeRuntime>,
    pub(super) directory: Arc<TestDirectory>,
    pub(super) script: Arc<Script>,
    /// of its journal, unless the test has one of its own
    pub(super) folder: Option<TempDir>,
}

pub(super) type Client = NodeServiceClient<Upstream>;
pub(super) type ExecClient = ExecServiceClient<Upstream>;

const MESSAGE_MAX: usize = 32 * 1024 * 1024;

/// Options with a journal wherever the world puts it.
pub(super) fn options(pool_min: usize, pool_max: usize) -> Options {
    options_in(Path::new(""), pool_min, pool_max)
}

pub(super) fn options_in(journal: &Path, pool_min: usize, pool_max: usize) -> Options {
    Options { pool_min, pool_max, ..Options::new(NodeId::generate(), "http://node:9093", journal) }
}

pub(super) fn runtime(script: &Arc<Script>) -> Arc<FakeRuntime> {
    let script = Arc::clone(script);
    Arc::new(FakeRuntime::new(move |_, stream| script.serve(stream)))
}

/// What a node has that may use these.
pub(super) fn runtimes(these: &[&Arc<FakeRuntime>]) -> Runtimes {
    these.iter().map(|runtime| Arc::clone(runtime) as Arc<dyn Runtime>).collect()
}

/// A store of checkpoints beside a journal.
pub(super) async fn workspaces(journal: &Path) -> Arc<dyn WorkspaceStore> {
    Arc::new(FileWorkspaces::open(&journal.with_extension("workspaces")).await.unwrap())
}

impl World {
    /// A node that keeps `pool_min` warm and has room for `pool_max`, settled.
    pub(super) async fn start(pool_min: usize, pool_max: usize) -> Self {
        let world = Self::start_with(options(pool_min, pool_max), |_| {}).await;
        world.settle().await;
        world
    }

    /// A node with these options, on a runtime that was prepared, not yet settled.
    pub(super) async fn start_with(options: Options, prepare: impl FnOnce(&FakeRuntime)) -> Self {
        let script = Arc::new(Script::default());
        let runtime = runtime(&script);
        prepare(&runtime);
        Self::start_on(options, runtime, script).await
    }

    /// A node with these options on this runtime.
    pub(super) async fn start_on(options: Options, runtime: Arc<FakeRuntime>, script: Arc<Script>) -> Self {
        Self::start_with_directory(options, runtime, script, Arc::default()).await
    }

    /// A node with a Docker runtime beside the native one, both served by one script.
    pub(super) async fn start_on_two(options: Options, prepare: impl FnOnce(&FakeRuntime)) -> (Self, Arc<FakeRuntime>) {
        let script = Arc::new(Script::default());
        let serving = Arc::clone(&script);
        let docker = Arc::new(FakeRuntime::named("docker", move |_, stream| serving.serve(stream)));
        prepare(&docker);
        let folder = tempfile::tempdir().unwrap();
        let journal = folder.path().join("journal");
        let linux = runtime(&script);
        let options = Options { journal: JournalOptions::new(&journal), ..options };
        let (used, store) = ([&linux, &docker], workspaces(&journal).await);
        (Self::start_with_all(options, used, script, Arc::default(), store, Some(folder)).await, docker)
    }

    /// A node with this directory, too.
    pub(super) async fn start_with_directory(
        mut options: Options,
        runtime: Arc<FakeRuntime>,
        script: Arc<Script>,
        directory: Arc<TestDirectory>,
    ) -> Self {
        let folder = options.journal.dir.as_os_str().is_empty().then(|| tempfile::tempdir().unwrap());
        if let Some(folder) = &folder {
            options.journal.dir = folder.path().join("journal");
        }
        let workspaces = workspaces(&options.journal.dir).await;
        Self::start_with_all(options, [&runtime, &runtime], script, directory, workspaces, folder).await
    }

    /// A node with this store of checkpoints, too, and these runtimes, of which the first is looked at.
    pub(super) async fn start_with_all(
        options: Options,
        used: [&Arc<FakeRuntime>; 2],
        script: Arc<Script>,
        directory: Arc<TestDirectory>,
        workspaces: Arc<dyn WorkspaceStore>,
        folder: Option<TempDir>,
    ) -> Self {
        let node = Node::start(options, runtimes(&used), Arc::clone(&directory) as _, workspaces).await;
        Self { node: node.unwrap(), runtime: Arc::clone(used[0]), directory, script, folder }
    }

    /// Lets everything happen that takes a little time only.
    pub(super) async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(60)).await;
    }

    /// Where its journal is.
    pub(super) fn journal(&self) -> PathBuf {
        self.folder.as_ref().unwrap().path().join("journal")
    }

    pub(super) fn client(&self) -> Client {
        NodeServiceClient::new(in_process(self.node.service()))
    }

    pub(super) fn exec(&self) -> ExecClient {
        let client = ExecServiceClient::new(in_process(self.node.exec_service()));
        client.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    pub(super) async fn entry(&self) -> NodeEntry {
        self.directory.nodes().await.unwrap().remove(0)
    }

    pub(super) async fn in_directory(&self, id: SandboxId) -> Option<SandboxEntry> {
        self.directory.sandbox(id).await.unwrap()
    }

    pub(super) async fn try_acquire(
        &self,
        request: v1::AcquireSandboxRequest,
    ) -> Result<node::AcquireSandboxResponse, Failure> {
        let owner = Some(Owner { tenant: "default".into(), user_id: "alice".into() });
        let request = node::AcquireSandboxRequest { owner, request: Some(request) };
        let answer = self.client().acquire_sandbox(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    /// Acquires a sandbox with nothing special about it.
    pub(super) async fn acquire(&self) -> SandboxId {
        id_of(&self.try_acquire(Default::default()).await.unwrap())
    }

    pub(super) async fn release(&self, id: SandboxId) -> Result<(), Failure> {
        let request = node::ReleaseSandboxRequest { sandbox_id: id.to_string(), ..Default::default() };
        self.client().release_sandbox(request).await.map(drop).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn get(&self, id: SandboxId) -> Result<v1::Sandbox, Failure> {
        let request = node::GetSandboxRequest { sandbox_id: id.to_string(), with_usage: false };
        let answer = self.client().get_sandbox(request).await;
        answer.map(|answer| answer.into_inner().sandbox.unwrap()).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn keep_alive(&self, id: SandboxId, timeout_seconds: u32) -> Result<v1::Sandbox, Failure> {
        let request = node::KeepAliveSandboxRequest { sandbox_id: id.to_string(), timeout_seconds };
        let answer = self.client().keep_alive_sandbox(request).await;
        answer.map(|answer| answer.into_inner().sandbox.unwrap()).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn pause(&self, id: SandboxId) -> Result<v1::Sandbox, Failure> {
        let request = node::PauseSandboxRequest { sandbox_id: id.to_string() };
        let answer = self.client().pause_sandbox(request).await;
        answer.map(|answer| answer.into_inner().sandbox.unwrap()).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn resume(&self, id: SandboxId) -> Result<v1::Sandbox, Failure> {
        let request = node::ResumeSandboxRequest { sandbox_id: id.to_string() };
        let answer = self.client().resume_sandbox(request).await;
        answer.map(|answer| answer.into_inner().sandbox.unwrap()).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn execute(&self, request: v1::ExecuteRequest) -> Result<v1::ExecuteResponse, Failure> {
        let answer = self.exec().execute(request).await;
        answer.map(tonic::Response::into_inner).map_err(|status| Failure::of(&status))
    }

    /// Starts in the background.
    pub(super) async fn begin(&self, request: v1::ExecuteRequest) -> Result<v1::Execution, Failure> {
        let answer = self.exec().start_execution(v1::StartExecutionRequest { request: Some(request) }).await;
        answer.map(|answer| answer.into_inner().execution.unwrap()).map_err(|status| Failure::of(&status))
    }

    pub(super) async fn execution(&self, id: SandboxId, execution: &str) -> Result<v1::Execution, Failure> {
        let request = v1::GetExecutionRequest {
            sandbox_id: id.to_string(),
            execution_id: execution.to_owned(),
            ..Default::default()
        };
        let answer = self.exec().get_execution(request).await;
        answer.map(|answer| answer.into_inner().execution.unwrap()).map_err(|status| Failure::of(&status))
    }
}

/// An error as a caller reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) kind: &'static str,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) fields: Vec<String>,
    pub(super) metadata: Vec<(String, String)>,
}

impl Failure {
    pub(super) fn of(status: &Status) -> Self {
        let error = from_status(status);
        Self {
            kind: error.kind().name(),
            reason: error.reason().to_owned(),
            message: error.message().to_owned(),
            fields: error.violations().iter().map(|violation| violation.field.clone()).collect(),
            metadata: error.metadata().to_vec(),
        }
    }

    /// Kind and reason.
    pub(super) fn words(&self) -> (&str, &str) {
        (self.kind, &self.reason)
    }
}

pub(super) fn id_of(answer: &node::AcquireSandboxResponse) -> SandboxId {
    answer.sandbox.as_ref().unwrap().sandbox_id.parse().unwrap()
}

/// A program with its arguments.
pub(super) fn argv(id: SandboxId, words: &[&str]) -> v1::ExecuteRequest {
    let argv = words.iter().map(|word| (*word).to_owned()).collect();
    v1::ExecuteRequest { sandbox_id: id.to_string(), argv, ..Default::default() }
}

/// Code in a language.
pub(super) fn code(id: SandboxId, language: &str, code: &str) -> v1::ExecuteRequest {
    v1::ExecuteRequest {
        sandbox_id: id.to_string(),
        code: Some(code.into()),
        language: language.into(),
        ..Default::default()
    }
}
