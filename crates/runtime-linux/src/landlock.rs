//! Which version of Landlock the kernel has.

/// `LANDLOCK_CREATE_RULESET_VERSION` of linux/landlock.h.
const ASK_VERSION: libc::c_int = 1;

/// The first version that can be used: under the one before, nothing is renamed or linked from one folder to another.
const FIRST_USABLE: u32 = 2;

/// The version with which sandboxes are walled off; 0 where the kernel has none that is usable.
pub fn version() -> u32 {
    // SAFETY: plain system call; with this flag it takes no ruleset, and only answers.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, ASK_VERSION)
    };
    usable(u32::try_from(version).unwrap_or(0))
}

fn usable(version: u32) -> u32 {
    if version >= FIRST_USABLE { version } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_under_which_files_cannot_be_moved_is_not_used() {
        assert_eq!([0, 1, 2, 7].map(usable), [0, 0, 2, 7]);
    }
}
