//! Pseudo-terminals.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
};

use cloud_sandbox_proto::agent::v1::WindowSize;
use nix::{
    fcntl::OFlag,
    pty::{PtyMaster, posix_openpt, ptsname_r, unlockpt},
    sys::termios::{SpecialCharacterIndices, tcgetattr},
};

/// Control-D.
pub(super) const END_OF_FILE: u8 = 4;

/// The two ends of a terminal; the master is nonblocking.
pub(super) struct Terminal {
    pub(super) master: File,
    pub(super) slave: OwnedFd,
}

/// Opens a terminal of the given size.
pub(super) fn open(size: WindowSize) -> io::Result<Terminal> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    unlockpt(&master)?;
    let slave = open_peer(&master)?;
    let master = File::from(OwnedFd::from(master));
    resize(&master, size);
    Ok(Terminal { master, slave })
}

/// The size if it is one that a terminal can have.
pub(super) fn check_size(size: WindowSize) -> Option<libc::winsize> {
    let (ws_row, ws_col) = (u16::try_from(size.rows).ok()?, u16::try_from(size.cols).ok()?);
    (ws_row > 0 && ws_col > 0).then_some(libc::winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 })
}

/// Sets the size; one that no terminal can have is ignored.
pub(super) fn resize(terminal: &File, size: WindowSize) {
    if let Some(size) = check_size(size) {
        // SAFETY: the descriptor is open, and TIOCSWINSZ reads one winsize.
        unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    }
}

/// The character that means end of file on `terminal` now.
pub(super) fn end_of_file(terminal: &File) -> u8 {
    tcgetattr(terminal).map_or(END_OF_FILE, |settings| settings.control_chars[SpecialCharacterIndices::VEOF as usize])
}

fn open_peer(master: &PtyMaster) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: the descriptor is open, and TIOCGPTPEER takes flags and returns a new descriptor or -1.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) };
    if slave >= 0 {
        // SAFETY: just made, and nobody else's.
        return Ok(unsafe { OwnedFd::from_raw_fd(slave) });
    }
    // Kernels that do without (gVisor) have it by name.
    let slave = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(ptsname_r(master)?)?;
    Ok(slave.into())
}
