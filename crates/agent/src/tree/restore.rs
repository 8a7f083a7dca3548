//! Makes folders hold what is sent, and nothing else.
//!
//! The roots stay, since they may be mount points; what is in them goes first. Entries are then made in their order, each
//! from its open folder. A folder gets its mode and times when it is left: until then its owner must get in, and what is
//! made in it would change its time.

mod clear;
mod content;
mod folders;
mod links;

use std::{
    ffi::OsStr,
    fs::File,
    os::{fd::BorrowedFd, unix::ffi::OsStrExt},
};

use cloud_sandbox_proto::{
    agent::v1::{RestoreTreeRequest, RestoreTreeResponse, restore_tree_request::Part},
    checkpoint::v1::{EntryKind, TreeEntry},
};
use nix::{
    fcntl::{AtFlags, OFlag},
    sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, fstatat, mkdirat, utimensat},
    unistd::{Gid, Uid, fchownat, mkfifoat, symlinkat},
};
use tonic::Status;

use super::{
    MAX_CHUNK, meta,
    parts::Parts,
    roots::{Place, Roots, failed, shown},
};
use crate::{kernel, worker::Call};
use content::Content;
use folders::Folders;

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);
const NANOS: u32 = 1_000_000_000;
/// PATH_MAX (limits.h): what a link may point to.
const MAX_TARGET: usize = 4096;

/// Makes the roots hold what comes.
pub(super) fn restore(
    roots: &Roots,
    mut parts: Parts<RestoreTreeRequest>,
    call: &Call,
) -> Result<RestoreTreeResponse, Status> {
    // All of them before anything is gone.
    let opened = roots.iter().map(|(_, root)| clear::open(root)).collect::<Result<Vec<File>, _>>()?;
    for ((_, path), root) in roots.iter().zip(&opened) {
        clear::clear(roots, path, root, call)?;
    }
    let mut restoring = Restoring {
        roots,
        opened,
        folders: Folders::default(),
        last: None,
        content: None,
        done: RestoreTreeResponse::default(),
    };
    loop {
        call.check()?;
        let message = parts.next()?;
        let message = message.ok_or_else(|| Status::invalid_argument("the restore ended without commit"))?;
        match message.part {
            Some(Part::Entry(entry)) => restoring.entry(entry)?,
            Some(Part::Data(data)) => restoring.data(&data)?,
            Some(Part::Commit(_)) => {
                restoring.finish_content()?;
                restoring.folders.leave_all()?;
                return Ok(restoring.done);
            }
            Some(Part::Start(_)) => return Err(Status::invalid_argument("start comes once")),
            None => return Err(Status::invalid_argument("a message of a restore must have a part")),
        }
    }
}

struct Restoring<'a> {
    roots: &'a Roots,
    opened: Vec<File>,
    folders: Folders,
    last: Option<Place>,
    /// the last entry, if it is a file whose data may still come
    content: Option<Content>,
    done: RestoreTreeResponse,
}

impl Restoring<'_> {
    fn data(&mut self, data: &[u8]) -> Result<(), Status> {
        if data.is_empty() || data.len() > MAX_CHUNK {
            return Err(Status::invalid_argument("data must have 1 to 4194304 bytes"));
        }
        let content = self.content.as_mut();
        content.ok_or_else(|| Status::invalid_argument("data must follow an entry with extents"))?.write(data)?;
        self.done.bytes += data.len() as u64;
        Ok(())
    }

    fn finish_content(&mut self) -> Result<(), Status> {
        self.content.take().map_or(Ok(()), Content::finish)
    }

    fn entry(&mut self, entry: TreeEntry) -> Result<(), Status> {
        self.finish_content()?;
        let place = self.place(&entry)?;
        let refuse = refuse(&place.path);
        if self.roots.is_root(&place.path) {
            if entry.kind() != EntryKind::Folder || !entry.hard_link.is_empty() {
                return Err(refuse("must be a folder, as a root"));
            }
            check(&entry).map_err(refuse)?;
            self.folders.leave_all()?;
            let root = self.opened[place.root].try_clone().map_err(failed("restore", &place.path))?;
            self.folders.enter(root, entry)?;
        } else {
            if !self.folders.leave_up_to(parent(&place.path))? {
                return Err(refuse("must come after its folder"));
            }
            if entry.hard_link.is_empty() {
                check(&entry).map_err(refuse)?;
                self.make(&place, entry)?;
            } else {
                links::make(self.roots, &self.opened[place.root], &self.folders, &place, &entry.hard_link)?;
            }
        }
        self.last = Some(place);
        self.done.entries += 1;
        Ok(())
    }

    /// Where an entry belongs, which must be after the last one.
    fn place(&self, entry: &TreeEntry) -> Result<Place, Status> {
        let refuse = refuse(&entry.path);
        if !is_plain(&entry.path) {
            return Err(refuse("must be an absolute path without NUL, `.`, `..` and empty parts"));
        }
        let root = self.roots.of(&entry.path).ok_or_else(|| refuse("lies in none of the roots"))?;
        let place = Place { root, path: entry.path.to_vec() };
        if self.last.as_ref().is_some_and(|last| *last >= place) {
            return Err(refuse("comes out of order"));
        }
        Ok(place)
    }

    fn make(&mut self, place: &Place, entry: TreeEntry) -> Result<(), Status> {
        let path = &place.path;
        let name = name(path);
        let folder = self.folders.last().ok_or_else(|| refuse(path)("must come after its folder"))?;
        match entry.kind() {
            EntryKind::File => {
                self.content = Some(Content::create(folder, name, entry)?);
                Ok(())
            }
            EntryKind::Folder => {
                let leads_to_root = self.roots.leads_to_root(path);
                let made = make_folder(folder, name, leads_to_root).map_err(failed("restore", path))?;
                self.folders.enter(made, entry)
            }
            EntryKind::Symlink => make_symlink(folder, name, &entry).map_err(failed("restore", path)),
            EntryKind::Fifo => make_fifo(folder, name, &entry).map_err(failed("restore", path)),
            EntryKind::Unspecified => Err(refuse(path)("must have a kind")),
        }
    }
}

fn make_folder(parent: BorrowedFd<'_>, name: &OsStr, may_exist: bool) -> nix::Result<File> {
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Err(nix::errno::Errno::EEXIST) if may_exist => {}
        made => made?,
    }
    kernel::open_folder(parent, name).map(File::from)
}

fn make_symlink(parent: BorrowedFd<'_>, name: &OsStr, entry: &TreeEntry) -> nix::Result<()> {
    symlinkat(OsStr::from_bytes(&entry.target), parent, name)?;
    finish(parent, name, entry)
}

fn make_fifo(parent: BorrowedFd<'_>, name: &OsStr, entry: &TreeEntry) -> nix::Result<()> {
    mkfifoat(parent, name, Mode::S_IRUSR | Mode::S_IWUSR)?;
    finish(parent, name, entry)
}

/// Gives what is not opened the owner, mode and time of its entry.
fn finish(parent: BorrowedFd<'_>, name: &OsStr, entry: &TreeEntry) -> nix::Result<()> {
    let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if let Some((uid, gid)) = meta::other_owner(&stat, entry) {
        fchownat(parent, name, uid.map(Uid::from_raw), gid.map(Gid::from_raw), AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if entry.kind() != EntryKind::Symlink {
        // Just made, and no link.
        fchmodat(parent, name, Mode::from_bits_truncate(entry.mode), FchmodatFlags::FollowSymlink)?;
    }
    let modified = meta::modified(entry);
    utimensat(parent, name, &modified, &modified, UtimensatFlags::NoFollowSymlink)
}

/// Why an entry cannot be one.
fn check(entry: &TreeEntry) -> Result<(), &'static str> {
    let kind = EntryKind::try_from(entry.kind).unwrap_or_default();
    let is_file = kind == EntryKind::File;
    if entry.mode > 0o7777 {
        return Err("must have a mode of 0 to 0o7777");
    }
    if entry.mtime_nanos >= NANOS {
        return Err("must have mtime_nanos of 0 to 999999999");
    }
    if !is_file && (entry.size > 0 || !entry.extents.is_empty()) {
        return Err("must be a file to have data");
    }
    let is_target = !entry.target.is_empty() && entry.target.len() < MAX_TARGET && !entry.target.contains(&0);
    if kind == EntryKind::Symlink && !is_target {
        return Err("must have a target of 1 to 4095 bytes without NUL");
    }
    if !matches!(kind, EntryKind::File | EntryKind::Folder) && !entry.xattrs.is_empty() {
        return Err("must be a file or folder to have xattrs");
    }
    meta::check_xattrs(entry)
}

fn refuse(path: &[u8]) -> impl Fn(&str) -> Status + Copy + use<'_> {
    move |rule| Status::invalid_argument(format!("entry {} {rule}", shown(path)))
}

/// Whether a path is absolute and its parts are names.
fn is_plain(path: &[u8]) -> bool {
    let Some(parts) = path.strip_prefix(b"/") else { return false };
    !path.contains(&0) && parts.split(|byte| *byte == b'/').all(|part| !matches!(part, b"" | b"." | b".."))
}

/// The path of the folder that a plain path is in.
fn parent(path: &[u8]) -> &[u8] {
    &path[..path.len() - name(path).len() - 1]
}

fn name(path: &[u8]) -> &OsStr {
    OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_names_alone() {
        for path in ["", "a", "/", "/a/", "//a", "/a/./b", "/a/../b", "/..", "/a\0"] {
            assert!(!is_plain(path.as_bytes()), "{path:?}");
        }
        for path in ["/a", "/a/b", "/a/...", "/a/.b"] {
            assert!(is_plain(path.as_bytes()), "{path:?}");
        }
        assert_eq!((parent(b"/a/b"), name(b"/a/b")), (b"/a".as_slice(), OsStr::new("b")));
        assert_eq!(parent(b"/a"), b"");
    }

    #[test]
    fn entries_say_only_what_their_kind_has() {
        let entry = |kind: EntryKind| TreeEntry { kind: kind.into(), ..Default::default() };
        let wrong = [
            TreeEntry { mode: 0o10000, ..entry(EntryKind::File) },
            TreeEntry { mtime_nanos: NANOS, ..entry(EntryKind::File) },
            TreeEntry { size: 1, ..entry(EntryKind::Folder) },
            entry(EntryKind::Symlink),
            TreeEntry { target: "a\0".into(), ..entry(EntryKind::Symlink) },
            TreeEntry { xattrs: vec![Default::default()], ..entry(EntryKind::Fifo) },
            TreeEntry { xattrs: vec![Default::default()], ..entry(EntryKind::File) },
        ];
        for entry in wrong {
            assert!(check(&entry).is_err(), "{entry:?}");
        }
        for kind in [EntryKind::File, EntryKind::Folder, EntryKind::Fifo] {
            assert_eq!(check(&entry(kind)), Ok(()));
        }
    }
}
