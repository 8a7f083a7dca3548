//! How large an image may get.

use crate::ImageError;

/// Real images stay far below; a bomb does not.
const BYTES: u64 = 64 << 30;
/// An inode costs at least 256 bytes on the disk and about 1 KiB of the kernel's memory while it is in use.
const ENTRIES: u64 = 5_000_000;

/// Bounds of one image. Each layer has to keep them too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// bytes of all files, unpacked
    pub bytes: u64,
    /// files, folders and links
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: BYTES, entries: ENTRIES }
    }
}

/// What has been used of the limits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    limits: Limits,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, bytes: 0, entries: 0 }
    }

    pub(crate) fn bytes_left(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.bytes)
    }

    pub(crate) fn spend(&mut self, what: &str, entries: u64, bytes: u64) -> Result<(), ImageError> {
        self.entries = self.entries.saturating_add(entries);
        self.bytes = self.bytes.saturating_add(bytes);
        let excess = |limit| Err(ImageError::TooLarge { what: what.to_owned(), limit });
        if self.entries > self.limits.entries {
            return excess(format!("{} entries", self.limits.entries));
        }
        if self.bytes > self.limits.bytes {
            return excess(format!("{} bytes", self.limits.bytes));
        }
        Ok(())
    }
}
