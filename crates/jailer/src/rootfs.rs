//! The root file system of a sandbox.
//!
//! Invariant: when [`build`] returns, nothing of the host is reachable but what was bound, all of that is read-only,
//! and the only writable places are on one tmpfs of a fixed size.

use std::{
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink},
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
    quotas,
};

/// Where the new root grows: a folder that every host has and everybody may enter. Only this process sees it there.
const NEW_ROOT: &str = "/tmp";
const OLD_ROOT: &str = "/.old";
const OWN: &str = "/.own";
const SCRATCH: &str = "/.scratch";
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
    mount_plain(None, "/", MsFlags::MS_PRIVATE | MsFlags::MS_REC).step(|| "make mounts private".into())?;
    mount_new("tmpfs", Path::new(NEW_ROOT), NO_PRIVILEGES, ROOT_OPTIONS)?;
    for bind in &root.binds {
        bind_read_only(bind, base)?;
    }
    for (path, target) in &root.links {
        make_parent(path)?;
        symlink(target, inside(path)).step(|| format!("link {}", path.display()))?;
    }
    for (path, content) in &root.files {
        make_parent(path)?;
        fs::write(inside(path), content).step(|| format!("write {}", path.display()))?;
    }
    build_dev(&root.devices)?;
    build_scratch(root, user)?;
    build_proc(root)?;
    let proc = agents_proc()?;
    enter()?;
    Ok(proc)
}

fn build_dev(devices: &[String]) -> Result<(), Fault> {
    make_folder(Path::new("/dev/pts"))?;
    for name in devices {
        let target = inside(&Path::new("/dev").join(name));
        fs::write(&target, "").step(|| format!("make /dev/{name}"))?;
        let source = Path::new("/dev").join(name);
        mount_plain(Some(&source), &target, MsFlags::MS_BIND).step(|| format!("bind /dev/{name}"))?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_new("devpts", &inside(Path::new("/dev/pts")), flags, PTS_OPTIONS)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, inside(&Path::new("/dev").join(name))).step(|| format!("link /dev/{name}"))?;
    }
    Ok(())
}

/// One tmpfs, so that one limit holds for all that can be written; each folder of it is bound to its place.
fn build_scratch(root: &Root, user: u32) -> Result<(), Fault> {
    let scratch = inside(Path::new(SCRATCH));
    make_folder(Path::new(SCRATCH))?;
    let options = format!("mode=0755,size={},nr_inodes={}", root.scratch_bytes, root.scratch_inodes);
    mount_new("tmpfs", &scratch, NO_PRIVILEGES, &options)?;
    for (number, (path, mode)) in root.scratch.iter().enumerate() {
        let source = scratch.join(number.to_string());
        fs::create_dir(&source).step(|| format!("make {}", path.display()))?;
        fs::set_permissions(&source, fs::Permissions::from_mode(*mode))
            .and_then(|()| chown(&source, Some(user), Some(user)))
            .step(|| format!("hand over {}", path.display()))?;
        make_folder(path)?;
        mount_plain(Some(&source), inside(path), MsFlags::MS_BIND).step(|| format!("bind {}", path.display()))?;
    }
    umount2(&scratch, MntFlags::MNT_DETACH).step(|| "hide the scratch folder".into())?;
    fs::remove_dir(&scratch).step(|| "remove the scratch folder".into())
}

fn build_proc(root: &Root) -> Result<(), Fault> {
    make_folder(Path::new("/proc"))?;
    let flags = NO_PRIVILEGES | MsFlags::MS_NOEXEC;
    mount_new("proc", &inside(Path::new("/proc")), flags, "hidepid=invisible")?;
    quotas::set(&inside(Path::new("/proc")))?;
    for path in &root.read_only {
        let target = inside(path);
        if target.exists() {
            mount_plain(Some(&target), &target, MsFlags::MS_BIND | MsFlags::MS_REC)
                .and_then(|()| make_read_only(&target, false))
                .step(|| format!("make {} read-only", path.display()))?;
        }
    }
    replace(&root.replaced)?;
    for path in &root.masked {
        let target = inside(path);
        if target.is_dir() {
            let flags = flags | MsFlags::MS_RDONLY;
            mount_new("tmpfs", &target, flags, "mode=0555,size=0,nr_inodes=2")?;
        } else if target.exists() {
            mount_plain(Some(Path::new("/dev/null")), &target, MsFlags::MS_BIND)
                .step(|| format!("mask {}", path.display()))?;
        }
    }
    Ok(())
}

/// A `/proc` that hides no process, by a descriptor alone: each mount of it has its own options since Linux 5.8.
fn agents_proc() -> Result<OwnedFd, Fault> {
    let folder = inside(Path::new(OWN));
    make_folder(Path::new(OWN))?;
    mount_new("proc", &folder, NO_PRIVILEGES | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY, "")?;
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(&folder);
    let proc = opened.step(|| "open the agent's proc".into())?;
    let proc = duplicate_high(&proc).step(|| "keep the agent's proc".into())?;
    umount2(&folder, MntFlags::MNT_DETACH).step(|| "hide the agent's proc".into())?;
    fs::remove_dir(&folder).step(|| "remove the folder of the agent's proc".into())?;
    Ok(proc)
}

/// Binds files of the root's own tmpfs, which is read-only in the end, over what the kernel shows.
fn replace(files: &[(PathBuf, String)]) -> Result<(), Fault> {
    let source = inside(Path::new(OWN));
    for (path, content) in files.iter().filter(|(path, _)| inside(path).exists()) {
        let name = || format!("replace {}", path.display());
        fs::write(&source, content).step(name)?;
        mount_plain(Some(&source), inside(path), MsFlags::MS_BIND)
            .and_then(|()| make_read_only(&inside(path), true))
            .step(name)?;
        // what is bound stays, without a name
        fs::remove_file(&source).step(name)?;
    }
    Ok(())
}

/// Makes the new root the root, forgets the old one, and closes the new one for writing.
fn enter() -> Result<(), Fault> {
    make_folder(Path::new(OLD_ROOT))?;
    pivot_root(NEW_ROOT, &inside(Path::new(OLD_ROOT))).step(|| "change the root".into())?;
    chdir("/").step(|| "enter the root".into())?;
    umount2(OLD_ROOT, MntFlags::MNT_DETACH).step(|| "leave the host's root".into())?;
    fs::remove_dir(OLD_ROOT).step(|| "remove the old root's folder".into())?;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY | NO_PRIVILEGES;
    mount_plain(None, "/", flags).step(|| "make the root read-only".into())
}

fn bind_read_only(bind: &Bind, base: Option<&OwnedFd>) -> Result<(), Fault> {
    let target = inside(&bind.target);
    let source = match base {
        // past the folders above it
        Some(base) if bind.source.is_relative() => {
            Path::new("/proc/self/fd").join(base.as_raw_fd().to_string()).join(&bind.source)
        }
        _ => bind.source.clone(),
    };
    if bind.directory {
        make_folder(&bind.target)?;
    } else {
        make_parent(&bind.target)?;
        fs::write(&target, "").step(|| format!("make {}", bind.target.display()))?;
    }
    // recursive, because a folder with mounts that an outer namespace has locked can only be bound whole
    mount_plain(Some(&source), &target, MsFlags::MS_BIND | MsFlags::MS_REC)
        .and_then(|()| make_read_only(&target, true))
        .step(|| format!("bind {}", bind.source.display()))
}

/// mount_setattr(2), Linux 5.12: the one call that also reaches the mounts below.
fn make_read_only(target: &Path, without_devices: bool) -> nix::Result<()> {
    let path = std::ffi::CString::new(target.as_os_str().as_encoded_bytes()).map_err(|_| nix::errno::Errno::EINVAL)?;
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
            libc::AT_FDCWD,
            path.as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    nix::errno::Errno::result(done).map(drop)
}

fn mount_new(kind: &str, target: &Path, flags: MsFlags, options: &str) -> Result<(), Fault> {
    mount(Some(kind), target, Some(kind), flags, Some(options)).step(|| format!("mount {kind} on {}", target.display()))
}

fn mount_plain(source: Option<&Path>, target: impl AsRef<Path>, flags: MsFlags) -> nix::Result<()> {
    mount(source, target.as_ref(), None::<&str>, flags, None::<&str>)
}

/// Where a path of the sandbox is while its root is being built.
fn inside(path: &Path) -> PathBuf {
    Path::new(NEW_ROOT).join(path.strip_prefix("/").unwrap_or(path))
}

fn make_folder(path: &Path) -> Result<(), Fault> {
    let folder = inside(path);
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&folder).step(|| format!("make {}", path.display()))
}

fn make_parent(path: &Path) -> Result<(), Fault> {
    path.parent().map_or(Ok(()), make_folder)
}
