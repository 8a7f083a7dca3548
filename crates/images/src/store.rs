//! The store: a folder with root file systems ready to be used, and the layers that they share.
//!
//! ```text
//! trees/python@3/{root, record.json}      what a sandbox is given
//! layers/sha256-…/{root, record.json}     what trees are linked from; gone with the last tree that needs it, or is to
//! work/                                   what is half made, or being deleted; emptied when the store is opened
//! lock                                    held by the process that uses the store
//! ```
//!
//! What is in `trees` and `layers` is complete: it gets its name there in one step, after it is on the disk.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::{self, File, Permissions},
    io,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cloud_sandbox_model::template::{Progress, Source, split_reference};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::{
    Image, ImageError, Options,
    config::Config,
    docker::Docker,
    error::writing,
    fit::fit,
    job::{self, Job},
    limits::Limits,
    root::Root,
    source,
    turns::{Pinned, Pins, Turns},
    work::{self, ROOT, Work},
};

/// Root file systems on this machine's disk. Copies are the same store.
#[derive(Clone)]
pub struct ImageStore(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) folder: Arc<Path>,
    pub(crate) limits: Limits,
    nameserver: Ipv4Addr,
    pub(crate) docker: Docker,
    pub(crate) turns: Turns,
    pub(crate) pins: Arc<Pins>,
    /// layers of images that could not be fetched to the end, by the references of these
    came: Mutex<HashMap<String, Pinned>>,
    _lock: Flock<File>,
}

/// What was made for a tree, and is not one yet.
pub(crate) struct Made {
    pub(crate) work: Work,
    pub(crate) root: Root,
    pub(crate) config: Config,
    pub(crate) digest: String,
    pub(crate) bytes: u64,
    /// the names of the layers that it is linked from
    pub(crate) layers: Vec<String>,
}

/// What is kept beside a tree.
#[derive(Serialize, Deserialize)]
struct Record {
    /// what it was made from, without credentials
    source: String,
    digest: String,
    bytes: u64,
    env: BTreeMap<String, String>,
    layers: Vec<String>,
}

impl ImageStore {
    /// Opens the store, and removes what an earlier process of it did not finish.
    pub async fn open(options: Options) -> Result<Self, ImageError> {
        let failed = writing(&options.folder, "open the store");
        let folder = options.folder.clone();
        let (folder, lock, is_new) = tokio::task::spawn_blocking(move || prepare_folder(&folder))
            .await
            .map_err(|error| failed(io::Error::other(error)))??;
        let tag = format!("{}-{:08x}", std::process::id(), start_number());
        let docker = Docker::new(options.docker_host.as_deref(), folder.display().to_string(), tag, !is_new);
        docker.sweep().await;
        let store = Self(Arc::new(Inner {
            folder: folder.into(),
            limits: options.limits,
            nameserver: options.nameserver,
            docker,
            turns: Turns::default(),
            pins: Arc::default(),
            came: Mutex::default(),
            _lock: lock,
        }));
        store.collect(Arc::default()).await?;
        Ok(store)
    }

    /// Makes the root file system of a source, or finds it: a second call for the same reference and source has nothing
    /// to do. `reference` is the template's: `name@version`, or the name of a built-in one.
    ///
    /// When it fails, nothing of it is left but the whole layers that came before the way to a registry broke: they are
    /// there for the next call for this reference, until one succeeds or fails otherwise, or [`remove`](Self::remove).
    /// When it is dropped, no more is left than whole layers, until the next image is removed. An image of the same
    /// reference that another source was made into is replaced.
    pub async fn prepare(
        &self,
        reference: &str,
        source: &Source,
        progress: &Arc<Progress>,
    ) -> Result<Image, ImageError> {
        let path = self.tree(reference)?;
        progress.begin("waiting", 0);
        let turn = self.0.turns.take(format!("tree {reference}")).await;
        let told = source::describe(source);
        if let Some((record, image)) = self.found(reference, &path)
            && record.source == told
        {
            return Ok(image);
        }
        let job = Job::new(told.clone(), self.0.folder.clone(), self.0.limits, progress.clone()).in_turn(turn);
        let mut pinned = None;
        let result = match self.make(source, &mut pinned, &job).await {
            Ok(made) => self.keep(made, told, path.clone(), &job).await,
            Err(error) => Err(error),
        };
        job.ended().await;
        let had_some = match &result {
            Err(error) if error.is_of_the_way() => pinned.is_some_and(|layers| self.keep_layers(reference, layers)),
            _ => {
                drop(pinned);
                self.let_layers_go(reference)
            }
        };
        if result.is_err() || had_some {
            // the error that says why is the one to tell
            let _ = self.collect(progress.clone()).await;
        }
        result?;
        let lost = || writing(&self.0.folder, "find the new image")(io::ErrorKind::NotFound.into());
        self.found(reference, &path).map(|(_, image)| image).ok_or_else(lost)
    }

    /// Removes an image, and the layers that no other one needs. No sandbox may use it. There may be none.
    pub async fn remove(&self, reference: &str) -> Result<(), ImageError> {
        let path = self.tree(reference)?;
        let turn = self.0.turns.take(format!("tree {reference}")).await;
        let what = format!("image {reference}");
        let job = Job::new(what, self.0.folder.clone(), self.0.limits, Arc::default()).in_turn(turn);
        job.blocking(move |job| work::discard(&job.store, &path).map_err(writing(&job.store, "remove an image")))
            .await?;
        self.let_layers_go(reference);
        self.collect(Arc::default()).await
    }

    /// The references of all images that are there, in order.
    pub fn references(&self) -> Result<Vec<String>, ImageError> {
        entries(&self.0.folder.join("trees")).map_err(writing(&self.0.folder, "list images"))
    }

    fn tree(&self, reference: &str) -> Result<PathBuf, ImageError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-@".contains(c);
        let is_reference = split_reference(reference).is_some()
            && reference.len() <= 128
            && reference.starts_with(|c: char| c.is_ascii_alphanumeric())
            && reference.chars().all(good);
        if !is_reference {
            return Err(ImageError::Reference(reference.to_owned()));
        }
        Ok(self.0.folder.join("trees").join(reference))
    }

    fn found(&self, reference: &str, path: &Path) -> Option<(Record, Image)> {
        let record: Record = work::record(path)?;
        let image = Image {
            reference: reference.to_owned(),
            root: path.join(ROOT),
            env: record.env.clone(),
            bytes: record.bytes,
            digest: record.digest.clone(),
        };
        Some((record, image))
    }

    async fn keep(&self, made: Made, source: String, path: PathBuf, job: &Job) -> Result<(), ImageError> {
        let nameserver = self.0.nameserver;
        let Made { work, root, config: Config { env }, digest, bytes, layers } = made;
        let record = Record { source, digest, bytes, env, layers };
        job.blocking(move |job| {
            fit(&root, nameserver, job)?;
            job.progress.begin("syncing", 0);
            work::discard(&job.store, &path).map_err(writing(&job.store, "replace an image"))?;
            work.keep(&record, &path)
        })
        .await
    }

    /// Keeps the layers that came for a reference, in the place of others that did before; says whether there were such.
    fn keep_layers(&self, reference: &str, layers: Pinned) -> bool {
        self.came().insert(reference.to_owned(), layers).is_some()
    }

    /// Says whether there were such.
    fn let_layers_go(&self, reference: &str) -> bool {
        self.came().remove(reference).is_some()
    }

    fn came(&self) -> MutexGuard<'_, HashMap<String, Pinned>> {
        self.0.came.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes the layers that no image needs, and none that is under way.
    pub(crate) async fn collect(&self, progress: Arc<Progress>) -> Result<(), ImageError> {
        let pins = self.0.pins.clone();
        let job = Job::new("the store".to_owned(), self.0.folder.clone(), self.0.limits, progress);
        job.blocking(move |job| collect(&job.store, &pins).map_err(writing(&job.store, "remove layers"))).await
    }
}

fn collect(store: &Path, pins: &Pins) -> io::Result<()> {
    let mut gone = Vec::new();
    {
        // A layer is pinned until the record that needs it is there, so it is seen in one place or the other.
        let pins = pins.lock();
        let mut needed = HashSet::new();
        for tree in entries(&store.join("trees"))? {
            let record: Option<Record> = work::record(&store.join("trees").join(tree));
            needed.extend(record.into_iter().flat_map(|record| record.layers));
        }
        for layer in entries(&store.join("layers"))? {
            if !needed.contains(&layer) && !pins.contains_key(&layer) {
                let away = work::drafts(store).join(format!("gone-{}", job::number()));
                fs::rename(store.join("layers").join(layer), &away)?;
                gone.push(away);
            }
        }
    }
    gone.into_iter().try_for_each(fs::remove_dir_all)
}

/// Makes the folder, takes it for this process, and empties what is half made. Says whether nobody has used it before.
fn prepare_folder(folder: &Path) -> Result<(PathBuf, Flock<File>, bool), ImageError> {
    let failed = writing(folder, "open the store");
    fs::create_dir_all(folder).map_err(&failed)?;
    // what images hold is not for the other users of this machine
    fs::set_permissions(folder, Permissions::from_mode(0o700)).map_err(&failed)?;
    let folder = folder.canonicalize().map_err(&failed)?;
    let lock = folder.join("lock");
    let is_new = !lock.exists();
    let file = File::options().create(true).truncate(false).write(true).open(lock).map_err(&failed)?;
    let lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock,
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => return Err(ImageError::InUse(folder)),
        Err((_, errno)) => return Err(failed(errno.into())),
    };
    let drafts = work::drafts(&folder);
    match fs::remove_dir_all(&drafts) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    work::make_private(&drafts).map_err(&failed)?;
    for name in ["trees", "layers"] {
        let path = folder.join(name);
        fs::create_dir_all(&path).map_err(&failed)?;
        for entry in entries(&path).map_err(&failed)? {
            // what has no record was not made by this store, or by another version of it
            let is_known = match name {
                "trees" => work::record::<Record>(&path.join(&entry)).is_some(),
                _ => work::record::<source::LayerRecord>(&path.join(&entry)).is_some(),
            };
            if !is_known {
                work::discard(&folder, &path.join(entry)).map_err(&failed)?;
            }
        }
    }
    Ok((folder, lock, is_new))
}

/// The names in a folder, in order.
fn entries(folder: &Path) -> io::Result<Vec<String>> {
    let names = fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<io::Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

/// A number that differs from one start of a process to the next, and between stores.
fn start_number() -> u32 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(job::number()) as u32
}
