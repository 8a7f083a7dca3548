//! Describes files as the contract does.

use std::{
    fs::{self, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use bytes::Bytes;
use cloud_sandbox_proto::v1::{FileInfo, FileType};
use nix::sys::stat::{FileStat, SFlag};

/// What the system says about a file, whichever way it was asked.
pub(super) struct Facts {
    ino: u64,
    mode: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<&Metadata> for Facts {
    fn from(metadata: &Metadata) -> Self {
        Self {
            ino: metadata.ino(),
            mode: metadata.mode(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl From<&FileStat> for Facts {
    fn from(stat: &FileStat) -> Self {
        Self {
            ino: stat.st_ino,
            mode: stat.st_mode,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl Facts {
    pub(super) fn kind(&self) -> FileType {
        match SFlag::from_bits_truncate(self.mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => FileType::File,
            SFlag::S_IFDIR => FileType::Directory,
            SFlag::S_IFLNK => FileType::Symlink,
            _ => FileType::Other,
        }
    }

    /// Another for every content: a file that is replaced has another number, one that is written to another time.
    pub(super) fn etag(&self) -> String {
        let mut hasher = DefaultHasher::new();
        (self.ino, self.size, self.modified, self.changed).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

/// Describes what lies at `path`, and where it points to if it is a link. A name that is not UTF-8 is shown with U+FFFD.
pub(super) fn describe(path: &Path, facts: &Facts, target: Option<&Path>) -> FileInfo {
    let kind = facts.kind();
    FileInfo {
        path: lossy(path),
        name: path.file_name().map_or_else(|| lossy(path), |name| name.to_string_lossy().into_owned()),
        r#type: kind.into(),
        size: facts.size,
        mode: facts.mode & 0o7777,
        modify_time: Some(prost_types::Timestamp {
            seconds: facts.modified.0,
            nanos: i32::try_from(facts.modified.1).unwrap_or(0),
        }),
        target: target.map(lossy).unwrap_or_default(),
        etag: if kind == FileType::File { facts.etag() } else { String::new() },
        raw_path: raw(path),
    }
}

/// Describes what was found at `path`.
pub(super) fn file_info(path: &Path, metadata: &Metadata) -> FileInfo {
    let target = if metadata.is_symlink() { fs::read_link(path).ok() } else { None };
    describe(path, &metadata.into(), target.as_deref())
}

/// The path's bytes, when they are not UTF-8.
pub(super) fn raw(path: &Path) -> Bytes {
    if path.to_str().is_some() { Bytes::new() } else { Bytes::copy_from_slice(path.as_os_str().as_bytes()) }
}

pub(super) fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
