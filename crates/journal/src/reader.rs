//! Follows a log from a position on, as fast as its owner takes what it gives.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use crate::{
    Gap,
    cursor::{Cursor, Step},
    index::Progress,
    log::Log,
    place::{Place, Position, Stream},
};

/// The most that one item holds of a stream.
pub const PIECE: usize = 32 << 10;
/// Smaller pieces are copied together rather than handed out as parts of what was read.
const WORTH_SHARING: usize = PIECE / 2;

/// What a reader asks of the writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// The writer waits, once the log is full, until this reader has read what is to be dropped; and when the disk
    /// takes nothing, until this reader has what could not be written.
    Paced,
    /// The writer does not care; a slow reader finds gaps.
    Free,
}

/// What a reader gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Standard output, at most [`PIECE`] of it.
    Stdout {
        /// of its first byte
        offset: u64,
        /// what was printed
        bytes: Bytes,
    },
    /// Standard error, at most [`PIECE`] of it.
    Stderr {
        /// of its first byte
        offset: u64,
        /// what was printed
        bytes: Bytes,
    },
    /// An event.
    Event(Bytes),
    /// Something is not there any more. Of a gap in both streams there are two; events are counted with the first.
    Gap(Gap),
    /// How it ended. The last item.
    Tail(Bytes),
}

/// Follows a log. Holds at most about 64 KiB of it, and one event.
#[derive(Debug)]
pub struct Reader {
    log: Arc<Log>,
    cursor: Cursor,
    from: Position,
    /// stepped to, but not given yet
    held: Option<Step>,
    gaps: VecDeque<Gap>,
    paced: Option<(u64, Progress)>,
    done: bool,
}

enum Found {
    Item(Item),
    /// nothing now
    Wait,
    /// nothing ever
    End,
}

impl Log {
    /// Reads from a position on, follows the log while it runs, and ends after its tail.
    ///
    /// An event stands between bytes: it is given when both streams had reached the position where it stands. So a
    /// reader from the start gets all, and one that comes back with the bytes it has gets those after them, and again
    /// those that stand exactly there. A position beyond the end is waited for.
    #[must_use]
    pub fn reader(self: &Arc<Self>, from: Position, attach: Attach) -> Reader {
        let reached = |start: Place| start.stdout <= from.stdout && start.stderr <= from.stderr;
        // of events that stand at the position some may be in the segment before the one that begins there
        let beyond = |start: Place| start.stdout >= from.stdout && start.stderr >= from.stderr;
        let start = || Cursor::new(self, |start| reached(start) && !beyond(start));
        let mut cursor = start();
        let paced = (attach == Attach::Paced).then(|| {
            let id = self.with_index(|index| index.attach(cursor.progress()));
            // what was found before the writer knew of this reader may have been dropped since
            cursor = start();
            let at = cursor.progress();
            self.with_index(|index| index.has_read(id, at));
            (id, at)
        });
        Reader { log: Arc::clone(self), cursor, from, held: None, gaps: VecDeque::new(), paced, done: false }
    }
}

impl Reader {
    /// The next item; `None` after the tail, or after the last of an interrupted log. When the future is dropped,
    /// nothing is lost.
    pub async fn next(&mut self) -> Option<Item> {
        let log = Arc::clone(&self.log);
        loop {
            // asked for before looking, so that what comes in between wakes
            let grown = log.grown.notified();
            match self.find() {
                Found::Item(item) => return Some(item),
                Found::End => return None,
                Found::Wait => grown.await,
            }
        }
    }

    fn find(&mut self) -> Found {
        loop {
            if self.done {
                return Found::End;
            }
            if let Some(gap) = self.gaps.pop_front() {
                return Found::Item(Item::Gap(gap));
            }
            match self.step() {
                Step::Piece { stream, offset, data } => {
                    if let Some((offset, data)) = self.trim(stream, offset, data) {
                        let bytes = self.join(stream, offset, data);
                        return Found::Item(match stream {
                            Stream::Stdout => Item::Stdout { offset, bytes },
                            Stream::Stderr => Item::Stderr { offset, bytes },
                        });
                    }
                }
                Step::Event { at, data } => {
                    if at.stdout >= self.from.stdout && at.stderr >= self.from.stderr {
                        return Found::Item(Item::Event(data));
                    }
                }
                Step::Jump { from, to } => self.gaps = gaps(from, to, self.from),
                Step::Caught { closed: false } => return Found::Wait,
                Step::Caught { closed: true } => {
                    self.done = true;
                    self.release();
                    if let Some(tail) = self.log.tail() {
                        return Found::Item(Item::Tail(tail));
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        if let Some(step) = self.held.take() {
            return step;
        }
        let step = self.cursor.step(&self.log);
        if let Some((id, told)) = &mut self.paced {
            let now = self.cursor.progress();
            if *told != now {
                *told = now;
                self.log.with_index(|index| index.has_read(*id, now));
                self.log.read_on.notify_waiters();
            }
        }
        step
    }

    /// The part of a piece from the position on.
    fn trim(&self, stream: Stream, offset: u64, mut data: Bytes) -> Option<(u64, Bytes)> {
        let skipped = self.from.of(stream).saturating_sub(offset);
        if skipped >= data.len() as u64 {
            return None;
        }
        Some((offset + skipped, data.split_off(skipped as usize)))
    }

    /// The piece, with what follows it of the same stream and is in memory already.
    fn join(&mut self, stream: Stream, offset: u64, first: Bytes) -> Bytes {
        if first.len() >= WORTH_SHARING {
            return first;
        }
        let mut joined = first.to_vec();
        while let Some(step) = self.cursor.step_buffered() {
            match step {
                Step::Piece { stream: of, offset: at, data }
                    if of == stream && at == offset + joined.len() as u64 && joined.len() + data.len() <= PIECE =>
                {
                    joined.extend_from_slice(&data);
                }
                other => {
                    self.held = Some(other);
                    break;
                }
            }
        }
        joined.into()
    }

    /// Lets the writer go on without this reader.
    fn release(&mut self) {
        if let Some((id, _)) = self.paced.take() {
            self.log.with_index(|index| index.detach(id));
            self.log.read_on.notify_waiters();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.release();
    }
}

/// What a jump leaves out, of what the reader wants.
fn gaps(from: Place, to: Place, wanted: Position) -> VecDeque<Gap> {
    let mut events = to.events - from.events;
    let mut gaps = VecDeque::new();
    for stream in Stream::BOTH {
        let offset = from.of(stream).max(wanted.of(stream));
        if to.of(stream) > offset {
            gaps.push_back(Gap { stream, offset, length: to.of(stream) - offset, events: std::mem::take(&mut events) });
        }
    }
    if events > 0 && to.stdout >= wanted.stdout && to.stderr >= wanted.stderr {
        gaps.push_back(Gap { stream: Stream::Stdout, offset: to.stdout, length: 0, events });
    }
    gaps
}
