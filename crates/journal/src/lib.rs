//! The journal of what executions print, on a node's disk.
//!
//! Every execution has a [`Log`]: its output and events in the order in which they came, in files that outlive the
//! node's process. One task appends; any number of [`Reader`]s follow, from any position, while it runs and after its
//! end. The journal does not know what an event, a head or a tail means: they are bytes to it.
//!
//! ```text
//! DIR/lock                            one process at a time
//! DIR/spare/                          empty files for later
//! DIR/<sandbox>/sandbox               what the node says about the sandbox
//! DIR/<sandbox>/<execution>.<number>  segments of about 1 MiB
//! ```
//!
//! Invariants:
//! - Every byte of a stream has an offset, and a reader is given each byte from its position on exactly once and in
//!   order, or told of it in an exact gap.
//! - What `append` returned from survives the end of the process, however it ends: it is in the page cache. Nothing is
//!   synced. A machine that dies may lose it, and loses the sandboxes that printed it anyway.
//! - Nothing grows in memory: a full log drops the middle of itself, and waits first for readers that asked for that
//!   ([`Attach::Paced`]). The first quarter of a log and its end stay.
//! - Who reads slowly costs only his own execution: whatever all logs take together, each that runs may keep
//!   [`Options::floor_bytes`] of its beginning and its end, so all of them take [`Options::total_bytes`] and a floor for
//!   each that runs at most. A paced reader who has read nothing for [`Options::reader_patience`] holds nothing any more
//!   while there is no room: he finds a gap.
//! - Failing storage never fails an execution: what cannot be written becomes a gap.
//!
//! Reads and writes are plain system calls on the caller's thread, which the page cache answers in microseconds. Calls
//! that go through much data ([`Log::read`], [`Log::excerpt`], [`Log::grep`], [`Journal::open`],
//! [`Journal::remove_sandbox`]) belong on a blocking thread.

#![forbid(unsafe_code)]

mod cursor;
mod excerpt;
mod frame;
mod grep;
mod index;
mod journal;
mod lines;
mod log;
mod place;
mod range;
mod reader;
mod recovery;
mod retention;
mod spares;
mod writer;

#[cfg(test)]
mod tests;

pub use excerpt::{Excerpt, Strategy};
pub use grep::{Grep, GrepError, GrepOptions, Match};
pub use journal::{Journal, Options};
pub use log::{Hold, Log, Totals};
pub use place::{Position, Stream};
pub use range::{MAX_RANGE, Range};
pub use reader::{Attach, Item, PIECE, Reader};
pub use recovery::{Recovered, RecoveredLog};
pub use writer::Kind;

/// Bytes of a stream that are not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// the stream
    pub stream: Stream,
    /// the first byte that is missing
    pub offset: u64,
    /// how many are missing
    pub length: u64,
    /// how many events are missing with them
    pub events: u64,
}

/// Locks, also after a panic elsewhere: all that is locked here is changed in one step or not at all.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
