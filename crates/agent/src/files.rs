//! Files: read, list, write, delete. All of it is done inline, since a request is bounded by what a message may carry.
//!
//! Paths are resolved here, inside the sandbox, with the rights of its user; the node never looks at them but to refuse
//! what is malformed. Nothing here waits for another process: what is neither file nor folder is not opened.

mod info;
mod list;
mod write;

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use cloud_sandbox_proto::agent::v1::{DeleteFileRequest, DeleteFileResponse, ReadFileRequest, ReadFileResponse};
use tonic::Status;

use crate::status;
use info::file_info;
pub(crate) use write::{create_folders, write};

/// The most of a file in one answer, in bytes: one more than the public limit, so that a cut can be told.
const MAX_PIECE: u64 = 8 * 1024 * 1024 + 1;
/// PATH_MAX (limits.h), with the NUL that ends it.
const MAX_PATH: usize = 4096;

/// Takes a path as the contract wants it: absolute, without NUL and `..`.
pub(crate) fn parse_path(path: &str) -> Result<PathBuf, Status> {
    let fault = if path.len() >= MAX_PATH {
        "is too long"
    } else if path.contains('\0') {
        "must not contain NUL"
    } else if !path.starts_with('/') {
        "must be absolute"
    } else if Path::new(path).components().any(|part| part == Component::ParentDir) {
        "must not contain .."
    } else {
        // Puts it together anew, without slashes and dots that mean nothing.
        return Ok(Path::new(path).components().collect());
    };
    Err(Status::invalid_argument(format!("path {path:.200} {fault}")))
}

/// Reads a piece of a file or a page of a folder.
pub(crate) fn read(request: &ReadFileRequest) -> Result<ReadFileResponse, Status> {
    let path = parse_path(&request.path)?;
    let failed = |error: io::Error| status::from_io(&format!("read {:.1000}", request.path), &error);
    let metadata = path.metadata().map_err(failed)?;
    if metadata.is_dir() {
        let page = list::page(&path, &request.after_name, request.page_size as usize).map_err(failed)?;
        return Ok(ReadFileResponse {
            file: Some(file_info(&path, &metadata)),
            entries: page.entries,
            next_after_name: page.next_after_name.into(),
            ..ReadFileResponse::default()
        });
    }
    if !metadata.is_file() {
        return Err(neither(&request.path));
    }
    // It may have become something else since, whose opening would wait.
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(neither(&request.path));
    }
    let data = piece(&file, metadata.len(), request).map_err(failed)?;
    Ok(ReadFileResponse { file: Some(file_info(&path, &metadata)), data: data.into(), ..ReadFileResponse::default() })
}

/// Reads to the limit or the end, whichever is first. The size is a hint only: files of `/proc` say 0.
fn piece(mut file: &File, size: u64, request: &ReadFileRequest) -> io::Result<Vec<u8>> {
    let limit = u64::from(request.limit).min(MAX_PIECE);
    let expected = size.saturating_sub(request.offset).min(limit);
    let mut data = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
    file.seek(SeekFrom::Start(request.offset))?;
    file.take(limit).read_to_end(&mut data)?;
    Ok(data)
}

/// Deletes a file, a link itself, or a folder.
pub(crate) fn delete(request: &DeleteFileRequest) -> Result<DeleteFileResponse, Status> {
    let path = parse_path(&request.path)?;
    let failed = |error: io::Error| status::from_io(&format!("delete {:.1000}", request.path), &error);
    let metadata = path.symlink_metadata().map_err(failed)?;
    if !metadata.is_dir() {
        fs::remove_file(&path).map_err(failed)?;
    } else if !request.recursive {
        fs::remove_dir(&path).map_err(failed)?;
    } else {
        // Before anything is gone: the folder itself could not go in the end.
        let is_mount = path.parent().is_none_or(|parent| parent.metadata().is_ok_and(|it| it.dev() != metadata.dev()));
        if is_mount {
            let message = format!("failed to delete {:.1000}: it is in use as a mount point", request.path);
            return Err(Status::failed_precondition(message));
        }
        fs::remove_dir_all(&path).map_err(failed)?;
    }
    Ok(DeleteFileResponse {})
}

fn neither(path: &str) -> Status {
    Status::failed_precondition(format!("{path:.1000} is neither a file nor a folder"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_put_together_anew() {
        assert_eq!(parse_path("/a//./b/").unwrap().to_str(), Some("/a/b"));
        assert_eq!(parse_path("/").unwrap().to_str(), Some("/"));
    }

    #[test]
    fn malformed_paths_are_refused_with_the_reason() {
        let long = format!("/{}", "a".repeat(4095));
        let cases = [("", "absolute"), ("a", "absolute"), ("/a\0", "NUL"), ("/a/../b", ".."), (&long, "too long")];
        for (path, reason) in cases {
            let error = parse_path(path).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument);
            assert!(error.message().contains(reason), "{}", error.message());
            assert!(error.message().len() < 300);
        }
    }
}
