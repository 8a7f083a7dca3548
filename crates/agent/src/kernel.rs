//! What kernels do differently, and how to do without. Found out once, by trying.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::LazyLock,
};

use nix::{
    NixPath,
    fcntl::{AT_FDCWD, AtFlags, OFlag, openat},
    sys::stat::Mode,
    unistd::{AccessFlags, faccessat},
};

const FOLDER: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

/// Whether `O_DIRECTORY` has links followed in spite of `O_NOFOLLOW`, as gVisor does; also where that cannot be told.
/// `/proc/self` is a link to a folder.
static FOLLOWS_TO_FOLDERS: LazyLock<bool> = LazyLock::new(|| {
    let opened = openat(AT_FDCWD, "/proc/self", FOLDER, Mode::empty());
    !matches!(opened, Err(nix::errno::Errno::ENOTDIR | nix::errno::Errno::ELOOP))
});

/// Opens a folder to read its names. A link there is no folder: ENOTDIR, or ELOOP.
pub(crate) fn open_folder(above: impl AsFd, name: &(impl NixPath + ?Sized)) -> nix::Result<OwnedFd> {
    if *FOLLOWS_TO_FOLDERS { open_in_two_steps(above, name) } else { openat(above, name, FOLDER, Mode::empty()) }
}

/// Only to look at it is honoured everywhere; what was looked at is then opened by descriptor.
fn open_in_two_steps(above: impl AsFd, name: &(impl NixPath + ?Sized)) -> nix::Result<OwnedFd> {
    let found = openat(above, name, FOLDER | OFlag::O_PATH, Mode::empty())?;
    openat(&found, ".", FOLDER, Mode::empty())
}

/// Whether the agent may use what is at a path so, by the user that it acts as: access(2) asks for another where it stands
/// apart.
pub(crate) fn may(path: &(impl NixPath + ?Sized), use_: AccessFlags) -> nix::Result<()> {
    faccessat(AT_FDCWD, path, use_, AtFlags::AT_EACCESS)
}

/// Whether the kernel is gVisor. Its log begins with its name; what Linux logs, no user can write.
pub(crate) fn is_gvisor() -> bool {
    static GVISOR: LazyLock<bool> = LazyLock::new(|| {
        const READ_ALL: libc::c_int = 3;
        let mut log = [0_u8; 4096];
        // SAFETY: the buffer is as long as is said, and live.
        let read = unsafe { libc::klogctl(READ_ALL, log.as_mut_ptr().cast(), 4096) };
        let log = &log[..usize::try_from(read).unwrap_or(0)];
        memchr::memmem::find(log, b"Starting gVisor").is_some()
    });
    *GVISOR
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use nix::errno::Errno;

    use super::*;

    #[test]
    fn folders_are_opened_and_links_to_them_are_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("folder")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        symlink("folder", root.path().join("link")).unwrap();
        let above = open_folder(AT_FDCWD, root.path()).unwrap();
        let ways: [fn(&OwnedFd, &str) -> nix::Result<OwnedFd>; 2] =
            [|above, name| open_folder(above, name), |above, name| open_in_two_steps(above, name)];
        for open in ways {
            assert!(open(&above, "folder").is_ok());
            assert_eq!(open(&above, "none").err(), Some(Errno::ENOENT));
            assert_eq!(open(&above, "file").err(), Some(Errno::ENOTDIR));
            assert!(matches!(open(&above, "link"), Err(Errno::ENOTDIR | Errno::ELOOP)));
        }
    }
}
