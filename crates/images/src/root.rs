//! A folder that is one day the root of a sandbox, while it is being made: paths in it lead nowhere else.
//!
//! Links are taken as they will be taken inside, where `/` is this folder. Each step is one name from a folder that is
//! open, and never follows a link by itself, so that no archive finds a way out of it, whatever came before in it.
//! Nobody else writes here meanwhile.

use std::{
    cell::Cell,
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

/// How deep folders may be nested: all of the code that walks them goes down by recursion, with a descriptor each.
pub(crate) const DEEPEST: usize = 128;
/// As many links as the kernel follows (path_resolution(7)).
const LINKS: usize = 40;
/// The mode of a folder that a layer only passes through and says nothing about.
pub(crate) const PRIVATE: u32 = 0o700;
/// The mode of all other folders: a sandbox's user is neither their owner nor of their group, and may read all.
pub(crate) const FOLDER: u32 = 0o755;

const PLACE: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const LISTED: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// The folder.
pub(crate) struct Root {
    folder: OwnedFd,
    /// the folder used last: most entries follow others of the same one
    recent: Option<(PathBuf, OwnedFd)>,
    /// folders that were made on the way to others, and not yet counted
    made: Cell<u64>,
    /// the mode of those
    implied: u32,
}

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Link,
    Other,
}

impl Root {
    /// `implied` is the mode of the folders that are made on the way to others.
    pub(crate) fn open(path: &Path, implied: u32) -> io::Result<Self> {
        Ok(Self { folder: nix::fcntl::open(path, LISTED, Mode::empty())?, recent: None, made: Cell::new(0), implied })
    }

    pub(crate) fn folder(&self) -> &OwnedFd {
        &self.folder
    }

    /// The folder that `path` is in, made if it is missing, and the name there.
    pub(crate) fn parent<'a>(&mut self, path: &'a Path) -> nix::Result<(BorrowedFd<'_>, &'a OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EISDIR) };
        if self.recent.as_ref().is_none_or(|(recent, _)| recent != parent) {
            let folder = self.resolve(parent, true)?;
            self.recent = Some((parent.to_owned(), folder));
        }
        let folder = self.recent.as_ref().map(|(_, folder)| folder.as_fd()).ok_or(Errno::ENOENT)?;
        Ok((folder, name))
    }

    /// To be called when a folder or link may have been replaced: paths may lead elsewhere now.
    pub(crate) fn forget(&mut self) {
        self.recent = None;
    }

    /// How many folders were made on the way to others since this was asked last.
    pub(crate) fn take_made(&self) -> u64 {
        self.made.take()
    }

    /// Opens a folder. Those that are missing are made if `make` says so.
    pub(crate) fn resolve(&self, path: &Path, make: bool) -> nix::Result<OwnedFd> {
        let mut here = self.reopen(&[])?;
        let mut reached: Vec<OsString> = Vec::new();
        let mut ahead = parts_backwards(path);
        let mut links = 0;
        while let Some(part) = ahead.pop() {
            if part == ".." {
                reached.pop();
                here = self.reopen(&reached)?;
                continue;
            }
            here = match openat(&here, part.as_os_str(), PLACE, Mode::empty()) {
                Ok(folder) => folder,
                Err(Errno::ENOENT) if make => {
                    self.made.set(self.made.get() + 1);
                    make_folder(here.as_fd(), &part, self.implied)?
                }
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    // what is no link gives EINVAL
                    let target = readlinkat(&here, part.as_os_str()).map_err(|_| Errno::ENOTDIR)?;
                    links += 1;
                    if links > LINKS {
                        return Err(Errno::ELOOP);
                    }
                    let target = PathBuf::from(target);
                    if target.is_absolute() {
                        reached.clear();
                        here = self.reopen(&[])?;
                    }
                    ahead.append(&mut parts_backwards(&target));
                    continue;
                }
                Err(error) => return Err(error),
            };
            reached.push(part);
            if reached.len() > DEEPEST {
                return Err(Errno::ENAMETOOLONG);
            }
        }
        Ok(here)
    }

    /// Opens a folder by names of which none is a link.
    fn reopen(&self, parts: &[OsString]) -> nix::Result<OwnedFd> {
        let mut here = openat(&self.folder, ".", PLACE, Mode::empty())?;
        for part in parts {
            here = openat(&here, part.as_os_str(), PLACE, Mode::empty())?;
        }
        Ok(here)
    }
}

fn parts_backwards(path: &Path) -> Vec<OsString> {
    let named = |part: Component<'_>| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().rev().filter_map(named).collect()
}

/// Makes a folder with exactly this mode and opens it.
pub(crate) fn make_folder(above: BorrowedFd<'_>, name: &OsStr, mode: u32) -> nix::Result<OwnedFd> {
    mkdirat(above, name, Mode::S_IRWXU)?;
    set_mode(above, name, mode)?;
    open_folder(above, name)
}

/// A folder at this name, with this mode; anything else that is there is replaced.
pub(crate) fn ensure_folder(above: BorrowedFd<'_>, name: &OsStr, mode: u32) -> nix::Result<OwnedFd> {
    match kind_at(above, name)? {
        Some(Kind::Folder) => {
            set_mode(above, name, mode)?;
            return open_folder(above, name);
        }
        Some(_) => unlinkat(above, name, UnlinkatFlags::NoRemoveDir)?,
        None => {}
    }
    make_folder(above, name, mode)
}

fn set_mode(above: BorrowedFd<'_>, name: &OsStr, mode: u32) -> nix::Result<()> {
    // it is a folder, which nobody replaces meanwhile
    fchmodat(above, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
}

/// Opens a folder that is no link.
pub(crate) fn open_folder(above: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    openat(above, name, LISTED, Mode::empty())
}

/// Makes a file where there is nothing.
pub(crate) fn make_file(above: BorrowedFd<'_>, name: &OsStr) -> nix::Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(openat(above, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?.into())
}

/// The mode of a file: readable by everybody, and a program for everybody when it is one for anybody. No bit is kept
/// that gives rights to who runs it, and none that lets others than the owner write.
pub(crate) fn file_mode(mode: u32) -> u32 {
    if mode & 0o111 == 0 { 0o644 } else { 0o755 }
}

pub(crate) fn stat(above: BorrowedFd<'_>, name: &OsStr) -> nix::Result<FileStat> {
    fstatat(above, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// What has this name; none when nothing has.
pub(crate) fn kind_at(above: BorrowedFd<'_>, name: &OsStr) -> nix::Result<Option<Kind>> {
    match stat(above, name) {
        Ok(stat) => Ok(Some(kind(&stat))),
        Err(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(crate) fn kind(stat: &FileStat) -> Kind {
    match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Folder,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    }
}

/// The names in a folder, in the order of their bytes.
pub(crate) fn names(folder: &OwnedFd) -> nix::Result<Vec<OsString>> {
    use std::os::unix::ffi::OsStrExt;
    // listing moves a descriptor's position, and a copy shares it
    let again = openat(folder, ".", LISTED, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::from_fd(again)?.iter() {
        let name = OsStr::from_bytes(entry?.file_name().to_bytes()).to_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes what has this name, with all that is in it; false when nothing has.
pub(crate) fn remove(above: BorrowedFd<'_>, name: &OsStr) -> nix::Result<bool> {
    match unlinkat(above, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) => return Ok(true),
        Err(Errno::ENOENT) => return Ok(false),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(error) => return Err(error),
    }
    let folder = open_folder(above, name)?;
    empty(&folder)?;
    unlinkat(above, name, UnlinkatFlags::RemoveDir)?;
    Ok(true)
}

/// Removes all that is in a folder.
pub(crate) fn empty(folder: &OwnedFd) -> nix::Result<()> {
    for name in names(folder)? {
        remove(folder.as_fd(), &name)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn links_lead_where_they_will_lead_inside() {
        let outside = tempfile::tempdir().unwrap();
        let folder = outside.path().join("root");
        fs::create_dir_all(folder.join("usr/bin")).unwrap();
        for (link, target) in [("bin", "usr/bin"), ("up", "../../../.."), ("absolute", "/usr"), ("new", "/a/../b/c")] {
            symlink(target, folder.join(link)).unwrap();
        }
        symlink("loop", folder.join("loop")).unwrap();
        let root = Root::open(&folder, PRIVATE).unwrap();
        for (path, made) in [
            ("bin/x", "usr/bin/x"),
            ("up/usr/up", "usr/up"),
            ("absolute/y", "usr/y"),
            ("new/z", "b/c/z"),
            ("up/bin/w", "usr/bin/w"),
        ] {
            root.resolve(Path::new(path), true).unwrap();
            let mode = fs::symlink_metadata(folder.join(made)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, PRIVATE, "{path}");
        }
        assert_eq!(root.resolve(Path::new("loop/x"), true).err(), Some(Errno::ELOOP));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    }

    #[test]
    fn folders_are_nested_so_deep_and_not_deeper() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::open(folder.path(), FOLDER).unwrap();
        let deepest = vec!["d"; DEEPEST].join("/");
        root.resolve(Path::new(&deepest), true).unwrap();
        let deeper = Path::new(&deepest).join("d");
        assert_eq!(root.resolve(&deeper, true).err(), Some(Errno::ENAMETOOLONG));
        symlink(&deepest, folder.path().join("link")).unwrap();
        assert_eq!(root.resolve(Path::new("link/d"), true).err(), Some(Errno::ENAMETOOLONG));
        assert!(remove(root.folder().as_fd(), OsStr::new("d")).unwrap());
        assert!(!remove(root.folder().as_fd(), OsStr::new("d")).unwrap());
    }

    #[test]
    fn a_file_is_no_folder_on_the_way() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let root = Root::open(folder.path(), FOLDER).unwrap();
        assert_eq!(root.resolve(Path::new("file/x"), true).err(), Some(Errno::ENOTDIR));
    }

    #[test]
    fn modes_give_no_rights() {
        for (mode, kept) in [(0o4755, 0o755), (0o2711, 0o755), (0o600, 0o644), (0o666, 0o644), (0, 0o644)] {
            assert_eq!(file_mode(mode), kept, "{mode:o}");
        }
    }
}
