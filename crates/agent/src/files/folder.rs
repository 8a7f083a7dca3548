//! Describes what lies at a path, and makes folders.

use std::{
    fs::{self, DirBuilder, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
};

use cloud_sandbox_proto::v1::{FileInfo, MakeFolderRequest, StatFileRequest};
use tonic::Status;

use super::{
    draft::{Parents, check_mode},
    failed,
    info::file_info,
    parse_raw, shown,
};

const DEFAULT_MODE: u32 = 0o755;

/// Describes what lies at a path, or where a link there leads.
pub(super) fn stat(request: &StatFileRequest) -> Result<FileInfo, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let metadata = if request.no_follow { path.symlink_metadata() } else { path.metadata() };
    metadata.map(|metadata| file_info(&path, &metadata)).map_err(failed("look at", &path))
}

/// Makes a folder and its missing parents; one that is there stays as it is.
pub(super) fn make(request: &MakeFolderRequest) -> Result<FileInfo, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    check_mode(request.mode)?;
    let mode = if request.mode == 0 { DEFAULT_MODE } else { request.mode };
    let failed = failed("make", &path);
    let mut parents = Parents::create(path.parent().unwrap_or(Path::new("/"))).map_err(&failed)?;
    match DirBuilder::new().mode(0o700).create(&path) {
        // The umask has no say.
        Ok(()) => fs::set_permissions(&path, Permissions::from_mode(mode)).map_err(&failed)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        // What exists may lie where nothing can be made.
        Err(_) if path.is_dir() => {}
        Err(error) => return Err(failed(error)),
    }
    let metadata = path.metadata().map_err(&failed)?;
    if !metadata.is_dir() {
        return Err(Status::already_exists(format!("failed to make {}: it exists and is no folder", shown(&path))));
    }
    parents.keep();
    Ok(file_info(&path, &metadata))
}
