//! The life of a container: created, started, looked at, and removed, with as few calls as there can be.

use std::{
    fs, io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bollard::{
    Docker,
    query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder},
};
use cloud_sandbox_model::{SandboxId, error::chain};
use cloud_sandbox_runtime::{End, Root, RuntimeError, SandboxSpec};
use cloud_sandbox_runtime_linux::Process;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::time::{Instant, sleep};

use crate::{
    container::{self, INSTANCE, SANDBOX, Wanted},
    engine::has_status,
    events::ENGINE_AWAY,
    facts::{Facts, Kernel},
    images,
    runtime::Inner,
    sandbox::{First, REASON_WITHIN, Sandbox, Way, from_outside},
    seen::Seen,
    socket::{self, Socket},
    streams::{self, Complaint},
};

/// How long a daemon may take to finish a removal that has begun.
const REMOVED_WITHIN: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long it is looked whether an agent comes up that has been started.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// What became of a sandbox whose container is there and cannot be reached.
const CUT_OFF: &str = "was cut off: its Docker Engine has closed the streams to its agent";
/// How many leftovers are removed at once.
const REMOVALS: usize = 8;

impl Inner {
    /// Makes a sandbox; on an error nothing of it is left.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: SandboxId,
        spec: &SandboxSpec,
        facts: &Facts,
    ) -> Result<(), RuntimeError> {
        let _making = self.making(id);
        let made = self.create_or_nothing(id, spec, facts, false).await;
        match made {
            // once more by its standard streams, on which it says why
            Err(Failure::EndedAtOnce(error)) if self.dials(spec, facts) => {
                tracing::warn!(sandbox_id = %id, error = %chain(&error), "a sandbox ended at once; it is made without a socket");
                self.create_or_nothing(id, spec, facts, true).await
            }
            made => made,
        }
        .map_err(Failure::into_error)
    }

    /// Whether the agents of a template's sandboxes can dial a socket of their node.
    fn dials(&self, spec: &SandboxSpec, facts: &Facts) -> bool {
        let oci_runtime = facts.oci_runtime(&spec.template.runtime);
        // between a container and a socket of the host is SELinux, where it is
        !facts.selinux && oci_runtime.is_ok_and(|oci_runtime| facts.kernel(&oci_runtime) == Kernel::Hosts)
    }

    async fn create_or_nothing(
        self: &Arc<Self>,
        id: SandboxId,
        spec: &SandboxSpec,
        facts: &Facts,
        streams: bool,
    ) -> Result<(), Failure> {
        let made = self.create_with(id, spec, facts, streams).await;
        if made.is_err()
            && self.find(id).is_some()
            && let Err(error) = self.destroy(id).await
        {
            tracing::warn!(sandbox_id = %id, %error, "what is left of a sandbox that failed waits to be reclaimed");
        }
        made
    }

    async fn create_with(
        self: &Arc<Self>,
        id: SandboxId,
        spec: &SandboxSpec,
        facts: &Facts,
        streams: bool,
    ) -> Result<(), Failure> {
        let Root::Image(image) = &spec.template.root else {
            return Err(RuntimeError::Unsupported("make a container of what is no image".into()).into());
        };
        let oci_runtime = facts.oci_runtime(&spec.template.runtime)?;
        let kernel = facts.kernel(&oci_runtime);
        let brought = images::brought(self, &spec.template.template, image).await?;
        let socket = if !streams && self.dials(spec, facts) { Some(self.socket(id)?) } else { None };
        let way = match &socket {
            Some(socket) => container::Way::Socket(socket.path().to_owned()),
            None => container::Way::Streams,
        };
        let (brought, oci_runtime, way) = (&*brought, &*oci_runtime, &way);
        let storage_limit = spec.template.writable_root;
        let dialect = facts.dialect;
        let wanted = Wanted { id, spec, image, brought, oci_runtime, kernel, way, dialect, storage_limit };
        let client = self.engine.client()?;
        let container = self.create_container(&client, facts, wanted).await?;
        let (agent, complaint) = match socket {
            Some(socket) => (Way::Socket(socket), None),
            None => match streams::attach(&client, &container).await {
                Ok((streams, complaint)) => (Way::Streams(streams), Some(complaint)),
                Err(error) => {
                    let _ = self.remove(&client, &container).await;
                    return Err(self.engine.error("attach to a container", error).into());
                }
            },
        };
        let sandbox = Arc::new(Sandbox::new(container, kernel, agent, spec.limits));
        self.put(id, Arc::clone(&sandbox));
        self.start(&client, id, &sandbox, complaint).await
    }

    /// A socket, in a folder that somebody may have cleaned away.
    fn socket(&self, id: SandboxId) -> Result<Socket, RuntimeError> {
        let made = self.sockets().and_then(|folder| Socket::create(&folder, id));
        made.map_err(|error| RuntimeError::host("make the agent's socket", error))
    }

    async fn create_container(
        &self,
        client: &Docker,
        facts: &Facts,
        mut wanted: Wanted<'_>,
    ) -> Result<String, RuntimeError> {
        let common = self.common(facts)?;
        let name = container::name(wanted.id);
        let mut removed = false;
        loop {
            wanted.storage_limit &= self.storage_limits.load(Ordering::Relaxed);
            let options = CreateContainerOptionsBuilder::default().name(&name).build();
            let error = match client.create_container(Some(options), container::body(common, &wanted)).await {
                Ok(created) => return Ok(created.id),
                Err(error) => error,
            };
            if has_status(&error, 404) {
                let template = wanted.spec.template.template.clone();
                let why = "its image is not there any more: prepare the template again".to_owned();
                return Err(RuntimeError::Template { template, why });
            }
            let message = error.to_string().to_lowercase();
            if wanted.storage_limit && message.contains("storage") && message.contains("opt") {
                let driver = &facts.driver;
                tracing::warn!(driver, %error, "the storage driver has no limits: what is written to a root that is writable is not limited");
                self.storage_limits.store(false, Ordering::Relaxed);
            } else if is_name_taken(&error) && !removed {
                self.remove_old(client, &name).await?;
                removed = true;
            } else {
                return Err(self.engine.error("create a container", error));
            }
        }
    }

    /// Removes a container of a name that is needed, if it is this server's.
    async fn remove_old(&self, client: &Docker, name: &str) -> Result<(), RuntimeError> {
        let Some(found) = self.engine.container(name).await? else { return Ok(()) };
        if !self.is_own(&found) {
            let taken = format!("a container of the name {name} is there already, and it is not this server's");
            return Err(RuntimeError::host("create a container", io::Error::other(taken)));
        }
        self.remove(client, &found.id).await
    }

    fn is_own(&self, container: &Seen) -> bool {
        container.labels.get(INSTANCE) == Some(&self.options.instance)
    }

    async fn start(
        self: &Arc<Self>,
        client: &Docker,
        id: SandboxId,
        sandbox: &Arc<Sandbox>,
        complaint: Option<Complaint>,
    ) -> Result<(), Failure> {
        let started = client.start_container(&sandbox.container, None).await;
        started.map_err(|error| self.not_started(sandbox, error))?;
        // there is none where the daemon has removed it, as its first process has ended
        let seen = self.engine.container(&sandbox.container).await?.unwrap_or_default();
        let ended_at_once = |status: Option<i64>| {
            let printed = complaint.as_ref().map(Complaint::text).unwrap_or_default();
            Failure::EndedAtOnce(ended_at_once(status, &printed))
        };
        let Some(pid) = seen.pid else { return Err(ended_at_once(sandbox.status().or(seen.status))) };
        let process = first_process(pid, &sandbox.container);
        if let Some(process) = process.clone() {
            self.watch(sandbox, async move { process.ended().await }, None);
        }
        match &sandbox.agent {
            Way::Socket(socket) => socket.expect(pid),
            Way::Streams(streams) => self.watch(sandbox, streams.ended(), Some(CUT_OFF)),
        }
        let first = First { pid, process };
        if sandbox.first.set(first).is_err() {
            tracing::error!(sandbox_id = %id, "a sandbox was started twice");
        }
        tokio::select! {
            // an agent that is slower still has whoever made its sandbox wait for it
            _ = tokio::time::timeout(ANSWER_WITHIN, sandbox.answered()) => Ok(()),
            _ = sandbox.ended() => Err(ended_at_once(sandbox.status())),
        }
    }

    /// Why a container has not started. gVisor binds files into it as its root, who is nobody on a host where ids are mapped, and
    /// says nothing of what nobody may not do.
    fn not_started(&self, sandbox: &Sandbox, error: bollard::errors::Error) -> RuntimeError {
        let maps_ids = self.engine.last_known().is_some_and(|facts| facts.user_namespaces);
        match self.engine.error("start a container", error) {
            RuntimeError::Host { source, .. } if sandbox.kernel == Kernel::Own && maps_ids => {
                let needed =
                    "the root of containers, as this Docker Engine maps it, must be let through to the data folder";
                RuntimeError::Unsupported(format!("start a container that binds files by itself: {needed} ({source})"))
            }
            error => error,
        }
    }

    /// Ends the sandbox with its first process, or with the streams to its agent, where the daemon does not say in time that it
    /// has ended. One that is killed says nothing, and leaves its containers alive without streams.
    fn watch(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        lost: impl Future<Output = ()> + Send + 'static,
        otherwise: Option<&'static str>,
    ) {
        let (inner, sandbox) = (Arc::downgrade(self), Arc::downgrade(sandbox));
        tokio::spawn(async move {
            lost.await;
            let (Some(inner), Some(sandbox)) = (inner.upgrade(), sandbox.upgrade()) else { return };
            let following = inner.following.unbroken();
            if following.is_some() && tokio::time::timeout(REASON_WITHIN, sandbox.ended()).await.is_ok() {
                return;
            }
            let unbroken = following.is_some() && inner.following.unbroken() == following;
            let why = if unbroken { otherwise } else { Some(ENGINE_AWAY) };
            sandbox.end(why.map_or_else(End::default, from_outside));
        });
    }

    /// Ends a sandbox and removes all of it.
    pub(crate) async fn destroy(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let Some(sandbox) = self.find(id) else { return self.remove_unheard(id).await };
        sandbox.expect_end();
        let removed = async {
            let client = self.engine.client()?;
            if sandbox.is_frozen() {
                self.wake(&client, &sandbox.container).await;
            }
            self.remove(&client, &sandbox.container).await
        };
        let removed = removed.await;
        if let (Err(RuntimeError::Unavailable(_)), Some(First { process: Some(process), .. })) =
            (&removed, sandbox.first.get())
        {
            // what it runs ends now, its container when there is a daemon again
            process.kill();
        }
        removed?;
        sandbox.end(End::default());
        if let Way::Socket(socket) = &sandbox.agent {
            // also where somebody looks at the sandbox for a moment more
            socket.close();
        }
        // last, so that a destroy that failed is tried again as a whole
        self.forget(id);
        Ok(())
    }

    /// Removes the container of a sandbox that could not be made as far as is known: the daemon may have made it all the same, and
    /// been too slow to say so. One that is away is looked into when it is back.
    async fn remove_unheard(&self, id: SandboxId) -> Result<(), RuntimeError> {
        let removed = async {
            match self.engine.container(&container::name(id)).await? {
                Some(found) if self.is_own(&found) => self.remove(&self.engine.client()?, &found.id).await,
                _ => Ok(()),
            }
        };
        match removed.await {
            Err(RuntimeError::Unavailable(_)) => Ok(()),
            removed => removed,
        }
    }

    /// Lets a container go on that is to be removed: not every OCI runtime kills one that is paused.
    async fn wake(&self, client: &Docker, container: &str) {
        if let Err(error) = client.unpause_container(container).await {
            tracing::debug!(container, %error, "a paused container that is to be removed does not go on");
        }
    }

    /// Removes a container in whatever state it is; when it returns, the container is gone.
    async fn remove(&self, client: &Docker, container: &str) -> Result<(), RuntimeError> {
        let failed = |error| self.engine.error(format!("remove the container {container}"), error);
        let start = Instant::now();
        loop {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match client.remove_container(container, Some(options)).await {
                Ok(()) => return Ok(()),
                Err(error) if has_status(&error, 404) => return Ok(()),
                // its own end has the daemon remove it already
                Err(error) if has_status(&error, 409) && start.elapsed() < REMOVED_WITHIN => sleep(LOOK_AGAIN).await,
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Removes what servers before this one have left.
    pub(crate) async fn remove_strangers(&self) -> Result<Vec<SandboxId>, RuntimeError> {
        let client = self.engine.client()?;
        let listed = self.engine.containers(&self.options.instance).await?;
        // looked up after they were listed: what was listed and is this server's own was known by then
        let stranger = |container: Seen| {
            let id: SandboxId = container.labels.get(SANDBOX)?.parse().ok()?;
            (!self.knows(id)).then_some((id, container.id, container.paused))
        };
        let strangers: Vec<_> = listed.into_iter().filter_map(stranger).collect();
        let removal = |(id, container, paused): (SandboxId, String, bool)| {
            let client = client.clone();
            async move {
                if paused {
                    self.wake(&client, &container).await;
                }
                self.remove(&client, &container).await.map(|()| id)
            }
        };
        let removals: Vec<_> = strangers.into_iter().map(removal).collect();
        stream::iter(removals).buffer_unordered(REMOVALS).try_collect().await
    }

    /// Removes what servers before this one have left; what a daemon has of it that does not answer, once it does.
    pub(crate) async fn reclaim(&self) -> Result<Vec<SandboxId>, RuntimeError> {
        if let Ok(folder) = self.sockets() {
            let left = socket::left_in(&folder).into_iter().filter(|id| !self.knows(*id));
            left.for_each(|id| socket::remove(&folder, id));
        }
        match self.remove_strangers().await {
            Err(RuntimeError::Unavailable(why)) => {
                tracing::warn!(why, "containers of an earlier server can be looked for later only");
                Ok(Vec::new())
            }
            removed => removed,
        }
    }
}

/// Whether a container could not be made for its name: Docker's status says so, of Podman it is one like any other.
fn is_name_taken(error: &bollard::errors::Error) -> bool {
    has_status(error, 409) || has_status(error, 500) && error.to_string().contains("name is already in use")
}

/// Why a sandbox could not be made.
enum Failure {
    /// its first process has ended before it was looked at
    EndedAtOnce(RuntimeError),
    Other(RuntimeError),
}

impl Failure {
    fn into_error(self) -> RuntimeError {
        match self {
            Self::EndedAtOnce(error) | Self::Other(error) => error,
        }
    }
}

impl From<RuntimeError> for Failure {
    fn from(error: RuntimeError) -> Self {
        Self::Other(error)
    }
}

/// The first process of a container, where its engine's numbers of processes mean those of this machine: an engine that is
/// elsewhere, in a virtual machine for example, has numbers that are other processes' here.
fn first_process(pid: i32, container: &str) -> Option<Process> {
    let process = Process::adopt(pid).ok()?;
    // looked at when it is held, so that the number means no other one meanwhile
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    groups.contains(container).then_some(process)
}

fn ended_at_once(status: Option<i64>, printed: &str) -> RuntimeError {
    let status = status.map_or_else(|| "unknown".to_owned(), |status| status.to_string());
    let printed = if printed.is_empty() { String::new() } else { format!(", and printed: {printed}") };
    let what = format!("its container ended at once with exit code {status}{printed}");
    RuntimeError::host("start a sandbox", io::Error::other(what))
}
