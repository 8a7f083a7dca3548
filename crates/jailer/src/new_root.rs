//! The new root while it grows, when the host's root is still this process's own: a link in it would lead to the host, and
//! images bring links.
//!
//! Invariant: no path is followed through a link, whoever has made that, and nothing is written to that was there before.

use std::{
    fs::File,
    io::Write,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, SFlag, fstat, mkdirat},
    unistd::{UnlinkatFlags, symlinkat, unlinkat},
};

use crate::fault::{Fault, Step};

const FOLDER: Mode = Mode::from_bits_truncate(0o755);
const FILE: Mode = Mode::from_bits_truncate(0o644);

/// The folder that is to be the root, with what is mounted there.
pub struct NewRoot(OwnedFd);

impl NewRoot {
    /// A folder of the host.
    pub fn open(path: &Path) -> Result<Self, Fault> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).map(Self).step(|| format!("open {}", path.display()))
    }

    /// What lies at a path of the sandbox; none when nothing does. A link there, or on the way, is a fault.
    pub fn find(&self, path: &Path) -> Result<Option<Place>, Fault> {
        match self.open_at(path) {
            Ok(place) => Ok(Some(place)),
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
            Err(error) => Err(error).step(|| format!("find {}", path.display())),
        }
    }

    /// The same of what has to be there.
    pub fn get(&self, path: &Path) -> Result<Place, Fault> {
        self.open_at(path).step(|| format!("find {}", path.display()))
    }

    /// The folder at a path, made if it is missing, as those above it are.
    pub fn folder(&self, path: &Path) -> Result<Place, Fault> {
        let mut reached = PathBuf::from("/");
        for part in path.iter().skip(1) {
            let above = self.get(&reached)?;
            reached.push(part);
            match mkdirat(&above.fd, part, FOLDER) {
                // nor can anything be made in what is read-only, where it has to be there
                Ok(()) | Err(Errno::EEXIST | Errno::EROFS) => {}
                Err(error) => return Err(error).step(|| format!("make {}", reached.display())),
            }
        }
        let folder = self.get(path)?;
        if folder.is_folder()? {
            return Ok(folder);
        }
        Err(Errno::ENOTDIR).step(|| format!("make {}", path.display()))
    }

    /// Makes a file where there is nothing.
    pub fn file(&self, path: &Path, content: &str) -> Result<Place, Fault> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let (above, name) = self.above(path)?;
        let file = openat(&above.fd, name, flags, FILE).step(|| format!("make {}", path.display()))?;
        File::from(file).write_all(content.as_bytes()).step(|| format!("write {}", path.display()))?;
        self.get(path)
    }

    /// Makes a link where there is nothing. Nothing finds its way through it any more.
    pub fn link(&self, path: &Path, target: &Path) -> Result<(), Fault> {
        let (above, name) = self.above(path)?;
        symlinkat(target, &above.fd, name).step(|| format!("link {}", path.display()))
    }

    /// Removes a file, or a folder in which there is nothing.
    pub fn remove(&self, path: &Path) -> Result<(), Fault> {
        let (above, name) = self.above(path)?;
        let removed = match unlinkat(&above.fd, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => unlinkat(&above.fd, name, UnlinkatFlags::RemoveDir),
            removed => removed,
        };
        removed.step(|| format!("remove {}", path.display()))
    }

    fn above<'a>(&self, path: &'a Path) -> Result<(Place, &'a std::ffi::OsStr), Fault> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::EINVAL).step(|| format!("make {}", path.display()));
        };
        Ok((self.folder(above)?, name))
    }

    fn open_at(&self, path: &Path) -> nix::Result<Place> {
        let below = path.strip_prefix("/").unwrap_or(path);
        let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
        Ok(Place { fd: openat2(&self.0, below, how)?, path: path.to_owned() })
    }
}

/// Something in the new root, by a descriptor. What is mounted on it later is another place.
pub struct Place {
    pub fd: OwnedFd,
    /// where the sandbox will find it
    pub path: PathBuf,
}

impl Place {
    /// Its path for calls that take nothing else, as long as this is held.
    pub fn host_path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    pub fn is_folder(&self) -> Result<bool, Fault> {
        let told = fstat(&self.fd).step(|| format!("look at {}", self.path.display()))?;
        Ok(SFlag::from_bits_truncate(told.st_mode & SFlag::S_IFMT.bits()) == SFlag::S_IFDIR)
    }
}
