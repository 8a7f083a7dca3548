//! The events of an execution, read off its log from given offsets on.

use cloud_sandbox_journal::{Attach, Gap, Item, Position, Reader, Stream as Output};
use cloud_sandbox_model::error::Result;
use cloud_sandbox_proto::v1::{
    ExecEvent, ExecExited, ExecGap, ExecOutput, ExecStarted, FileChanges, OutputStream, exec_event::Event,
    exec_output::Content,
};
use cloud_sandbox_rpc::{from_status, to_status};
use futures::Stream;
use tonic::Status;

use super::{
    Caller, End,
    execution::{changes_of, decode_event},
    pieces::{Pieces, whole_characters},
};

/// The events from `started` to the end. While they are read slowly a full log holds back what prints. Dropped, it is a
/// caller who hung up. Of each output no more than `budget` bytes are sent.
pub(crate) fn events(
    caller: Caller,
    from: Position,
    budget: Option<u64>,
) -> impl Stream<Item = Result<ExecEvent, Status>> + Send + 'static {
    let reader = caller.execution.log.reader(from, Attach::Paced);
    async_stream::stream! {
        let pid = match caller.execution.until_begun().await {
            Ok(pid) => pid,
            Err(status) => {
                yield Err(status);
                return;
            }
        };
        let started = ExecStarted { execution_id: caller.execution.id.to_string(), pid };
        yield Ok(event(Event::Started(started)));
        let mut relay = Relay::new(reader, from, budget);
        while let Some(events) = relay.next().await {
            for happened in events {
                yield Ok(event(happened));
            }
        }
        for happened in relay.rest() {
            yield Ok(event(happened));
        }
        yield match caller.end().await {
            Ok(exited) => Ok(event(Event::Exited(relay.exited(exited)))),
            Err(error) => Err(to_status(error)),
        };
    }
}

/// One output on its way to a caller.
struct Side {
    pieces: Pieces,
    /// what of it may still be sent
    left: u64,
    /// there was more than that
    cut: bool,
}

impl Side {
    fn new(offset: u64, budget: Option<u64>) -> Self {
        Self { pieces: Pieces::at(offset), left: budget.unwrap_or(u64::MAX), cut: false }
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<ExecOutput> {
        if self.cut {
            return Vec::new();
        }
        let fits = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        self.left -= fits as u64;
        if fits == bytes.len() {
            return self.pieces.push(bytes, false);
        }
        self.cut = true;
        // a character that does not fit whole is not begun
        let mut pieces = self.pieces.push(&bytes[..fits], false);
        if let Some(ExecOutput { content: Some(Content::Data(data)), .. }) = pieces.last_mut() {
            data.truncate(whole_characters(data));
        }
        pieces
    }

    fn flush(&mut self) -> Vec<ExecOutput> {
        if self.cut { Vec::new() } else { self.pieces.push(&[], true) }
    }
}

struct Relay {
    /// none when nothing more of it would be sent
    reader: Option<Reader>,
    stdout: Side,
    stderr: Side,
    changes: Option<FileChanges>,
}

impl Relay {
    fn new(reader: Reader, from: Position, budget: Option<u64>) -> Self {
        let (stdout, stderr) = (Side::new(from.stdout, budget), Side::new(from.stderr, budget));
        Self { reader: Some(reader), stdout, stderr, changes: None }
    }

    /// What happened next; none when the log ends.
    async fn next(&mut self) -> Option<Vec<Event>> {
        let item = self.reader.as_mut()?.next().await?;
        Some(match item {
            Item::Stdout { bytes, .. } => self.stdout.take(&bytes).into_iter().map(Event::Stdout).collect(),
            Item::Stderr { bytes, .. } => self.stderr.take(&bytes).into_iter().map(Event::Stderr).collect(),
            Item::Gap(gap) => self.jump(gap),
            Item::Event(bytes) => match decode_event(bytes) {
                Some(happened @ (Event::Result(_) | Event::Error(_))) => vec![happened],
                Some(happened) => {
                    self.changes = changes_of(happened);
                    Vec::new()
                }
                None => Vec::new(),
            },
            Item::Tail(_) => {
                self.reader = None;
                Vec::new()
            }
        })
    }

    fn jump(&mut self, gap: Gap) -> Vec<Event> {
        let (side, stream, wrap): (_, _, fn(ExecOutput) -> Event) = match gap.stream {
            Output::Stdout => (&mut self.stdout, OutputStream::Stdout, Event::Stdout),
            Output::Stderr => (&mut self.stderr, OutputStream::Stderr, Event::Stderr),
        };
        let mut events: Vec<_> = side.flush().into_iter().map(wrap).collect();
        if side.cut {
            return events;
        }
        side.pieces = Pieces::at(gap.offset + gap.length);
        events.push(Event::Gap(ExecGap {
            stream: stream.into(),
            offset: gap.offset,
            length: gap.length,
            results: u32::try_from(gap.events).unwrap_or(u32::MAX),
        }));
        events
    }

    /// Characters whose ends did not come.
    fn rest(&mut self) -> Vec<Event> {
        let stdout = self.stdout.flush().into_iter().map(Event::Stdout);
        stdout.chain(self.stderr.flush().into_iter().map(Event::Stderr)).collect()
    }

    fn exited(&mut self, exited: ExecExited) -> ExecExited {
        ExecExited {
            stdout_truncated: self.stdout.cut,
            stderr_truncated: self.stderr.cut,
            changes: self.changes.take(),
            ..exited
        }
    }
}

impl Caller {
    /// Waits for the end, and says what this caller is told of it.
    pub(crate) async fn end(&self) -> Result<ExecExited> {
        match self.execution.until_ended().await {
            End::Exited(exited) => Ok(*exited),
            End::Refused(status) => Err(from_status(&status)),
            End::Unknown { status, .. } if !self.late => Err(from_status(&status)),
            End::Unknown { failure, .. } => Err(self.execution.outcome_unknown(&failure)),
        }
    }
}

fn event(event: Event) -> ExecEvent {
    ExecEvent { event: Some(event) }
}
