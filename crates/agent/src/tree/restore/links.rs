//! Further names of files that were made already.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat},
    sys::stat::{Mode, fstatat},
    unistd::linkat,
};
use tonic::Status;

use super::{FOLDER, folders::Folders, is_plain, name, parent, refuse};
use crate::tree::{
    opened::{ENTER, Opened},
    roots::{Place, Roots, failed},
};

/// Gives the file at `first` the name of `place` as well, in the last of `folders`.
pub(super) fn make(roots: &Roots, root: &File, folders: &Folders, place: &Place, first: &[u8]) -> Result<(), Status> {
    let refuse = refuse(&place.path);
    let first = Place { root: place.root, path: first.to_vec() };
    let is_earlier = is_plain(&first.path) && roots.of(&first.path) == Some(place.root) && first < *place;
    if !is_earlier || roots.is_root(&first.path) {
        return Err(refuse("must have a hard_link to an earlier entry of its root"));
    }
    let folder = folders.last().ok_or_else(|| refuse("must come after its folder"))?;
    let within = parent(&first.path).get(roots.path(place.root).len() + 1..).unwrap_or_default();
    let linked = enter(root, within).and_then(|(other, _opened)| {
        Ok(linkat(&other, name(&first.path), folder, name(&place.path), AtFlags::empty())?)
    });
    match linked {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP)) => {
            Err(refuse("must have a hard_link to what was made"))
        }
        linked => linked.map_err(failed("restore", &place.path)),
    }
}

/// Opens the folder at `path` from `root`, also through folders that are finished and closed to their owner.
fn enter(root: &File, path: &[u8]) -> io::Result<(OwnedFd, Vec<Opened>)> {
    let mut folder: OwnedFd = root.try_clone()?.into();
    let mut opened = Vec::new();
    for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
        let part = OsStr::from_bytes(part);
        let stat = fstatat(&folder, part, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::ENOTDIR.into());
        }
        opened.extend(Opened::open_up(folder.as_fd(), part, &stat, ENTER)?);
        folder = openat(&folder, part, FOLDER | OFlag::O_PATH, Mode::empty())?;
    }
    Ok((folder, opened))
}
