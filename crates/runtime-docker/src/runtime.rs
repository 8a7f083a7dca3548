//! The runtime port over a Docker Engine.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use async_trait::async_trait;
use cloud_sandbox_images::host::Host;
use cloud_sandbox_model::{Limits, RuntimeName, SandboxId, Template, template::Progress};
use cloud_sandbox_runtime::{
    BoxedPackets, BoxedStream, End, Interface, Prepared, Runtime, RuntimeError, SandboxSpec, Usage, scratch_folders,
    walls,
};
use cloud_sandbox_runtime_linux::{self as linux, Networks};
use tokio::sync::{oneshot, watch};

use crate::{
    container::{Brought, Common},
    engine::Engine,
    events::{self, Following},
    facts::{Facts, Kernel},
    images, programs,
    sandbox::{Sandbox, Way},
};

/// How long the agent of a sandbox that was just made may take to be there.
const CONNECT_WITHIN: Duration = Duration::from_secs(20);
/// The profile of system calls in the state folder.
const SECCOMP: &str = "seccomp.json";

/// What a [`DockerRuntime`] can be told.
pub struct Options {
    /// where the daemon is, as in the variable `DOCKER_HOST`, which is looked at where this says nothing; then the usual
    /// sockets are
    pub docker_host: Option<String>,
    /// a folder that the daemon can bind files from
    pub state_dir: PathBuf,
    /// what tells this data folder's containers from those of others
    pub instance: String,
    /// the agent's program
    pub agent: &'static [u8],
    /// the jailer's program
    pub jailer: &'static [u8],
}

/// Sandboxes that are containers.
pub struct DockerRuntime {
    inner: Arc<Inner>,
    /// dropped with the runtime, which ends its tasks
    living: watch::Sender<()>,
}

/// What the tasks of a runtime share.
pub struct Inner {
    pub(crate) engine: Engine,
    pub(crate) sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    /// those that are being made
    making: Mutex<HashSet<SandboxId>>,
    /// what images bring, by their ids
    pub(crate) brought: Mutex<HashMap<String, Arc<Brought>>>,
    /// the storage driver limits what is written; until it has refused to
    pub(crate) storage_limits: AtomicBool,
    pub(crate) options: Options,
    common: OnceLock<Common>,
    /// held while that is prepared, since it writes a file
    preparing: Mutex<()>,
    networks: OnceLock<Networks>,
    watching: OnceLock<()>,
    pub(crate) following: Following,
}

impl DockerRuntime {
    /// A runtime whose daemon need not be there yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        let inner = Inner {
            engine: Engine::new(Host::new(options.docker_host.as_deref())),
            sandboxes: Mutex::default(),
            making: Mutex::default(),
            brought: Mutex::default(),
            storage_limits: true.into(),
            options,
            common: OnceLock::new(),
            preparing: Mutex::default(),
            networks: OnceLock::new(),
            watching: OnceLock::new(),
            following: Following::default(),
        };
        Self { inner: Arc::new(inner), living: watch::Sender::new(()) }
    }

    /// What the daemon says about itself. From then on its events are watched.
    async fn facts(&self) -> Result<Arc<Facts>, RuntimeError> {
        let facts = self.inner.engine.facts().await?;
        self.watch();
        Ok(facts)
    }

    /// Watches the daemon's events from now on.
    fn watch(&self) {
        self.inner.watching.get_or_init(|| {
            tokio::spawn(events::watch(Arc::downgrade(&self.inner), self.living.subscribe()));
        });
    }

    /// The daemon.
    pub(crate) fn engine(&self) -> &Engine {
        &self.inner.engine
    }
}

impl Inner {
    fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Sandbox>>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A sandbox, also one that has ended and is not destroyed yet.
    pub(crate) fn find(&self, id: SandboxId) -> Option<Arc<Sandbox>> {
        self.sandboxes().get(&id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Sandbox>> {
        self.sandboxes().values().cloned().collect()
    }

    pub(crate) fn put(&self, id: SandboxId, sandbox: Arc<Sandbox>) {
        self.sandboxes().insert(id, sandbox);
    }

    pub(crate) fn forget(&self, id: SandboxId) {
        self.sandboxes().remove(&id);
    }

    /// Marks a sandbox as one that is being made, until the mark is dropped.
    pub(crate) fn making(&self, id: SandboxId) -> Making<'_> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).insert(id);
        Making { inner: self, id }
    }

    /// Whether a sandbox is this server's.
    pub(crate) fn knows(&self, id: SandboxId) -> bool {
        self.making.lock().unwrap_or_else(PoisonError::into_inner).contains(&id) || self.find(id).is_some()
    }

    fn living(&self, id: SandboxId) -> Result<Arc<Sandbox>, RuntimeError> {
        self.find(id).filter(|sandbox| !sandbox.has_ended()).ok_or(RuntimeError::Gone(id))
    }

    /// Where sockets of sandboxes are. Any user may pass through, since the agent's may be mapped to one.
    pub(crate) fn sockets(&self) -> io::Result<PathBuf> {
        let folder = std::path::absolute(&self.options.state_dir)?.join("sockets");
        DirBuilder::new().recursive(true).mode(0o711).create(&folder)?;
        Ok(folder)
    }

    /// What is the same for all containers; prepared when it is first needed.
    pub(crate) fn common(&self, facts: &Facts) -> Result<&Common, RuntimeError> {
        if let Some(common) = self.common.get() {
            return Ok(common);
        }
        let _preparing = self.preparing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(common) = self.common.get() {
            return Ok(common);
        }
        let host = |operation: &'static str| move |error: io::Error| RuntimeError::host(operation, error);
        let folder = std::path::absolute(&self.options.state_dir).map_err(host("find the state folder"))?;
        DirBuilder::new().recursive(true).mode(0o711).create(&folder).map_err(host("make the state folder"))?;
        let folder = fs::canonicalize(folder).map_err(host("find the state folder"))?;
        let files = programs::write_files(&folder, &linux::own_files()).map_err(host("write a sandbox's files"))?;
        let seccomp = linux::profile().map_err(host("make the profile of system calls"))?;
        let seccomp_file = programs::write_file(&folder, SECCOMP.as_ref(), &seccomp);
        let common = Common {
            instance: self.options.instance.clone(),
            agent: programs::install(&folder, self.options.agent).map_err(host("write the agent's program"))?,
            files,
            seccomp,
            seccomp_file: seccomp_file.map_err(host("write the profile of system calls"))?,
            selinux: facts.selinux,
        };
        Ok(self.common.get_or_init(|| common))
    }

    fn networks(&self) -> Result<&Networks, RuntimeError> {
        if let Some(networks) = self.networks.get() {
            return Ok(networks);
        }
        let made = Networks::new(self.options.jailer);
        let made = made.map_err(|error| RuntimeError::host("prepare the jailer", error))?;
        Ok(self.networks.get_or_init(|| made))
    }
}

/// A sandbox that is being made.
pub struct Making<'a> {
    inner: &'a Inner,
    id: SandboxId,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.inner.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[async_trait]
impl Runtime for DockerRuntime {
    fn name(&self) -> &'static str {
        RuntimeName::DOCKER.family()
    }

    async fn available(&self, name: &RuntimeName) -> Result<(), RuntimeError> {
        self.inner.engine.ask().await?.oci_runtime(name).map(drop)
    }

    async fn prepare(
        &self,
        template: &Template,
        runtime: &RuntimeName,
        progress: &Arc<Progress>,
    ) -> Result<Prepared, RuntimeError> {
        let facts = self.facts().await?;
        let oci_runtime = facts.oci_runtime(runtime)?;
        let runtime = RuntimeName::Docker { oci_runtime: Some(oci_runtime) };
        images::prepare(&self.inner, &facts, template, runtime, progress).await
    }

    async fn discard(&self, template: &str) -> Result<(), RuntimeError> {
        images::discard(&self.inner, template).await
    }

    async fn prepared_templates(&self) -> Result<Vec<String>, RuntimeError> {
        images::templates(&self.inner).await
    }

    fn writable_folders(&self, _template: &Prepared) -> Vec<PathBuf> {
        scratch_folders()
    }

    async fn create(&self, id: SandboxId, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        let facts = self.facts().await?;
        let (send, made) = oneshot::channel();
        let (inner, spec) = (Arc::clone(&self.inner), spec.clone());
        // on its own, so that a caller that goes away does not leave half a sandbox
        tokio::spawn(async move {
            let made = inner.create(id, &spec, &facts).await;
            if send.send(made).is_err()
                && let Err(error) = inner.destroy(id).await
            {
                tracing::error!(sandbox_id = %id, %error, "a sandbox that nobody waited for could not be destroyed");
            }
        });
        made.await.map_err(|error| RuntimeError::host("make a sandbox", io::Error::other(error)))?
    }

    async fn connect(&self, id: SandboxId) -> Result<BoxedStream, RuntimeError> {
        let sandbox = self.inner.living(id)?;
        let connected = async {
            match &sandbox.agent {
                Way::Socket(socket) => socket.connect().await.map(|stream| Box::new(stream) as BoxedStream),
                Way::Streams(streams) => streams.connect().await,
            }
        };
        tokio::select! {
            connected = tokio::time::timeout(CONNECT_WITHIN, connected) => {
                let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                connected.map_err(|error| match error.kind() {
                    io::ErrorKind::NotConnected => RuntimeError::Gone(id),
                    _ => RuntimeError::host(format!("connect to the agent of {id}"), error),
                })
            }
            _ = sandbox.ended() => Err(RuntimeError::Gone(id)),
        }
    }

    async fn set_limits(&self, id: SandboxId, limits: Limits) -> Result<(), RuntimeError> {
        let sandbox = self.inner.living(id)?;
        self.inner.set_limits(&sandbox, id, limits).await
    }

    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let sandbox = self.inner.living(id)?;
        self.inner.set_frozen(&sandbox, id, true).await
    }

    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let sandbox = self.inner.living(id)?;
        self.inner.set_frozen(&sandbox, id, false).await
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, RuntimeError> {
        let sandbox = self.inner.living(id)?;
        self.inner.usage(&sandbox, id).await
    }

    async fn attach_interface(&self, id: SandboxId, interface: Interface) -> Result<BoxedPackets, RuntimeError> {
        let sandbox = self.inner.living(id)?;
        let unsupported = |why: &str| RuntimeError::Unsupported(format!("give a sandbox a network interface: {why}"));
        if sandbox.kernel == Kernel::Own {
            return Err(unsupported("its OCI runtime has a network of its own; use runc, or the runtime linux"));
        }
        if !nix::unistd::Uid::effective().is_root() {
            return Err(unsupported("containers are entered by root alone; run as root"));
        }
        let process = sandbox.first.get().and_then(|first| first.process.as_ref());
        let process = process.ok_or_else(|| unsupported("its processes are not on this machine"))?;
        self.inner.networks()?.attach(process, interface).await
    }

    fn walls(&self, template: &Prepared) -> Vec<&'static str> {
        self.inner.walls(template)
    }

    async fn ended(&self, id: SandboxId) -> End {
        match self.inner.find(id) {
            Some(sandbox) => sandbox.ended().await,
            None => End::default(),
        }
    }

    async fn frozen_by_others(&self, id: SandboxId, known: bool) -> bool {
        match self.inner.find(id) {
            Some(sandbox) => sandbox.frozen_otherwise(known).await,
            None => std::future::pending().await,
        }
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.inner.destroy(id).await
    }

    async fn reclaim(&self) -> Result<Vec<SandboxId>, RuntimeError> {
        let reclaimed = self.inner.reclaim().await;
        // what a daemon has that does not answer yet is found by this
        self.watch();
        reclaimed
    }
}

impl Inner {
    /// What has been tried from inside and holds. A kernel of the sandbox's own is a wall by itself: behind it are devices of
    /// its own, and it needs none of the host's filters.
    fn walls(&self, template: &Prepared) -> Vec<&'static str> {
        let mut held =
            vec![walls::NO_PRIVILEGES, walls::FILES, walls::PROCESSES, walls::NETWORK, walls::PROC, walls::IDENTITY];
        let facts = self.engine.last_known();
        let kernel = facts.as_ref().map(|facts| facts.kernel(template.runtime.oci_runtime().unwrap_or_default()));
        if kernel == Some(Kernel::Hosts) {
            held.extend([walls::SECCOMP, walls::DEVICES]);
            if facts.is_some_and(|facts| facts.user_namespaces) {
                held.push(walls::USER_NAMESPACE);
            }
        }
        held
    }
}
