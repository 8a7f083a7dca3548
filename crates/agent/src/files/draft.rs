//! Files that come into being whole: written where nobody sees them, then put in their place.
//!
//! Invariant: a draft that is not committed leaves nothing behind, neither its content nor the parents it made. Where the
//! file system can, it has no name before that, so that not even a killed agent leaves anything.

use std::{
    fs::{self, DirBuilder, File, Metadata, OpenOptions, Permissions},
    hash::{BuildHasher, RandomState},
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use cloud_sandbox_proto::v1::FileInfo;
use nix::{
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, linkat, unlinkat},
};
use tonic::Status;

use super::{
    failed,
    info::{Facts, file_info},
    is_folder, neither, shown,
};

const DEFAULT_MODE: u32 = 0o644;
/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// How the names of drafts begin.
pub(super) const PREFIX: &str = ".cloud-sandbox-";

/// A file without a name gets one through here only; there is no `/proc` where the sandbox masks it.
static HAS_PROC: LazyLock<bool> = LazyLock::new(|| Path::new("/proc/self/fd").exists());

/// What must be at the target for a write to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expected {
    Anything,
    /// nothing, by the `if_etag` of a request
    Nothing,
    /// nothing, because the request does not say that it may be replaced
    Free,
    Etag(String),
}

impl Expected {
    /// Takes it from the `if_etag` of a request.
    pub(super) fn parse(if_etag: String) -> Self {
        match if_etag.as_str() {
            "" => Self::Anything,
            "*none" => Self::Nothing,
            _ => Self::Etag(if_etag),
        }
    }

    /// Says ABORTED when something else is at `path`.
    pub(super) fn check(&self, path: &Path, found: Option<&Metadata>) -> Result<(), Status> {
        let met = match (self, found) {
            (Self::Anything, _) | (Self::Nothing | Self::Free, None) => true,
            (Self::Etag(wanted), Some(found)) => *wanted == Facts::from(found).etag(),
            (Self::Nothing | Self::Free, Some(_)) | (Self::Etag(_), None) => false,
        };
        if met { Ok(()) } else { Err(self.refusal(path)) }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing | Self::Free)
    }

    fn refusal(&self, path: &Path) -> Status {
        let reason = if matches!(self, Self::Etag(_)) { "it is not what if_etag names" } else { "it exists already" };
        let message = format!("failed to write {}: {reason}", shown(path));
        if *self == Self::Free { Status::already_exists(message) } else { Status::aborted(message) }
    }
}

/// Where a write goes: what `path` leads to, and what is there.
pub(super) struct Target {
    /// As the request named it.
    pub(super) path: PathBuf,
    /// Where it leads.
    pub(super) real: PathBuf,
    pub(super) found: Option<Metadata>,
}

impl Target {
    /// Follows `path` to a file, or to where one can be made.
    pub(super) fn find(path: PathBuf) -> Result<Self, Status> {
        let failed = failed("write", &path);
        let real = follow(&path).map_err(&failed)?;
        let found = match real.metadata() {
            Ok(metadata) if metadata.is_dir() => return Err(is_folder(&path)),
            Ok(metadata) if !metadata.is_file() => return Err(neither(&path)),
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        Ok(Self { path, real, found })
    }

    /// The path itself, where something may be replaced but a folder; a link there is not followed.
    pub(super) fn at(path: PathBuf, expected: &Expected) -> Result<Self, Status> {
        let found = match path.symlink_metadata() {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("write", &path)(error)),
        };
        expected.check(&path, found.as_ref())?;
        if found.as_ref().is_some_and(Metadata::is_dir) {
            return Err(is_folder(&path));
        }
        Ok(Self { real: path.clone(), path, found })
    }

    pub(super) fn folder(&self) -> &Path {
        self.real.parent().unwrap_or(Path::new("/"))
    }

    /// `mode`, else that of the file that is there, else the usual one.
    pub(super) fn mode(&self, mode: u32) -> Result<u32, Status> {
        let found = || self.found.as_ref().map_or(DEFAULT_MODE, |found| found.mode() & 0o7777);
        check_mode(mode).map(|()| if mode == 0 { found() } else { mode })
    }
}

/// Only permission bits may be set.
pub(super) fn check_mode(mode: u32) -> Result<(), Status> {
    if mode <= 0o777 {
        return Ok(());
    }
    Err(Status::invalid_argument(format!("mode {mode:#o} has more than permission bits")))
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

/// A file that is being written.
pub(super) struct Draft {
    target: Target,
    expected: Expected,
    mode: u32,
    file: File,
    folder: File,
    /// Its name in `folder`, where it has one.
    name: Option<PathBuf>,
    parents: Parents,
}

impl Draft {
    /// Begins a file at `path` with `mode`, or that of the file which it replaces when 0.
    pub(super) fn begin(path: PathBuf, mode: u32, expected: Expected) -> Result<Self, Status> {
        let target = Target::find(path)?;
        let mode = target.mode(mode)?;
        expected.check(&target.path, target.found.as_ref())?;
        Self::of(target, mode, expected)
    }

    /// Begins the file of `target`.
    pub(super) fn of(target: Target, mode: u32, expected: Expected) -> Result<Self, Status> {
        let failed = failed("write", &target.path);
        let parents = Parents::create(target.folder()).map_err(&failed)?;
        let folder = open_folder(target.folder()).map_err(&failed)?;
        let (file, name) = create(&folder, target.folder()).map_err(&failed)?;
        Ok(Self { target, expected, mode, file, folder, name, parents })
    }

    /// Takes over the parents that were made for it.
    pub(super) fn with_parents(mut self, mut parents: Parents) -> Self {
        parents.0.append(&mut self.parents.0);
        self.parents = parents;
        self
    }

    /// Adds bytes.
    pub(super) fn write(&mut self, data: &[u8]) -> Result<(), Status> {
        self.file.write_all(data).map_err(failed("write", &self.target.path))
    }

    /// What is written to.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Puts the file in its place, if what was expected is still there.
    pub(super) fn commit(mut self) -> Result<FileInfo, Status> {
        let failed = failed("write", &self.target.path);
        let found = match self.target.real.symlink_metadata() {
            Ok(metadata) => Some(metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        self.expected.check(&self.target.path, found.as_ref())?;
        self.file.set_permissions(Permissions::from_mode(self.mode)).map_err(&failed)?;
        match self.place(found.is_some()) {
            Err(Errno::EEXIST) if self.expected == Expected::Nothing => {
                return Err(self.expected.refusal(&self.target.path));
            }
            placed => placed.map_err(|error| failed(error.into()))?,
        }
        self.parents.keep();
        let metadata = self.file.metadata().map_err(&failed)?;
        Ok(file_info(&self.target.path, &metadata))
    }

    /// A file that is new appears at once; one that replaces another is renamed over it.
    fn place(&mut self, replace: bool) -> nix::Result<()> {
        let Some(name) = self.target.real.file_name().map(PathBuf::from) else { return Err(Errno::EISDIR) };
        if !replace {
            match self.link(&name) {
                Ok(()) => {
                    // A draft that had a name has two now.
                    self.unlink();
                    return Ok(());
                }
                // Somebody else was faster, or the file system has no links: a rename serves both, but not the first
                // where nothing may be replaced.
                Err(Errno::EEXIST) if self.expected.is_nothing() => return Err(Errno::EEXIST),
                Err(Errno::EEXIST | Errno::EPERM | Errno::EOPNOTSUPP | Errno::EMLINK | Errno::ENOSYS) => {}
                Err(error) => return Err(error),
            }
        }
        if self.name.is_none() {
            let temporary = unused_name();
            self.link(&temporary)?;
            self.name = Some(temporary);
        }
        let Some(temporary) = &self.name else { return Err(Errno::ENOENT) };
        nix::fcntl::renameat(&self.folder, temporary, &self.folder, &name)?;
        self.name = None;
        Ok(())
    }

    fn link(&self, name: &Path) -> nix::Result<()> {
        match &self.name {
            Some(temporary) => linkat(&self.folder, temporary, &self.folder, name, AtFlags::empty()),
            None => linkat(AT_FDCWD, &of_descriptor(&self.file), &self.folder, name, AtFlags::AT_SYMLINK_FOLLOW),
        }
    }

    fn unlink(&mut self) {
        if let Some(name) = self.name.take() {
            let _ = unlinkat(&self.folder, &name, UnlinkatFlags::NoRemoveDir);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        self.unlink();
    }
}

/// A path that leads to what `file` is, whatever its name.
pub(crate) fn of_descriptor(file: &impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()).into()
}

/// Opens a folder to work within.
pub(super) fn open_folder(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(path)
}

/// Makes a file in `folder`, without a name if it can be.
fn create(folder: &File, path: &Path) -> io::Result<(File, Option<PathBuf>)> {
    if *HAS_PROC {
        let unnamed = OpenOptions::new().write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(path);
        // What says that it cannot is not the same everywhere (open(2)).
        match unnamed.as_ref().map_err(io::Error::raw_os_error) {
            Ok(_) => return unnamed.map(|file| (file, None)),
            Err(Some(libc::EOPNOTSUPP | libc::EISDIR | libc::ENOENT | libc::EINVAL | libc::ENOSYS)) => {}
            Err(_) => return unnamed.map(|file| (file, None)),
        }
    }
    let name = unused_name();
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(folder, &name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?;
    Ok((file.into(), Some(name)))
}

/// A hidden name that nobody can foresee.
pub(super) fn unused_name() -> PathBuf {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{PREFIX}{:016x}", SEED.hash_one(COUNT.fetch_add(1, Ordering::Relaxed))).into()
}

/// Folders made for something that may yet fail: removed when it did.
#[derive(Default)]
pub(super) struct Parents(Vec<PathBuf>);

impl Parents {
    /// Creates `folder` and what is missing above it.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        let mut parents = Self::default();
        create_folders(folder, &mut parents.0)?;
        Ok(parents)
    }

    /// They stay.
    pub(super) fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for Parents {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            let _ = fs::remove_dir(folder);
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
