//! Landlock: a second wall around files, and on newer kernels around devices, sockets and signals.
//! Source: Documentation/userspace-api/landlock.rst of the kernel; each version of the interface knows more rights.
//!
//! The mounts say the same of files already. This wall is other code of the kernel and cannot be taken down by what holds
//! a mount: it also keeps those who are inside it from ever changing one.

use std::{
    fs::OpenOptions,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use cloud_sandbox_jailer::Spec;
use nix::errno::Errno;

use crate::fault::{Fault, Step};

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const MAKE_CHAR: u64 = 1 << 6;
const MAKE_BLOCK: u64 = 1 << 11;
/// What the first version knows.
const FIRST: u64 = (1 << 13) - 1;
/// Since version 2: links and renames between folders, which version 1 always refuses.
const REFER: u64 = 1 << 13;
/// Since version 3.
const TRUNCATE: u64 = 1 << 14;
/// Since version 5.
const IOCTL_DEV: u64 = 1 << 15;

/// Since version 6: no connection to an abstract Unix socket, and no signal to a process, outside of the wall.
const SCOPED_ABSTRACT_SOCKETS: u64 = 1;
const SCOPED_SIGNALS: u64 = 1 << 1;

const READ: u64 = READ_FILE | READ_DIR;
const RULE_PATH_BENEATH: libc::c_int = 1;

/// struct landlock_ruleset_attr; a kernel before version 6 takes it while what it does not know is zero.
#[repr(C)]
struct Ruleset {
    handled_fs: u64,
    handled_net: u64,
    scoped: u64,
}

/// struct landlock_path_beneath_attr.
#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: RawFd,
}

/// Puts this process and all after it behind the wall, for good. `version` is what the kernel knows; 0 is nothing.
pub fn wall_off(spec: &Spec) -> Result<(), Fault> {
    let version = spec.landlock;
    if version == 0 {
        return Ok(());
    }
    let handled = handled(version);
    let ruleset = ruleset(version, handled)?;
    let allow = |path: &Path, rights: u64| allow(&ruleset, path, rights & handled);
    allow(Path::new("/"), EXECUTE | READ)?;
    for (path, _) in &spec.root.scratch {
        allow(path, handled & !(MAKE_CHAR | MAKE_BLOCK))?;
    }
    // whoever may write what is said by owner and mode of each file, and by the mounts
    allow(Path::new("/proc"), READ | WRITE_FILE | TRUNCATE)?;
    allow(Path::new("/dev"), READ | WRITE_FILE | TRUNCATE | IOCTL_DEV)?;
    // SAFETY: plain system call on a ruleset that is ours.
    if unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } != 0 {
        return Err(Fault::last("wall off files"));
    }
    Ok(())
}

/// All rights that a version knows: what is handled is refused unless a rule allows it.
fn handled(version: u32) -> u64 {
    let since = |first: u32, right: u64| if version >= first { right } else { 0 };
    FIRST | since(2, REFER) | since(3, TRUNCATE) | since(5, IOCTL_DEV)
}

fn ruleset(version: u32, handled_fs: u64) -> Result<OwnedFd, Fault> {
    let scoped = if version >= 6 { SCOPED_ABSTRACT_SOCKETS | SCOPED_SIGNALS } else { 0 };
    let ruleset = Ruleset { handled_fs, handled_net: 0, scoped };
    // SAFETY: the structure lives beyond the call, which gets its true size; the result is checked before it is owned.
    unsafe {
        let fd = libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, size_of::<Ruleset>(), 0);
        if fd < 0 {
            return Err(Fault::last("make a wall around files"));
        }
        let fd =
            i32::try_from(fd).map_err(|_| Fault { step: "make a wall around files".into(), error: Errno::EBADF })?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn allow(ruleset: &OwnedFd, path: &Path, rights: u64) -> Result<(), Fault> {
    let name = || format!("allow {}", path.display());
    let folder = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).step(name)?;
    let rule = PathBeneath { allowed: rights, parent: folder.as_raw_fd() };
    // SAFETY: the rule lives beyond the call, and so does the descriptor in it.
    let done = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0)
    };
    if done != 0 {
        return Err(Fault::last(&name()));
    }
    Ok(())
}
