//! Compares files with what the base says of them, where they lie, on two threads.
//!
//! Times say nothing here: a tmpfs does not set them for writes through a mapping. So every byte is read and hashed.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use blake3::Hasher;
use bytes::Bytes;

/// What is read at a time: it stays in a core's cache until it is hashed.
const BUFFER: usize = 256 * 1024;
/// Less than this is done sooner than a thread has started.
const WORTH_A_THREAD: u64 = 1024 * 1024;
const STACK: usize = 128 * 1024;

/// A chunk of the base in its place.
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) length: u32,
    pub(super) hash: Bytes,
    /// the file has it there
    holds: AtomicBool,
}

impl Piece {
    pub(super) fn new(offset: u64, length: u32, hash: Bytes) -> Self {
        Self { offset, length, hash, holds: AtomicBool::new(false) }
    }

    pub(super) fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }

    pub(super) fn holds(&self) -> bool {
        self.holds.load(Ordering::Relaxed)
    }

    fn verify(&self, file: &File, buffer: &mut [u8]) {
        let mut hasher = Hasher::new();
        let mut offset = self.offset;
        while offset < self.end() {
            let wanted = buffer.len().min(usize::try_from(self.end() - offset).unwrap_or(usize::MAX));
            // What cannot be read does not hold; reading it again says why.
            if file.read_exact_at(&mut buffer[..wanted], offset).is_err() {
                return;
            }
            hasher.update(&buffer[..wanted]);
            offset += wanted as u64;
        }
        self.holds.store(hasher.finalize().as_bytes() == &*self.hash, Ordering::Relaxed);
    }
}

/// Verifies; holds the buffers of both threads.
pub(super) struct Verifier {
    own: Vec<u8>,
    helpers: Vec<u8>,
}

impl Verifier {
    pub(super) fn new() -> Self {
        Self { own: Vec::new(), helpers: Vec::new() }
    }

    /// Finds out which of the pieces hold, until `over` says that nobody wants to know.
    pub(super) fn verify(&mut self, files: &[(&File, &[Piece])], over: impl Fn() -> bool + Sync) {
        let jobs: Vec<(&File, &Piece)> =
            files.iter().flat_map(|(file, pieces)| pieces.iter().map(move |piece| (*file, piece))).collect();
        if jobs.is_empty() {
            return;
        }
        let next = AtomicUsize::new(0);
        let work = |buffer: &mut Vec<u8>| {
            buffer.resize(BUFFER, 0);
            while let Some((file, piece)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)).filter(|_| !over()) {
                piece.verify(file, buffer);
            }
        };
        let bytes: u64 = jobs.iter().map(|(_, piece)| u64::from(piece.length)).sum();
        let Self { own, helpers } = self;
        thread::scope(|scope| {
            if bytes >= WORTH_A_THREAD {
                let helper = thread::Builder::new().name("verifier".into()).stack_size(STACK);
                // Where the sandbox has no room for one more thread, this one does it all.
                let _ = helper.spawn_scoped(scope, || work(helpers));
            }
            work(own);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_where_their_bytes_are() {
        let file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|number| (number / 7) as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        let piece = |offset: usize, length: usize, hashed: usize| {
            let hash = blake3::hash(&content[hashed..][..length]);
            Piece::new(offset as u64, length as u32, Bytes::copy_from_slice(hash.as_bytes()))
        };
        let pieces = [
            piece(0, 1_000_000, 0),
            piece(1_000_000, 500_001, 999_999),
            piece(2_000_000, 1_000_000, 2_000_000),
            piece(2_000_001, 1_000_000, 2_000_000),
        ];
        Verifier::new().verify(&[(&file, &pieces)], || false);
        assert_eq!(pieces.each_ref().map(Piece::holds), [true, false, true, false]);
    }

    #[test]
    fn nothing_is_verified_for_nobody() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"a", 0).unwrap();
        let pieces = [Piece::new(0, 1, Bytes::copy_from_slice(blake3::hash(b"a").as_bytes()))];
        Verifier::new().verify(&[(&file, &pieces)], || true);
        assert!(!pieces[0].holds());
    }
}
