//! The parts of the system and how they find one another. The same parts make `serve`, each role of a fleet, and `run`.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use cloud_sandbox_auth::{ServiceIdentity, Tokens};
use cloud_sandbox_exec::{ContextService, ExecService, FileService};
use cloud_sandbox_model::NodeId;
use cloud_sandbox_node::{Node, Options as NodeOptions, Runtimes};
use cloud_sandbox_rpc::{Dial, LocalDial, RemoteDial, Upstream, upstream::BoxError};
use cloud_sandbox_scheduler::{SchedulerService, TemplateOptions, TemplatePublisher, TemplateService, Templates};
use cloud_sandbox_session::{Options as SessionOptions, Parts, SessionKeeper, SessionService};
use cloud_sandbox_storage::{
    Directory, FileWorkspaces, MemoryDirectory, PostgresDatabase, RedisDirectory, S3Workspaces, SessionStore,
    SqliteDatabase, TemplateStore, WorkspaceStore,
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

/// Starts the node: the sandboxes of this machine, called at `address`, with its journal in a folder of its own.
pub async fn node(
    settings: &Settings,
    address: String,
    journal_dir: PathBuf,
    runtimes: Runtimes,
    directory: Arc<dyn Directory>,
    workspaces: Arc<dyn WorkspaceStore>,
) -> anyhow::Result<Node> {
    let mut options = NodeOptions::new(NodeId::generate(), address, journal_dir);
    options.default_template.clone_from(&settings.default_template);
    options.image.clone_from(&settings.sandbox_image);
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
        Node::start(options, runtimes, Arc::clone(&directory), workspaces).await.context("failed to start the node")?;
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

/// What hands out sandboxes, and keeps what they are made from.
pub struct Scheduling {
    pub store: Arc<dyn TemplateStore>,
    templates: Templates,
    directory: Arc<dyn Directory>,
    dial: Arc<dyn Dial>,
}

impl Scheduling {
    /// The templates in `store`, and the nodes in `directory`, called through `dial`.
    pub fn new(
        settings: &Settings,
        store: Arc<dyn TemplateStore>,
        directory: Arc<dyn Directory>,
        dial: Arc<dyn Dial>,
    ) -> Self {
        let options = TemplateOptions {
            default_template: settings.default_template.clone(),
            docker_image: settings.sandbox_image.clone(),
        };
        Self { templates: Templates::new(Arc::clone(&store), options), store, directory, dial }
    }

    /// `SchedulerService` and `TemplateService`.
    pub fn routes(&self) -> Routes {
        let (directory, templates) = (Arc::clone(&self.directory), self.templates.clone());
        let scheduler = SchedulerService::new(Arc::clone(&directory), Arc::clone(&self.dial), templates.clone());
        Routes::new(scheduler.grpc()).add_service(TemplateService::new(templates, directory).grpc())
    }

    /// What tells nodes the templates.
    pub fn publisher(&self) -> TemplatePublisher {
        TemplatePublisher::new(self.templates.clone(), Arc::clone(&self.directory), Arc::clone(&self.dial))
    }
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
    /// The sessions in `parts.store`.
    pub fn new(settings: &Settings, parts: Parts) -> anyhow::Result<Self> {
        let (store, options) = (Arc::clone(&parts.store), session_options(settings));
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
        default_template: settings.default_template.clone(),
        frozen_for: Duration::from_secs(settings.session_frozen_seconds.into()),
        checkpoints_kept: settings.checkpoints_kept as usize,
        checkpoints_kept_for: Duration::from_secs(u64::from(settings.checkpoints_kept_days) * 86_400),
        // a directory in memory knows every sandbox that there is
        missing_patience: if settings.redis_url.is_some() { defaults.missing_patience } else { Duration::ZERO },
        alone: settings.database_url.is_none(),
        ..defaults
    }
}

/// What is kept in the database.
pub struct Database {
    pub sessions: Arc<dyn SessionStore>,
    pub templates: Arc<dyn TemplateStore>,
}

/// The database that the settings name; unless they name one, the file at `path`.
pub async fn database(settings: &Settings, path: &Path) -> anyhow::Result<Database> {
    if let Some(url) = &settings.database_url {
        let connected = PostgresDatabase::connect(url.reveal()).await;
        let database = connected.context("failed to open the database in PostgreSQL (setting database_url)")?;
        return Ok(Database { sessions: Arc::new(database.sessions()), templates: Arc::new(database.templates()) });
    }
    let opened = SqliteDatabase::open(path).await;
    let database = opened.with_context(|| format!("failed to open the database in {}", path.display()))?;
    Ok(Database { sessions: Arc::new(database.sessions()), templates: Arc::new(database.templates()) })
}
