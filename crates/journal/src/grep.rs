//! Searches a log for lines that match.

use std::{collections::VecDeque, ops::Range};

use regex::bytes::{Regex, RegexBuilder};

use crate::{
    cursor::{Cursor, Step},
    lines::{Line, Lines},
    log::Log,
    place::Stream,
};

/// Longer lines are searched in windows of this size.
const WINDOW: usize = 64 << 10;
/// What a window repeats of the one before: a match longer than this can be missed where windows meet.
const OVERLAP: usize = 4 << 10;
/// The most that is returned of a line.
const LINE: usize = 4 << 10;
/// What is shown before a match that stands too far back in its line for the line's first bytes to show it.
const LEAD: usize = 1 << 10;
/// No result is much larger than this, whatever was asked for.
const RESULT: usize = 4 << 20;
/// What a compiled pattern may take.
const PROGRAM: usize = 1 << 20;

/// What to search for.
#[derive(Clone, Debug)]
pub struct GrepOptions<'a> {
    /// a regular expression in the syntax of the `regex` crate, matched against each line without its end
    pub pattern: &'a str,
    /// take upper and lower case for the same
    pub ignore_case: bool,
    /// the streams to search, in this order
    pub streams: &'a [Stream],
    /// how many lines to return at most
    pub max_matches: usize,
    /// how many lines before and after each match to return
    pub context_lines: usize,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grep {
    /// the lines that match
    pub matches: Vec<Match>,
    /// there are more, or there would be too much to return
    pub more: bool,
}

/// A line that matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// the stream
    pub stream: Stream,
    /// from 1; after a gap, the lines that are there are counted
    pub line_number: u64,
    /// where the line begins
    pub offset: u64,
    /// where the match begins
    pub match_offset: u64,
    /// up to 4 KiB of the line, without its end: its beginning, or what is around the match
    pub line: Vec<u8>,
    /// there is more of the line
    pub cut: bool,
    /// up to 4 KiB of each line before it
    pub before: Vec<Vec<u8>>,
    /// up to 4 KiB of each line after it
    pub after: Vec<Vec<u8>>,
}

/// Why nothing was searched.
#[derive(Debug, thiserror::Error)]
pub enum GrepError {
    /// what is wrong with the pattern, for the caller
    #[error("{0}")]
    BadPattern(String),
    /// the log could not be read
    #[error("failed to read the journal")]
    Io(#[from] std::io::Error),
}

impl Log {
    /// Searches what is there now, line by line, one match for each line. Takes time linear in what it reads, bounded
    /// memory and no locks; for a blocking thread.
    ///
    /// Lines over 64 KiB are searched in windows that overlap by 4 KiB: `^` and `$` hold at the edges of a window too,
    /// and a match longer than 4 KiB can be missed.
    ///
    /// # Errors
    /// [`GrepError::BadPattern`] for a pattern that is none, or that would take too much memory.
    pub fn grep(&self, options: &GrepOptions<'_>) -> Result<Grep, GrepError> {
        let pattern = RegexBuilder::new(options.pattern)
            .case_insensitive(options.ignore_case)
            .size_limit(PROGRAM)
            .dfa_size_limit(2 * PROGRAM)
            .build()
            .map_err(|error| GrepError::BadPattern(reason(&error)))?;
        let mut search = Search { pattern, options, found: Grep::default(), size: 0 };
        for stream in options.streams {
            self.grep_stream(*stream, &mut search);
        }
        Ok(search.found)
    }

    fn grep_stream(&self, stream: Stream, search: &mut Search<'_>) {
        let end = self.with_index(|index| index.totals.of(stream));
        let mut cursor = Cursor::at_offset(self, stream, 0);
        let mut lines = Lines::new(WINDOW, OVERLAP);
        let mut context = Context { stream, before: VecDeque::new(), open: None, wanting: 0..0, last: (0, false) };
        while !search.over(&context) {
            match cursor.step(self) {
                Step::Piece { stream: of, offset, data } if of == stream => {
                    let data = crate::range::within(offset, &data, 0, end);
                    lines.feed(offset, data, &mut |line| search.line(&mut context, &line));
                    if data.is_empty() {
                        break;
                    }
                }
                Step::Jump { from, to } if to.of(stream) > from.of(stream) => {
                    lines.cut(&mut |line| search.line(&mut context, &line));
                    context.before.clear();
                    context.open = None;
                    context.wanting = search.found.matches.len()..search.found.matches.len();
                }
                Step::Piece { .. } | Step::Event { .. } | Step::Jump { .. } => {}
                Step::Caught { .. } => break,
            }
        }
        lines.cut(&mut |line| search.line(&mut context, &line));
    }
}

struct Search<'a> {
    pattern: Regex,
    options: &'a GrepOptions<'a>,
    found: Grep,
    size: usize,
}

/// Where a search stands in one stream.
struct Context {
    stream: Stream,
    before: VecDeque<Vec<u8>>,
    /// the line that was looked at last; before the next one, once that begins
    open: Option<Vec<u8>>,
    /// matches that want more lines after them; the oldest is satisfied first
    wanting: Range<usize>,
    /// the line that was looked at last, and whether it matched
    last: (u64, bool),
}

impl Search<'_> {
    /// Whether nothing can be added to the result any more.
    fn over(&self, context: &Context) -> bool {
        self.found.more && context.wanting.is_empty()
    }

    fn line(&mut self, context: &mut Context, line: &Line<'_>) {
        let first = context.last.0 != line.number;
        let matched = !first && context.last.1;
        context.last = (line.number, matched);
        if first {
            self.give_after(context, line.bytes);
            context.before.extend(context.open.take());
            if context.before.len() > self.options.context_lines {
                context.before.pop_front();
            }
        }
        if !self.found.more
            && !matched
            && let Some(found) = self.find(line)
        {
            context.last.1 = true;
            self.take(context, line, found);
        }
        if first && self.options.context_lines > 0 {
            context.open = Some(shown(line.bytes).to_vec());
        }
    }

    /// The match in a line that was not in its window before.
    fn find(&self, line: &Line<'_>) -> Option<Range<usize>> {
        let bytes = without_return(line.bytes);
        let mut matches = self.pattern.find_iter(bytes);
        matches.find(|found| line.seen == 0 || found.end() > line.seen).map(|found| found.range())
    }

    fn take(&mut self, context: &mut Context, line: &Line<'_>, found: Range<usize>) {
        if self.found.matches.len() >= self.options.max_matches || self.size >= RESULT {
            self.found.more = true;
            return;
        }
        let bytes = without_return(line.bytes);
        let from = if found.end <= LINE { 0 } else { found.start.saturating_sub(LEAD) };
        let shown = &bytes[from..bytes.len().min(from + LINE)];
        let before: Vec<_> = context.before.iter().cloned().collect();
        self.size += shown.len() + before.iter().map(Vec::len).sum::<usize>();
        self.found.matches.push(Match {
            stream: context.stream,
            line_number: line.number,
            offset: line.start,
            match_offset: line.offset + found.start as u64,
            line: shown.to_vec(),
            cut: shown.len() < bytes.len() || line.offset > line.start || bytes.len() == WINDOW,
            before,
            after: Vec::new(),
        });
        if context.wanting.is_empty() {
            context.wanting.start = self.found.matches.len() - 1;
        }
        context.wanting.end = self.found.matches.len();
    }

    /// Gives a line to the matches that want lines after them.
    fn give_after(&mut self, context: &mut Context, bytes: &[u8]) {
        for wanting in &mut self.found.matches[context.wanting.clone()] {
            if wanting.after.len() < self.options.context_lines {
                let line = shown(bytes);
                self.size += line.len();
                wanting.after.push(line.to_vec());
            }
        }
        let full = |at: &usize| self.found.matches[*at].after.len() >= self.options.context_lines;
        context.wanting.start = context.wanting.clone().find(|at| !full(at)).unwrap_or(context.wanting.end);
    }
}

/// What a terminal puts before a newline does not belong to the line.
fn without_return(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn shown(line: &[u8]) -> &[u8] {
    let line = without_return(line);
    &line[..line.len().min(LINE)]
}

/// What is wrong, in one line: the library draws the pattern with a pointer.
fn reason(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "would take too much memory".to_string(),
        other => {
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default();
            last.strip_prefix("error: ").unwrap_or(last).to_string()
        }
    }
}
