//! An image of a Docker Engine, through the daemon's API: a container is made of it that never starts, its root file
//! system exported, and the container removed.

use std::{
    collections::{HashMap, HashSet},
    io::{self, Read},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bollard::{
    Docker as Client,
    errors::Error,
    models::{ContainerCreateBody, HostConfig, ImageInspect},
    query_parameters::{
        CreateContainerOptionsBuilder, CreateImageOptionsBuilder, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder,
    },
};
use bytes::Bytes;
use cloud_sandbox_model::{
    error::said,
    template::{Image as Wanted, PullPolicy},
};
use futures::StreamExt;
use tokio::{sync::mpsc, time::timeout};

use crate::{
    ImageError,
    archive::Lost,
    config::{self, Config},
    host::{Address, Host},
    job::Job,
    limits::Budget,
    pulls::{Layers, SILENT_FOR, credentials, with_registry_auth, with_tag},
    root::FOLDER,
    store::Made,
    text::said_by,
    unpack::{End, unpack},
};

/// How long the daemon may take to answer a call, in seconds.
const ANSWER_WITHIN: u64 = 120;
/// How long to look for what a killed process left, at the start.
const SWEEP_WITHIN: Duration = Duration::from_secs(5);
/// What the containers have in common; its value is the store that they belong to.
const LABEL: &str = "cloud-sandbox.import";
const PREFIX: &str = "cloud-sandbox-import-";
/// Pieces of an export on the way to the thread that unpacks it.
const QUEUE: usize = 8;

/// The daemon of a store.
pub(crate) struct Docker {
    host: Host,
    /// the store's folder
    owner: String,
    /// in the name of each container of this process
    tag: String,
    /// the containers of this process that are in use
    used: Arc<Mutex<HashSet<String>>>,
    /// there may be containers that nobody uses
    untidy: Arc<AtomicBool>,
}

impl Docker {
    /// `untidy`: an earlier process of the store may have left containers.
    pub(crate) fn new(host: Option<&str>, owner: String, tag: String, untidy: bool) -> Self {
        Self { host: Host::new(host), owner, tag, used: Arc::default(), untidy: Arc::new(untidy.into()) }
    }

    async fn connect(&self) -> Result<Client, ImageError> {
        let address = self.host.address().map_err(ImageError::DockerHost)?;
        // bollard would say of any fault that there is no socket
        let connected = match &address {
            Address::Socket(path) => tokio::net::UnixStream::connect(path).await.map(drop),
            Address::Tcp(host) => tokio::net::TcpStream::connect(host).await.map(drop),
        };
        connected.map_err(|error| unconnected(&address, error))?;
        let client = address.client(ANSWER_WITHIN).map_err(|error| self.failed("be reached", &error))?;
        client.negotiate_version().await.map_err(|error| self.failed("say which version of its API it has", &error))
    }

    /// Removes the containers that an earlier process of this store left, and those that could not be removed.
    pub(crate) async fn sweep(&self) {
        if !self.untidy.swap(false, Ordering::Relaxed) {
            return;
        }
        let swept = timeout(SWEEP_WITHIN, self.remove_leftovers()).await;
        if !matches!(swept, Ok(Ok(()))) {
            self.untidy.store(true, Ordering::Relaxed);
        }
        match swept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(error = error.chain(), "the daemon was not asked for old imports"),
            Err(_) => tracing::warn!(host = %self.host, "the Docker daemon does not answer"),
        }
    }

    async fn remove_leftovers(&self) -> Result<(), ImageError> {
        let client = self.connect().await?;
        let filters = HashMap::from([("label", vec![format!("{LABEL}={}", self.owner)])]);
        let filters: HashMap<&str, Vec<&str>> =
            filters.iter().map(|(name, values)| (*name, values.iter().map(String::as_str).collect())).collect();
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let listed = client.list_containers(Some(options)).await;
        for container in listed.map_err(|error| self.failed("list containers", &error))? {
            let is_used = {
                let used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
                container.names.iter().flatten().any(|name| used.contains(name.trim_start_matches('/')))
            };
            if let Some(id) = container.id.filter(|_| !is_used) {
                remove(&client, &id).await.map_err(|error| self.failed("remove a container", &error))?;
            }
        }
        Ok(())
    }

    /// Makes the root file system of an image.
    pub(crate) async fn import(&self, wanted: &Wanted, job: &Job) -> Result<Made, ImageError> {
        self.sweep().await;
        let client = self.connect().await?;
        let told = self.find(&client, wanted, job).await?;
        let image = &wanted.image;
        config::check(image, told.os.as_deref().unwrap_or_default(), told.architecture.as_deref().unwrap_or_default())?;
        let missing = || ImageError::NotAnImage { image: image.clone(), reason: "the daemon names no id of it".into() };
        let id = told.id.ok_or_else(missing)?;
        let inner = told.config.unwrap_or_default();
        let config = Config::new(inner.env);
        let size = told.size.and_then(|size| u64::try_from(size).ok()).unwrap_or(0);
        let container = self.container(&client, &id).await?;
        let exported = self.export(&client, &container.name, size, job).await;
        container.remove().await;
        let (work, root, budget) = exported?;
        Ok(Made { work, root, config, digest: id, bytes: budget.bytes, layers: Vec::new() })
    }

    /// What the daemon says about the image, pulled as the template wants it.
    async fn find(&self, client: &Client, wanted: &Wanted, job: &Job) -> Result<ImageInspect, ImageError> {
        let image = with_tag(&wanted.image);
        if wanted.pull == PullPolicy::Always {
            self.pull(client, &image, wanted, job).await?;
        }
        match client.inspect_image(&image).await {
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => {}
            told => return told.map_err(|error| self.failed(&format!("look at image {image}"), &error)),
        }
        if wanted.pull != PullPolicy::Missing {
            return Err(ImageError::NeverPulled { image: wanted.image.clone() });
        }
        self.pull(client, &image, wanted, job).await?;
        client.inspect_image(&image).await.map_err(|error| self.failed(&format!("look at image {image}"), &error))
    }

    async fn pull(&self, client: &Client, image: &str, wanted: &Wanted, job: &Job) -> Result<(), ImageError> {
        job.progress.begin("pulling", 0);
        let options = CreateImageOptionsBuilder::new().from_image(image).build();
        let client = with_registry_auth(client.clone());
        let credentials = wanted.credentials.as_ref().map(credentials);
        let mut told = std::pin::pin!(client.create_image(Some(options), None, credentials));
        let mut layers = Layers::default();
        while let Some(step) = self.next(&mut told).await? {
            let step = step.map_err(|error| self.not_pulled(&wanted.image, &error))?;
            let (done, total) = layers.take(&step);
            job.progress.set(done, total);
        }
        Ok(())
    }

    /// What comes next; an error when nothing does for long.
    async fn next<S: futures::Stream + Unpin>(&self, stream: &mut S) -> Result<Option<S::Item>, ImageError> {
        let late = |_| self.failed("go on", &Error::RequestTimeoutError);
        timeout(SILENT_FOR, stream.next()).await.map_err(late)
    }

    async fn container(&self, client: &Client, image: &str) -> Result<Container, ImageError> {
        let name = format!("{PREFIX}{}-{}", self.tag, crate::job::number());
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            labels: Some(HashMap::from([(LABEL.to_owned(), self.owner.clone())])),
            // it never runs, but without a program the daemon makes no container
            entrypoint: Some(vec!["/".to_owned()]),
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        // first the guard: the daemon may make the container although the call fails, or is dropped
        self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(name.clone());
        let (used, untidy) = (self.used.clone(), self.untidy.clone());
        let container = Container { client: client.clone(), name, used, untidy };
        let made = client.create_container(Some(options), body).await;
        match made {
            Ok(_) => Ok(container),
            Err(error) => {
                container.remove().await;
                Err(self.failed(&format!("make a container of image {image}"), &error))
            }
        }
    }

    async fn export(
        &self,
        client: &Client,
        container: &str,
        size: u64,
        job: &Job,
    ) -> Result<(crate::work::Work, crate::root::Root, Budget), ImageError> {
        job.progress.begin("unpacking", size);
        let (pieces, incoming) = mpsc::channel(QUEUE);
        let unpacking = job.blocking(move |job| {
            let work = job.work()?;
            let mut root = work.root(FOLDER)?;
            let reader = Pieces { incoming, piece: Bytes::new(), job };
            let budget = unpack(reader, &mut root, job, Budget::new(job.limits), End::Said)?;
            Ok((work, root, budget))
        });
        // it ends with its end of the queue, which tells the thread that this is all
        let feeding = async move {
            let mut exported = std::pin::pin!(client.export_container(container));
            loop {
                let piece = match self.next(&mut exported).await {
                    Ok(None) => return,
                    Ok(Some(Ok(piece))) => Ok(piece),
                    Ok(Some(Err(error))) => Err(self.failed("export the image", &error)),
                    Err(error) => Err(error),
                };
                let failed = piece.is_err();
                // what is unpacked has its end, or an error
                if pieces.send(piece).await.is_err() || failed {
                    return;
                }
            }
        };
        let ((), unpacked) = tokio::join!(feeding, unpacking);
        unpacked
    }

    fn failed(&self, doing: &str, error: &Error) -> ImageError {
        ImageError::Daemon { doing: doing.to_owned(), source: said_by(error).into() }
    }

    /// What it means that an image was not pulled. The daemon passes on what its registry says, as text.
    fn not_pulled(&self, image: &str, error: &Error) -> ImageError {
        let (status, message) = match error {
            Error::DockerResponseServerError { status_code, message } => (*status_code, message.clone()),
            Error::DockerStreamError { error } => (0, error.clone()),
            _ => return self.failed(&format!("pull image {image}"), error),
        };
        let image = image.to_owned();
        let place = "the registry that the Docker daemon asks".to_owned();
        let says = |words: &[&str]| words.iter().any(|word| message.contains(word));
        if says(&["no matching manifest"]) {
            return config::platform(&image, "none for it at the registry");
        }
        if says(&["denied", "unauthorized", "no basic auth", "authentication required"]) {
            return ImageError::Refused { image, place, reason: said(&message) };
        }
        if status == 404 || says(&["manifest unknown", "not found"]) {
            return ImageError::Missing { image, place };
        }
        self.failed(&format!("pull image {image}"), error)
    }
}

/// What it means that nobody answers at an address.
fn unconnected(address: &Address, error: io::Error) -> ImageError {
    match (address, error.kind()) {
        (Address::Socket(path), io::ErrorKind::PermissionDenied) => {
            ImageError::NoPermission { socket: path.clone(), source: error.into() }
        }
        (address, _) => ImageError::NoDaemon { address: address.to_string(), source: error.into() },
    }
}

/// A container, removed also when the import is given up.
struct Container {
    client: Client,
    /// empty once it is removed
    name: String,
    used: Arc<Mutex<HashSet<String>>>,
    untidy: Arc<AtomicBool>,
}

impl Container {
    async fn remove(mut self) {
        let name = self.let_go();
        remove_or_note(&self.client, &name, &self.untidy).await;
    }

    fn let_go(&mut self) -> String {
        let name = std::mem::take(&mut self.name);
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
        name
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if self.name.is_empty() {
            return;
        }
        let (client, name, untidy) = (self.client.clone(), self.let_go(), self.untidy.clone());
        match tokio::runtime::Handle::try_current() {
            // when the process ends before it has, the next one removes the container
            Ok(runtime) => drop(runtime.spawn(async move { remove_or_note(&client, &name, &untidy).await })),
            Err(_) => untidy.store(true, Ordering::Relaxed),
        }
    }
}

/// Removes a container, or has the next import do it.
async fn remove_or_note(client: &Client, name: &str, untidy: &AtomicBool) {
    if let Err(error) = remove(client, name).await {
        tracing::warn!(name, %error, "the container of an import stays for now");
        untidy.store(true, Ordering::Relaxed);
    }
}

/// Removes a container, if it is there, with the volumes that were made for it.
async fn remove(client: &Client, name: &str) -> Result<(), Error> {
    let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
    match client.remove_container(name, Some(options)).await {
        // it has gone, or is going
        Ok(()) | Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The pieces of an export, for the thread that unpacks them.
struct Pieces<'a> {
    incoming: mpsc::Receiver<Result<Bytes, ImageError>>,
    piece: Bytes,
    job: &'a Job,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.incoming.blocking_recv() {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(Lost::wrap(error)),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        self.job.progress.advance(length as u64);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_may_not_be_used_is_told_from_one_where_nobody_is() {
        let error = |kind: io::ErrorKind| unconnected(&Address::Socket("/run/docker.sock".into()), kind.into());
        let refused = error(io::ErrorKind::PermissionDenied);
        assert!(matches!(refused, ImageError::NoPermission { .. }));
        assert!(refused.to_string().contains("socket /run/docker.sock; run the node as root"), "{refused}");
        for kind in [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused] {
            assert!(matches!(error(kind), ImageError::NoDaemon { .. }));
        }
    }
}
