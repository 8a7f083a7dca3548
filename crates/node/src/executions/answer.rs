//! The answer of a unary call: how an execution ended, and as much of what it printed as fits.

use std::{io, sync::Arc};

use cloud_sandbox_journal::{Attach, Excerpt, Item, Log, Position, Strategy, Stream};
use cloud_sandbox_model::error::{Error, Result};
use cloud_sandbox_proto::v1::{
    CodeError, CodeResult, ExecExited, ExecuteResponse, FileChanges, OutputStrategy, exec_event::Event,
};
use prost::Message;

use super::{
    Caller,
    execution::{changes_of, decode_event},
    register::expired,
};

/// The longest text in an answer, in bytes. Bytes that are not UTF-8 grow threefold when they are replaced; an answer
/// must still fit into a message.
const TEXT_MAX: usize = 8 * 1024 * 1024;
/// The most of results in an answer, in bytes.
const RESULTS_MAX: usize = 8 * 1024 * 1024;
/// What a message holds of output, results and changes together.
const ANSWER_MAX: usize = 19 * 1024 * 1024;
/// So much is read at once on the caller's own thread.
const QUICK: u64 = 256 * 1024;

/// How much of each output is wanted, and which part.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Budget {
    pub(crate) bytes: usize,
    pub(crate) strategy: Strategy,
}

impl Budget {
    pub(crate) fn new(bytes: usize, strategy: OutputStrategy) -> Self {
        let strategy = match strategy {
            OutputStrategy::Unspecified | OutputStrategy::Head => Strategy::Head,
            OutputStrategy::Tail => Strategy::Tail,
            OutputStrategy::HeadTail => Strategy::HeadTail,
            OutputStrategy::Errors => Strategy::Errors,
        };
        Self { bytes, strategy }
    }
}

impl Caller {
    /// Waits for the end and answers.
    pub(crate) async fn response(self, budget: Budget) -> Result<ExecuteResponse> {
        let log = &self.execution.log;
        if self.late && log.totals().evicted {
            return Err(expired(self.execution.request_id()));
        }
        let exited = self.end().await?;
        let totals = log.totals();
        let (stdout, stderr) = if totals.stdout.saturating_add(totals.stderr) <= QUICK {
            excerpts(log, budget).map_err(unreadable)?
        } else {
            let log = Arc::clone(log);
            let read = tokio::task::spawn_blocking(move || excerpts(&log, budget));
            read.await.map_err(|error| Error::internal("read the journal", error))?.map_err(unreadable)?
        };
        let noted = if totals.events > 0 { self.noted().await } else { Noted::default() };
        Ok(self.answer(exited, Text::new(stdout, budget), Text::new(stderr, budget), noted))
    }

    fn answer(&self, exited: ExecExited, stdout: Text, stderr: Text, noted: Noted) -> ExecuteResponse {
        let changes = noted.changes.as_ref().map_or(0, Message::encoded_len);
        let left = ANSWER_MAX.saturating_sub(stdout.text.len() + stderr.text.len() + changes);
        let (results, dropped) = fit(noted.results, left.min(RESULTS_MAX));
        ExecuteResponse {
            execution_id: self.execution.id.to_string(),
            exit_code: exited.exit_code,
            signal: exited.signal,
            timed_out: exited.timed_out,
            oom_killed: exited.oom_killed,
            stdout_truncated: stdout.omitted > 0,
            stderr_truncated: stderr.omitted > 0,
            stdout_bytes: exited.stdout_bytes,
            stderr_bytes: exited.stderr_bytes,
            wall_time_ms: exited.wall_time_ms,
            cpu_time_ms: exited.cpu_time_ms,
            peak_memory_bytes: exited.peak_memory_bytes,
            stdout_omitted_bytes: stdout.omitted,
            stderr_omitted_bytes: stderr.omitted,
            stdout: stdout.text,
            stderr: stderr.text,
            results,
            results_omitted: noted.lost.saturating_add(dropped),
            error: noted.error,
            context_id: exited.context_id,
            context_restarted: exited.context_restarted,
            changes: noted.changes,
            disk_limit: exited.disk_limit,
            pids_limit: exited.pids_limit,
        }
    }

    /// Reads the events off the log. Those of code stand anywhere; changes stand at the end.
    async fn noted(&self) -> Noted {
        let log = &self.execution.log;
        let totals = log.totals();
        let anywhere = !self.execution.context_id().is_empty();
        let end = Position { stdout: totals.stdout, stderr: totals.stderr };
        let mut reader = log.reader(if anywhere { Position::default() } else { end }, Attach::Free);
        let mut noted = Noted::default();
        let mut size = 0;
        while let Some(item) = reader.next().await {
            match item {
                Item::Event(bytes) => {
                    size += bytes.len();
                    noted.take(bytes, size <= RESULTS_MAX);
                }
                Item::Gap(gap) => noted.lose(gap.events),
                Item::Stdout { .. } | Item::Stderr { .. } | Item::Tail(_) => {}
            }
        }
        noted
    }
}

/// What happened beside the output.
#[derive(Default)]
struct Noted {
    results: Vec<CodeResult>,
    lost: u32,
    error: Option<CodeError>,
    changes: Option<FileChanges>,
}

impl Noted {
    fn take(&mut self, bytes: bytes::Bytes, fits: bool) {
        match decode_event(bytes) {
            Some(Event::Result(result)) if fits => self.results.push(result),
            Some(Event::Result(_)) => self.lose(1),
            Some(Event::Error(error)) => self.error = Some(error),
            Some(other) => self.changes = changes_of(other).or(self.changes.take()),
            None => {}
        }
    }

    fn lose(&mut self, events: u64) {
        self.lost = self.lost.saturating_add(u32::try_from(events).unwrap_or(u32::MAX));
    }
}

/// The first results that fit, and how many do not.
fn fit(mut results: Vec<CodeResult>, mut room: usize) -> (Vec<CodeResult>, u32) {
    let all = results.len();
    results.retain(|result| {
        let size = result.encoded_len();
        let fits = size <= room;
        room = if fits { room - size } else { 0 };
        fits
    });
    let dropped = u32::try_from(all - results.len()).unwrap_or(u32::MAX);
    (results, dropped)
}

fn excerpts(log: &Log, budget: Budget) -> io::Result<(Excerpt, Excerpt)> {
    let of = |stream| log.excerpt(stream, budget.bytes, budget.strategy);
    Ok((of(Stream::Stdout)?, of(Stream::Stderr)?))
}

fn unreadable(error: io::Error) -> Error {
    Error::internal("read the journal", error)
}

/// An excerpt as text.
struct Text {
    text: String,
    omitted: u64,
}

impl Text {
    fn new(excerpt: Excerpt, budget: Budget) -> Self {
        let Excerpt { bytes, mut omitted, .. } = excerpt;
        let text = match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let bytes = error.into_bytes();
                let kept = match budget.strategy {
                    Strategy::Head => &bytes[..fitting(bytes.utf8_chunks())],
                    Strategy::Tail | Strategy::HeadTail | Strategy::Errors => &bytes[beyond(&bytes)..],
                };
                omitted += (bytes.len() - kept.len()) as u64;
                String::from_utf8_lossy(kept).into_owned()
            }
        };
        Self { text, omitted }
    }
}

/// How many bytes from the beginning fit as text when what is not UTF-8 is replaced.
fn fitting(chunks: std::str::Utf8Chunks<'_>) -> usize {
    let (mut length, mut taken) = (0, 0);
    for chunk in chunks {
        let valid = chunk.valid();
        if length + valid.len() > TEXT_MAX {
            return taken + valid.floor_char_boundary(TEXT_MAX - length);
        }
        length += valid.len();
        taken += valid.len();
        if !chunk.invalid().is_empty() {
            length += char::REPLACEMENT_CHARACTER.len_utf8();
            if length > TEXT_MAX {
                return taken;
            }
            taken += chunk.invalid().len();
        }
    }
    taken
}

/// How many bytes at the beginning must go for the rest to fit.
fn beyond(bytes: &[u8]) -> usize {
    let replaced = char::REPLACEMENT_CHARACTER.len_utf8();
    let length: usize =
        bytes.utf8_chunks().map(|c| c.valid().len() + replaced * usize::from(!c.invalid().is_empty())).sum();
    let Some(mut excess) = length.checked_sub(TEXT_MAX) else { return 0 };
    let mut gone = 0;
    for chunk in bytes.utf8_chunks() {
        let valid = chunk.valid();
        if excess <= valid.len() {
            return gone + valid.ceil_char_boundary(excess);
        }
        excess -= valid.len();
        gone += valid.len() + chunk.invalid().len();
        excess = excess.saturating_sub(if chunk.invalid().is_empty() { 0 } else { replaced });
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: Vec<u8>, strategy: Strategy) -> Text {
        let excerpt = Excerpt { bytes, omitted: 0, whole: true };
        Text::new(excerpt, Budget { bytes: TEXT_MAX, strategy })
    }

    #[test]
    fn replaced_bytes_do_not_outgrow_an_answer_and_are_counted() {
        for strategy in [Strategy::Head, Strategy::Tail, Strategy::HeadTail, Strategy::Errors] {
            let answer = text(vec![0xFF; TEXT_MAX], strategy);
            assert!(answer.text.len() <= TEXT_MAX && answer.text.len() > TEXT_MAX - 3, "{strategy:?}");
            assert_eq!(answer.omitted as usize, TEXT_MAX - answer.text.len() / 3);
        }
    }

    #[test]
    fn head_keeps_the_beginning_and_tail_the_end() {
        let mut bytes = vec![0xFF; TEXT_MAX];
        bytes[0] = b'a';
        bytes[TEXT_MAX - 1] = b'z';
        assert!(text(bytes.clone(), Strategy::Head).text.starts_with('a'));
        assert!(text(bytes.clone(), Strategy::Tail).text.ends_with('z'));
        let little = text(b"a\xFFz".to_vec(), Strategy::Tail);
        assert_eq!((little.text.as_str(), little.omitted), ("a\u{FFFD}z", 0));
    }

    #[test]
    fn results_that_do_not_fit_are_counted() {
        let result = |length: usize| CodeResult { text: "x".repeat(length), ..Default::default() };
        let (kept, dropped) = fit(vec![result(10), result(100), result(1)], 50);
        assert_eq!((kept.len(), dropped), (1, 2));
    }
}
