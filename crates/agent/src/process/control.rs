//! Control channels: a stream socket pair, one end of which a process gets as its descriptor 3.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::process::CommandExt,
    },
    process::Command,
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
};

/// The process's number for its end.
const DESCRIPTOR: RawFd = 3;

/// The process's end; to be dropped once the process has it.
pub(super) struct TheirEnd {
    end: OwnedFd,
    /// Keeps the number from the pipe that tells a failed exec, which the child would close by taking the number.
    _reserved: OwnedFd,
}

/// Makes a channel.
pub(super) fn open() -> io::Result<(File, TheirEnd)> {
    let (ours, end) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?;
    let reserved = fcntl(&end, FcntlArg::F_DUPFD_CLOEXEC(DESCRIPTOR))?;
    // SAFETY: just made, and nobody else's.
    let reserved = unsafe { OwnedFd::from_raw_fd(reserved) };
    Ok((super::spawn::nonblocking(ours)?, TheirEnd { end, _reserved: reserved }))
}

impl TheirEnd {
    /// Lets what `command` starts have it.
    pub(super) fn give(&self, command: &mut Command) {
        let end = self.end.as_raw_fd();
        // SAFETY: `take` is async-signal-safe.
        unsafe { command.pre_exec(move || take(end)) };
    }
}

/// Gives `end` its number in a child. Whatever has the number is the agent's, and would go at the exec anyway.
fn take(end: RawFd) -> io::Result<()> {
    // SAFETY: plain system calls on descriptors.
    unsafe {
        Errno::result(libc::dup2(end, DESCRIPTOR))?;
        // A copy does not have the flag; this is for an end that has the number already.
        Errno::result(libc::fcntl(DESCRIPTOR, libc::F_SETFD, 0))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_has_the_number_already_keeps_it() {
        let (_ours, theirs) = open().unwrap();
        let end = theirs.end.as_raw_fd();
        let mut command = Command::new("sh");
        command.args(["-c", "test -S /proc/self/fd/3 && ! test -e /proc/self/fd/4"]);
        let give = move || {
            // SAFETY: a plain system call.
            Errno::result(unsafe { libc::dup3(end, DESCRIPTOR, libc::O_CLOEXEC) })?;
            take(DESCRIPTOR)
        };
        // SAFETY: what it calls is async-signal-safe.
        let status = unsafe { command.pre_exec(give) }.status().unwrap();
        assert!(status.success());
    }
}
