//! Changes permission bits, and no others.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
};

use cloud_sandbox_proto::v1::{ChangeModeRequest, FileInfo};
use nix::{
    errno::Errno,
    fcntl::{OFlag, openat},
    sys::stat::{Mode, SFlag, fstat},
};
use tonic::Status;

use super::{
    draft::{check_mode, of_descriptor},
    failed,
    info::file_info,
    parse_raw,
    walk::{Kind, Step, Walk, has_gone},
};
use crate::worker::Call;

const ENTER: u32 = 0o100;
const READ_AND_ENTER: u32 = 0o500;

/// Sets the bits of what `path` leads to, and with `recursive` of all that is in it. A folder keeps its owner's right to
/// enter it then, since nobody could undo that from within.
pub(super) fn change(request: &ChangeModeRequest, call: &Call) -> Result<FileInfo, Status> {
    let path = parse_raw(&request.path, &request.raw_path)?;
    check_mode(request.mode)?;
    let refused = failed("change the mode of", &path);
    let metadata = path.metadata().map_err(&refused)?;
    let recursive = request.recursive && metadata.is_dir();
    if recursive {
        change_content(&path, request.mode, call)?;
    }
    let kept = if recursive { metadata.permissions().mode() & ENTER } else { 0 };
    fs::set_permissions(&path, Permissions::from_mode(request.mode | kept)).map_err(&refused)?;
    Ok(file_info(&path, &path.metadata().map_err(&refused)?))
}

fn change_content(root: &Path, mode: u32, call: &Call) -> Result<(), Status> {
    let refused = |error| failed("change the mode of", root)(error);
    let mut walk = Walk::of(root).map_err(refused)?;
    while let Some(step) = walk.next().map_err(refused)? {
        call.check()?;
        let changed = match step {
            // A link has no mode, and what it leads to is not in this folder.
            Step::Entry(Kind::Link) => continue,
            // Its own bits come once all that is in it has been reached.
            Step::Entry(Kind::Folder) => open_up(&walk),
            Step::Entry(_) | Step::Left => set(&walk, mode),
            Step::Closed => Err(Errno::EACCES.into()),
        };
        match changed {
            Err(error) if has_gone(&error) => {}
            changed => changed.map_err(failed("change the mode of", &walk.path_from(root)))?,
        }
    }
    Ok(())
}

/// Lets a folder be gone through.
fn open_up(walk: &Walk) -> io::Result<()> {
    if walk.stat()?.st_mode & READ_AND_ENTER == READ_AND_ENTER { Ok(()) } else { set(walk, READ_AND_ENTER) }
}

fn set(walk: &Walk, mode: u32) -> io::Result<()> {
    let entry =
        openat(walk.folder()?, walk.name(), OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
    let stat = fstat(&entry)?;
    let kept = match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFLNK => return Ok(()),
        SFlag::S_IFDIR => stat.st_mode & ENTER,
        _ => 0,
    };
    // An O_PATH descriptor has no fchmod, but a path of its own (open(2)).
    fs::set_permissions(of_descriptor(&entry), Permissions::from_mode(mode | kept))
}
