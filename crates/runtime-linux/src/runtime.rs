//! The runtime port on Linux.

use std::{
    collections::HashMap,
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cloud_sandbox_images::ImageStore;
use cloud_sandbox_jailer::{IdMap, Root, Spec};
use cloud_sandbox_model::{
    Limits, RuntimeName, SandboxId, Template,
    sandbox::USER,
    template::{Progress, Source},
};
use cloud_sandbox_runtime::{
    BoxedPackets, BoxedStream, End, INTERFACE, Interface, Port, Prepared, Root as PreparedRoot, Runtime, RuntimeError,
    SandboxSpec, Usage, inodes, scratch_folders, walls,
};
use tokio::sync::oneshot;

use crate::{
    cgroup::{self, Controller, Hierarchy},
    doctor::{Loss, Proof},
    identity,
    ids::IdRanges,
    landlock,
    launch::Launcher,
    network::Networks,
    programs, rlimits,
    sandbox::{Process, Sandbox, Socket},
    seccomp::Filters,
    template,
};

/// How long the processes of a sandbox may take to end before they are killed one by one.
const KILL_AGAIN: Duration = Duration::from_millis(10);
/// The kernel chooses.
const ANY_PORT: u16 = 0;

/// What a [`LinuxRuntime`] can be told.
pub struct Options {
    /// a folder of this process alone, where sockets have a name for a moment
    pub state_dir: PathBuf,
    /// the agent's program
    pub agent: &'static [u8],
    /// the jailer's program
    pub jailer: &'static [u8],
    /// where root file systems come from; without it there is the host's own `/usr` alone
    pub images: Option<ImageStore>,
}

/// Sandboxes made of namespaces, cgroups and seccomp.
pub struct LinuxRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    state_dir: PathBuf,
    launcher: Arc<Launcher>,
    networks: Networks,
    agent: OwnedFd,
    filters: Filters,
    host: Root,
    ids: IdRanges,
    cgroups: Option<Box<dyn Hierarchy>>,
    landlock: u32,
    images: Option<ImageStore>,
    /// how many files this process may have open
    open_files: u64,
    losses: Vec<Loss>,
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
}

impl LinuxRuntime {
    /// Prepares this host. Which protections it has not got is in [`losses`](Self::losses).
    pub fn new(options: &Options) -> Result<Self, RuntimeError> {
        let host = |operation: &'static str| move |error: io::Error| RuntimeError::host(operation, error);
        std::fs::create_dir_all(&options.state_dir).map_err(host("make the state folder"))?;
        let ids = IdRanges::new();
        let (cgroups, why) = match cgroup::open() {
            Ok(hierarchy) => (Some(hierarchy), None),
            Err(why) => (None, Some(why)),
        };
        let missing = cgroups.as_ref().map_or_else(|| Controller::ALL.to_vec(), |groups| groups.missing());
        let landlock = landlock::version();
        let losses = Loss::of(&missing, why.as_deref(), ids.are_unique(), landlock);
        let launcher = Arc::new(Launcher::new(options.jailer).map_err(host("prepare the jailer"))?);
        let inner = Inner {
            state_dir: options.state_dir.clone(),
            networks: Networks::of(Arc::clone(&launcher)),
            launcher,
            agent: programs::sealed(c"cloud-sandbox-agent", options.agent).map_err(host("prepare the agent"))?,
            filters: Filters::compile().map_err(host("compile the seccomp programs"))?,
            host: template::host(),
            ids,
            cgroups,
            landlock,
            images: options.images.clone(),
            open_files: rlimits::raise_open_files().map_err(host("raise the limit of open files"))?,
            losses,
            sandboxes: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The protections that sandboxes on this host do not have.
    #[must_use]
    pub fn losses(&self) -> &[Loss] {
        &self.inner.losses
    }

    /// Where limits are set: `v2 at …`; nowhere, when `None`.
    #[must_use]
    pub fn cgroups(&self) -> Option<String> {
        self.inner.cgroups.as_ref().map(|groups| groups.describe())
    }

    /// The version of Landlock that sandboxes are walled off with; 0 is none.
    pub(crate) fn landlock(&self) -> u32 {
        self.inner.landlock
    }

    /// Makes a sandbox, has its agent answer, tries the network modes, and destroys it: whether this host can do it at all.
    pub(crate) async fn prove(&self) -> Proof {
        let id = SandboxId::generate();
        let spec = SandboxSpec { template: Prepared::host(), limits: Limits::DEFAULT };
        let made = match self.create(id, &spec).await {
            Ok(()) => self.connect(id).await.map(drop),
            Err(error) => Err(error),
        };
        let listens = self.listen(id, ANY_PORT).await.map(drop);
        let attaches = self.attach_interface(id, INTERFACE).await.map(drop);
        let gone = self.destroy(id).await;
        Proof { made: made.and(gone), listens, attaches }
    }
}

impl Inner {
    fn sandboxes(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Sandbox>>> {
        self.sandboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sandbox(&self, id: SandboxId) -> Result<Arc<Sandbox>, RuntimeError> {
        self.sandboxes().get(&id).cloned().ok_or(RuntimeError::Gone(id))
    }

    async fn create(self: &Arc<Self>, id: SandboxId, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let ids = self.ids.take().ok_or_else(|| RuntimeError::Exhausted("all ranges of ids are taken".into()))?;
        let made = self.create_with(id, ids, spec).await;
        if made.is_err() {
            self.ids.give_back(ids);
        }
        made
    }

    async fn create_with(
        self: &Arc<Self>,
        id: SandboxId,
        ids: IdMap,
        spec: &SandboxSpec,
    ) -> Result<Sandbox, RuntimeError> {
        let (template, limits) = (spec.template.clone(), spec.limits);
        let (socket, listener) =
            self.make_socket(id).map_err(|error| RuntimeError::host("make the agent's socket", error))?;
        let root = blocking(self, move |inner| {
            let root = inner.root(&template)?;
            inner.make_group(id, &limits).map(|()| root)
        })
        .await?;
        let spec = self.jail(id, ids, root, &limits);
        match self.launcher.launch(spec, listener, &self.agent, &self.filters.programs).await {
            Ok(process) => Ok(Sandbox { process, socket, ids }),
            Err(error) => {
                if let Err(error) = blocking(self, move |inner| inner.remove_group(id)).await {
                    tracing::warn!(sandbox_id = %id, %error, "the cgroup of a sandbox that failed waits to be reclaimed");
                }
                Err(error)
            }
        }
    }

    /// What sandboxes of a template show as their root.
    fn root(&self, template: &Prepared) -> Result<Root, RuntimeError> {
        let why = match &template.root {
            PreparedRoot::Host => return Ok(self.host.clone()),
            PreparedRoot::Folder(base) => match template::folder(base) {
                Ok(root) => return Ok(root),
                Err(error) => format!("its root file system {} cannot be read: {error}", base.display()),
            },
            PreparedRoot::Image(_) => "an image of a Docker Engine is none of the runtime linux".to_owned(),
        };
        Err(RuntimeError::Template { template: template.template.clone(), why })
    }

    fn jail(&self, id: SandboxId, ids: IdMap, mut root: Root, limits: &Limits) -> Spec {
        root.scratch_bytes = limits.disk_bytes;
        root.scratch_inodes = inodes(limits.disk_bytes);
        identity::renew(&mut root);
        Spec {
            hostname: "sandbox".into(),
            user: USER,
            ids,
            cgroup_procs: self.cgroups.as_ref().map_or_else(Vec::new, |groups| groups.procs(id)),
            root,
            seccomp: self.filters.lengths.clone(),
            landlock: self.landlock,
            rlimits: rlimits::SAME.into_iter().chain(self.own_rlimits(limits)).collect(),
        }
    }

    fn own_rlimits(&self, limits: &Limits) -> Vec<(u32, u64)> {
        let missing = self.cgroups.as_ref().map_or_else(|| Controller::ALL.to_vec(), |groups| groups.missing());
        let shared = (!self.ids.are_unique()).then_some(self.open_files);
        rlimits::own(limits, &missing, shared)
    }

    /// Makes the socket, in a folder that somebody may have cleaned away.
    fn make_socket(&self, id: SandboxId) -> io::Result<(Socket, OwnedFd)> {
        match Socket::create(&self.state_dir, id) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                std::fs::create_dir_all(&self.state_dir)?;
                Socket::create(&self.state_dir, id)
            }
            made => made,
        }
    }

    fn make_group(&self, id: SandboxId, limits: &Limits) -> Result<(), RuntimeError> {
        let Some(groups) = &self.cgroups else { return Ok(()) };
        groups.create(id, limits).map_err(|error| RuntimeError::host("make a cgroup", error))
    }

    fn remove_group(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let Some(groups) = &self.cgroups else { return Ok(()) };
        groups.remove(id).map_err(|error| RuntimeError::host(format!("remove the cgroup of {id}"), error))
    }

    async fn destroy(self: &Arc<Self>, id: SandboxId) -> Result<(), RuntimeError> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        sandbox.process.kill();
        // a frozen process of a v1 hierarchy dies only when it goes on; without a freezer nothing is frozen
        let _ = blocking(self, move |inner| inner.set_frozen(id, false)).await;
        tokio::select! {
            () = sandbox.process.ended() => {}
            () = self.keep_killing(id) => {}
        }
        blocking(self, move |inner| inner.remove_group(id)).await?;
        // last, so that a destroy that failed is tried again as a whole
        if self.sandboxes().remove(&id).is_some() {
            self.ids.give_back(sandbox.ids);
        }
        Ok(())
    }

    fn set_limits(&self, id: SandboxId, limits: &Limits) -> Result<(), RuntimeError> {
        let sandbox = self.sandbox(id)?;
        if let Some(groups) = &self.cgroups {
            groups.set_limits(id, limits).map_err(|error| RuntimeError::host(format!("limit sandbox {id}"), error))?;
        }
        match sandbox.process.limit(&self.own_rlimits(limits)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(RuntimeError::Unsupported(
                "raise a limit of processes that run: that takes CAP_SYS_RESOURCE".into(),
            )),
            limited => limited.map_err(|error| RuntimeError::host(format!("limit the processes of {id}"), error)),
        }
    }

    /// Kills what is in the sandbox's group again and again. The end of its first process ends all the others too, but that
    /// first process may have been left little CPU by them.
    async fn keep_killing(self: &Arc<Self>, id: SandboxId) {
        loop {
            tokio::time::sleep(KILL_AGAIN).await;
            let killed = blocking(self, move |inner| {
                if let Some(groups) = &inner.cgroups {
                    groups.kill_all(id);
                }
                Ok(())
            });
            let _ = killed.await;
        }
    }

    fn set_frozen(&self, id: SandboxId, frozen: bool) -> Result<(), RuntimeError> {
        self.sandbox(id)?;
        let able = self.cgroups.as_ref().filter(|groups| !groups.missing().contains(&Controller::Freezer));
        let groups = able.ok_or_else(|| RuntimeError::Unsupported("freeze a sandbox: no cgroup freezer".into()))?;
        let operation = if frozen { "freeze" } else { "thaw" };
        groups.set_frozen(id, frozen).map_err(|error| RuntimeError::host(format!("{operation} sandbox {id}"), error))
    }
}

#[async_trait]
impl Runtime for LinuxRuntime {
    fn name(&self) -> &'static str {
        "linux"
    }

    async fn available(&self, _name: &RuntimeName) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn prepare(
        &self,
        template: &Template,
        _runtime: &RuntimeName,
        progress: &Arc<Progress>,
    ) -> Result<Prepared, RuntimeError> {
        let reference = template.reference();
        let images = match (&template.source, &self.inner.images) {
            (Source::Host, _) => return Ok(Prepared { template: reference, ..Prepared::host() }),
            (_, Some(images)) => images,
            (source, None) => {
                return Err(RuntimeError::Unsupported(format!("make a root file system of a {}", source.kind())));
            }
        };
        let image = images.prepare(&reference, &template.source, progress).await;
        let image = image.map_err(|error| RuntimeError::Template { template: reference, why: error.chain() })?;
        Ok(Prepared {
            template: image.reference,
            root: PreparedRoot::Folder(image.root),
            env: image.env,
            ..Prepared::host()
        })
    }

    async fn discard(&self, template: &str) -> Result<(), RuntimeError> {
        let Some(images) = &self.inner.images else { return Ok(()) };
        let removed = images.remove(template).await;
        removed.map_err(|error| RuntimeError::host(format!("remove template {template}"), io::Error::other(error)))
    }

    async fn prepared_templates(&self) -> Result<Vec<String>, RuntimeError> {
        let Some(images) = &self.inner.images else { return Ok(Vec::new()) };
        images.references().map_err(|error| RuntimeError::host("list what is prepared", io::Error::other(error)))
    }

    fn writable_folders(&self, _template: &Prepared) -> Vec<PathBuf> {
        scratch_folders()
    }

    async fn create(&self, id: SandboxId, spec: &SandboxSpec) -> Result<(), RuntimeError> {
        let (send, made) = oneshot::channel();
        let (inner, spec) = (Arc::clone(&self.inner), spec.clone());
        // on its own, so that a caller that goes away does not leave half a sandbox
        tokio::spawn(async move {
            let made = inner.create(id, &spec).await.map(|sandbox| {
                inner.sandboxes().insert(id, Arc::new(sandbox));
            });
            if send.send(made).is_err()
                && let Err(error) = inner.destroy(id).await
            {
                tracing::error!(sandbox_id = %id, %error, "a sandbox that nobody waited for could not be destroyed");
            }
        });
        made.await.map_err(|error| RuntimeError::host("make a sandbox", io::Error::other(error)))?
    }

    async fn connect(&self, id: SandboxId) -> Result<BoxedStream, RuntimeError> {
        let sandbox = self.inner.sandbox(id)?;
        match sandbox.socket.connect().await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Err(RuntimeError::Gone(id)),
            Err(error) => Err(RuntimeError::host(format!("connect to the agent of {id}"), error)),
        }
    }

    async fn set_limits(&self, id: SandboxId, limits: Limits) -> Result<(), RuntimeError> {
        // a lower memory limit has the kernel reclaim until it holds
        blocking(&self.inner, move |inner| inner.set_limits(id, &limits)).await
    }

    async fn freeze(&self, id: SandboxId) -> Result<(), RuntimeError> {
        blocking(&self.inner, move |inner| inner.set_frozen(id, true)).await
    }

    async fn thaw(&self, id: SandboxId) -> Result<(), RuntimeError> {
        blocking(&self.inner, move |inner| inner.set_frozen(id, false)).await
    }

    async fn usage(&self, id: SandboxId) -> Result<Usage, RuntimeError> {
        self.inner.sandbox(id)?;
        Ok(self.inner.cgroups.as_ref().map_or_else(Usage::default, |groups| groups.usage(id)))
    }

    async fn listen(&self, id: SandboxId, port: u16) -> Result<Port, RuntimeError> {
        let process = self.inner.sandbox(id)?.process.clone();
        self.inner.networks.listen(&process, port).await
    }

    async fn attach_interface(&self, id: SandboxId, interface: Interface) -> Result<BoxedPackets, RuntimeError> {
        let process = self.inner.sandbox(id)?.process.clone();
        self.inner.networks.attach(&process, interface).await
    }

    fn walls(&self, _template: &Prepared) -> Vec<&'static str> {
        let mut walls = vec![
            walls::USER_NAMESPACE,
            walls::NO_PRIVILEGES,
            walls::SECCOMP,
            walls::FILES,
            walls::PROCESSES,
            walls::NETWORK,
            walls::PROC,
            walls::DEVICES,
            walls::IDENTITY,
        ];
        if self.inner.landlock > 0 {
            walls.push(walls::LANDLOCK);
        }
        if self.inner.ids.are_unique() {
            walls.push(walls::UNIQUE_IDS);
        }
        walls
    }

    async fn ended(&self, id: SandboxId) -> End {
        let process: Option<Process> = self.inner.sandbox(id).ok().map(|sandbox| sandbox.process.clone());
        if let Some(process) = process {
            process.ended().await;
        }
        End::default()
    }

    async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        self.inner.destroy(id).await
    }

    async fn reclaim(&self) -> Result<Vec<SandboxId>, RuntimeError> {
        blocking(&self.inner, |_| Ok(cgroup::reclaim())).await
    }
}

/// The kernel may take its time with a group; a worker of the async runtime may not wait for it.
async fn blocking<T: Send + 'static>(
    inner: &Arc<Inner>,
    act: impl FnOnce(&Inner) -> Result<T, RuntimeError> + Send + 'static,
) -> Result<T, RuntimeError> {
    let inner = Arc::clone(inner);
    let done = tokio::task::spawn_blocking(move || act(&inner)).await;
    done.map_err(|error| RuntimeError::host("wait for the host", io::Error::other(error)))?
}
