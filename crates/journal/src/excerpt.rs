//! The part of an output that fits a budget.

use std::io;

use crate::{
    log::Log,
    place::Stream,
    range::{MAX_RANGE, check_limit},
};

mod errors;

/// With less there is no room for two parts and a marker.
const LEAST_SPLIT: usize = 128;

/// Which part is kept of an output that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// the first bytes
    Head,
    /// the last bytes
    Tail,
    /// both, half of the budget each, with a marker between them; the last ones when the budget is under 128 bytes
    HeadTail,
    /// what looks like an error, with a few lines around it, and the last lines, in order and with markers; the last
    /// bytes when nothing looks like one, or the budget is under 128 bytes
    Errors,
}

/// The part of an output that fits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Excerpt {
    /// what is kept, with markers
    pub bytes: Vec<u8>,
    /// bytes of the stream that are not in it
    pub omitted: u64,
    /// it is the whole stream
    pub whole: bool,
}

/// Bytes of a stream and where they begin.
struct Part {
    offset: u64,
    bytes: Vec<u8>,
}

impl Part {
    fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl Log {
    /// Chooses at most `budget` bytes of what a stream holds now, markers (`[... N bytes omitted ...]` on a line of its
    /// own) included. UTF-8 characters are not cut. Memory and result are bounded by the budget.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for a budget over [`MAX_RANGE`].
    pub fn excerpt(&self, stream: Stream, budget: usize, strategy: Strategy) -> io::Result<Excerpt> {
        check_limit(budget)?;
        let total = self.with_index(|index| index.totals.of(stream));
        if total <= budget as u64 {
            let (offset, bytes) = self.contiguous(stream, 0, budget, total);
            if offset == 0 && bytes.len() as u64 == total {
                return Ok(Excerpt { bytes, omitted: 0, whole: true });
            }
        }
        let parts = match strategy {
            Strategy::HeadTail if budget >= LEAST_SPLIT => Some(self.head_and_tail(stream, budget, total)),
            Strategy::Errors if budget >= LEAST_SPLIT => self.errors(stream, budget, total),
            _ => None,
        };
        Ok(match (parts, strategy) {
            (Some(parts), _) => join(parts, total, true),
            (None, Strategy::Head) => join(vec![self.first(stream, budget, total)], total, false),
            (None, _) => join(vec![self.last(stream, 0, budget, total)], total, false),
        })
    }

    fn head_and_tail(&self, stream: Stream, budget: usize, total: u64) -> Vec<Part> {
        let budget = budget - marker(total).len();
        let head = self.first(stream, budget / 2, total);
        let tail = self.last(stream, head.end(), budget - head.bytes.len(), total);
        vec![head, tail]
    }

    /// Up to `count` bytes from the beginning to a gap.
    fn first(&self, stream: Stream, count: usize, total: u64) -> Part {
        let (offset, mut bytes) = self.contiguous(stream, 0, count, total);
        if offset > 0 {
            return Part { offset: 0, bytes: Vec::new() };
        }
        if (bytes.len() as u64) < total {
            bytes.truncate(whole_characters(&bytes));
        }
        Part { offset, bytes }
    }

    /// Up to `count` bytes from a gap to the end, none of them before `from`.
    fn last(&self, stream: Stream, from: u64, count: usize, total: u64) -> Part {
        let mut offset = from.max(total.saturating_sub(count as u64));
        let cut = offset > from;
        let mut part = loop {
            let (start, bytes) = self.contiguous(stream, offset, MAX_RANGE, total);
            let part = Part { offset: start, bytes };
            if part.end() >= total {
                break part;
            }
            offset = part.end();
        };
        if cut || part.offset > offset {
            let broken = broken_character(&part.bytes);
            part.bytes.drain(..broken);
            part.offset += broken as u64;
        }
        part
    }
}

/// What stands for bytes that are left out; longer for larger numbers.
fn marker(omitted: u64) -> String {
    format!("\n[... {omitted} bytes omitted ...]\n")
}

/// Puts parts together that are in order and do not overlap.
fn join(parts: Vec<Part>, total: u64, marked: bool) -> Excerpt {
    let mut bytes = Vec::with_capacity(parts.iter().map(|part| part.bytes.len() + marker(total).len()).sum());
    let mut kept = 0;
    let mut end = 0;
    for part in parts {
        if marked && part.offset > end {
            bytes.extend_from_slice(marker(part.offset - end).as_bytes());
        }
        end = part.end();
        kept += part.bytes.len() as u64;
        bytes.extend_from_slice(&part.bytes);
    }
    Excerpt { bytes, omitted: total.saturating_sub(kept), whole: kept == total }
}

/// How much of `bytes` there is without the beginning of a character at their end.
pub(super) fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let at = bytes.len() - back;
        let length = match bytes[at] {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if length > back { at } else { bytes.len() };
    }
    bytes.len()
}

/// How many bytes `bytes` begin with that are the end of a character.
fn broken_character(bytes: &[u8]) -> usize {
    let rest = bytes.iter().take_while(|byte| matches!(byte, 0x80..=0xBF)).take(4).count();
    // four in a row are no character's rest: this is no UTF-8
    if rest > 3 { 0 } else { rest }
}
