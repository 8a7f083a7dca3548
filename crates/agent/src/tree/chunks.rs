//! Cuts the data of files into chunks: where the base holds, its chunks stay; the rest is cut by content (FastCDC).
//!
//! Where bytes differ, cutting begins at the start of the base's chunk and goes on until a cut meets one that holds. What
//! was cut and is elsewhere in the base's file, as after an insertion, is not sent.

use std::{collections::HashSet, fs::File, io, ops::Range, os::fd::AsRawFd};

use bytes::{Bytes, BytesMut};
use cloud_sandbox_proto::checkpoint::v1::{Chunk, Extent};
use fastcdc::v2020::FastCDC;
use nix::errno::Errno;

use super::verify::Piece;

const SMALLEST: usize = 64 * 1024;
const AVERAGE: usize = 256 * 1024;
const LARGEST: usize = 1024 * 1024;
/// What is read at a time. Chunks are parts of it, and it lives until the last of them was sent.
const WINDOW: usize = 2 * LARGEST;

/// What is known of a file from the base.
pub(super) struct Known {
    /// the chunks that may stay where they are, ascending
    pub(super) pieces: Vec<Piece>,
    extents: Vec<Extent>,
}

impl Known {
    /// Takes the extents of the base's file, to compare them with a file of these runs.
    pub(super) fn new(extents: Vec<Extent>, runs: &[Range<u64>]) -> Self {
        let mut pieces = Vec::new();
        let mut runs = runs.iter().peekable();
        for extent in &extents {
            let mut offset = extent.offset;
            for chunk in &extent.chunks {
                let piece = Piece::new(offset, chunk.length, chunk.hash.clone());
                offset = piece.end();
                while runs.next_if(|run| run.end <= piece.offset).is_some() {}
                let Some(run) = runs.peek() else { break };
                // Only the end of data makes a chunk this small. If it is not the end any more it would stay small for
                // ever, and a file that grows by a line each time would end as crumbs.
                let is_crumb = (chunk.length as usize) < SMALLEST && piece.end() != run.end;
                if run.start <= piece.offset && piece.end() <= run.end && !is_crumb {
                    pieces.push(piece);
                }
            }
        }
        Self { pieces, extents }
    }

    fn hashes(&self) -> HashSet<&[u8]> {
        self.extents.iter().flat_map(|extent| &extent.chunks).map(|chunk| &*chunk.hash).collect()
    }
}

/// Cuts a file at a time; holds the buffer.
#[derive(Default)]
pub(super) struct Cutter {
    window: BytesMut,
}

impl Cutter {
    /// The extents of a file's runs. `send` gets each new chunk and its data.
    ///
    /// # Errors
    /// Those of `send`, and what reading fails with; that the file has become shorter is `UnexpectedEof`.
    pub(super) fn cut<E: From<io::Error>>(
        &mut self,
        file: &File,
        runs: &[Range<u64>],
        known: &Known,
        mut send: impl FnMut(Bytes, Bytes) -> Result<(), E>,
    ) -> Result<Vec<Extent>, E> {
        let mut held = known.pieces.iter().filter(|piece| piece.holds()).peekable();
        // Most files have not changed, and need none.
        let mut hashes = None;
        let mut extents = Vec::with_capacity(runs.len());
        for run in runs {
            let mut chunks = Vec::new();
            let mut position = run.start;
            self.window.clear();
            while position < run.end {
                while held.next_if(|piece| piece.offset < position).is_some() {}
                if let Some(piece) = held.next_if(|piece| piece.offset == position) {
                    chunks.push(Chunk { hash: piece.hash.clone(), length: piece.length });
                    position = piece.end();
                    self.window.clear();
                    continue;
                }
                let data = self.next(file, position, run.end)?;
                let hash = Bytes::copy_from_slice(blake3::hash(&data).as_bytes());
                let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
                position += data.len() as u64;
                chunks.push(Chunk { hash: hash.clone(), length });
                if !hashes.get_or_insert_with(|| known.hashes()).contains(&*hash) {
                    send(hash, data)?;
                }
            }
            extents.push(Extent { offset: run.start, chunks });
        }
        Ok(extents)
    }

    /// Lets go of the buffer.
    pub(super) fn rest(&mut self) {
        self.window = BytesMut::new();
    }

    /// The chunk that begins at `position`, where the window does.
    fn next(&mut self, file: &File, position: u64, end: u64) -> io::Result<Bytes> {
        loop {
            let rest = end - position - self.window.len() as u64;
            let (_, length) = match self.window.len() {
                0 => (0, 0),
                length => FastCDC::new(&self.window, SMALLEST, AVERAGE, LARGEST).cut(0, length),
            };
            // A cut at the window's end may be one only because the window ends.
            if length > 0 && (length < self.window.len() || length >= LARGEST || rest == 0) {
                return Ok(self.window.split_to(length).freeze());
            }
            self.fill(file, position + self.window.len() as u64, rest)?;
        }
    }

    fn fill(&mut self, file: &File, offset: u64, rest: u64) -> io::Result<()> {
        let room = (WINDOW - self.window.len()).min(usize::try_from(rest).unwrap_or(usize::MAX));
        self.window.reserve(room);
        let spare = self.window.spare_capacity_mut();
        let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EOVERFLOW)?;
        // SAFETY: the kernel writes at most `room` bytes, which were just reserved.
        let read = unsafe { libc::pread(file.as_raw_fd(), spare.as_mut_ptr().cast(), room, offset) };
        let read = usize::try_from(Errno::result(read)?).unwrap_or(0);
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: so many bytes have been written.
        unsafe { self.window.set_len(self.window.len() + read) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, os::unix::fs::FileExt};

    use proptest::prelude::*;

    use super::{super::verify::Verifier, *};

    type Store = HashMap<Bytes, Bytes>;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        Hash::xof(seed, &mut bytes);
        bytes
    }

    struct Hash;

    impl Hash {
        fn xof(seed: u64, bytes: &mut [u8]) {
            blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(bytes);
        }
    }

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.write_all_at(content, 0).unwrap();
        file
    }

    /// The extents of a content, and how many bytes of data were sent for them.
    fn cut(content: &[u8], base: Vec<Extent>, store: &mut Store) -> (Vec<Extent>, usize) {
        let file = file(content);
        let runs: Vec<_> = (!content.is_empty()).then_some(0..content.len() as u64).into_iter().collect();
        let known = Known::new(base, &runs);
        Verifier::new().verify(&[(&file, &known.pieces)], || false);
        let mut sent = 0;
        let extents = Cutter::default().cut(&file, &runs, &known, |hash, data| {
            assert_eq!(blake3::hash(&data).as_bytes(), &*hash);
            sent += data.len();
            store.insert(hash, data);
            Ok::<_, io::Error>(())
        });
        (extents.unwrap(), sent)
    }

    fn assemble(extents: &[Extent], store: &Store) -> Vec<u8> {
        let mut content = Vec::new();
        for extent in extents {
            assert_eq!(extent.offset, content.len() as u64);
            for chunk in &extent.chunks {
                assert_eq!(store[&chunk.hash].len(), chunk.length as usize);
                content.extend_from_slice(&store[&chunk.hash]);
            }
        }
        content
    }

    /// Saves one content and then another on top of it; how much the second sent.
    fn change(before: &[u8], after: &[u8]) -> usize {
        let mut store = Store::new();
        let (base, sent) = cut(before, Vec::new(), &mut store);
        assert!(sent >= before.len());
        let (extents, sent) = cut(after, base, &mut store);
        assert!(assemble(&extents, &store) == after);
        sent
    }

    const MIB: usize = 1024 * 1024;

    #[test]
    fn what_is_the_same_is_not_sent() {
        let content = noise(1, 8 * MIB);
        assert_eq!(change(&content, &content), 0);
        assert_eq!(change(b"", b""), 0);
        assert_eq!(change(&content, &[]), 0);
    }

    #[test]
    fn a_changed_byte_sends_what_is_around_it() {
        let before = noise(2, 8 * MIB);
        for position in [0, 4 * MIB, 8 * MIB - 1] {
            let mut after = before.clone();
            after[position] ^= 1;
            let sent = change(&before, &after);
            assert!((1..3 * MIB).contains(&sent), "{sent} for {position}");
        }
    }

    #[test]
    fn what_moved_is_found_again() {
        let content = noise(3, 8 * MIB);
        let longer = [b"inserted", content.as_slice()].concat();
        assert!(change(&content, &longer) < 3 * MIB);
        assert!(change(&longer, &content) < 3 * MIB);
    }

    #[test]
    fn what_grows_or_shrinks_sends_its_end() {
        let content = noise(4, 8 * MIB);
        assert!(change(&content, &content[..5 * MIB + 1]) < 2 * MIB);
        assert!(change(&content[..5 * MIB + 1], &content) < 6 * MIB);
    }

    #[test]
    fn a_file_that_grows_by_a_line_does_not_end_as_crumbs() {
        let content = noise(5, 300_000);
        let mut store = Store::new();
        let mut base = Vec::new();
        for length in (200_000..300_000).step_by(1000) {
            base = cut(&content[..length], base, &mut store).0;
        }
        assert!(base[0].chunks.len() <= 4, "{} chunks", base[0].chunks.len());
    }

    #[test]
    fn chunks_of_another_release_are_taken_as_they_are() {
        let content = noise(6, 5 * MIB);
        let mut store = Store::new();
        let chunks = content.chunks(4 * MIB).map(|data| {
            let hash = Bytes::copy_from_slice(blake3::hash(data).as_bytes());
            store.insert(hash.clone(), Bytes::copy_from_slice(data));
            Chunk { hash, length: data.len() as u32 }
        });
        let base = vec![Extent { offset: 0, chunks: chunks.collect() }];
        let (extents, sent) = cut(&content, base.clone(), &mut store);
        assert_eq!((extents, sent), (base, 0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_change_is_described_exactly(
            seed: u64,
            length in 0..3 * MIB,
            start in 0..3 * MIB,
            removed in 0..2 * MIB,
            inserted in 0..MIB,
        ) {
            let before = noise(seed, length);
            let start = start.min(length);
            let end = (start + removed).min(length);
            let after = [&before[..start], &noise(!seed, inserted), &before[end..]].concat();
            change(&before, &after);
        }
    }
}
