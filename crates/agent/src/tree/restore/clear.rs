//! Empties a root before anything is made in it.

use std::{
    fs::File,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open as open_path, openat},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat},
    unistd::{UnlinkatFlags, unlinkat},
};
use tonic::Status;

use super::FOLDER;
use crate::{
    files::walk::{Step, Walk},
    tree::{
        opened::{ALL, Opened},
        roots::{Roots, failed},
    },
    worker::Call,
};

/// Opens a root, and lets its owner in; its entry says later how it shall be.
pub(super) fn open(root: &Path) -> Result<File, Status> {
    let opened = || -> std::io::Result<File> {
        let folder: OwnedFd = open_path(root, FOLDER | OFlag::O_PATH, Mode::empty())?;
        if let Some(opened) = Opened::open_folder_up(&folder, ALL)? {
            opened.keep();
        }
        Ok(openat(&folder, ".", FOLDER, Mode::empty())?.into())
    };
    opened().map_err(failed("restore", root.as_os_str().as_bytes()))
}

/// Removes all that is in a root but other roots and the way there. Where another file system is mounted, it stays.
pub(super) fn clear(roots: &Roots, path: &Path, root: &File, call: &Call) -> Result<(), Status> {
    let refused = |path: &Path| failed::<std::io::Error>("remove", path.as_os_str().as_bytes());
    let device = fstat(root).map_err(|error| refused(path)(error.into()))?.st_dev;
    let own = root.try_clone().map_err(refused(path))?;
    let mut walk = Walk::by_parts(own.into()).map_err(refused(path))?;
    while let Some(step) = walk.next().map_err(refused(path))? {
        call.check()?;
        let entry = walk.path_from(path);
        let bytes = entry.as_os_str().as_bytes();
        remove(&mut walk, step, bytes, roots, device).map_err(refused(&entry))?;
    }
    Ok(())
}

fn remove(walk: &mut Walk, step: Step, path: &[u8], roots: &Roots, device: libc::dev_t) -> std::io::Result<()> {
    if step == Step::Closed {
        return Err(Errno::EACCES.into());
    }
    if step == Step::Left {
        if !roots.leads_to_root(path) {
            unlinkat(walk.folder()?, walk.name(), UnlinkatFlags::RemoveDir)?;
        }
        return Ok(());
    }
    let stat = walk.stat()?;
    if stat.st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFDIR.bits() {
        return Ok(unlinkat(walk.folder()?, walk.name(), UnlinkatFlags::NoRemoveDir)?);
    }
    if roots.is_root(path) || stat.st_dev != device {
        walk.pass_over();
    } else if stat.st_mode & ALL != ALL {
        // A folder, and no link; where it is not ours the removal says so.
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777 | ALL);
        let _ = fchmodat(walk.folder()?, walk.name(), mode, FchmodatFlags::FollowSymlink);
    }
    Ok(())
}
