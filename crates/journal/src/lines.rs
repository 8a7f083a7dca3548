//! Cuts a stream into lines without holding more than one window of a line.

/// A line, or a window of one that is too long.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line<'a> {
    /// from 1; after a gap, of the lines that are there
    pub number: u64,
    /// where the line begins in its stream
    pub start: u64,
    /// where `bytes` begins in its stream
    pub offset: u64,
    /// without the newline
    pub bytes: &'a [u8],
    /// so much at the beginning was in the line's window before this one
    pub seen: usize,
    /// where the line ends, with its newline, as far as it is known now
    pub end: u64,
}

#[derive(Debug)]
pub(crate) struct Lines {
    window: usize,
    overlap: usize,
    number: u64,
    /// where the line begins whose first bytes have come
    open: Option<u64>,
    buffer: Vec<u8>,
    /// where `buffer` begins
    offset: u64,
    seen: usize,
}

impl Lines {
    /// Lines over `window` bytes are given in windows, each of which repeats the last `overlap` bytes of the one before.
    pub fn new(window: usize, overlap: usize) -> Self {
        Self { window, overlap, number: 1, open: None, buffer: Vec::new(), offset: 0, seen: 0 }
    }

    /// Takes what follows in the stream.
    pub fn feed(&mut self, mut offset: u64, mut data: &[u8], each: &mut impl FnMut(Line<'_>)) {
        while !data.is_empty() {
            let newline = data.iter().position(|byte| *byte == b'\n');
            let bytes = &data[..newline.unwrap_or(data.len())];
            let after = bytes.len() + usize::from(newline.is_some());
            let end = offset + after as u64;
            if newline.is_some() && self.open.is_none() && bytes.len() <= self.window {
                each(Line { number: self.number, start: offset, offset, bytes, seen: 0, end });
                self.number += 1;
            } else {
                self.gather(offset, bytes, each);
                if newline.is_some() {
                    self.end_line(end, each);
                }
            }
            offset = end;
            data = &data[after..];
        }
    }

    /// The stream ends here, or what follows is missing: the line ends too.
    pub fn cut(&mut self, each: &mut impl FnMut(Line<'_>)) {
        if self.open.is_some() {
            self.end_line(self.offset + self.buffer.len() as u64, each);
        }
    }

    fn gather(&mut self, offset: u64, mut bytes: &[u8], each: &mut impl FnMut(Line<'_>)) {
        if self.open.is_none() {
            self.open = Some(offset);
            self.offset = offset;
        }
        while !bytes.is_empty() {
            if self.buffer.len() == self.window {
                self.give(self.offset + self.window as u64, each);
                let gone = self.window - self.overlap;
                self.buffer.drain(..gone);
                self.offset += gone as u64;
                self.seen = self.overlap;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.window - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            bytes = later;
        }
    }

    fn end_line(&mut self, end: u64, each: &mut impl FnMut(Line<'_>)) {
        if self.open.is_none() {
            self.open = Some(self.offset);
        }
        self.give(end, each);
        self.number += 1;
        self.open = None;
        self.seen = 0;
        self.buffer.clear();
    }

    fn give(&self, end: u64, each: &mut impl FnMut(Line<'_>)) {
        each(Line {
            number: self.number,
            start: self.open.unwrap_or(self.offset),
            offset: self.offset,
            bytes: &self.buffer,
            seen: self.seen,
            end,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(window: usize, overlap: usize, pieces: &[&str]) -> Vec<(u64, u64, String, usize, u64)> {
        let mut lines = Lines::new(window, overlap);
        let mut found = Vec::new();
        let mut each = |line: Line<'_>| found.push((line.number, line.offset, text(line.bytes), line.seen, line.end));
        let mut offset = 0;
        for piece in pieces {
            lines.feed(offset, piece.as_bytes(), &mut each);
            offset += piece.len() as u64;
        }
        lines.cut(&mut each);
        found
    }

    fn text(bytes: &[u8]) -> String {
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    #[test]
    fn lines_are_the_same_however_the_stream_is_cut() {
        let whole = lines(10, 0, &["ab\n\ncd\nrest"]);
        let expected = [(1, 0, "ab", 0, 3), (2, 3, "", 0, 4), (3, 4, "cd", 0, 7), (4, 7, "rest", 0, 11)];
        assert_eq!(whole, expected.map(|(n, o, t, s, e)| (n, o, t.to_string(), s, e)));
        assert_eq!(lines(10, 0, &["a", "b", "\n", "\ncd", "\nre", "st"]), whole);
    }

    #[test]
    fn long_line_comes_in_windows_that_overlap() {
        let found = lines(4, 1, &["abc", "defgh", "i\nx\n"]);
        let texts: Vec<_> = found.iter().map(|(n, o, t, s, _)| (*n, *o, t.as_str(), *s)).collect();
        assert_eq!(texts, [(1, 0, "abcd", 0), (1, 3, "defg", 1), (1, 6, "ghi", 1), (2, 10, "x", 0)]);
    }

    #[test]
    fn stream_that_ends_with_a_newline_has_no_empty_last_line() {
        assert_eq!(lines(4, 0, &["abcd\n"]).len(), 1);
        assert_eq!(lines(4, 0, &["ab", "cd", "\n"]).len(), 1);
    }
}
