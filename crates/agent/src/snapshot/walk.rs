//! Walks a folder in a fixed order, up to a bound.
//!
//! Invariant: the order is that of the paths (see [`order`]), and a walk that ends early has seen everything up to its
//! last path. So two walks that each saw a part can be compared as far as the shorter one went, however many files there
//! are and in whatever order the file system names them. Names wait in memory only as far as they can still be visited.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
    ffi::{CStr, CString},
    fs::File,
    ops::ControlFlow,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    dir::Dir,
    errno::Errno,
    fcntl::AtFlags,
    sys::stat::{FileStat, fstatat},
};
use tonic::Status;

use crate::{kernel, worker::Call};

/// The most that is visited.
pub(super) const MAX_ENTRIES: usize = 20_000;
/// The longest that all visited paths may be together, in bytes.
const MAX_PATHS: usize = 4 * 1024 * 1024;
/// The deepest folder that is looked into: each one on the way is held open.
const MAX_DEPTH: usize = 64;

/// Something that was found.
pub(super) struct Found<'a> {
    /// Its path from the folder that is walked.
    pub(super) path: &'a [u8],
    /// The folder that it lies in.
    pub(super) folder: BorrowedFd<'a>,
    pub(super) name: &'a CStr,
    pub(super) stat: FileStat,
    /// Of a folder: that what lies in it comes next, since it could be looked into.
    pub(super) is_open: bool,
}

/// Whether everything was visited.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Reach {
    /// Nothing comes after the last visited path.
    pub(super) to_the_end: bool,
    /// A folder lay too deep.
    pub(super) too_deep: bool,
}

/// The order of paths: part by part, each in byte order.
pub(crate) fn order(one: &[u8], other: &[u8]) -> Ordering {
    // No name has a NUL.
    let key = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    one.iter().map(key).cmp(other.iter().map(key))
}

/// A folder on the way, with the names that are to be visited, in order.
struct Level {
    folder: OwnedFd,
    names: VecDeque<CString>,
    /// How much of the path is the folder's, with the slash.
    prefix: usize,
}

/// Visits everything in `root` until `visit` has enough.
pub(super) fn walk(
    root: &File,
    call: &Call,
    mut visit: impl FnMut(&Found<'_>) -> ControlFlow<()>,
) -> Result<Reach, Status> {
    let mut reach = Reach { to_the_end: true, too_deep: false };
    let mut left = MAX_ENTRIES;
    let mut left_of_paths = MAX_PATHS;
    let mut path = Vec::new();
    let mut levels = Vec::new();
    // It was opened a moment ago, and may not be readable.
    if let Some((folder, names)) = open_folder(root.as_fd(), c".", left, &mut reach) {
        levels.push(Level { folder, names, prefix: 0 });
    }
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop_front() else {
            levels.pop();
            continue;
        };
        call.check()?;
        path.truncate(level.prefix);
        path.extend_from_slice(name.to_bytes());
        // What has gone since its name was read is no more.
        let Ok(stat) = fstatat(&level.folder, name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW) else { continue };
        let Some(rest) = left_of_paths.checked_sub(path.len()) else {
            reach.to_the_end = false;
            return Ok(reach);
        };
        left_of_paths = rest;
        left -= 1;

        let is_folder = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let too_deep = is_folder && levels.len() >= MAX_DEPTH;
        reach.too_deep |= too_deep;
        let folder = levels.last().expect("the one that the name is of").folder.as_fd();
        let inside = if is_folder && !too_deep { open_folder(folder, &name, left, &mut reach) } else { None };
        let found = Found { path: &path, folder, name: &name, stat, is_open: inside.is_some() };
        if visit(&found).is_break() {
            return Ok(reach);
        }
        if let Some((folder, names)) = inside {
            path.push(b'/');
            levels.push(Level { folder, names, prefix: path.len() });
        }
        reach.to_the_end &= !trim(&mut levels, left);
    }
    Ok(reach)
}

/// Opens a folder with its first names, at most `room` of them; none when it cannot be looked into.
fn open_folder(
    parent: BorrowedFd<'_>,
    name: &CStr,
    room: usize,
    reach: &mut Reach,
) -> Option<(OwnedFd, VecDeque<CString>)> {
    let folder = kernel::open_folder(parent, name).ok()?;
    let (names, all) = first_names(&folder, room).ok()?;
    reach.to_the_end &= all;
    Some((folder, names))
}

/// The `room` smallest names in `folder`, in order, and whether these are all.
fn first_names(folder: &OwnedFd, room: usize) -> nix::Result<(VecDeque<CString>, bool)> {
    let mut smallest = BinaryHeap::new();
    let mut all = true;
    // A reader of its own, which ends here with its buffer.
    let mut reader = Dir::from_fd(folder.try_clone().map_err(|_| Errno::EMFILE)?)?;
    for entry in reader.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        smallest.push(name.to_owned());
        if smallest.len() > room {
            smallest.pop();
            all = false;
        }
    }
    Ok((smallest.into_sorted_vec().into(), all))
}

/// Forgets the last names until no more than `room` wait; whether there were such.
fn trim(levels: &mut [Level], room: usize) -> bool {
    let waiting: usize = levels.iter().map(|level| level.names.len()).sum();
    let mut excess = waiting.saturating_sub(room);
    let trimmed = excess > 0;
    // What lies further out comes later.
    for level in levels {
        let kept = level.names.len().saturating_sub(excess);
        excess -= level.names.len() - kept;
        level.names.truncate(kept);
    }
    trimmed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_folder_comes_right_after_it() {
        let mut paths = ["ab", "a-b", "a/b", "a", "a/b/c", "a/-"];
        paths.sort_by(|one, other| order(one.as_bytes(), other.as_bytes()));
        assert_eq!(paths, ["a", "a/-", "a/b", "a/b/c", "a-b", "ab"]);
    }
}
