//! What an execution has printed so far, up to its bound, and how it ended.

use cloud_sandbox_model::ExecutionId;
use cloud_sandbox_proto::v1::{ExecExited, ExecuteResponse};
use tonic::Status;

/// The longest text in an answer, in bytes. Bytes that are not UTF-8 grow threefold when they are replaced; an answer
/// must still fit into a message.
const TEXT_MAX: usize = 8 * 1024 * 1024;

/// The beginning of an output stream.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    /// all that was printed
    total: u64,
    truncated: bool,
}

impl Output {
    /// Keeps what fits. A character that does not fit whole is not begun.
    fn push(&mut self, piece: &[u8], max: usize) {
        self.total += piece.len() as u64;
        if self.truncated {
            return;
        }
        let room = max - self.bytes.len();
        self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.len() > room {
            self.truncated = true;
            self.bytes.truncate(whole_characters(&self.bytes));
        }
    }

    /// What is kept from `offset` on, at most `max` bytes of it. Nothing when a reader is past what a truncation left.
    pub(crate) fn from(&self, offset: usize, max: usize) -> &[u8] {
        let end = self.bytes.len().min(offset.saturating_add(max));
        self.bytes.get(offset..end).unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What is kept, as text, and whether that is only the beginning of what was printed.
    fn text(&self) -> (String, bool) {
        let mut text = String::from_utf8_lossy(&self.bytes).into_owned();
        let fits = text.floor_char_boundary(TEXT_MAX);
        let cut = fits < text.len();
        text.truncate(fits);
        (text, self.truncated || cut)
    }
}

/// How much of `bytes` ends with a whole character; all of it unless the end could be the beginning of one.
fn whole_characters(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3);
    for start in (tail..bytes.len()).rev() {
        let length = match bytes[start] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => return bytes.len(),
        };
        return if bytes.len() - start < length { start } else { bytes.len() };
    }
    bytes.len()
}

/// How an execution ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Exit {
    pub(crate) exit_code: i32,
    pub(crate) signal: String,
    pub(crate) timed_out: bool,
    pub(crate) oom_killed: bool,
    pub(crate) wall_time_ms: f64,
    pub(crate) cpu_time_ms: f64,
    pub(crate) peak_memory_bytes: u64,
}

/// An execution's record.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    pub(crate) started: bool,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    /// how it ended, or why nobody knows
    pub(crate) end: Option<Result<Exit, Status>>,
}

impl Capture {
    pub(crate) fn push_stdout(&mut self, piece: &[u8], max: usize) {
        self.stdout.push(piece, max);
    }

    pub(crate) fn push_stderr(&mut self, piece: &[u8], max: usize) {
        self.stderr.push(piece, max);
    }

    /// Notes the end; nothing is printed after it.
    pub(crate) fn finish(&mut self, end: Result<Exit, Status>) {
        self.stdout.bytes.shrink_to_fit();
        self.stderr.bytes.shrink_to_fit();
        self.end = Some(end);
    }

    /// Bytes that it takes to keep.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.stdout.len() + self.stderr.len()
    }

    /// The answer of a unary call.
    pub(crate) fn response(&self, id: ExecutionId, exit: &Exit) -> ExecuteResponse {
        let exit = exit.clone();
        let (stdout, stdout_truncated) = self.stdout.text();
        let (stderr, stderr_truncated) = self.stderr.text();
        ExecuteResponse {
            execution_id: id.to_string(),
            stdout,
            stderr,
            exit_code: exit.exit_code,
            signal: exit.signal,
            timed_out: exit.timed_out,
            oom_killed: exit.oom_killed,
            stdout_truncated,
            stderr_truncated,
            stdout_bytes: self.stdout.total,
            stderr_bytes: self.stderr.total,
            wall_time_ms: exit.wall_time_ms,
            cpu_time_ms: exit.cpu_time_ms,
            peak_memory_bytes: exit.peak_memory_bytes,
        }
    }

    /// The last event of a stream.
    pub(crate) fn exited(&self, exit: &Exit) -> ExecExited {
        ExecExited {
            stdout_truncated: self.stdout.truncated,
            stderr_truncated: self.stderr.truncated,
            stdout_bytes: self.stdout.total,
            stderr_bytes: self.stderr.total,
            ..exit.exited()
        }
    }
}

impl Exit {
    /// The event, without what was counted of the output.
    pub(crate) fn exited(&self) -> ExecExited {
        ExecExited {
            exit_code: self.exit_code,
            signal: self.signal.clone(),
            timed_out: self.timed_out,
            oom_killed: self.oom_killed,
            wall_time_ms: self.wall_time_ms,
            cpu_time_ms: self.cpu_time_ms,
            peak_memory_bytes: self.peak_memory_bytes,
            ..ExecExited::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_is_counted_and_dropped() {
        let mut output = Output::default();
        output.push(b"abc", 5);
        output.push(b"de", 5);
        assert!(!output.truncated);
        output.push(b"f", 5);
        output.push(b"ghi", 5);
        assert_eq!((output.text(), output.total), (("abcde".to_owned(), true), 9));
    }

    #[test]
    fn replaced_bytes_do_not_outgrow_an_answer() {
        let mut output = Output::default();
        output.push(&[0xFF; TEXT_MAX], TEXT_MAX);
        let (text, truncated) = output.text();
        assert!(text.len() <= TEXT_MAX && text.len() > TEXT_MAX - 3);
        assert!(truncated && !output.truncated);
    }

    #[test]
    fn truncation_never_cuts_a_character() {
        for (max, kept) in [(1, "a"), (2, "a"), (3, "aé"), (4, "aé"), (6, "aé"), (7, "aé😀")] {
            let mut output = Output::default();
            output.push("aé😀b".as_bytes(), max);
            assert_eq!(output.text(), (kept.to_owned(), true), "{max}");
        }
        let mut binary = Output::default();
        binary.push(&[0xFF, 0x80, 0x80, 0x80, 0x80], 4);
        assert_eq!(binary.len(), 4);
    }
}
