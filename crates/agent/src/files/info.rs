//! Describes files as the contract does.

use std::{fs, fs::Metadata, os::unix::fs::MetadataExt, path::Path};

use cloud_sandbox_proto::v1::{FileInfo, FileType};

/// Describes what lies at `path`. A name that is not UTF-8 is shown with U+FFFD.
pub(super) fn file_info(path: &Path, metadata: &Metadata) -> FileInfo {
    let kind = metadata.file_type();
    let (kind, target) = if kind.is_file() {
        (FileType::File, String::new())
    } else if kind.is_dir() {
        (FileType::Directory, String::new())
    } else if kind.is_symlink() {
        (FileType::Symlink, fs::read_link(path).map_or_else(|_| String::new(), |target| lossy(&target)))
    } else {
        (FileType::Other, String::new())
    };
    FileInfo {
        path: lossy(path),
        name: path.file_name().map_or_else(|| lossy(path), |name| name.to_string_lossy().into_owned()),
        r#type: kind.into(),
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        modify_time: Some(prost_types::Timestamp {
            seconds: metadata.mtime(),
            nanos: i32::try_from(metadata.mtime_nsec()).unwrap_or(0),
        }),
        target,
    }
}

fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
