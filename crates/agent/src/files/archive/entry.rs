//! Where the entries of an archive go: nowhere but into the folder, whatever their names and the links there say.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat},
    sys::stat::{Mode, mkdirat},
};

use crate::kernel;

/// As many as the kernel follows (path_resolution(7)).
const MAX_LINKS: u32 = 40;
/// With the NUL behind it (path_resolution(7)).
const MAX_PATH: usize = 4096;
const FOLDER: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// The path of an entry within the folder; none when it leads out of it.
pub(super) fn inside(name: &[u8]) -> Option<PathBuf> {
    if name.contains(&0) {
        return None;
    }
    let mut path = PathBuf::new();
    for part in Path::new(OsStr::from_bytes(name)).components() {
        match part {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// The folder that is unpacked into.
pub(super) struct Root {
    folder: File,
    /// the folder used last: most entries follow others of the same one
    recent: Option<(PathBuf, OwnedFd)>,
}

impl Root {
    pub(super) fn new(folder: File) -> Self {
        Self { folder, recent: None }
    }

    /// The folder of an entry, made if it is missing, and the entry's name in it. EXDEV when a link leads out.
    pub(super) fn parent(&mut self, path: &Path) -> nix::Result<(&OwnedFd, OsString)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EISDIR) };
        if self.recent.as_ref().is_none_or(|(recent, _)| recent != parent) {
            let folder = self.make(parent)?;
            self.recent = Some((parent.to_owned(), folder));
        }
        let folder = self.recent.as_ref().map(|(_, folder)| folder).ok_or(Errno::ENOENT)?;
        Ok((folder, name.to_owned()))
    }

    /// Opens a folder below the root; makes it and those above it if they are missing.
    pub(super) fn make(&self, path: &Path) -> nix::Result<OwnedFd> {
        match self.open(path, FOLDER) {
            Err(Errno::ENOENT) => {}
            opened => return opened,
        }
        let mut above = self.open(Path::new("."), FOLDER)?;
        let mut reached = PathBuf::new();
        for part in path.components() {
            reached.push(part);
            match mkdirat(&above, part.as_os_str(), Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(error) => return Err(error),
            }
            above = match openat(&above, part.as_os_str(), FOLDER | OFlag::O_NOFOLLOW, Mode::empty()) {
                // a link, which may lead elsewhere below the root
                Err(Errno::ENOTDIR | Errno::ELOOP) => self.open(&reached, FOLDER)?,
                opened => opened?,
            };
        }
        Ok(above)
    }

    /// Opens what is below the root, through links only as long as they stay there.
    pub(super) fn open(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        static KNOWN: AtomicBool = AtomicBool::new(true);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        if KNOWN.load(Ordering::Relaxed) {
            let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS;
            match openat2(&self.folder, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve)) {
                // The kernel, or the filter around us, does not have the call.
                Err(Errno::ENOSYS | Errno::EPERM) => KNOWN.store(false, Ordering::Relaxed),
                opened => return opened,
            }
        }
        self.resolve(path, flags)
    }

    /// The same where the kernel does not help: part by part, each from the folder above by descriptor, and each link
    /// read before anything is opened. What becomes a link in between is refused.
    fn resolve(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        if path.as_os_str().len() >= MAX_PATH {
            return Err(Errno::ENAMETOOLONG);
        }
        // the way back up: nobody can lead it elsewhere by moving a folder
        let mut way = vec![openat(&self.folder, ".", FOLDER, Mode::empty())?];
        let mut left = parts(path);
        let mut links = 0;
        while let Some(part) = left.pop() {
            let Some(reached) = way.last() else { return Err(Errno::EXDEV) };
            match part.as_encoded_bytes() {
                b"." => continue,
                b".." => {
                    way.pop();
                    continue;
                }
                // the top of everything
                b"/" => return Err(Errno::EXDEV),
                _ => {}
            }
            match readlinkat(reached, part.as_os_str()) {
                Ok(link) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::ELOOP);
                    }
                    left.extend(parts(Path::new(&link)));
                }
                Err(Errno::EINVAL | Errno::ENOENT) if left.is_empty() => return open_at(reached, &part, flags),
                Err(Errno::EINVAL | Errno::ENOENT) => {
                    let opened = openat(reached, part.as_os_str(), FOLDER | OFlag::O_NOFOLLOW, Mode::empty());
                    way.push(opened.map_err(unless_link)?);
                }
                Err(error) => return Err(error),
            }
        }
        open_at(way.last().ok_or(Errno::EXDEV)?, OsStr::new("."), flags)
    }
}

/// The parts of a path, the first at the end.
fn parts(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
}

/// Opens what is no link.
fn open_at(folder: &OwnedFd, name: &OsStr, flags: OFlag) -> nix::Result<OwnedFd> {
    if flags.contains(OFlag::O_DIRECTORY) && !flags.contains(OFlag::O_PATH) {
        return kernel::open_folder(folder, name);
    }
    openat(folder, name, flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty()).map_err(unless_link)
}

fn unless_link(error: Errno) -> Errno {
    if error == Errno::ELOOP { Errno::EXDEV } else { error }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::files::draft::open_folder;

    #[test]
    fn names_that_lead_out_are_none() {
        assert_eq!(inside(b"./a//b/").unwrap(), Path::new("a/b"));
        assert_eq!(inside(b"./").unwrap(), Path::new(""));
        for name in [&b"/a"[..], b"../a", b"a/../b", b"a\0b"] {
            assert!(inside(name).is_none());
        }
    }

    #[test]
    fn links_are_followed_inside_only() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(outside.path().join("root/real")).unwrap();
        let folder = outside.path().join("root");
        symlink("real", folder.join("in")).unwrap();
        symlink("..", folder.join("out")).unwrap();
        symlink("/tmp", folder.join("absolute")).unwrap();
        fs::write(folder.join("file"), "").unwrap();
        let root = Root::new(open_folder(&folder).unwrap());
        assert!(root.make(Path::new("in/new")).is_ok());
        assert!(folder.join("real/new").is_dir());
        symlink("../real/./../in/new/", folder.join("real/round")).unwrap();
        symlink("loop", folder.join("loop")).unwrap();
        let deep = "deep/".repeat(800);
        assert!(root.make(Path::new(&deep)).is_ok());
        assert!(root.resolve(Path::new(&deep), FOLDER).is_ok());
        for out in ["out", "out/x", "absolute/x"] {
            assert_eq!(root.make(Path::new(out)).err(), Some(Errno::EXDEV), "{out}");
        }
        // the kernel and what stands in for it agree
        for path in ["in", "in/new", "real/round", "in/round", "real/new", ".", "in/..", "in/../in/new/../.."] {
            assert!(root.open(Path::new(path), FOLDER).is_ok(), "{path}");
            assert!(root.resolve(Path::new(path), FOLDER).is_ok(), "{path}");
        }
        for (path, error) in [
            ("out", Errno::EXDEV),
            ("..", Errno::EXDEV),
            ("in/../..", Errno::EXDEV),
            ("absolute", Errno::EXDEV),
            ("absolute/x", Errno::EXDEV),
            ("loop", Errno::ELOOP),
            ("none", Errno::ENOENT),
            ("none/x", Errno::ENOENT),
            ("file", Errno::ENOTDIR),
            ("file/x", Errno::ENOTDIR),
            (&"x/".repeat(2048), Errno::ENAMETOOLONG),
        ] {
            for flags in [FOLDER, OFlag::O_DIRECTORY] {
                assert_eq!(root.open(Path::new(path), flags).err(), Some(error), "{path}");
                assert_eq!(root.resolve(Path::new(path), flags).err(), Some(error), "{path}");
            }
        }
    }
}
