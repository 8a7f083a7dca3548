//! Copies and moves: whole or not at all, under the new path itself.
//!
//! Invariant: a copy appears at once, with all that is in it; one that fails or is dropped leaves nothing. The folders of
//! a sandbox may be mounts of one file system, between which a rename is refused: a move is then a copy and a delete.

use std::{
    ffi::OsStr,
    fs::{self, File, Metadata, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use cloud_sandbox_proto::v1::{CopyFileRequest, FileInfo, MoveFileRequest};
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, OFlag, RenameFlags, openat, renameat, renameat2},
    sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, fstat, mkdirat, mknodat},
    unistd::{AccessFlags, symlinkat},
};
use tonic::Status;

use super::{
    content::{self, Fault},
    delete::delete_folder,
    draft::{Draft, Expected, Parents, Target, open_folder, unused_name},
    failed,
    info::file_info,
    neither, parse_raw, shown,
    times::{Times, set_times, set_times_of},
    walk::{Kind, Step, Walk, has_gone},
};
use crate::{kernel, worker::Call};

/// Set-user-id and set-group-id bits are not copied.
const COPIED_MODE: u32 = 0o1777;

/// Copies a file, a link itself, or a folder.
pub(super) fn copy(request: &CopyFileRequest, call: &Call) -> Result<FileInfo, Status> {
    let source = Source::find("copy", parse_raw(&request.source, &request.raw_source)?)?;
    let destination = parse_raw(&request.destination, &request.raw_destination)?;
    if source.metadata.is_dir() && !request.recursive {
        let message = format!("{} is a folder, which is copied only with recursive", shown(&source.path));
        return Err(Status::failed_precondition(message));
    }
    if !source.metadata.is_dir() && !source.metadata.is_file() && !source.metadata.is_symlink() {
        return Err(neither(&source.path));
    }
    let place = Place::find(&source, destination, request.overwrite)?;
    source.copy_to(place, Keep::Mode, call)
}

/// Moves a file, link or folder.
pub(super) fn r#move(request: &MoveFileRequest, call: &Call) -> Result<FileInfo, Status> {
    let source = Source::find("move", parse_raw(&request.source, &request.raw_source)?)?;
    let destination = parse_raw(&request.destination, &request.raw_destination)?;
    let mut place = Place::find(&source, destination, request.overwrite)?;
    let failed = failed("move", &source.path);
    if source.is_also(&place.target) {
        fs::remove_file(&source.path).map_err(&failed)?;
        return place.describe();
    }
    match place.take(AT_FDCWD, &source.path) {
        Ok(()) => place.describe(),
        Err(Errno::EXDEV) => {
            // Before anything is copied that could not be deleted afterwards.
            let folder = source.path.parent().unwrap_or(Path::new("/"));
            kernel::may(folder, AccessFlags::W_OK | AccessFlags::X_OK).map_err(|error| failed(error.into()))?;
            let copied = source.copy_to(place, Keep::ModeAndTimes, call)?;
            source.delete(call)?;
            Ok(copied)
        }
        Err(error) => Err(failed(error.into())),
    }
}

/// What of a file goes along beside its content.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Mode,
    ModeAndTimes,
}

/// What is copied or moved.
struct Source {
    operation: &'static str,
    path: PathBuf,
    metadata: Metadata,
}

impl Source {
    fn find(operation: &'static str, path: PathBuf) -> Result<Self, Status> {
        let metadata = path.symlink_metadata().map_err(failed(operation, &path))?;
        Ok(Self { operation, path, metadata })
    }

    /// Whether `target` is another name of this very file: a rename would do nothing then.
    fn is_also(&self, target: &Target) -> bool {
        let Some(found) = &target.found else { return false };
        let same = (found.dev(), found.ino()) == (self.metadata.dev(), self.metadata.ino());
        let folder = |path: &Path| path.parent()?.metadata().ok().map(|folder| (folder.dev(), folder.ino()));
        same && (folder(&self.path), self.path.file_name()) != (folder(&target.path), target.path.file_name())
    }

    /// Whether `path` lies in this folder, or would.
    fn holds(&self, path: &Path) -> bool {
        let Some(mut above) = path.ancestors().skip(1).find_map(|above| open_folder(above).ok()) else { return false };
        while let Ok(metadata) = above.metadata() {
            let identity = (metadata.dev(), metadata.ino());
            if identity == (self.metadata.dev(), self.metadata.ino()) {
                return true;
            }
            match openat(&above, "..", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
                Ok(next) => above = next.into(),
                Err(_) => return false,
            }
            // The root is its own parent.
            if above.metadata().is_ok_and(|next| (next.dev(), next.ino()) == identity) {
                return false;
            }
        }
        false
    }

    fn copy_to(&self, mut place: Place, keep: Keep, call: &Call) -> Result<FileInfo, Status> {
        let failed = failed(self.operation, &self.path);
        if self.metadata.is_file() {
            return self.copy_file(place, keep, call);
        }
        let folder = place.enter().map_err(&failed)?;
        let temporary =
            Temporary { path: place.target.folder().join(unused_name()), is_folder: self.metadata.is_dir() };
        if self.metadata.is_dir() {
            copy_folder(self, &folder, temporary.name(), keep, call)?;
        } else {
            let copied = copy_other(&folder, temporary.name(), &self.path, &self.metadata);
            copied.map_err(|error| failed(error.into()))?;
            if keep == Keep::ModeAndTimes {
                set_times_of(&folder, temporary.name(), &Times::of(&self.metadata)).map_err(&failed)?;
            }
        }
        place.take(&folder, Path::new(temporary.name())).map_err(|error| failed(error.into()))?;
        place.describe()
    }

    fn copy_file(&self, place: Place, keep: Keep, call: &Call) -> Result<FileInfo, Status> {
        let failed = failed(self.operation, &self.path);
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = File::options().read(true).custom_flags(flags).open(&self.path).map_err(&failed)?;
        let metadata = file.metadata().map_err(&failed)?;
        if !metadata.is_file() {
            return Err(neither(&self.path));
        }
        let Place { target, expected, parents } = place;
        let draft = Draft::of(target, metadata.mode() & COPIED_MODE, expected)?.with_parents(parents);
        content::copy(&file, &metadata, draft.file(), call).map_err(|fault| fault.status(&failed))?;
        if keep == Keep::ModeAndTimes {
            set_times(draft.file(), &Times::of(&metadata)).map_err(&failed)?;
        }
        draft.commit()
    }

    fn delete(&self, call: &Call) -> Result<(), Status> {
        if self.metadata.is_dir() {
            return delete_folder(&self.path, call);
        }
        fs::remove_file(&self.path).map_err(failed(self.operation, &self.path))
    }
}

/// Where it goes.
struct Place {
    target: Target,
    expected: Expected,
    parents: Parents,
}

impl Place {
    fn find(source: &Source, destination: PathBuf, overwrite: bool) -> Result<Self, Status> {
        let expected = if overwrite { Expected::Anything } else { Expected::Free };
        if source.metadata.is_dir() && source.holds(&destination) {
            let message = format!("{} lies in {} itself", shown(&destination), shown(&source.path));
            return Err(Status::failed_precondition(message));
        }
        let target = Target::at(destination, &expected)?;
        if source.metadata.is_dir() && target.found.is_some() {
            return Err(Status::failed_precondition(format!(
                "{} is no folder, and only files replace files",
                shown(&target.path)
            )));
        }
        let parents = Parents::create(target.folder()).map_err(failed("write", &target.path))?;
        Ok(Self { target, expected, parents })
    }

    fn enter(&mut self) -> io::Result<File> {
        open_folder(self.target.folder())
    }

    /// Renames `path` of `folder` to here.
    fn take(&mut self, folder: impl AsFd, path: &Path) -> nix::Result<()> {
        let here = &self.target.path;
        if self.expected == Expected::Anything {
            renameat(folder, path, AT_FDCWD, here)?;
        } else {
            match renameat2(folder.as_fd(), path, AT_FDCWD, here, RenameFlags::RENAME_NOREPLACE) {
                // The file system does not know how.
                Err(Errno::EINVAL | Errno::ENOSYS) if here.symlink_metadata().is_err() => {
                    renameat(folder, path, AT_FDCWD, here)?;
                }
                renamed => renamed?,
            }
        }
        self.parents.keep();
        Ok(())
    }

    fn describe(&self) -> Result<FileInfo, Status> {
        let path = &self.target.path;
        path.symlink_metadata().map(|metadata| file_info(path, &metadata)).map_err(failed("look at", path))
    }
}

/// A copy that has not got its name: removed unless it was renamed.
struct Temporary {
    path: PathBuf,
    is_folder: bool,
}

impl Temporary {
    fn name(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_folder {
            let _ = fs::remove_file(&self.path);
        } else if self.path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            let _ = delete_folder(&self.path, &Call::default());
        }
    }
}

/// Copies a folder to `name` in `folder`, closed to others until all of it is there.
fn copy_folder(source: &Source, folder: &File, name: &OsStr, keep: Keep, call: &Call) -> Result<(), Status> {
    let refused = |error: io::Error| failed(source.operation, &source.path)(error);
    mkdirat(folder, name, Mode::S_IRWXU).map_err(|error| refused(error.into()))?;
    let root = File::from(kernel::open_folder(folder, name).map_err(|error| refused(error.into()))?);
    let mut walk = Walk::of(&source.path).map_err(refused)?;
    while let Some(step) = walk.next().map_err(refused)? {
        call.check()?;
        match copy_step(&walk, step, &root, keep, call) {
            Err(Fault::Io(error)) if has_gone(&error) && walk.stat().is_err() => {}
            copied => copied.map_err(|fault| fault.status(failed(source.operation, &walk.path_from(&source.path))))?,
        }
    }
    if keep == Keep::ModeAndTimes {
        set_times(&root, &Times::of(&source.metadata)).map_err(refused)?;
    }
    root.set_permissions(Permissions::from_mode(source.metadata.mode() & COPIED_MODE)).map_err(refused)
}

fn copy_step(walk: &Walk, step: Step, root: &File, keep: Keep, call: &Call) -> Result<(), Fault> {
    let path = walk.path();
    let stat = match step {
        // Its mode and times come when nothing is added to it any more.
        Step::Entry(Kind::Folder) => return Ok(mkdirat(root, path, Mode::S_IRWXU)?),
        Step::Entry(Kind::File) => {
            let file = walk.open()?;
            let metadata = file.metadata()?;
            if !metadata.is_file() {
                return Err(Errno::ENOENT.into());
            }
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let copy = File::from(openat(root, path, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
            content::copy(&file, &metadata, &copy, call)?;
            copy.set_permissions(Permissions::from_mode(metadata.mode() & COPIED_MODE))?;
            fstat(&file)?
        }
        Step::Entry(Kind::Link) => {
            symlinkat(&walk.link()?, root, path)?;
            walk.stat()?
        }
        Step::Entry(Kind::Other) => {
            let stat = walk.stat()?;
            make_other(root, path, stat.st_mode)?;
            stat
        }
        Step::Left => {
            let stat = walk.stat()?;
            let mode = Mode::from_bits_truncate(stat.st_mode & COPIED_MODE);
            fchmodat(root, path, mode, FchmodatFlags::FollowSymlink)?;
            stat
        }
        Step::Closed => return Err(Errno::EACCES.into()),
    };
    if keep == Keep::ModeAndTimes {
        set_times_of(root, path.as_os_str(), &Times::from(&stat))?;
    }
    Ok(())
}

/// Copies what is neither file nor folder.
fn copy_other(folder: &File, name: &OsStr, source: &Path, metadata: &Metadata) -> nix::Result<()> {
    if metadata.is_symlink() {
        let target = nix::fcntl::readlink(source)?;
        return symlinkat(target.as_os_str(), folder, name);
    }
    make_other(folder, Path::new(name), metadata.mode())
}

/// Makes a pipe or socket; the system refuses devices.
fn make_other(folder: &File, path: &Path, mode: u32) -> nix::Result<()> {
    let kind = SFlag::from_bits_truncate(mode & SFlag::S_IFMT.bits());
    if !matches!(kind, SFlag::S_IFIFO | SFlag::S_IFSOCK) {
        return Err(Errno::EPERM);
    }
    mknodat(folder, path, kind, Mode::from_bits_truncate(mode & 0o777), 0)
}
