//! The folders on the way to what is made, each finished when it is left.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
};

use cloud_sandbox_proto::checkpoint::v1::TreeEntry;
use nix::{
    fcntl::openat,
    sys::stat::{Mode, fstat},
};
use tonic::Status;

use super::FOLDER;
use crate::tree::{meta, roots::failed};

/// How many on the way down stay open.
const KEPT_OPEN: usize = 24;

#[derive(Default)]
pub(super) struct Folders(Vec<Level>);

struct Level {
    /// none while too many below it are open
    folder: Option<File>,
    identity: (libc::dev_t, libc::ino_t),
    entry: TreeEntry,
}

impl Folders {
    /// Goes into a folder, which lies in the last one unless it is a root.
    pub(super) fn enter(&mut self, folder: File, entry: TreeEntry) -> Result<(), Status> {
        let stat = fstat(&folder).map_err(failed("restore", &entry.path))?;
        self.0.push(Level { folder: Some(folder), identity: (stat.st_dev, stat.st_ino), entry });
        if let Some(far) = self.0.len().checked_sub(KEPT_OPEN + 1) {
            self.0[far].folder = None;
        }
        Ok(())
    }

    /// The folder that was entered last.
    pub(super) fn last(&self) -> Option<BorrowedFd<'_>> {
        self.0.last().and_then(|level| level.folder.as_ref()).map(AsFd::as_fd)
    }

    /// Leaves folders until `path` is the last; false when it is none of them.
    pub(super) fn leave_up_to(&mut self, path: &[u8]) -> Result<bool, Status> {
        // Nothing is left for a path that is wrong.
        if !self.0.iter().any(|level| level.entry.path == path) {
            return Ok(false);
        }
        while self.0.last().is_some_and(|level| level.entry.path != path) {
            self.leave()?;
        }
        Ok(true)
    }

    pub(super) fn leave_all(&mut self) -> Result<(), Status> {
        while !self.0.is_empty() {
            self.leave()?;
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Status> {
        let Some(Level { folder: Some(folder), entry, .. }) = self.0.pop() else { return Ok(()) };
        if let Some(above) = self.0.last_mut() {
            above.reopen(&folder).map_err(failed("restore", &above.entry.path))?;
        }
        meta::apply(&folder, &entry).map_err(failed("restore", &entry.path))
    }
}

impl Level {
    /// Opens it again from a folder in it, while that lets its owner through.
    fn reopen(&mut self, below: &File) -> io::Result<()> {
        if self.folder.is_some() {
            return Ok(());
        }
        let folder = openat(below, "..", FOLDER, Mode::empty())?;
        let stat = fstat(&folder)?;
        if (stat.st_dev, stat.st_ino) != self.identity {
            return Err(io::Error::other("a folder was moved meanwhile"));
        }
        self.folder = Some(folder.into());
        Ok(())
    }
}
