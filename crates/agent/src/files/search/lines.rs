//! Takes a file apart into lines and matches them, in a buffer of fixed size however long they are.
//!
//! A line that does not fit is matched in windows that overlap: what is longer than the overlap may be missed across
//! two of them, and nothing else. A window is no line: `^` holds in the first one only, and a match that touches the
//! end of one waits for the next.

use std::{io, io::Read, ops::ControlFlow};

use memchr::memchr;
use regex::bytes::Regex;

use super::read_full;

const BUFFER: usize = 64 * 1024;
const OVERLAP: usize = 4 * 1024;
/// The most of a line that is shown, in bytes.
const SHOWN: usize = 4096;
/// What is shown before a match that lies further inside its line.
const BEFORE: usize = 256;

/// A line that matches.
pub(super) struct Line<'a> {
    /// from 1
    pub(super) number: u64,
    /// where it begins in the file
    pub(super) offset: u64,
    /// the part of it with the match
    part: &'a [u8],
}

impl Line<'_> {
    /// The part as text, which replacements must not make longer than what may be shown.
    pub(super) fn shown(&self) -> String {
        let mut text = String::from_utf8_lossy(self.part).into_owned();
        text.truncate(text.floor_char_boundary(SHOWN));
        text
    }
}

/// The lines of a file.
pub(super) struct Lines {
    buffer: Box<[u8]>,
    filled: usize,
    ended: bool,
    number: u64,
    /// where the line in progress begins
    offset: u64,
    /// how much of the line in progress is no longer in the buffer
    gone: usize,
    /// the line in progress has matched
    matched: bool,
}

impl Default for Lines {
    fn default() -> Self {
        let buffer = Box::default();
        Self { buffer, filled: 0, ended: false, number: 1, offset: 0, gone: 0, matched: false }
    }
}

impl Lines {
    /// Begins a file.
    pub(super) fn begin(&mut self) {
        let buffer = std::mem::take(&mut self.buffer);
        *self = Self { buffer, ..Self::default() };
        if self.buffer.is_empty() {
            self.buffer = vec![0; BUFFER].into_boxed_slice();
        }
    }

    /// Reads on; false when all was read and searched.
    pub(super) fn fill(&mut self, file: &mut impl Read) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        let read = read_full(file, &mut self.buffer[self.filled..])?;
        self.filled += read;
        self.ended = self.filled < self.buffer.len();
        Ok(self.filled > 0)
    }

    /// Up to `length` bytes of what was read.
    pub(super) fn beginning(&self, length: usize) -> &[u8] {
        &self.buffer[..self.filled.min(length)]
    }

    /// Tells `found` of each line in the buffer that matches.
    pub(super) fn search(
        &mut self,
        pattern: &Regex,
        mut found: impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let mut begin = 0;
        while let Some(length) = memchr(b'\n', &self.buffer[begin..self.filled]) {
            self.line(begin, begin + length, pattern, &mut found)?;
            self.offset += (self.gone + length + 1) as u64;
            self.number += 1;
            self.gone = 0;
            self.matched = false;
            begin += length + 1;
        }
        if self.ended {
            if begin < self.filled {
                self.line(begin, self.filled, pattern, &mut found)?;
            }
            return ControlFlow::Continue(());
        }
        let mut keep = begin;
        if begin == 0 {
            self.window(pattern, &mut found)?;
            keep = self.filled - OVERLAP;
            self.gone += keep;
        }
        self.buffer.copy_within(keep..self.filled, 0);
        self.filled -= keep;
        ControlFlow::Continue(())
    }

    /// Matches a line, or the last window of one.
    fn line(
        &self,
        begin: usize,
        end: usize,
        pattern: &Regex,
        found: &mut impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let line = &self.buffer[begin..end];
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        self.report(line, pattern.find_at(line, self.first().min(line.len())).map(|it| it.range()), found)
    }

    /// Matches a whole buffer of a line that does not end in it.
    fn window(&mut self, pattern: &Regex, found: &mut impl FnMut(Line<'_>) -> ControlFlow<()>) -> ControlFlow<()> {
        let window = &self.buffer[..self.filled];
        let range = pattern.find_at(window, self.first()).map(|it| it.range()).filter(|it| it.end < window.len());
        let matches = range.is_some();
        self.report(window, range, found)?;
        self.matched |= matches;
        ControlFlow::Continue(())
    }

    /// Where in a window to look from: beyond what would make `^` hold.
    fn first(&self) -> usize {
        usize::from(self.gone > 0)
    }

    fn report(
        &self,
        line: &[u8],
        range: Option<std::ops::Range<usize>>,
        found: &mut impl FnMut(Line<'_>) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let Some(range) = range.filter(|_| !self.matched) else { return ControlFlow::Continue(()) };
        let from = if range.end <= SHOWN { 0 } else { range.start.saturating_sub(BEFORE) };
        let part = &line[from..line.len().min(from + SHOWN)];
        found(Line { number: self.number, offset: self.offset, part })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(pattern: &str, mut content: &[u8]) -> Vec<(u64, u64, String)> {
        let pattern = Regex::new(pattern).unwrap();
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        lines.begin();
        while lines.fill(&mut content).unwrap() {
            let _ = lines.search(&pattern, |line| {
                found.push((line.number, line.offset, line.shown()));
                ControlFlow::Continue(())
            });
        }
        found
    }

    #[test]
    fn lines_have_numbers_and_offsets() {
        let found = search("^b|c$", b"a\nbb\r\n\nxc\nlast c");
        let found: Vec<_> = found.iter().map(|(number, offset, line)| (*number, *offset, line.as_str())).collect();
        assert_eq!(found, [(2, 2, "bb"), (4, 7, "xc"), (5, 10, "last c")]);
        assert_eq!(search("x", b""), []);
        assert_eq!(search("^$", b"a\n\nb").len(), 1);
    }

    #[test]
    fn lines_across_buffers_are_whole() {
        let mut content = vec![b'.'; BUFFER - 5];
        content[100] = b'\n';
        content.extend_from_slice(b"\nneedle in the middle\nend\n");
        assert_eq!(search("^needle.*middle$", &content), [(3, BUFFER as u64 - 4, "needle in the middle".into())]);
        assert_eq!(search("^end$", &content)[0].0, 4);
    }

    #[test]
    fn a_line_longer_than_the_buffer_matches_once_wherever() {
        for at in [0, 5000, BUFFER - 3, BUFFER - OVERLAP, 3 * BUFFER + 17] {
            let mut content = b"first\n".to_vec();
            let line = content.len();
            content.resize(line + 5 * BUFFER, b'.');
            content[line + at..line + at + 6].copy_from_slice(b"needle");
            content.extend_from_slice(b"end\nneedle\n");
            let found = search("needle", &content);
            assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [2, 3], "at {at}");
            assert_eq!(found[0].1, 6);
            assert_eq!(found[1].1, (line + 5 * BUFFER + 4) as u64);
            assert!(found[0].2.contains("needle") && found[0].2.len() <= SHOWN, "at {at}");
        }
    }

    #[test]
    fn anchors_hold_at_the_ends_of_a_long_line_only() {
        let content = vec![b'a'; 4 * BUFFER];
        assert_eq!(search("^a", &content).len(), 1);
        assert_eq!(search("[^a]|^b|b$", &content).len(), 0);
        let mut content = vec![b'b'; BUFFER];
        content.resize(3 * BUFFER, b'a');
        assert_eq!(search("b$", &content).len(), 0);
        assert_eq!(search("a$", &content).len(), 1);
    }
}
