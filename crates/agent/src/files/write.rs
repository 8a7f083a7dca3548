//! Writes files atomically: to a temporary name beside the target, then renamed over it.
//!
//! Invariant: a write that fails leaves nothing behind, neither its temporary file nor the parents it made.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use cloud_sandbox_proto::agent::v1::{WriteFileRequest, WriteFileResponse};
use nix::errno::Errno;
use tonic::Status;

use super::{file_info, neither, parse_path};
use crate::status;

const DEFAULT_MODE: u32 = 0o644;
/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;

static TEMPORARIES: AtomicU64 = AtomicU64::new(0);

/// Writes a whole file.
pub(crate) fn write(request: &WriteFileRequest) -> Result<WriteFileResponse, Status> {
    let path = parse_path(&request.path)?;
    if request.mode > 0o777 {
        return Err(Status::invalid_argument(format!("mode {:#o} has more than permission bits", request.mode)));
    }
    let failed = |error: io::Error| status::from_io(&format!("write {:.1000}", request.path), &error);
    let target = follow(&path).map_err(failed)?;
    let replaced = match target.metadata() {
        Ok(metadata) if metadata.is_dir() => {
            return Err(Status::failed_precondition(format!("{:.1000} is a folder", request.path)));
        }
        Ok(metadata) if !metadata.is_file() => return Err(neither(&request.path)),
        Ok(metadata) => Some(metadata.permissions().mode() & 0o7777),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let mode = if request.mode == 0 { replaced.unwrap_or(DEFAULT_MODE) } else { request.mode };

    let mut parents = Vec::new();
    let written = replace(&target, &request.data, mode, &mut parents);
    let file = written.inspect_err(|_| remove_folders(&parents)).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    Ok(WriteFileResponse { file: Some(file_info(&path, &metadata)) })
}

/// What `path` means to a program that writes it: where links lead, also when nothing is there yet.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        // Not a link, not there, or not to be looked at: what comes next finds out which.
        let Ok(link) = path.read_link() else { return Ok(path) };
        path.pop();
        path.push(link);
    }
    Err(Errno::ELOOP.into())
}

fn replace(target: &Path, data: &[u8], mode: u32, parents: &mut Vec<PathBuf>) -> io::Result<File> {
    let folder = target.parent().unwrap_or(Path::new("/"));
    create_folders(folder, parents)?;
    let (temporary, mut file) = create_temporary(folder)?;
    let written = file
        .write_all(data)
        .and_then(|()| file.set_permissions(Permissions::from_mode(mode)))
        .and_then(|()| fs::rename(&temporary, target));
    match written {
        Ok(()) => Ok(file),
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
}

fn create_temporary(folder: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let number = TEMPORARIES.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".cloud-sandbox-{}-{number}", std::process::id()));
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        match options.open(&path) {
            Ok(file) => return Ok((path, file)),
            // Left by an earlier agent, or put there by a user.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Creates `folder` and what is missing above it, and adds what it made to `created`, also when it fails.
pub(crate) fn create_folders(folder: &Path, created: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut missing = Vec::new();
    for ancestor in folder.ancestors() {
        match ancestor.metadata() {
            Ok(metadata) if metadata.is_dir() => break,
            Ok(_) => return Err(Errno::ENOTDIR.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor),
            Err(error) => return Err(error),
        }
    }
    for folder in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o755).create(folder) {
            Ok(()) => created.push(folder.to_owned()),
            // Somebody else was faster, or it is a link to nowhere, which the next step finds out.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn remove_folders(created: &[PathBuf]) {
    for folder in created.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}
