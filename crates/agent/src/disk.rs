//! How full the writable folders are: they are one file system, or in a container one each, of a fixed size and number of
//! files, which is a limit that programs run into.

use std::{collections::BTreeSet, fs, os::unix::fs::MetadataExt, path::Path, time::Duration};

use nix::sys::statvfs::{Statvfs, statvfs};
use tokio::time::sleep;

/// The folders.
const FOLDERS: [&str; 6] = ["/dev/shm", "/home/user", "/run", "/tmp", "/var/tmp", "/workspace"];
/// How often it is looked at while a process is young.
const LOOK: Duration = Duration::from_millis(200);
/// And at most how seldom: what runs for long must not keep the sandbox awake.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// What is known of the writable folders.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Disk {
    /// bytes that are taken
    pub(crate) used: u64,
    /// no block, or no further file, is to be had
    pub(crate) full: bool,
}

impl Disk {
    /// As they are now; empty when that cannot be told.
    pub(crate) fn now() -> Self {
        let mut seen = BTreeSet::new();
        let mut all = Self::default();
        for folder in FOLDERS.map(Path::new) {
            // each file system once
            if fs::metadata(folder).is_ok_and(|found| seen.insert(found.dev())) {
                let one = Self::of(folder);
                all = Self { used: all.used.saturating_add(one.used), full: all.full || one.full };
            }
        }
        all
    }

    fn of(folder: &Path) -> Self {
        statvfs(folder).map(|found| Self::told(&found)).unwrap_or_default()
    }

    fn told(found: &Statvfs) -> Self {
        let used = found.blocks().saturating_sub(found.blocks_free()).saturating_mul(found.fragment_size());
        // a file system that does not count files has none
        let no_file = found.files() > 0 && found.files_available() == 0;
        Self { used, full: found.blocks_available() == 0 || no_file }
    }
}

/// Returns once they are found full; meant to be dropped when what may fill them is over.
pub(crate) async fn until_full() {
    let mut pause = LOOK;
    loop {
        // not at once: what begins by making room has not run into anything
        sleep(pause).await;
        if Disk::now().full {
            return;
        }
        pause = (pause * 9 / 8).min(LOOK_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_bytes_are_told_and_what_has_no_room_is_full() {
        let now = Disk::now();
        assert!(!now.full, "the file system that this runs on is full");
        // what cannot be written to has no room either
        assert!(Disk::of(Path::new("/proc")).full);
        assert_eq!(Disk::of(Path::new("/nowhere")), Disk::default());
    }
}
