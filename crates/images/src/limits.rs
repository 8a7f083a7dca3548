//! How large an image may get.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crate::ImageError;

/// Real images stay far below; a bomb does not.
const BYTES: u64 = 64 << 30;
/// An inode costs at least 256 bytes on the disk and about 1 KiB of the kernel's memory while it is in use.
const ENTRIES: u64 = 5_000_000;

/// Bounds of one image, which its layers have to keep together.
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

/// What has been used of the limits: by this part of an image, and by all of them.
#[derive(Debug)]
pub(crate) struct Budget {
    limits: Limits,
    all: Arc<All>,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
}

#[derive(Debug, Default)]
struct All {
    bytes: AtomicU64,
    entries: AtomicU64,
}

impl Budget {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, all: Arc::default(), bytes: 0, entries: 0 }
    }

    /// Of another part of the same image.
    pub(crate) fn part(&self) -> Self {
        Self { limits: self.limits, all: self.all.clone(), bytes: 0, entries: 0 }
    }

    pub(crate) fn bytes_left(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.all.bytes.load(Ordering::Relaxed))
    }

    pub(crate) fn spend(&mut self, what: &str, entries: u64, bytes: u64) -> Result<(), ImageError> {
        self.entries = self.entries.saturating_add(entries);
        self.bytes = self.bytes.saturating_add(bytes);
        self.spend_on_nothing(what, entries, bytes)
    }

    /// The same for what is read and not kept.
    pub(crate) fn spend_on_nothing(&self, what: &str, entries: u64, bytes: u64) -> Result<(), ImageError> {
        let add = |used: &AtomicU64, more: u64| {
            let before =
                used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_add(more)));
            before.unwrap_or_else(|used| used).saturating_add(more)
        };
        let (entries, bytes) = (add(&self.all.entries, entries), add(&self.all.bytes, bytes));
        let excess = |limit| Err(ImageError::TooLarge { what: what.to_owned(), limit });
        if entries > self.limits.entries {
            return excess(format!("{} entries", self.limits.entries));
        }
        if bytes > self.limits.bytes {
            return excess(format!("{} bytes", self.limits.bytes));
        }
        Ok(())
    }
}
