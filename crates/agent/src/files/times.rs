//! Sets when files were used and changed.

use std::{
    ffi::OsStr,
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
};

use nix::sys::{
    stat::{FileStat, UtimensatFlags, futimens, utimensat},
    time::TimeSpec,
};

/// When something was last read and written.
pub(super) struct Times {
    pub(super) accessed: TimeSpec,
    pub(super) modified: TimeSpec,
}

impl Times {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            accessed: TimeSpec::new(metadata.atime(), metadata.atime_nsec()),
            modified: TimeSpec::new(metadata.mtime(), metadata.mtime_nsec()),
        }
    }
}

impl From<&FileStat> for Times {
    fn from(stat: &FileStat) -> Self {
        Self {
            accessed: TimeSpec::new(stat.st_atime, stat.st_atime_nsec),
            modified: TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

/// Sets the times of an open file or folder.
pub(super) fn set_times(file: &File, times: &Times) -> io::Result<()> {
    Ok(futimens(file, &times.accessed, &times.modified)?)
}

/// Sets the times of what lies at `path` in `folder`, of a link itself.
pub(super) fn set_times_of(folder: &File, path: &OsStr, times: &Times) -> io::Result<()> {
    Ok(utimensat(folder, path, &times.accessed, &times.modified, UtimensatFlags::NoFollowSymlink)?)
}
