//! What an entry says of a file besides its data: mode, owner, times, extended attributes.

use std::{
    ffi::{CStr, CString},
    fs::{File, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd},
        unix::{
            ffi::OsStrExt,
            fs::{PermissionsExt, fchown},
        },
    },
};

use cloud_sandbox_proto::checkpoint::v1::{EntryKind, TreeEntry, Xattr};
use nix::{
    errno::Errno,
    sys::{
        stat::{FileStat, fstat, futimens},
        time::TimeSpec,
    },
};

use crate::files::of_descriptor;

const USER: &[u8] = b"user.";
/// The longest list of names and the largest value, in bytes (XATTR_LIST_MAX and XATTR_SIZE_MAX of linux/limits.h).
const MAX_XATTR: usize = 64 * 1024;

/// The entry of what lies at `path`, without its content.
pub(super) fn entry(path: &[u8], kind: EntryKind, stat: &FileStat) -> TreeEntry {
    TreeEntry {
        path: path.to_vec().into(),
        kind: kind.into(),
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime_seconds: stat.st_mtime,
        mtime_nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
        ..TreeEntry::default()
    }
}

/// When it was modified. It counts as read at the same time: that is not kept.
pub(super) fn modified(entry: &TreeEntry) -> TimeSpec {
    TimeSpec::new(entry.mtime_seconds, i64::from(entry.mtime_nanos))
}

/// Gives an open file or folder all that its entry says of it. The mode is after what needs rights or takes bits away,
/// and the time is last.
pub(super) fn apply(file: &File, entry: &TreeEntry) -> io::Result<()> {
    let stat = fstat(file)?;
    if let Some((uid, gid)) = other_owner(&stat, entry) {
        fchown(file, uid, gid)?;
    }
    for attribute in &entry.xattrs {
        set_xattr(file, attribute)?;
    }
    if fstat(file)?.st_mode & 0o7777 != entry.mode {
        file.set_permissions(Permissions::from_mode(entry.mode))?;
    }
    let modified = modified(entry);
    Ok(futimens(file, &modified, &modified)?)
}

/// The owner and group that are to be set, where they differ.
pub(super) fn other_owner(stat: &FileStat, entry: &TreeEntry) -> Option<(Option<u32>, Option<u32>)> {
    let uid = (stat.st_uid != entry.uid).then_some(entry.uid);
    let gid = (stat.st_gid != entry.gid).then_some(entry.gid);
    (uid.is_some() || gid.is_some()).then_some((uid, gid))
}

/// The attributes of `user.` that a file or folder has, by name. The descriptor may be one of O_PATH.
pub(super) fn xattrs(file: &impl AsFd) -> io::Result<Vec<Xattr>> {
    let path = CString::new(of_descriptor(file).as_os_str().as_bytes()).map_err(io::Error::other)?;
    let listed = filled(|buffer, size| {
        // SAFETY: the path ends with NUL, and the buffer has as many bytes as it says.
        unsafe { libc::listxattr(path.as_ptr(), buffer.cast(), size) }
    });
    let list = match listed {
        // The file system has none.
        Err(Errno::ENOTSUP) => return Ok(Vec::new()),
        list => list?,
    };
    let mut found = Vec::new();
    for name in list.split_inclusive(|byte| *byte == 0).filter(|name| name.starts_with(USER)) {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
        let value = filled(|buffer, size| {
            // SAFETY: both strings end with NUL, and the buffer has as many bytes as it says.
            unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buffer.cast(), size) }
        })?;
        found.push(Xattr { name: name.to_bytes().to_vec().into(), value: value.into() });
    }
    found.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    Ok(found)
}

/// Asks how much there is, which is mostly nothing, and then for that.
fn filled(mut get: impl FnMut(*mut u8, usize) -> isize) -> nix::Result<Vec<u8>> {
    if Errno::result(get(std::ptr::null_mut(), 0))? == 0 {
        return Ok(Vec::new());
    }
    let mut buffer = vec![0; MAX_XATTR];
    let length = Errno::result(get(buffer.as_mut_ptr(), buffer.len()))?;
    buffer.truncate(usize::try_from(length).unwrap_or(0));
    buffer.shrink_to_fit();
    Ok(buffer)
}

fn set_xattr(file: &File, attribute: &Xattr) -> io::Result<()> {
    let name = CString::new(&*attribute.name).map_err(|_| Errno::EINVAL)?;
    let Xattr { value, .. } = attribute;
    // SAFETY: the name ends with NUL, and the value has as many bytes as it says.
    let set = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(set).map(drop)?)
}

/// Why the attributes of an entry are none that are kept.
pub(super) fn check_xattrs(entry: &TreeEntry) -> Result<(), &'static str> {
    let is_proper = |attribute: &Xattr| attribute.name.starts_with(USER) && !attribute.name.contains(&0);
    if entry.xattrs.iter().all(is_proper) { Ok(()) } else { Err("must have xattrs whose names begin with user.") }
}
