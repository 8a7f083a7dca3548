//! A disk that a test can fill.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use tempfile::TempDir;

/// A file system of its own, as large as it should be.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None`, and a word about it, where the test may not mount.
    pub(crate) fn mount(size: &str) -> Option<Self> {
        let folder = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "storage-test"])
            .arg(folder.path())
            .stderr(Stdio::null())
            .status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(folder));
        }
        eprintln!("skipped: mounting a tmpfs needs root");
        None
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all the room that is left, until the file is removed.
    pub(crate) fn fill(&self) -> std::path::PathBuf {
        let other = self.path().join("other");
        std::fs::write(&other, vec![0; 16 << 20]).unwrap_err();
        other
    }

    pub(crate) fn make_read_only(&self) {
        let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()).status().unwrap();
        assert!(remounted.success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}
