//! From each kind of source to files.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use cloud_sandbox_model::template::{Image as Wanted, PullPolicy, Source};
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    ImageError,
    archive::Told,
    config::Config,
    error::writing,
    folder,
    job::Job,
    limits::Budget,
    merge,
    registry::{Blob, Remote},
    root::{FOLDER, PRIVATE, Root},
    store::{ImageStore, Made},
    text::{hex, layer_name},
    turns::Pinned,
    unpack::{End, unpack},
    work::{self, ROOT},
};

/// How many layers come at the same time.
const AT_ONCE: usize = 3;

/// What is kept beside a layer.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    bytes: u64,
    entries: u64,
}

/// A source in words that say all that its files depend on, and nothing secret.
pub(crate) fn describe(source: &Source) -> String {
    match source {
        Source::Host => "the host".to_owned(),
        Source::Folder { path } => format!("folder {}", path.display()),
        Source::Tarball { path } => format!("tarball {}", path.display()),
        Source::DockerImage(image) => format!("image {} of the Docker daemon", image.image),
        Source::Registry { image, .. } => format!("image {} of its registry", image.image),
    }
}

impl ImageStore {
    /// Makes the files of a source. While what `pinned` is set to is held, the layers that they are linked from stay, also
    /// those that came before a fault.
    pub(crate) async fn make(
        &self,
        source: &Source,
        pinned: &mut Option<Pinned>,
        job: &Job,
    ) -> Result<Made, ImageError> {
        match source {
            Source::Host => Err(ImageError::NotAnImage {
                image: "the source host".to_owned(),
                reason: "it is this machine's own system, of which there is no copy".to_owned(),
            }),
            Source::Folder { path } => {
                let path = path.clone();
                job.blocking(move |job| copied(&path, job)).await
            }
            Source::Tarball { path } => {
                let path = path.clone();
                job.blocking(move |job| unpacked(&path, job)).await
            }
            Source::DockerImage(image) => self.0.docker.import(image, job).await,
            Source::Registry { image, plain_http } => self.fetched(image, *plain_http, pinned, job).await,
        }
    }

    async fn fetched(
        &self,
        image: &Wanted,
        plain_http: bool,
        pinned: &mut Option<Pinned>,
        job: &Job,
    ) -> Result<Made, ImageError> {
        if image.pull == PullPolicy::Never {
            return Err(ImageError::NeverPulled { image: image.image.clone() });
        }
        job.progress.begin("pulling", 0);
        let remote = Arc::new(Remote::find(image, plain_http).await?);
        let names: Vec<_> = remote.layers.iter().filter_map(|blob| layer_name(&blob.digest)).collect();
        *pinned = Some(self.0.pins.pin(names.clone()));
        let missing = self.missing(&remote.layers);
        Budget::new(job.limits).spend(
            &job.what,
            0,
            missing.iter().map(|blob| blob.size).fold(0, u64::saturating_add),
        )?;
        job.progress.begin("pulling", missing.iter().map(|blob| blob.size).sum());
        let mut budget = Budget::new(job.limits);
        for name in names.iter().collect::<BTreeSet<_>>() {
            self.count(name, &mut budget, job)?;
        }
        // by value: a closure over references does not go into a task
        let fetching = missing.into_iter().map(|blob| self.layer(&remote, blob, budget.part(), job));
        stream::iter(fetching).buffer_unordered(AT_ONCE).try_for_each(|()| async { Ok(()) }).await?;
        let layers = names.clone();
        let (work, root, bytes) = job.blocking(move |job| merged(&layers, job)).await?;
        let (config, digest) = (remote.config.clone(), remote.id.clone());
        Ok(Made { work, root, config, digest, bytes, layers: names })
    }

    /// The layers that are not here, each once.
    fn missing(&self, layers: &[Blob]) -> Vec<Blob> {
        let mut missing: Vec<Blob> = Vec::new();
        for blob in layers {
            if !self.has(blob) && missing.iter().all(|other| other.digest != blob.digest) {
                missing.push(blob.clone());
            }
        }
        missing
    }

    fn has(&self, blob: &Blob) -> bool {
        layer_name(&blob.digest).is_some_and(|name| layer_path(&self.0.folder, &name).is_dir())
    }

    /// Spends what a layer has that is here.
    fn count(&self, name: &str, budget: &mut Budget, job: &Job) -> Result<(), ImageError> {
        let Some(record) = work::record::<LayerRecord>(&layer_path(&self.0.folder, name)) else { return Ok(()) };
        budget.spend(&job.what, record.entries, record.bytes)
    }

    /// Fetches and unpacks a layer, unless another call has done it meanwhile.
    async fn layer(&self, remote: &Remote, blob: Blob, mut budget: Budget, job: &Job) -> Result<(), ImageError> {
        let turn = self.0.turns.take(format!("layer {}", blob.digest)).await;
        let part = job.part(format!("layer {} of {}", blob.digest, job.what), turn);
        let Some(name) = layer_name(&blob.digest) else { return Ok(()) };
        if self.has(&blob) {
            job.progress.advance(blob.size);
            return self.count(&name, &mut budget, job);
        }
        let draft = remote.fetch(&blob, job).await?;
        part.blocking(move |job| {
            let opened = File::open(&draft.0).map_err(writing(&job.store, "read a layer"))?;
            let work = job.work()?;
            let mut root = work.root(PRIVATE)?;
            let Budget { bytes, entries, .. } = unpack(opened, &mut root, job, budget, End::Known)?;
            work.keep(&LayerRecord { bytes, entries }, &layer_path(&job.store, &name))
        })
        .await
    }
}

fn layer_path(store: &Path, name: &str) -> std::path::PathBuf {
    store.join("layers").join(name)
}

fn copied(path: &Path, job: &Job) -> Result<Made, ImageError> {
    job.progress.begin("copying", 0);
    let work = job.work()?;
    let root = work.root(FOLDER)?;
    let (budget, digest) = folder::copy(path, &root, job)?;
    Ok(Made { work, root, config: Config::default(), digest, bytes: budget.bytes, layers: Vec::new() })
}

fn unpacked(path: &Path, job: &Job) -> Result<Made, ImageError> {
    let unreadable = |source: io::Error| ImageError::Tarball { path: path.to_owned(), source };
    let told = std::fs::metadata(path).map_err(unreadable)?;
    if !told.is_file() {
        // opening a pipe would wait for whoever writes to it
        return Err(unreadable(io::Error::other("it is not a file")));
    }
    let file = File::open(path).map_err(unreadable)?;
    job.progress.begin("unpacking", told.len());
    let work = job.work()?;
    let mut root = work.root(FOLDER)?;
    let mut reader = Hashed { reader: Told::new(file, job, unreadable), digest: Sha256::new() };
    let budget = unpack(&mut reader, &mut root, job, Budget::new(job.limits), End::Said)?;
    if is_archive_of_images(&root) {
        return Err(ImageError::ImageArchive { what: job.what.clone() });
    }
    let digest = format!("sha256:{}", hex(&reader.digest.finalize()));
    Ok(Made { work, root, config: Config::default(), digest, bytes: budget.bytes, layers: Vec::new() })
}

/// Whether files are those of `docker save`, of which newer versions write OCI layouts too.
fn is_archive_of_images(root: &Root) -> bool {
    use nix::{fcntl::OFlag, sys::stat::Mode};
    let open = |name: &str| {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        nix::fcntl::openat(root.folder(), name, flags, Mode::empty()).ok().map(File::from)
    };
    if open("oci-layout").is_some_and(|file| file.metadata().is_ok_and(|told| told.is_file())) {
        return true;
    }
    let manifest: Option<serde_json::Value> =
        open("manifest.json").and_then(|file| serde_json::from_reader(file.take(1 << 20)).ok());
    manifest.is_some_and(|manifest| manifest[0]["Layers"].is_array())
}

fn merged(layers: &[String], job: &Job) -> Result<(work::Work, Root, u64), ImageError> {
    job.progress.begin("merging", 0);
    let mut budget = Budget::new(job.limits);
    for name in layers {
        let lost = || writing(&job.store, "find a layer")(io::ErrorKind::NotFound.into());
        let record: LayerRecord = work::record(&layer_path(&job.store, name)).ok_or_else(lost)?;
        budget.spend(&job.what, record.entries, record.bytes)?;
    }
    let work = job.work()?;
    let root = work.root(FOLDER)?;
    for name in layers {
        merge::add_layer(&layer_path(&job.store, name).join(ROOT), &root, job)?;
    }
    Ok((work, root, budget.bytes))
}

/// A reader of which all that went through is digested.
struct Hashed<R> {
    reader: R,
    digest: Sha256,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.digest.update(&buffer[..read]);
        Ok(read)
    }
}
