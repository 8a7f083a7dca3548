//! Unified diffs, within bounds of size and time.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use similar::TextDiff;

/// The most that all diffs may be together, in bytes.
const MAX_ALL: usize = 256 * 1024;
/// The most that one may be, in bytes.
const MAX_ONE: usize = 64 * 1024;
/// How long may be spent to make one small; it is right in any case.
const TIME_FOR_ONE: Duration = Duration::from_millis(100);
/// How long may be spent on all.
const TIME_FOR_ALL: Duration = Duration::from_secs(1);

/// Makes the diffs of one comparison.
pub(super) struct Diffs {
    left: usize,
    spent: Duration,
}

impl Default for Diffs {
    fn default() -> Self {
        Self { left: MAX_ALL, spent: Duration::ZERO }
    }
}

impl Diffs {
    /// The diff between two texts at `path`, of which one may not exist; and whether it is not all of it.
    pub(super) fn diff(&mut self, path: &[u8], old: Option<&str>, new: Option<&str>) -> (String, bool) {
        let time = TIME_FOR_ALL.saturating_sub(self.spent).min(TIME_FOR_ONE);
        if self.left == 0 || time.is_zero() {
            return (String::new(), true);
        }
        let began = Instant::now();
        let room = MAX_ONE.min(self.left);
        let mut bounded = Bounded { text: Vec::new(), left: room };
        let is_whole = write(&mut bounded, path, old, new, time).is_ok();
        self.spent += began.elapsed();
        let mut text = bounded.text;
        if !is_whole {
            // Whole lines only; the last hunk may still lack its end.
            text.truncate(text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        }
        self.left = if !is_whole && room == self.left { 0 } else { self.left - text.len() };
        (String::from_utf8(text).unwrap_or_default(), !is_whole)
    }
}

fn write(to: &mut Bounded, path: &[u8], old: Option<&str>, new: Option<&str>, time: Duration) -> io::Result<()> {
    let name = |side: &str, text: Option<&str>| match text {
        Some(_) => format!("{side}/{}", shown(path)),
        None => "/dev/null".to_owned(),
    };
    // Lines end with a line feed and nothing else, as for patch(1).
    let [old_lines, new_lines] = [old, new].map(|text| text.unwrap_or("").split_inclusive('\n').collect::<Vec<_>>());
    TextDiff::configure()
        .timeout(time)
        .newline_terminated(true)
        .diff_slices(&old_lines, &new_lines)
        .unified_diff()
        .header(&name("a", old), &name("b", new))
        .to_writer(to)
}

/// A name that cannot be taken for another line.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path)
        .chars()
        .map(|it| if it.is_control() { char::REPLACEMENT_CHARACTER } else { it })
        .collect()
}

/// Takes so much and then fails.
struct Bounded {
    text: Vec<u8>,
    left: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > self.left {
            let rest = &bytes[..self.left];
            self.text.extend_from_slice(rest);
            self.left = 0;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.left -= bytes.len();
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
