//! What is asked of executions that run or have ended: which there are, and what they printed.

use std::sync::Arc;

use cloud_sandbox_journal::{GrepError, GrepOptions, MAX_RANGE, Match, Range, Stream};
use cloud_sandbox_model::{
    ExecutionId,
    error::{Error, Result},
    input::{Violations, page_size},
};
use cloud_sandbox_proto::v1::{
    ExecutionState, GrepExecutionOutputRequest, GrepExecutionOutputResponse, ListExecutionsRequest,
    ListExecutionsResponse, OutputMatch, OutputStream, ReadExecutionOutputRequest, ReadExecutionOutputResponse,
    read_execution_output_response::Content,
};

use super::{Execution, Executions, pieces::whole_characters};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;
const READ_DEFAULT: u32 = 1024 * 1024;
const READ_MAX: u32 = MAX_RANGE as u32;
/// So much is read at once on the caller's own thread.
const QUICK: usize = 256 * 1024;
const PATTERN_MAX: usize = 1024;
const MATCHES_DEFAULT: u32 = 100;
const MATCHES_MAX: u32 = 1000;
const CONTEXT_MAX: u32 = 20;

/// One page of a sandbox's executions.
pub(crate) fn list(executions: &Executions, request: &ListExecutionsRequest) -> Result<ListExecutionsResponse> {
    let mut violations = Violations::default();
    let size = violations.take(page_size(request.page_size, PAGE_DEFAULT, PAGE_MAX));
    let after = match request.page_token.as_str() {
        "" => None,
        token => violations.take(
            token
                .parse::<ExecutionId>()
                .map_err(|_| Error::invalid("page_token", "must be the next_page_token of an earlier answer")),
        ),
    };
    let state = ExecutionState::try_from(request.state);
    violations.check(state.is_ok(), "state", "must be queued, running, exited or unknown");
    violations.finish()?;

    let state = state.unwrap_or_default();
    let wanted = |execution: &Execution| {
        (state == ExecutionState::Unspecified || execution.state() == state)
            && (request.tag.is_empty() || execution.tag() == request.tag)
    };
    let size = size.unwrap_or(PAGE_DEFAULT as usize);
    // one more, to know whether there is another page
    let mut found = executions.list(after, size + 1, wanted);
    let more = found.len() > size;
    found.truncate(size);
    let last = found.last().filter(|_| more);
    Ok(ListExecutionsResponse {
        next_page_token: last.map_or_else(String::new, |execution| execution.id.to_string()),
        executions: found.iter().map(|execution| execution.describe()).collect(),
    })
}

/// A range of what was printed.
pub(crate) async fn read(
    execution: &Arc<Execution>,
    request: &ReadExecutionOutputRequest,
) -> Result<ReadExecutionOutputResponse> {
    let mut violations = Violations::default();
    let stream = OutputStream::try_from(request.stream);
    violations.check(stream.is_ok(), "stream", "must be stdout or stderr");
    violations.range("limit", &request.limit, &0, &READ_MAX);
    violations.finish()?;
    let stream = stream_of(stream.unwrap_or_default()).unwrap_or(Stream::Stdout);
    let limit = if request.limit == 0 { READ_DEFAULT } else { request.limit } as usize;
    let offset = request.offset;

    let range = if limit <= QUICK {
        execution.log.read(stream, offset, limit)
    } else {
        let execution = Arc::clone(execution);
        let read = tokio::task::spawn_blocking(move || execution.log.read(stream, offset, limit));
        read.await.map_err(|error| Error::internal("read the journal", error))?
    };
    Ok(answer(range.map_err(|error| Error::internal("read the journal", error))?, limit))
}

fn answer(range: Range, limit: usize) -> ReadExecutionOutputResponse {
    let Range { offset, mut bytes, total, finished, .. } = range;
    let at_end = finished && offset + bytes.len() as u64 >= total;
    let whole = whole_characters(&bytes);
    // what was only begun is left to the next range, unless it is all that fits or all there will be
    if !at_end && (whole > 0 || (bytes.len() < limit && !finished)) {
        bytes.truncate(whole);
    }
    let next_offset = offset + bytes.len() as u64;
    let content = match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Data(error.into_bytes().into()),
    };
    let end = finished && next_offset >= total;
    ReadExecutionOutputResponse { offset, content: Some(content), next_offset, total_bytes: total, end }
}

/// The lines that match.
pub(crate) async fn grep(
    execution: Arc<Execution>,
    request: GrepExecutionOutputRequest,
) -> Result<GrepExecutionOutputResponse> {
    let mut violations = Violations::default();
    let stream = OutputStream::try_from(request.stream);
    violations.check(stream.is_ok(), "stream", "must be stdout or stderr");
    let fits = (1..=PATTERN_MAX).contains(&request.pattern.len());
    violations.check(fits, "pattern", format!("must be 1 to {PATTERN_MAX} bytes long"));
    violations.range("max_matches", &request.max_matches, &0, &MATCHES_MAX);
    violations.range("context_lines", &request.context_lines, &0, &CONTEXT_MAX);
    violations.finish()?;
    let only = stream_of(stream.unwrap_or_default());

    let searched = tokio::task::spawn_blocking(move || {
        let max_matches = if request.max_matches == 0 { MATCHES_DEFAULT } else { request.max_matches };
        let only = only.map(|stream| [stream]);
        execution.log.grep(&GrepOptions {
            pattern: &request.pattern,
            ignore_case: request.ignore_case,
            streams: only.as_ref().map_or(&Stream::BOTH[..], |only| &only[..]),
            max_matches: max_matches as usize,
            context_lines: request.context_lines as usize,
        })
    });
    match searched.await.map_err(|error| Error::internal("search the journal", error))? {
        Ok(found) => {
            let matches = found.matches.into_iter().map(output_match).collect();
            Ok(GrepExecutionOutputResponse { matches, more: found.more })
        }
        Err(GrepError::BadPattern(why)) => {
            Err(Error::invalid("pattern", format!("must be a regular expression: {why}")))
        }
        Err(GrepError::Io(error)) => Err(Error::internal("search the journal", error)),
    }
}

fn output_match(found: Match) -> OutputMatch {
    let text = |line: Vec<u8>| String::from_utf8_lossy(&line).into_owned();
    OutputMatch {
        stream: match found.stream {
            Stream::Stdout => OutputStream::Stdout.into(),
            Stream::Stderr => OutputStream::Stderr.into(),
        },
        line_number: found.line_number,
        offset: found.offset,
        line: text(found.line),
        before: found.before.into_iter().map(text).collect(),
        after: found.after.into_iter().map(text).collect(),
    }
}

fn stream_of(stream: OutputStream) -> Option<Stream> {
    match stream {
        OutputStream::Unspecified => None,
        OutputStream::Stdout => Some(Stream::Stdout),
        OutputStream::Stderr => Some(Stream::Stderr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(bytes: &[u8], total: u64, finished: bool) -> Range {
        Range { offset: 0, bytes: bytes.to_vec(), next_offset: bytes.len() as u64, gap: None, total, finished }
    }

    #[test]
    fn character_at_the_end_is_left_to_the_next_range_while_one_comes() {
        let half = &"aé".as_bytes()[..2];
        let given = answer(range(half, 9, true), 2);
        assert_eq!((given.content, given.next_offset, given.end), (Some(Content::Text("a".into())), 1, false));
        let given = answer(range(half, 2, false), 100);
        assert_eq!((given.next_offset, given.end), (1, false));
        let given = answer(range(half, 2, true), 100);
        assert_eq!((given.next_offset, given.end), (2, true));
        assert!(matches!(given.content, Some(Content::Data(_))));
    }

    #[test]
    fn range_smaller_than_a_character_still_gets_on() {
        let given = answer(range(&[0xC3], 9, true), 1);
        assert_eq!(given.next_offset, 1);
        let given = answer(range(&[0xC3], 1, false), 100);
        assert_eq!(given.next_offset, 0);
    }
}
