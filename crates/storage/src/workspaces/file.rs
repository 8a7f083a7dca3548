//! The checkpoints of one machine, as files: `<root>/<checkpoint id>/<name>`.
//!
//! What is half done has a hidden name in the root: an object that is being written, a folder that is being deleted. It
//! gets or loses its real name by one rename, so that nobody ever sees a part. What a crash left is removed by the next
//! process that opens the root, unless another one still uses it: each holds a shared lock for as long as it lives, and
//! only who is alone tidies up.
//!
//! Invariant: what `put` has answered is on the disk, with every name on the way to it.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Write},
    ops::Range,
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use cloud_sandbox_model::CheckpointId;
use tokio::task::spawn_blocking;

use super::{WorkspaceStore, is_name, nameless};
use crate::error::StorageError;

const STORE: &str = "the workspace folder";
/// What the names of things begin with that are half done.
const HIDDEN: char = '.';
/// How often an object is put into a folder that somebody removes at that moment.
const ATTEMPTS: usize = 10;
/// A block of most file systems: a full one has none.
const PROBE: [u8; 4096] = [0; 4096];

/// What failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} {}", path.display())]
struct Failure {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl From<Failure> for StorageError {
    fn from(failure: Failure) -> Self {
        match failure.source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Self::Full { store: STORE, source: failure.into() },
            _ => Self::Unavailable { store: STORE, source: failure.into() },
        }
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Failure {
    let path = path.to_owned();
    move |source| Failure { operation, path, source }
}

/// A [`WorkspaceStore`] in a folder on disk.
#[derive(Debug, Clone)]
pub struct FileWorkspaces {
    root: Arc<Root>,
}

impl FileWorkspaces {
    /// Opens the folder at `root`, made if it is not there, and removes what a crash left half done.
    pub async fn open(root: &Path) -> Result<Self, StorageError> {
        let root = root.to_owned();
        let root = blocking(move || Root::open(root)).await?;
        Ok(Self { root: Arc::new(root) })
    }

    async fn with_root<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Root) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, StorageError> {
        let root = Arc::clone(&self.root);
        blocking(move || work(&root)).await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, StorageError> {
    let done = spawn_blocking(work).await;
    let done = done.map_err(|error| StorageError::Unavailable { store: STORE, source: error.into() })?;
    Ok(done?)
}

#[async_trait]
impl WorkspaceStore for FileWorkspaces {
    async fn put(&self, folder: CheckpointId, name: &str, content: Bytes) -> Result<(), StorageError> {
        if !is_name(name) {
            return Err(nameless(STORE, name));
        }
        let name = name.to_owned();
        self.with_root(move |root| root.put(folder, &name, &content)).await
    }

    async fn get(&self, folder: CheckpointId, name: &str) -> Result<Option<Bytes>, StorageError> {
        if !is_name(name) {
            return Ok(None);
        }
        let path = self.root.object(folder, name);
        blocking(move || read(&path, None)).await
    }

    async fn read(&self, folder: CheckpointId, name: &str, range: Range<u64>) -> Result<Option<Bytes>, StorageError> {
        if !is_name(name) {
            return Ok(None);
        }
        let path = self.root.object(folder, name);
        blocking(move || read(&path, Some(range))).await
    }

    async fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, StorageError> {
        self.with_root(move |root| root.folders(after, limit)).await
    }

    async fn delete(&self, folder: CheckpointId) -> Result<(), StorageError> {
        self.with_root(move |root| root.delete(folder)).await
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.with_root(Root::check).await
    }
}

/// Bytes of a file, or all of them. A file that is replaced meanwhile stays whole under the descriptor.
fn read(path: &Path, range: Option<Range<u64>>) -> Result<Option<Bytes>, Failure> {
    let reading = || {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let size = file.metadata()?.len();
        let range = range.unwrap_or(0..size);
        if range.end > size {
            return Ok(None);
        }
        let length = range.end.saturating_sub(range.start);
        let mut content = vec![0; usize::try_from(length).map_err(|_| ErrorKind::FileTooLarge)?];
        file.read_exact_at(&mut content, range.start)?;
        Ok(Some(content.into()))
    };
    reading().map_err(failed("read", path))
}

/// The folder of all folders.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    /// holds the lock, and is what names in the root are synced by
    folder: File,
}

impl Root {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let made = !path.exists();
        private_folders().recursive(true).create(&path).map_err(failed("make the folder", &path))?;
        if made && let Some(parent) = path.parent() {
            sync_folder(parent)?;
        }
        let folder = File::open(&path).map_err(failed("open", &path))?;
        let root = Self { path, folder };
        root.tidy_if_alone()?;
        Ok(root)
    }

    /// Ends with the shared lock. Between the two, another may be alone and tidy up: nothing here is ours yet.
    fn tidy_if_alone(&self) -> Result<(), Failure> {
        match self.folder.try_lock() {
            Ok(()) => {
                self.tidy()?;
                self.folder.unlock().map_err(failed("unlock", &self.path))?;
            }
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(failed("lock", &self.path)(error)),
        }
        self.folder.lock_shared().map_err(failed("lock", &self.path))
    }

    /// Removes everything that is half done.
    fn tidy(&self) -> Result<(), Failure> {
        for entry in self.entries()? {
            let entry = entry.map_err(failed("list", &self.path))?;
            if !entry.file_name().as_encoded_bytes().starts_with(&[HIDDEN as u8]) {
                continue;
            }
            let path = entry.path();
            let is_folder = entry.file_type().map_err(failed("look at", &path))?.is_dir();
            let removed = if is_folder { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(failed("remove what a crash left", &path))?;
        }
        Ok(())
    }

    fn entries(&self) -> Result<std::fs::ReadDir, Failure> {
        std::fs::read_dir(&self.path).map_err(failed("list", &self.path))
    }

    fn folder(&self, folder: CheckpointId) -> PathBuf {
        self.path.join(folder.to_string())
    }

    fn object(&self, folder: CheckpointId, name: &str) -> PathBuf {
        self.folder(folder).join(name)
    }

    /// A name for something half done that nobody else has.
    fn hidden(&self, what: &str) -> PathBuf {
        self.path.join(format!("{HIDDEN}{what}-{:016x}", rand::random::<u64>()))
    }

    fn put(&self, folder: CheckpointId, name: &str, content: &[u8]) -> Result<(), Failure> {
        let draft = self.hidden("put");
        let put = write(&draft, content, true).map_err(failed("write", &draft));
        let put = put.and_then(|()| self.place(&draft, folder, name));
        if put.is_err() {
            _ = std::fs::remove_file(&draft);
            // unless there is something else in it
            _ = std::fs::remove_dir(self.folder(folder));
        }
        put
    }

    /// Gives a written file its name.
    fn place(&self, draft: &Path, folder: CheckpointId, name: &str) -> Result<(), Failure> {
        let (folder, object) = (self.folder(folder), self.object(folder, name));
        let mut attempt = 1;
        loop {
            match private_folders().create(&folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(failed("make the folder", &folder)(error));
                }
                _ => {}
            }
            match std::fs::rename(draft, &object) {
                // somebody has just removed the folder
                Err(error) if error.kind() == ErrorKind::NotFound && attempt < ATTEMPTS => attempt += 1,
                Err(error) => return Err(failed("write", &object)(error)),
                Ok(()) => break,
            }
        }
        match sync_folder(&folder) {
            // it was written, and somebody has deleted it since
            Err(Failure { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            synced => synced?,
        }
        // whoever made the folder may not have come to this yet
        self.sync()
    }

    fn sync(&self) -> Result<(), Failure> {
        self.folder.sync_all().map_err(failed("sync", &self.path))
    }

    fn folders(&self, after: Option<CheckpointId>, limit: usize) -> Result<Vec<CheckpointId>, Failure> {
        let mut found = Vec::new();
        for entry in self.entries()? {
            let entry = entry.map_err(failed("list", &self.path))?;
            let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            if after.is_none_or(|after| id > after) && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(id);
            }
        }
        found.sort_unstable();
        found.truncate(limit);
        Ok(found)
    }

    fn delete(&self, folder: CheckpointId) -> Result<(), Failure> {
        let (folder, doomed) = (self.folder(folder), self.hidden("delete"));
        match std::fs::rename(&folder, &doomed) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(failed("delete", &folder))?,
        }
        // first, or a power cut might bring back half of it under its name
        self.sync()?;
        std::fs::remove_dir_all(&doomed).map_err(failed("delete", &doomed))
    }

    fn check(&self) -> Result<(), Failure> {
        let probe = self.hidden("check");
        // not synced, as this is asked every second: a full disk refuses the bytes before that
        let written = write(&probe, &PROBE, false);
        let removed = std::fs::remove_file(&probe);
        written.and(removed).map_err(failed("write", &probe))
    }
}

fn private_folders() -> DirBuilder {
    let mut folders = DirBuilder::new();
    folders.mode(0o700);
    folders
}

fn write(path: &Path, content: &[u8], sync: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if sync { file.sync_all() } else { Ok(()) }
}

fn sync_folder(path: &Path) -> Result<(), Failure> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

#[cfg(test)]
mod tests;
