//! Goes through a folder and all below it, by path in byte order, without following links, and however deep.
//!
//! Every step is taken from the folder above by descriptor, so that nobody can lead it elsewhere by replacing a folder
//! with a link. Only the lowest folders are kept open; the way back up is `..`, and must lead where the walk came from.
//!
//! In byte order `a.txt` comes between the folder `a` and what is in it, `a/b`. A folder therefore has two items in the
//! one above: itself, and later, with a slash, its content. A walk by parts takes the slash for less than any byte of a
//! name instead, so that what is in a folder comes right after it.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};

use crate::{kernel, snapshot::order};

/// How many folders on the way down stay open.
const KEPT_OPEN: usize = 24;
const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

/// What the walk has come to, which [`Walk::path`] and the like name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something in a folder.
    Entry(Kind),
    /// A folder that was an entry earlier, and all of it has been gone through.
    Left,
    /// A folder that was an entry earlier cannot be gone through, for lack of rights.
    Closed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Link,
    Other,
}

/// A walk. Its steps borrow nothing, so that entries may be changed between two of them.
pub(crate) struct Walk {
    levels: Vec<Level>,
    /// from the root to the entry
    path: Vec<u8>,
    /// nothing up to this path is an entry
    after: Vec<u8>,
    depth: usize,
    by_parts: bool,
}

struct Level {
    /// none while too many below it are open
    folder: Option<OwnedFd>,
    identity: (libc::dev_t, libc::ino_t),
    /// how much of the path leads here, with the slash at its end
    prefix: usize,
    names: Names,
}

impl Walk {
    /// Begins in `root`, goes down `depth` folders, of which the root is the first, and leaves out all up to `after`.
    pub(crate) fn new(root: OwnedFd, depth: usize, after: Vec<u8>) -> io::Result<Self> {
        let mut walk = Self { levels: Vec::new(), path: Vec::new(), after, depth, by_parts: false };
        walk.enter(root)?;
        Ok(walk)
    }

    /// All of what is in `root`, what is in a folder right after it.
    pub(crate) fn by_parts(root: OwnedFd) -> io::Result<Self> {
        let mut walk =
            Self { levels: Vec::new(), path: Vec::new(), after: Vec::new(), depth: usize::MAX, by_parts: true };
        walk.enter(root)?;
        Ok(walk)
    }

    /// All of what is in `path`, which may be a link to a folder.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let flags = FOLDER.difference(OFlag::O_NOFOLLOW);
        Self::new(nix::fcntl::open(path, flags, Mode::empty())?, usize::MAX, Vec::new())
    }

    /// All of what is in the folder `path`, which may be no link.
    pub(crate) fn of_folder(path: &Path) -> io::Result<Self> {
        Self::new(kernel::open_folder(AT_FDCWD, path)?, usize::MAX, Vec::new())
    }

    /// The next step; none at the end. What vanishes on the way is left out.
    pub(crate) fn next(&mut self) -> io::Result<Option<Step>> {
        loop {
            let Some(level) = self.levels.last_mut() else { return Ok(None) };
            self.path.truncate(level.prefix);
            let Some((name, kind)) = level.names.next() else {
                return self.leave();
            };
            self.path.extend_from_slice(name);
            if let Some(kind) = kind {
                return Ok(Some(Step::Entry(kind)));
            }
            match kernel::open_folder(self.folder()?, self.name()) {
                Ok(folder) => {
                    self.path.push(b'/');
                    self.enter(folder)?;
                }
                Err(Errno::EACCES | Errno::EPERM) => return Ok(Some(Step::Closed)),
                // It has gone, or is another thing now.
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Leaves out what is in the folder that was the last entry, in a walk by parts.
    pub(crate) fn pass_over(&mut self) {
        if let Some(level) = self.levels.last_mut() {
            level.names.skip_content();
        }
    }

    fn enter(&mut self, folder: OwnedFd) -> io::Result<()> {
        let stat = fstat(&folder)?;
        let names = self.names(&folder)?;
        let prefix = self.path.len();
        self.levels.push(Level { folder: Some(folder), identity: (stat.st_dev, stat.st_ino), prefix, names });
        if let Some(far) = self.levels.len().checked_sub(KEPT_OPEN + 1) {
            self.levels[far].folder = None;
        }
        Ok(())
    }

    fn leave(&mut self) -> io::Result<Option<Step>> {
        let left = self.levels.pop();
        let (Some(left), Some(above)) = (left.and_then(|left| left.folder), self.levels.last_mut()) else {
            return Ok(None);
        };
        // The slash.
        self.path.pop();
        if above.folder.is_none() {
            let folder = openat(left, "..", OFlag::O_PATH | FOLDER, Mode::empty())?;
            let stat = fstat(&folder)?;
            if (stat.st_dev, stat.st_ino) != above.identity {
                return Err(io::Error::other("a folder was moved meanwhile"));
            }
            above.folder = Some(folder);
        }
        Ok(Some(Step::Left))
    }

    /// The names in `folder`, whose path is the walk's, that come after where the walk begins.
    fn names(&self, folder: &OwnedFd) -> io::Result<Names> {
        let after = self.after.strip_prefix(self.path.as_slice()).unwrap_or_default();
        let descends = self.levels.len() + 1 < self.depth;
        let mut names = Names::default();
        for entry in Dir::from_fd(folder.try_clone()?)?.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Some(kind) =
                entry.file_type().map_or_else(|| kind_at(folder.as_fd(), name), |kind| Some(kind_of(kind)))
            else {
                continue;
            };
            names.add(name.to_bytes(), kind, descends, after)?;
        }
        names.sort(self.by_parts);
        Ok(names)
    }

    /// The folder that the entry is in.
    pub(crate) fn folder(&self) -> io::Result<BorrowedFd<'_>> {
        let folder = self.levels.last().and_then(|level| level.folder.as_ref());
        folder.map(AsFd::as_fd).ok_or_else(|| Errno::EBADF.into())
    }

    /// The entry's name in its folder.
    pub(crate) fn name(&self) -> &OsStr {
        let name = self.path.rsplit(|byte| *byte == b'/').next();
        OsStr::from_bytes(name.unwrap_or_default())
    }

    /// The entry's path from the root.
    pub(crate) fn path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.path))
    }

    /// The entry's path when the root's is `root`.
    pub(crate) fn path_from(&self, root: &Path) -> PathBuf {
        root.join(self.path())
    }

    /// Describes the entry itself.
    pub(crate) fn stat(&self) -> io::Result<FileStat> {
        Ok(fstatat(self.folder()?, self.name(), AtFlags::AT_SYMLINK_NOFOLLOW)?)
    }

    /// Opens the entry for reading if it is a file, and without waiting whatever it is.
    pub(crate) fn open(&self) -> io::Result<File> {
        let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        Ok(openat(self.folder()?, self.name(), flags, Mode::empty())?.into())
    }

    /// Where the entry points to, if it is a link.
    pub(crate) fn link(&self) -> io::Result<PathBuf> {
        Ok(nix::fcntl::readlinkat(self.folder()?, self.name())?.into())
    }
}

/// Whether an error says that an entry is not what it was a moment ago.
pub(crate) fn has_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::ENXIO))
}

fn kind_of(kind: Type) -> Kind {
    match kind {
        Type::File => Kind::File,
        Type::Directory => Kind::Folder,
        Type::Symlink => Kind::Link,
        _ => Kind::Other,
    }
}

/// For file systems that do not say it in the listing.
fn kind_at(folder: BorrowedFd<'_>, name: &std::ffi::CStr) -> Option<Kind> {
    let stat = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some(match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
        SFlag::S_IFREG => Kind::File,
        SFlag::S_IFDIR => Kind::Folder,
        SFlag::S_IFLNK => Kind::Link,
        _ => Kind::Other,
    })
}

/// The items of one folder, packed: there may be a million.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// start, length, and what it is: none for a folder's content
    items: Vec<(u32, u16, Option<Kind>)>,
    next: usize,
}

impl Names {
    fn add(&mut self, name: &[u8], kind: Kind, descends: bool, after: &[u8]) -> io::Result<()> {
        let start = u32::try_from(self.bytes.len()).map_err(|_| Errno::EOVERFLOW)?;
        let length = u16::try_from(name.len()).map_err(|_| Errno::ENAMETOOLONG)?;
        self.bytes.extend_from_slice(name);
        if name > after {
            self.items.push((start, length, Some(kind)));
        }
        if kind == Kind::Folder && descends {
            self.bytes.push(b'/');
            let content = &self.bytes[start as usize..];
            if content > after || after.starts_with(content) {
                self.items.push((start, length + 1, None));
            }
        }
        Ok(())
    }

    fn sort(&mut self, by_parts: bool) {
        let bytes = &self.bytes;
        if by_parts {
            let name = |item: &(u32, u16, Option<Kind>)| slice(bytes, item.0, item.1);
            self.items.sort_unstable_by(|one, other| order(name(one), name(other)));
        } else {
            self.items.sort_unstable_by_key(|(start, length, _)| slice(bytes, *start, *length));
        }
        // From here on it only gets shorter.
        self.bytes.shrink_to_fit();
        self.items.shrink_to_fit();
    }

    /// The next name; without a kind, the content of the folder of that name.
    fn next(&mut self) -> Option<(&[u8], Option<Kind>)> {
        let (start, length, kind) = *self.items.get(self.next)?;
        self.next += 1;
        let name = slice(&self.bytes, start, length);
        Some((name.strip_suffix(b"/").unwrap_or(name), kind))
    }

    fn skip_content(&mut self) {
        if matches!(self.items.get(self.next), Some((_, _, None))) {
            self.next += 1;
        }
    }
}

fn slice(bytes: &[u8], start: u32, length: u16) -> &[u8] {
    &bytes[start as usize..][..usize::from(length)]
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    fn tree() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for folder in ["a/b", "a-/", "c"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        for file in ["a.txt", "a/b/x", "a/y", "c/z"] {
            fs::write(root.path().join(file), "").unwrap();
        }
        symlink(root.path(), root.path().join("c/up")).unwrap();
        root
    }

    fn walked(mut walk: Walk) -> Vec<(String, Step)> {
        let mut steps = Vec::new();
        while let Some(step) = walk.next().unwrap() {
            steps.push((walk.path().to_str().unwrap().to_owned(), step));
        }
        steps
    }

    fn entries(root: &Path, depth: usize, after: &str) -> Vec<String> {
        let root = nix::fcntl::open(root, FOLDER, Mode::empty()).unwrap();
        let steps = walked(Walk::new(root, depth, after.as_bytes().to_vec()).unwrap());
        steps.into_iter().filter(|(_, step)| matches!(step, Step::Entry(_))).map(|(path, _)| path).collect()
    }

    #[test]
    fn entries_come_by_path_in_byte_order() {
        let root = tree();
        let all = entries(root.path(), usize::MAX, "");
        assert_eq!(all, ["a", "a-", "a.txt", "a/b", "a/b/x", "a/y", "c", "c/up", "c/z"]);
        assert!(all.is_sorted());
        assert_eq!(entries(root.path(), 1, ""), ["a", "a-", "a.txt", "c"]);
        assert_eq!(entries(root.path(), 2, ""), ["a", "a-", "a.txt", "a/b", "a/y", "c", "c/up", "c/z"]);
    }

    #[test]
    fn a_walk_by_parts_goes_into_a_folder_at_once_unless_it_is_passed_over() {
        let root = tree();
        let steps = |passed: &str| {
            let root = nix::fcntl::open(root.path(), FOLDER, Mode::empty()).unwrap();
            let mut walk = Walk::by_parts(root).unwrap();
            let mut paths = Vec::new();
            while let Some(step) = walk.next().unwrap() {
                let path = walk.path().to_str().unwrap().to_owned();
                if path == passed {
                    walk.pass_over();
                }
                if matches!(step, Step::Entry(_)) {
                    paths.push(path);
                }
            }
            paths
        };
        assert_eq!(steps(""), ["a", "a/b", "a/b/x", "a/y", "a-", "a.txt", "c", "c/up", "c/z"]);
        assert_eq!(steps("a"), ["a", "a-", "a.txt", "c", "c/up", "c/z"]);
        assert_eq!(steps("a/b"), ["a", "a/b", "a/y", "a-", "a.txt", "c", "c/up", "c/z"]);
    }

    #[test]
    fn a_walk_goes_on_after_any_path() {
        let root = tree();
        let all = entries(root.path(), usize::MAX, "");
        for after in ["", "a", "a-", "a/a", "a/b", "a/b/x", "a/b/zzz", "b", "c/up", "c/z", "d"] {
            let wanted: Vec<_> = all.iter().filter(|path| path.as_str() > after).cloned().collect();
            assert_eq!(entries(root.path(), usize::MAX, after), wanted, "{after}");
        }
    }

    #[test]
    fn a_folder_is_left_after_all_that_is_in_it() {
        let root = tree();
        let steps = walked(Walk::of(root.path()).unwrap());
        let at = |path: &str, step| steps.iter().position(|it| *it == (path.to_owned(), step)).unwrap();
        assert!(at("a", Step::Left) > at("a/b", Step::Left));
        assert!(at("a/b", Step::Left) > at("a/b/x", Step::Entry(Kind::File)));
    }

    #[test]
    fn deep_trees_need_few_descriptors() {
        let root = tempfile::tempdir().unwrap();
        let mut folder = nix::fcntl::open(root.path(), FOLDER, Mode::empty()).unwrap();
        for _ in 0..3000 {
            nix::sys::stat::mkdirat(&folder, "d", Mode::S_IRWXU).unwrap();
            folder = openat(&folder, "d", FOLDER, Mode::empty()).unwrap();
        }
        let mut walk = Walk::of(root.path()).unwrap();
        let (mut entered, mut left) = (0, 0);
        while let Some(step) = walk.next().unwrap() {
            match step {
                Step::Entry(_) => entered += 1,
                Step::Left => {
                    left += 1;
                    nix::unistd::unlinkat(walk.folder().unwrap(), walk.name(), nix::unistd::UnlinkatFlags::RemoveDir)
                        .unwrap();
                }
                Step::Closed => panic!("nothing is closed"),
            }
        }
        assert_eq!((entered, left), (3000, 3000));
    }
}
