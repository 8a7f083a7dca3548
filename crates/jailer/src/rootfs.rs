//! The root file system of a sandbox.
//!
//! Invariant: when [`build`] returns, nothing of the host is reachable but what was bound, all of that is read-only,
//! and the only writable places are on one tmpfs of a fixed size.
//!
//! What an image brings is hostile: its links are made last, and nothing is found or made through one (see [`NewRoot`]).

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use cloud_sandbox_jailer::{Bind, Root};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    unistd::{chdir, pivot_root},
};

use crate::{
    control::duplicate_high,
    fault::{Fault, Step},
    new_root::{NewRoot, Place},
    quotas,
};

/// Where the new root grows: a folder that every host has and everybody may enter. Only this process sees it there.
const NEW_ROOT: &str = "/tmp";
/// What is there for a moment only is in `/dev`, which no image has anything in: it may have any name at the top.
const OLD_ROOT: &str = "/dev/.old";
const OWN: &str = "/dev/.own";
const SCRATCH: &str = "/dev/.scratch";
/// Room for folders, links and the few small files of the root itself.
const ROOT_OPTIONS: &str = "mode=0755,size=1m,nr_inodes=4096";
/// The number of terminals is the whole host's: each sandbox gets a few.
const PTS_OPTIONS: &str = "newinstance,ptmxmode=0666,mode=0620,max=64";
const NO_PRIVILEGES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// The folder that sources of binds are relative to.
pub fn open_base(root: &Root) -> Result<Option<OwnedFd>, Fault> {
    let Some(base) = &root.base else { return Ok(None) };
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(base);
    let opened = opened.step(|| format!("open {}", base.display()))?;
    duplicate_high(&opened).map(Some).step(|| format!("keep {}", base.display()))
}

/// Builds the root and moves into it. Returns a `/proc` for the agent alone, which has no place in it.
pub fn build(root: &Root, base: Option<&OwnedFd>, user: u32) -> Result<OwnedFd, Fault> {
    change("/", MsFlags::MS_PRIVATE | MsFlags::MS_REC).step(|| "make mounts private".into())?;
    mount(Some("tmpfs"), NEW_ROOT, Some("tmpfs"), NO_PRIVILEGES, Some(ROOT_OPTIONS))
        .step(|| "mount tmpfs on /".into())?;
    let new = NewRoot::open(Path::new(NEW_ROOT))?;
    for shown in &root.binds {
        bind_read_only(&new, shown, base)?;
    }
    for (path, content) in &root.files {
        new.file(path, content)?;
    }
    build_dev(&new, &root.devices)?;
    build_scratch(&new, root, user)?;
    build_proc(&new, root)?;
    let proc = agents_proc(&new)?;
    let old = new.folder(Path::new(OLD_ROOT))?;
    for (path, target) in &root.links {
        new.link(path, target)?;
    }
    enter(&old)?;
    Ok(proc)
}

fn build_dev(new: &NewRoot, devices: &[String]) -> Result<(), Fault> {
    let pts = new.folder(Path::new("/dev/pts"))?;
    for name in devices {
        let source = Path::new("/dev").join(name);
        let place = new.file(&source, "")?;
        bind(&source, &place, MsFlags::empty())?;
    }
    mount_new("devpts", &pts, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, PTS_OPTIONS)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        new.link(&Path::new("/dev").join(name), Path::new(target))?;
    }
    Ok(())
}

/// One tmpfs, so that one limit holds for all that can be written; each folder of it is bound to its place.
fn build_scratch(new: &NewRoot, root: &Root, user: u32) -> Result<(), Fault> {
    let options = format!("mode=0755,size={},nr_inodes={}", root.scratch_bytes, root.scratch_inodes);
    mount_new("tmpfs", &new.folder(Path::new(SCRATCH))?, NO_PRIVILEGES, &options)?;
    let scratch = new.get(Path::new(SCRATCH))?;
    for (number, (path, mode)) in root.scratch.iter().enumerate() {
        let source = scratch.host_path().join(number.to_string());
        fs::create_dir(&source).step(|| format!("make {}", path.display()))?;
        fs::set_permissions(&source, fs::Permissions::from_mode(*mode))
            .and_then(|()| chown(&source, Some(user), Some(user)))
            .step(|| format!("hand over {}", path.display()))?;
        bind(&source, &new.folder(path)?, MsFlags::empty())?;
    }
    umount2(&scratch.host_path(), MntFlags::MNT_DETACH).step(|| "hide the scratch folder".into())?;
    new.remove(Path::new(SCRATCH))
}

fn build_proc(new: &NewRoot, root: &Root) -> Result<(), Fault> {
    let flags = NO_PRIVILEGES | MsFlags::MS_NOEXEC;
    mount_new("proc", &new.folder(Path::new("/proc"))?, flags, "hidepid=invisible")?;
    quotas::set(&new.get(Path::new("/proc"))?.host_path())?;
    for path in &root.read_only {
        if let Some(place) = new.find(path)? {
            bind(&place.host_path(), &place, MsFlags::MS_REC)?;
            make_read_only(&new.get(path)?, false)?;
        }
    }
    replace(new, &root.replaced)?;
    for path in &root.masked {
        let Some(place) = new.find(path)? else { continue };
        if place.is_folder()? {
            mount_new("tmpfs", &place, flags | MsFlags::MS_RDONLY, "mode=0555,size=0,nr_inodes=2")?;
        } else {
            bind(Path::new("/dev/null"), &place, MsFlags::empty())?;
        }
    }
    Ok(())
}

/// A `/proc` that hides no process, by a descriptor alone: each mount of it has its own options since Linux 5.8.
fn agents_proc(new: &NewRoot) -> Result<OwnedFd, Fault> {
    let flags = NO_PRIVILEGES | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    mount_new("proc", &new.folder(Path::new(OWN))?, flags, "")?;
    let mounted = new.get(Path::new(OWN))?;
    let proc = duplicate_high(&mounted.fd).step(|| "keep the agent's proc".into())?;
    umount2(&mounted.host_path(), MntFlags::MNT_DETACH).step(|| "hide the agent's proc".into())?;
    new.remove(Path::new(OWN))?;
    Ok(proc)
}

/// Binds files of the root's own tmpfs, which is read-only in the end, over what the kernel or an image shows.
fn replace(new: &NewRoot, files: &[(PathBuf, String)]) -> Result<(), Fault> {
    for (path, content) in files {
        let Some(place) = new.find(path)? else { continue };
        let source = new.file(Path::new(OWN), content)?;
        bind(&source.host_path(), &place, MsFlags::empty())?;
        make_read_only(&new.get(path)?, true)?;
        // what is bound stays, without a name
        new.remove(Path::new(OWN))?;
    }
    Ok(())
}

/// Makes the new root the root, forgets the old one, and closes the new one for writing.
fn enter(old: &Place) -> Result<(), Fault> {
    pivot_root(NEW_ROOT, &old.host_path()).step(|| "change the root".into())?;
    chdir("/").step(|| "enter the root".into())?;
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).step(|| "leave the host's root".into())?;
    fs::remove_dir(OLD_ROOT).step(|| "remove the old root's folder".into())?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | NO_PRIVILEGES;
    change("/", flags).step(|| "make the root read-only".into())
}

fn bind_read_only(new: &NewRoot, shown: &Bind, base: Option<&OwnedFd>) -> Result<(), Fault> {
    let source = match base {
        // past the folders above it
        Some(base) if shown.source.is_relative() => {
            Path::new("/proc/self/fd").join(base.as_raw_fd().to_string()).join(&shown.source)
        }
        _ => shown.source.clone(),
    };
    let place = if shown.directory { new.folder(&shown.target)? } else { new.file(&shown.target, "")? };
    // recursive, because a folder with mounts that an outer namespace has locked can only be bound whole
    bind(&source, &place, MsFlags::MS_REC)?;
    make_read_only(&new.get(&shown.target)?, true)
}

/// mount_setattr(2), Linux 5.12: the one call that also reaches the mounts below.
fn make_read_only(mounted: &Place, without_devices: bool) -> Result<(), Fault> {
    // SAFETY: all-zero is a valid mount_attr.
    let mut attributes: libc::mount_attr = unsafe { std::mem::zeroed() };
    attributes.attr_set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID;
    if without_devices {
        attributes.attr_set |= libc::MOUNT_ATTR_NODEV;
    }
    // SAFETY: path and attributes live beyond the call, which gets the attributes' true size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mounted.fd.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_RECURSIVE | libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    nix::errno::Errno::result(done).map(drop).step(|| format!("make {} read-only", mounted.path.display()))
}

fn mount_new(kind: &str, place: &Place, flags: MsFlags, options: &str) -> Result<(), Fault> {
    mount(Some(kind), &place.host_path(), Some(kind), flags, Some(options))
        .step(|| format!("mount {kind} on {}", place.path.display()))
}

fn bind(source: &Path, place: &Place, flags: MsFlags) -> Result<(), Fault> {
    mount(Some(source), &place.host_path(), None::<&str>, MsFlags::MS_BIND | flags, None::<&str>)
        .step(|| format!("bind {}", place.path.display()))
}

fn change(mounted: &str, flags: MsFlags) -> nix::Result<()> {
    mount(None::<&str>, mounted, None::<&str>, flags, None::<&str>)
}
