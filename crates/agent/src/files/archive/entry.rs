//! Where the entries of an archive go: nowhere but into the folder, whatever their names and the links there say.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2},
    sys::stat::{Mode, mkdirat},
};

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
            above = self.open(&reached, FOLDER)?;
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
        self.open_without_links(path, flags)
    }

    /// The same where the kernel does not help: every link on the way is taken for one that leads out.
    fn open_without_links(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let mut reached = openat(&self.folder, ".", FOLDER, Mode::empty())?;
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            let flags = if parts.peek().is_some() { FOLDER } else { flags | OFlag::O_CLOEXEC };
            reached = match openat(reached.as_fd(), part.as_os_str(), flags | OFlag::O_NOFOLLOW, Mode::empty()) {
                Err(Errno::ELOOP) => return Err(Errno::EXDEV),
                Err(Errno::ENOTDIR) if is_link(&reached, part.as_os_str()) => return Err(Errno::EXDEV),
                opened => opened?,
            };
        }
        Ok(reached)
    }
}

fn is_link(folder: &OwnedFd, name: &OsStr) -> bool {
    nix::fcntl::readlinkat(folder, name).is_ok()
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
    fn links_are_followed_inside_only_or_not_at_all() {
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir_all(outside.path().join("root/real")).unwrap();
        let folder = outside.path().join("root");
        symlink("real", folder.join("in")).unwrap();
        symlink("..", folder.join("out")).unwrap();
        symlink("/tmp", folder.join("absolute")).unwrap();
        let root = Root::new(open_folder(&folder).unwrap());
        assert!(root.make(Path::new("in/new")).is_ok());
        assert!(folder.join("real/new").is_dir());
        for out in ["out", "out/x", "absolute/x"] {
            assert_eq!(root.make(Path::new(out)).err(), Some(Errno::EXDEV), "{out}");
        }
        for link in ["in", "out", "in/new", "absolute/x"] {
            assert_eq!(root.open_without_links(Path::new(link), FOLDER).err(), Some(Errno::EXDEV), "{link}");
        }
        assert!(root.open_without_links(Path::new("real/new"), FOLDER).is_ok());
    }
}
