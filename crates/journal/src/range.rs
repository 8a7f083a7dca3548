//! Reads a part of one stream, wherever it is in the log.

use std::io::{self, ErrorKind};

use crate::{
    Gap,
    cursor::{Cursor, Step},
    log::Log,
    place::Stream,
};

/// The most that one call returns.
pub const MAX_RANGE: usize = 8 << 20;

/// A part of one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    /// of the first byte; beyond what was asked for when that is not there any more
    pub offset: u64,
    /// what was printed there, without a gap
    pub bytes: Vec<u8>,
    /// where the next range begins
    pub next_offset: u64,
    /// what is missing between the offset that was asked for and this one
    pub gap: Option<Gap>,
    /// bytes of the stream so far
    pub total: u64,
    /// nothing will be added any more
    pub finished: bool,
}

impl Log {
    /// Reads up to `limit` bytes of a stream from `offset` on; from behind a gap that begins there, and up to the next
    /// gap. Parts of the log that cannot be read count as gaps.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a limit over [`MAX_RANGE`].
    pub fn read(&self, stream: Stream, offset: u64, limit: usize) -> io::Result<Range> {
        check_limit(limit)?;
        let (total, finished) = self.with_index(|index| (index.totals.of(stream), index.closed()));
        let (start, bytes) = self.contiguous(stream, offset, limit, total);
        let length = start - offset;
        Ok(Range {
            offset: start,
            next_offset: start + bytes.len() as u64,
            bytes,
            gap: (length > 0).then_some(Gap { stream, offset, length, events: 0 }),
            total,
            finished,
        })
    }

    /// The first bytes at or after `offset`, up to a gap, `limit` or `end`, and where they begin. Where nothing is
    /// left before `end`, they begin there.
    pub(crate) fn contiguous(&self, stream: Stream, offset: u64, limit: usize, end: u64) -> (u64, Vec<u8>) {
        let mut found: Option<(u64, Vec<u8>)> = None;
        if offset >= end || limit == 0 {
            return (offset, Vec::new());
        }
        let mut cursor = Cursor::at_offset(self, stream, offset);
        loop {
            match cursor.step(self) {
                Step::Piece { stream: of, offset: at, data } if of == stream => {
                    let data = within(at, &data, offset, end);
                    if data.is_empty() {
                        if at >= end {
                            break;
                        }
                        continue;
                    }
                    let (start, bytes) = found.get_or_insert_with(|| (at.max(offset), Vec::new()));
                    bytes.extend_from_slice(&data[..data.len().min(limit - bytes.len())]);
                    if bytes.len() == limit || *start + bytes.len() as u64 == end {
                        break;
                    }
                }
                Step::Jump { from, to } if found.is_some() && to.of(stream) > from.of(stream) => break,
                Step::Caught { .. } => break,
                Step::Piece { .. } | Step::Event { .. } | Step::Jump { .. } => {}
            }
        }
        found.unwrap_or((end, Vec::new()))
    }
}

pub(crate) fn check_limit(limit: usize) -> io::Result<()> {
    if limit > MAX_RANGE {
        return Err(io::Error::new(ErrorKind::InvalidInput, format!("more than {MAX_RANGE} bytes asked for")));
    }
    Ok(())
}

/// The part of `data`, which begins at `at`, that lies between `from` and `to`.
pub(crate) fn within(at: u64, data: &[u8], from: u64, to: u64) -> &[u8] {
    let skip = from.saturating_sub(at).min(data.len() as u64) as usize;
    let take = to.saturating_sub(at).min(data.len() as u64) as usize;
    data.get(skip..take).unwrap_or_default()
}
