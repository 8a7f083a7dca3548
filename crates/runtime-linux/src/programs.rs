//! Bytes that children execute or read, in sealed memory: never on a disk, never writable again, also not by a sandbox
//! that gets hold of them.

use std::{
    ffi::CStr,
    fs::File,
    io::{self, Write},
    os::fd::{FromRawFd, OwnedFd},
};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};

/// A sealed file in memory with `content`, closed at exec.
pub fn sealed(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    // SAFETY: the name ends with NUL; the result is checked before it is owned.
    let mut file = unsafe {
        let fd = libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        File::from_raw_fd(fd)
    };
    file.write_all(content)?;
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file.into())
}
