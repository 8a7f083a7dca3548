//! Puts the layers of an image together: a new tree, whose files are links to those of the layers.
//!
//! A layer is kept as its archive says, with the files that mean "this is gone" (whiteouts, see the OCI image
//! specification, "Representing Changes"). What a tree changes later it must replace and never write to.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::Mode,
    unistd::{linkat, symlinkat},
};

use crate::{
    ImageError,
    error::{writing, writing_at},
    job::Job,
    root::{self, FOLDER, Kind, PRIVATE, Root},
};

const WHITEOUT: &[u8] = b".wh.";
/// All that the layers below have in this folder is gone.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Adds a layer to what is in the tree.
pub(crate) fn add_layer(layer: &Path, tree: &Root, job: &Job) -> Result<(), ImageError> {
    let failed = writing_at(&job.store, "put layers together");
    let layer = Root::open(layer, PRIVATE).map_err(writing(&job.store, "open a layer"))?;
    let mut merging = Merging { tree, job, path: PathBuf::new() };
    merging.folder(layer.folder(), tree.folder()).map_err(|error| match error {
        Fault::Stopped => ImageError::Stopped,
        Fault::Entry(reason) => ImageError::Entry {
            what: job.what.clone(),
            entry: format!("{:?}", merging.path.display().to_string()),
            reason: reason.to_owned(),
        },
        Fault::Errno(errno) => failed(errno),
    })
}

enum Fault {
    Stopped,
    Entry(&'static str),
    Errno(Errno),
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ELOOP => Self::Entry("leads through too many links"),
            Errno::ENAMETOOLONG => Self::Entry("is in folders that are nested too deep"),
            Errno::ENOENT => Self::Entry("is in a folder that another entry replaces through a link"),
            Errno::ENOTDIR => Self::Entry("is in a folder that is a file below"),
            errno => Self::Errno(errno),
        }
    }
}

struct Merging<'a> {
    tree: &'a Root,
    job: &'a Job,
    /// of the entry, from the layer's root
    path: PathBuf,
}

impl Merging<'_> {
    fn folder(&mut self, source: &OwnedFd, target: &OwnedFd) -> Result<(), Fault> {
        if self.job.is_stopped() {
            return Err(Fault::Stopped);
        }
        let names = root::names(source)?;
        // what a layer deletes is of the layers below, whatever the order of its entries
        if names.iter().any(|name| name.as_bytes() == OPAQUE) {
            root::empty(target)?;
        }
        for gone in names.iter().filter_map(|name| name.as_bytes().strip_prefix(WHITEOUT)) {
            if matches!(gone, b"" | b"." | b"..") {
                return Err(Fault::Entry("has a whiteout without a name"));
            }
            // the others of this prefix belong to the tools of aufs
            if !gone.starts_with(WHITEOUT) {
                root::remove(target.as_fd(), OsStr::from_bytes(gone))?;
            }
        }
        for name in names.iter().filter(|name| !name.as_bytes().starts_with(WHITEOUT)) {
            self.path.push(name);
            self.entry(source, target, name)?;
            self.path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, source: &OwnedFd, target: &OwnedFd, name: &OsStr) -> Result<(), Fault> {
        let stat = root::stat(source.as_fd(), name)?;
        match root::kind(&stat) {
            Kind::Folder => {
                let below = self.place(target, name, stat.st_mode & 0o7777)?;
                let source = root::open_folder(source.as_fd(), name)?;
                self.folder(&source, &below)?;
            }
            Kind::File | Kind::Link => {
                root::remove(target.as_fd(), name)?;
                link(source.as_fd(), name, target.as_fd())?;
            }
            Kind::Other => {}
        }
        Ok(())
    }

    /// Where the content of a folder goes.
    fn place(&self, target: &OwnedFd, name: &OsStr, mode: u32) -> Result<OwnedFd, Fault> {
        if mode == PRIVATE {
            match root::kind_at(target.as_fd(), name)? {
                Some(Kind::Folder) => return Ok(root::open_folder(target.as_fd(), name)?),
                // the layer only goes through here, and the way may be a link in a layer below
                Some(Kind::Link) => return Ok(self.tree.resolve(&self.path, true)?),
                _ => {}
            }
        }
        Ok(root::ensure_folder(target.as_fd(), name, FOLDER)?)
    }
}

/// Gives a file or a link its name in the tree. What has as many names as a file system allows is copied.
fn link(source: BorrowedFd<'_>, name: &OsStr, target: BorrowedFd<'_>) -> nix::Result<()> {
    match linkat(source, name, target, name, AtFlags::empty()) {
        Err(Errno::EMLINK) => copy(source, name, target),
        linked => linked,
    }
}

fn copy(source: BorrowedFd<'_>, name: &OsStr, target: BorrowedFd<'_>) -> nix::Result<()> {
    if let Ok(link) = readlinkat(source, name) {
        return symlinkat(link.as_os_str(), target, name);
    }
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut original = File::from(openat(source, name, flags, Mode::empty())?);
    let mut copy = root::make_file(target, name)?;
    let mut copied = || -> io::Result<()> {
        io::copy(&mut original, &mut copy)?;
        let told = original.metadata()?;
        copy.set_modified(told.modified()?)?;
        copy.set_permissions(told.permissions())
    };
    copied().map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
}
