//! Where a file has data, and where it has holes.

use std::{fs::File, io, ops::Range};

use nix::{
    errno::Errno,
    sys::stat::FileStat,
    unistd::{Whence, lseek},
};

/// A smaller hole is read as the zeros that it stands for, so that a file in crumbs has few extents. Zeros become holes
/// again when they are restored.
const SMALLEST_HOLE: u64 = 64 * 1024;
/// What `st_blocks` counts, in bytes (stat(2)).
const BLOCK: u64 = 512;

/// The runs of data in a file of `size` bytes, ascending and apart.
pub(super) fn runs(file: &File, stat: &FileStat) -> io::Result<Vec<Range<u64>>> {
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let stored = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK);
    let mut runs: Vec<Range<u64>> = Vec::new();
    if size == 0 {
        return Ok(runs);
    }
    if stored >= size {
        runs.push(0..size);
        return Ok(runs);
    }
    let mut position = 0;
    while position < size {
        let start = match seek(file, position, Whence::SeekData) {
            Ok(start) => start.min(size),
            // No data from here on.
            Err(Errno::ENXIO) => break,
            // A file system that does not know.
            Err(Errno::EINVAL) => position,
            Err(error) => return Err(error.into()),
        };
        let end = match seek(file, start, Whence::SeekHole) {
            Ok(end) => end.min(size),
            // It shrinks, or the file system does not know; reading finds out.
            Err(Errno::ENXIO | Errno::EINVAL) => size,
            Err(error) => return Err(error.into()),
        };
        match runs.last_mut() {
            Some(last) if start - last.end < SMALLEST_HOLE => last.end = end,
            _ if start < end => runs.push(start..end),
            _ => {}
        }
        if end <= position {
            break;
        }
        position = end;
    }
    Ok(runs)
}

fn seek(file: &File, position: u64, whence: Whence) -> nix::Result<u64> {
    let position = i64::try_from(position).map_err(|_| Errno::EOVERFLOW)?;
    lseek(file, position, whence).map(|found| u64::try_from(found).unwrap_or(0))
}

#[cfg(test)]
// a run is a range, and not what is in it
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use std::os::unix::fs::FileExt;

    use nix::sys::stat::fstat;

    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn runs_of(size: u64, pieces: &[Range<u64>]) -> Vec<Range<u64>> {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(size).unwrap();
        for piece in pieces {
            file.write_all_at(&vec![1; (piece.end - piece.start) as usize], piece.start).unwrap();
        }
        runs(&file, &fstat(&file).unwrap()).unwrap()
    }

    #[test]
    fn large_holes_lie_between_the_runs() {
        assert_eq!(runs_of(0, &[]), []);
        assert_eq!(runs_of(100, &[0..100]), [0..100]);
        assert_eq!(runs_of(MIB, &[]), []);
        assert_eq!(runs_of(4 * MIB, &[0..4096, 2 * MIB..3 * MIB]), [0..4096, 2 * MIB..3 * MIB]);
        assert_eq!(runs_of(4 * MIB + 5, &[4 * MIB..4 * MIB + 5]), [4 * MIB..4 * MIB + 5]);
    }

    #[test]
    fn small_holes_are_part_of_a_run() {
        assert_eq!(runs_of(MIB, &[0..4096, 8192..12288]), [0..12288]);
    }
}
