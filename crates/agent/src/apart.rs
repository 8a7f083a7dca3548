//! Stands apart from what users run, where the kernel does not guard a sandbox's first process from them.
//!
//! On Linux no signal from inside ends a first process, and an undumpable one keeps its descriptors to itself. gVisor
//! guards neither. What it does heed are user ids: who signals another, or changes its limits, must have its real or
//! saved id. So the agent, which starts as root there, keeps a real and a saved id of its own. By its effective one it is
//! the user: files that it makes are the user's, what the user may not do it may not either, and it may signal what the
//! user runs. Nothing is left of root's rights afterwards.
//!
//! Invariant: it is done while there is one thread, and what users run is the user alone (`process::user`).

use std::io;

use nix::unistd::{Uid, setresuid};

/// The user that nothing is run as, where users run everything as root.
const NOBODY: Uid = Uid::from_raw(65534);
/// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
pub(crate) const CAPABILITIES: u32 = 0x2008_0522;

/// Acts as `user` from now on, under an id that is another's. It takes `CAP_SETUID` and `CAP_SETPCAP`, and keeps nothing.
pub fn stand_apart(user: Uid) -> io::Result<()> {
    bound_nothing()?;
    let own = if user.is_root() { NOBODY } else { Uid::from_raw(0) };
    setresuid(own, user, own)?;
    // root's are gone by that, unless root is the user
    have_no_capabilities()
}

/// Takes every capability away from whatever is executed later.
fn bound_nothing() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: a plain system call.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } == -1 {
            let error = io::Error::last_os_error();
            // the first that the kernel does not know
            return if error.raw_os_error() == Some(libc::EINVAL) { Ok(()) } else { Err(error) };
        }
    }
    Ok(())
}

fn have_no_capabilities() -> io::Result<()> {
    let header = [CAPABILITIES, 0];
    // effective, permitted and inheritable, of the first and of the second 32
    let none = [0_u32; 6];
    // SAFETY: both are as large as this version of the call has them, and live.
    let done = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
