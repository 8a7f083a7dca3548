//! Deletes files, links and folders.

use std::{fs, io, os::unix::fs::MetadataExt, path::Path};

use cloud_sandbox_proto::v1::DeleteFileRequest;
use nix::{
    errno::Errno,
    unistd::{UnlinkatFlags, unlinkat},
};
use tonic::Status;

use super::{
    failed,
    info::lossy,
    parse_raw, shown,
    walk::{Kind, Step, Walk},
};
use crate::worker::Call;

/// How often to begin anew when somebody fills the folder meanwhile.
const ROUNDS: usize = 8;

/// Deletes a file, a link itself, or a folder. Says which path.
pub(super) fn delete(request: &DeleteFileRequest, call: &Call) -> Result<String, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    let failed = failed("delete", &path);
    let metadata = path.symlink_metadata().map_err(&failed)?;
    if !metadata.is_dir() {
        fs::remove_file(&path).map_err(&failed)?;
    } else if !request.recursive {
        fs::remove_dir(&path).map_err(&failed)?;
    } else {
        // Before anything is gone: the folder itself could not go in the end.
        let is_mount = path.parent().is_none_or(|parent| parent.metadata().is_ok_and(|it| it.dev() != metadata.dev()));
        if is_mount {
            let message = format!("failed to delete {}: it is in use as a mount point", shown(&path));
            return Err(Status::failed_precondition(message));
        }
        delete_folder(&path, call)?;
    }
    Ok(lossy(&path))
}

/// Deletes a folder with all that is in it, and never what a link in it leads to.
pub(super) fn delete_folder(path: &Path, call: &Call) -> Result<(), Status> {
    for round in 1.. {
        empty(path, call)?;
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTEMPTY) && round < ROUNDS => {}
            removed => return removed.map_err(failed("delete", path)),
        }
    }
    Ok(())
}

fn empty(path: &Path, call: &Call) -> Result<(), Status> {
    let refused = |error| failed("delete", path)(error);
    // it may have become a link since it was looked at
    let mut walk = match Walk::of_folder(path) {
        Ok(walk) => walk,
        // What nobody may look into may still be empty.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
        Err(error) => return Err(refused(error)),
    };
    while let Some(step) = walk.next().map_err(refused)? {
        call.check()?;
        let flags = match step {
            // Goes when it is left.
            Step::Entry(Kind::Folder) => continue,
            Step::Entry(_) => UnlinkatFlags::NoRemoveDir,
            Step::Left | Step::Closed => UnlinkatFlags::RemoveDir,
        };
        let folder = walk.folder().map_err(refused)?;
        match unlinkat(folder, walk.name(), flags) {
            // Gone already, or filled again: the next round finds out.
            Ok(()) | Err(Errno::ENOENT | Errno::EISDIR | Errno::ENOTDIR) => {}
            Err(Errno::ENOTEMPTY) if step == Step::Left => {}
            Err(error) => return Err(failed("delete", &walk.path_from(path))(closed(error, step).into())),
        }
    }
    Ok(())
}

/// A folder that cannot be looked into and is not empty lacks rights, whatever its removal says.
fn closed(error: Errno, step: Step) -> Errno {
    if step == Step::Closed { Errno::EACCES } else { error }
}
