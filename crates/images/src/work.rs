//! What is half made: folders that go with their guard, and become what they should be in one step at the end.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use serde::Serialize;

use crate::{
    ImageError,
    error::writing,
    root::{PRIVATE, Root},
};

/// The folder with what is half made.
pub(crate) fn drafts(store: &Path) -> PathBuf {
    store.join("work")
}

/// Makes a folder for its owner alone.
pub(crate) fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(PRIVATE).create(path)
}

/// A folder in which something is made, with the files in `root`, and what is said about them in `record.json`.
pub(crate) struct Work {
    path: PathBuf,
    store: PathBuf,
}

/// The folder with the files themselves.
pub(crate) const ROOT: &str = "root";
const RECORD: &str = "record.json";

impl Work {
    pub(crate) fn new(store: &Path, number: u64) -> Result<Self, ImageError> {
        let path = drafts(store).join(number.to_string());
        let failed = writing(store, "make a folder");
        make_private(&path).map_err(&failed)?;
        let work = Self { path, store: store.to_owned() };
        DirBuilder::new().mode(0o755).create(work.root_path()).map_err(&failed)?;
        Ok(work)
    }

    /// The folder of the files to be; `implied` is the mode of folders that are made on the way to others.
    pub(crate) fn root(&self, implied: u32) -> Result<Root, ImageError> {
        Root::open(&self.root_path(), implied).map_err(writing(&self.store, "open a new folder"))
    }

    fn root_path(&self) -> PathBuf {
        self.path.join(ROOT)
    }

    /// Writes the record, waits until all is on the disk, and gives the folder its name.
    pub(crate) fn keep(self, record: &impl Serialize, path: &Path) -> Result<(), ImageError> {
        let failed = writing(&self.store, "write what was made");
        let text = serde_json::to_vec_pretty(record).map_err(|error| failed(error.into()))?;
        fs::write(self.path.join(RECORD), text).map_err(&failed)?;
        sync_all(&self.path).map_err(&failed)?;
        fs::rename(&self.path, path).map_err(&failed)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all()).map_err(&failed)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // it has gone when it was kept
        if let Err(error) = fs::remove_dir_all(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "what was half made stays until the next start");
        }
    }
}

/// The record of what was made at a path; none when there is nothing that can be used.
pub(crate) fn record<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path.join(RECORD)).ok()?).ok()
}

/// Takes what was made away in one step, and then deletes it.
pub(crate) fn discard(store: &Path, path: &Path) -> io::Result<()> {
    let away = drafts(store).join(format!("gone-{}", crate::job::number()));
    match fs::rename(path, &away) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => fs::remove_dir_all(away),
    }
}

/// Writes out the file system that a folder is on: one call instead of one for each of a hundred thousand files.
fn sync_all(folder: &Path) -> io::Result<()> {
    let folder = File::open(folder)?;
    // SAFETY: the call takes a descriptor, which is open, and touches no memory.
    if unsafe { libc::syncfs(folder.as_raw_fd()) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
