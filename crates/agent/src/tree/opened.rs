//! Lets the agent into what its user closed to itself.

use std::{
    ffi::OsStr,
    fs::{self, Permissions},
    io,
    os::{
        fd::{BorrowedFd, OwnedFd},
        unix::fs::PermissionsExt,
    },
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{FileStat, Mode, fstat},
    unistd::geteuid,
};

use crate::files::of_descriptor;

/// What an owner needs to read a file.
pub(super) const READ: u32 = 0o400;
/// What an owner needs to go through a folder.
pub(super) const ENTER: u32 = 0o100;
/// What an owner needs to change what is in a folder.
pub(super) const ALL: u32 = 0o700;
/// What an owner needs to look into a folder.
pub(super) const READ_AND_ENTER: u32 = 0o500;

/// Something that has more rights for its owner while this lives.
pub(super) struct Opened {
    entry: OwnedFd,
    mode: u32,
    /// the rights stay
    kept: bool,
}

impl Opened {
    /// Gives the owner the rights `needed` to an entry of `folder`, unless it has them or is somebody else.
    pub(super) fn open_up(
        folder: BorrowedFd<'_>,
        name: &OsStr,
        stat: &FileStat,
        needed: u32,
    ) -> io::Result<Option<Self>> {
        if has(stat, needed) {
            return Ok(None);
        }
        let entry = openat(folder, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        Self::give(entry, stat, needed).map(Some)
    }

    /// The same for a folder that is open, if only as a path.
    pub(super) fn open_folder_up(folder: &OwnedFd, needed: u32) -> io::Result<Option<Self>> {
        let stat = fstat(folder)?;
        if has(&stat, needed) { Ok(None) } else { Self::give(folder.try_clone()?, &stat, needed).map(Some) }
    }

    fn give(entry: OwnedFd, stat: &FileStat, needed: u32) -> io::Result<Self> {
        let mode = stat.st_mode & 0o7777;
        // An O_PATH descriptor has no fchmod, but a path of its own (open(2)).
        fs::set_permissions(of_descriptor(&entry), Permissions::from_mode(mode | needed))?;
        Ok(Self { entry, mode, kept: false })
    }

    /// Leaves it the rights.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }

    /// The mode that it had, and gets again.
    pub(super) fn mode(&self) -> u32 {
        self.mode
    }
}

/// Whether the owner has the rights, or is somebody who gives us none.
fn has(stat: &FileStat, needed: u32) -> bool {
    stat.st_mode & needed == needed || stat.st_uid != geteuid().as_raw()
}

impl Drop for Opened {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // It is ours, and was changed a moment ago.
        let _ = fs::set_permissions(of_descriptor(&self.entry), Permissions::from_mode(self.mode));
    }
}
