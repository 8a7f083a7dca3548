//! Reads small files and links for a snapshot.

use std::{
    fs::File,
    hash::{DefaultHasher, Hash, Hasher},
    io::Read,
    os::unix::{ffi::OsStringExt, fs::FileExt},
};

use nix::{
    fcntl::{OFlag, openat, readlinkat},
    sys::stat::Mode,
};

use super::walk::Found;

/// The largest file whose content is looked at, in bytes.
pub(super) const MAX_FILE: usize = 64 * 1024;

/// Reads files one after the other into the same memory.
#[derive(Default)]
pub(super) struct Reader(Vec<u8>);

impl Reader {
    /// The content of a regular file of up to [`MAX_FILE`] bytes; none of a larger one and of what cannot be read.
    pub(super) fn read(&mut self, found: &Found<'_>) -> Option<&[u8]> {
        if found.stat.st_size > MAX_FILE as i64 {
            return None;
        }
        // It may have become something else since, whose opening would wait.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(found.folder, found.name, flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok().filter(|metadata| metadata.is_file())?;
        self.0.resize(MAX_FILE + 1, 0);
        let mut length = file.read_at(&mut self.0, 0).ok()?;
        if length as u64 != metadata.len() {
            // It is being written, or of a file system that makes things up.
            self.0.clear();
            file.take(MAX_FILE as u64 + 1).read_to_end(&mut self.0).ok()?;
            length = self.0.len();
        }
        (length <= MAX_FILE).then(|| &self.0[..length])
    }
}

/// Where a link leads.
pub(super) fn target(found: &Found<'_>) -> Option<Vec<u8>> {
    readlinkat(found.folder, found.name).ok().map(OsStringExt::into_vec)
}

/// The text, if it is one: UTF-8 without NUL.
pub(super) fn as_text(content: &[u8]) -> Option<&str> {
    std::str::from_utf8(content).ok().filter(|text| !text.contains('\0'))
}

/// A number that differs for different content, but for rare accidents.
pub(super) fn digest(content: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    hasher.finish()
}
