//! Finds the lines of an output that look like errors.

use std::{borrow::Cow, collections::VecDeque, sync::LazyLock};

use regex::bytes::Regex;

use super::{Part, marker, whole_characters};
use crate::{
    cursor::{Cursor, Step},
    lines::{Line, Lines},
    log::Log,
    place::Stream,
    range::within,
};

/// Longer lines are taken for several.
const LINE: usize = 4 << 10;
const BEFORE: usize = 2;
const AFTER: usize = 8;

/// What compilers, test runners, interpreters, shells and loggers print when something fails. Upper and lower case
/// matter where prose would match otherwise.
static ERROR: LazyLock<Regex> = LazyLock::new(|| {
    let patterns = [
        r"Traceback \(most recent call last\)",
        // ValueError: ..., java.lang.NullPointerException, Uncaught TypeError
        r"\b[A-Z]\w*(?:Error|Exception)\b",
        r"\bException in thread\b",
        // error: ..., error[E0382]: ..., fatal error: ..., ERROR - ..., npm ERR!
        r"(?i:\b(?:error|fatal|panic|failure)(?:\[\w+\])?:)",
        r"(?i:\berror (?:TS|CS|C|LNK)\d+)",
        r"\b(?:ERROR|FATAL|CRITICAL|PANIC|FAILED|FAIL|FAILURE)\b",
        r"npm ERR!",
        // pytest marks the lines of a failure
        r"^E   ",
        r"\bpanicked at\b",
        r"^not ok \d",
        r"(?i:\bassertion\b.*\bfail)",
        r"\*\*\* \[.*\] (?:Error|Segmentation)",
        r"(?i:segmentation fault|core dumped|out of memory|stack overflow|undefined reference|unhandled rejection)",
        r"(?:command not found|No such file or directory|Permission denied|No space left on device)",
    ];
    Regex::new(&format!("(?-u:{})", patterns.join("|"))).expect("a pattern written here compiles")
});

static COLOUR: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(?-u:\x1b\[[0-9;]*[mK])").expect("a pattern written here compiles"));

impl Log {
    /// Nothing, when nothing looks like an error.
    pub(super) fn errors(&self, stream: Stream, budget: usize, total: u64) -> Option<Vec<Part>> {
        let marker = marker(total).len();
        // a quarter is the last lines' in any case
        let mut found = Ranges::new(budget - budget / 4 - marker, marker);
        self.scan(stream, total, &mut found);
        let mut parts: Vec<Part> = Vec::new();
        let mut used = 0;
        for (from, to) in found.ranges {
            let (offset, mut bytes) = self.contiguous(stream, from, (to - from) as usize, to);
            if offset + (bytes.len() as u64) < total {
                bytes.truncate(whole_characters(&bytes));
            }
            used += bytes.len() + marker;
            parts.push(Part { offset, bytes });
        }
        let from = parts.last()?.end();
        let mut tail = self.last(stream, from, budget.saturating_sub(used + marker), total);
        if tail.offset > from {
            begin_with_a_line(&mut tail);
        }
        parts.push(tail);
        Some(parts)
    }

    fn scan(&self, stream: Stream, total: u64, found: &mut Ranges) {
        let mut cursor = Cursor::at_offset(self, stream, 0);
        let mut lines = Lines::new(LINE, 0);
        while !found.full {
            match cursor.step(self) {
                Step::Piece { stream: of, offset, data } if of == stream => {
                    let data = within(offset, &data, 0, total);
                    if data.is_empty() {
                        break;
                    }
                    lines.feed(offset, data, &mut |line| found.line(&line));
                }
                Step::Jump { from, to } if to.of(stream) > from.of(stream) => {
                    lines.cut(&mut |line| found.line(&line));
                    found.gap();
                }
                Step::Piece { .. } | Step::Event { .. } | Step::Jump { .. } => {}
                Step::Caught { .. } => break,
            }
        }
        lines.cut(&mut |line| found.line(&line));
    }
}

/// Where the lines stand that are to be shown: in order, apart, and together within a budget.
struct Ranges {
    ranges: Vec<(u64, u64)>,
    left: usize,
    /// what a range costs beside its bytes
    marker: usize,
    full: bool,
    before: VecDeque<u64>,
    after: usize,
}

impl Ranges {
    fn new(budget: usize, marker: usize) -> Self {
        Self { ranges: Vec::new(), left: budget, marker, full: false, before: VecDeque::new(), after: 0 }
    }

    fn line(&mut self, line: &Line<'_>) {
        if ERROR.is_match(&plain(line.bytes)) {
            self.show(self.before.front().copied().unwrap_or(line.offset), line.end);
            self.after = AFTER;
        } else if self.after > 0 {
            self.after -= 1;
            self.show(line.offset, line.end);
        }
        if self.before.len() == BEFORE {
            self.before.pop_front();
        }
        self.before.push_back(line.offset);
    }

    fn gap(&mut self) {
        self.before.clear();
        self.after = 0;
    }

    fn show(&mut self, from: u64, to: u64) {
        if self.full {
            return;
        }
        let last = self.ranges.last().map(|(_, end)| *end);
        let from = from.max(last.unwrap_or(0));
        let joins = last == Some(from);
        let extra = if joins { 0 } else { self.marker };
        let room = self.left.saturating_sub(extra) as u64;
        let to = to.min(from + room);
        self.full = to == from + room;
        if to == from {
            return;
        }
        self.left -= (to - from) as usize + extra;
        match self.ranges.last_mut() {
            Some(last) if joins => last.1 = to,
            _ => self.ranges.push((from, to)),
        }
    }
}

/// The line without the colours of a terminal, which stand where words begin and end.
fn plain(line: &[u8]) -> Cow<'_, [u8]> {
    if line.contains(&0x1b) { COLOUR.replace_all(line, &b""[..]) } else { line.into() }
}

/// Drops the rest of a line at the beginning, if it is short.
fn begin_with_a_line(part: &mut Part) {
    let newline = part.bytes.iter().take(part.bytes.len() / 4).position(|byte| *byte == b'\n');
    if let Some(at) = newline {
        part.bytes.drain(..=at);
        part.offset += at as u64 + 1;
    }
}
