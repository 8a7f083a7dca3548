//! The parts of the system and how they find one another. The same parts make `serve`, each role of a fleet, and `run`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use cloud_sandbox_auth::{ServiceIdentity, Tokens};
use cloud_sandbox_exec::{ContextService, ExecService, FileService};
use cloud_sandbox_model::NodeId;
use cloud_sandbox_node::{Node, Options as NodeOptions};
use cloud_sandbox_rpc::{Dial, LocalDial, RemoteDial, Upstream, upstream::BoxError};
use cloud_sandbox_runtime::Runtime;
use cloud_sandbox_runtime_docker::Options as DockerOptions;
use cloud_sandbox_runtime_linux::{LinuxRuntime, Options as RuntimeOptions};
use cloud_sandbox_scheduler::SchedulerService;
use cloud_sandbox_session::{Options as SessionOptions, Parts, SessionKeeper, SessionService};
use cloud_sandbox_storage::{
    Directory, FileWorkspaces, MemoryDirectory, PostgresSessions, RedisDirectory, S3Workspaces, SessionStore,
    SqliteSessions, WorkspaceStore,
};
use tokio::time::{sleep, timeout};
use tonic::service::Routes;

use crate::{crash, settings::Settings};

/// How long destroying all sandboxes may take: the kernel needs milliseconds for each.
pub const DESTROY_PATIENCE: Duration = Duration::from_secs(20);

/// How long a new node may take to be in the directory. It reports itself at once.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);
/// How long what is being done with sessions may take to end; the next process goes on with what is left.
const SETTLE_PATIENCE: Duration = Duration::from_secs(5);
const REPORT_POLL: Duration = Duration::from_millis(1);

/// The directory that the settings name.
pub async fn directory(settings: &Settings) -> anyhow::Result<Arc<dyn Directory>> {
    let Some(url) = &settings.redis_url else { return Ok(Arc::new(MemoryDirectory::new())) };
    let directory = RedisDirectory::connect(url).await.context("failed to connect to Redis (setting redis_url)")?;
    Ok(Arc::new(directory))
}

/// Where checkpoints lie: in the bucket that the settings name; unless they name one, in the folder at `path`.
pub async fn workspaces(settings: &Settings, path: &Path) -> anyhow::Result<Arc<dyn WorkspaceStore>> {
    if let Some(options) = settings.s3.options() {
        let connected = S3Workspaces::connect(options).await;
        return Ok(Arc::new(connected.context(
            "failed to open the workspaces in S3 (settings s3_bucket, s3_endpoint, s3_region and s3_access_key_id)",
        )?));
    }
    if settings.redis_url.is_some() {
        tracing::warn!(
            path = %path.display(),
            "checkpoints lie on each machine's own disk: a session resumes on the machine that saved it only; set s3_bucket"
        );
    }
    let opened = FileWorkspaces::open(path).await;
    Ok(Arc::new(opened.with_context(|| format!("failed to open the workspaces in {}", path.display()))?))
}

/// The runtime, prepared. Each protection that this host does not offer is logged, or ends the start where the
/// settings require all.
pub fn runtime(settings: &Settings, state_dir: PathBuf) -> anyhow::Result<Arc<LinuxRuntime>> {
    let runtime = LinuxRuntime::new(&runtime_options(state_dir)).context("failed to prepare the sandbox runtime")?;
    for loss in runtime.losses() {
        tracing::warn!(protection = loss.protection, remedy = loss.remedy, "not protected: {}", loss.detail);
    }
    if settings.require_isolation && !runtime.losses().is_empty() {
        let lost: Vec<_> = runtime.losses().iter().map(|loss| loss.protection).collect();
        bail!("this host lacks {} (setting require_isolation); see cloud-sandbox doctor", lost.join(", "));
    }
    Ok(Arc::new(runtime))
}

/// The Linux runtime with the programs that this one carries.
pub fn runtime_options(state_dir: PathBuf) -> RuntimeOptions {
    RuntimeOptions { state_dir, agent: cloud_sandbox_embedded::AGENT, jailer: cloud_sandbox_embedded::JAILER }
}

/// The Docker runtime with the same programs; `instance` tells its containers from those of others.
pub fn docker_options(state_dir: PathBuf, instance: String) -> DockerOptions {
    let (agent, jailer) = (cloud_sandbox_embedded::AGENT, cloud_sandbox_embedded::JAILER);
    DockerOptions { docker_host: None, state_dir, instance, agent, jailer }
}

/// Starts the node: the sandboxes of this machine, called at `address`, with its journal in a folder of its own.
pub async fn node(
    settings: &Settings,
    address: String,
    journal_dir: PathBuf,
    runtime: Arc<dyn Runtime>,
    directory: Arc<dyn Directory>,
    workspaces: Arc<dyn WorkspaceStore>,
) -> anyhow::Result<Node> {
    let mut options = NodeOptions::new(NodeId::generate(), address, journal_dir);
    options.pool_min = settings.pool_min_size as usize;
    options.pool_max = settings.pool_max_size as usize;
    options.max_limits = settings.sandbox_limits_max;
    options.default_limits = settings.sandbox_limits;
    options.warm_contexts.clone_from(&settings.warm_contexts);
    options.journal.retention = Duration::from_secs(settings.journal_retention_seconds.into());
    options.journal.execution_bytes = settings.journal_execution_bytes;
    options.journal.total_bytes = settings.journal_total_bytes;
    let id = options.id;
    let node =
        Node::start(options, runtime, Arc::clone(&directory), workspaces).await.context("failed to start the node")?;
    // the first caller must not hear that there is no node
    let seen = timeout(REPORT_PATIENCE, reported(&*directory, id)).await;
    if seen.is_err() {
        tracing::warn!("the node has not reported itself yet; it gets no calls until it has");
    }
    Ok(node)
}

/// Resolves when the directory knows the node.
async fn reported(directory: &dyn Directory, id: NodeId) {
    while !directory.nodes().await.is_ok_and(|nodes| nodes.iter().any(|node| node.id == id)) {
        sleep(REPORT_POLL).await;
    }
}

/// What a node serves, to services alone.
pub fn node_routes(node: &Node) -> Routes {
    let routes = Routes::new(node.service()).add_service(node.exec_service());
    routes.add_service(node.context_service()).add_service(node.file_service())
}

/// How a service called `name` reaches nodes: the one of this process directly, others over the network.
pub fn dial(tokens: &Tokens, name: &'static str, own: Option<(&str, Upstream)>) -> Arc<dyn Dial> {
    let identity = ServiceIdentity::new(tokens.clone(), name);
    let local = LocalDial::new();
    if let Some((address, upstream)) = own {
        local.put(address, identity.attach(upstream));
    }
    Arc::new(NodeDial { local, remote: RemoteDial::new(move |upstream| identity.attach(upstream)) })
}

struct NodeDial {
    local: LocalDial,
    remote: RemoteDial,
}

impl Dial for NodeDial {
    fn dial(&self, address: &str) -> Result<Upstream, BoxError> {
        self.local.dial(address).or_else(|_| self.remote.dial(address))
    }
}

/// `SchedulerService`.
pub fn scheduler_routes(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Routes {
    Routes::new(SchedulerService::new(directory, dial).grpc())
}

/// `ExecService`, `ContextService` and `FileService`, which ask `session` where sessions are.
pub fn exec_routes(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, session: Upstream) -> Routes {
    let contexts = ContextService::new(Arc::clone(&directory), Arc::clone(&dial), session.clone()).grpc();
    let files = FileService::new(Arc::clone(&directory), Arc::clone(&dial), session.clone()).grpc();
    Routes::new(ExecService::new(directory, dial, session).grpc()).add_service(contexts).add_service(files)
}

/// What keeps sessions: their store, and what looks after them.
pub struct Sessions {
    pub store: Arc<dyn SessionStore>,
    sessions: cloud_sandbox_session::Sessions,
}

impl Sessions {
    /// The sessions in the store that the settings name; unless they name one, in the file at `path`. `parts` is handed
    /// the store and gives the rest.
    pub async fn open(
        settings: &Settings,
        path: &Path,
        parts: impl FnOnce(Arc<dyn SessionStore>) -> Parts,
    ) -> anyhow::Result<Self> {
        let store = session_store(settings, path).await?;
        let (parts, options) = (parts(Arc::clone(&store)), session_options(settings));
        let sessions = match crash::probe()? {
            Some(probe) => cloud_sandbox_session::Sessions::watched(parts, options, probe),
            None => cloud_sandbox_session::Sessions::new(parts, options),
        };
        Ok(Self { store, sessions })
    }

    /// `SessionService`.
    pub fn routes(&self) -> Routes {
        Routes::new(SessionService::new(self.sessions.clone()).grpc())
    }

    /// What looks after the sessions.
    pub fn keeper(&self) -> SessionKeeper {
        SessionKeeper::new(self.sessions.clone())
    }

    /// Waits for what is being done with sessions, then closes the store.
    pub async fn close(self) {
        self.sessions.settle(SETTLE_PATIENCE).await;
        self.store.close().await;
    }
}

fn session_options(settings: &Settings) -> SessionOptions {
    let defaults = SessionOptions::default();
    SessionOptions {
        frozen_for: Duration::from_secs(settings.session_frozen_seconds.into()),
        checkpoints_kept: settings.checkpoints_kept as usize,
        checkpoints_kept_for: Duration::from_secs(u64::from(settings.checkpoints_kept_days) * 86_400),
        // a directory in memory knows every sandbox that there is
        missing_patience: if settings.redis_url.is_some() { defaults.missing_patience } else { Duration::ZERO },
        alone: settings.database_url.is_none(),
        ..defaults
    }
}

async fn session_store(settings: &Settings, path: &Path) -> anyhow::Result<Arc<dyn SessionStore>> {
    if let Some(url) = &settings.database_url {
        let connected = PostgresSessions::connect(url.reveal()).await;
        return Ok(Arc::new(connected.context("failed to open the sessions in PostgreSQL (setting database_url)")?));
    }
    let opened = SqliteSessions::open(path).await;
    Ok(Arc::new(opened.with_context(|| format!("failed to open the sessions in {}", path.display()))?))
}
