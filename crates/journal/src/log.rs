//! One execution's log: its identity, its index and how it ends. Writing is in [`crate::writer`], reading in
//! [`crate::cursor`] and what is built on it.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use cloud_sandbox_model::{ExecutionId, SandboxId};
use tokio::sync::Notify;

use crate::{
    index::{End, Index, Progress, Segment, Taken, View},
    journal::{Bounds, Ground, Inner},
    lock,
    writer::Writer,
};

/// What one execution printed, and how it went.
#[derive(Debug)]
pub struct Log {
    sandbox: SandboxId,
    execution: ExecutionId,
    head: Bytes,
    pub(crate) ground: Arc<Ground>,
    pub(crate) journal: Weak<Inner>,
    pub(crate) bounds: Bounds,
    /// locked before `index`, never after
    pub(crate) writer: Mutex<Writer>,
    index: Mutex<Index>,
    /// there is more to read, or it has ended
    pub(crate) grown: Notify,
    /// a paced reader has read on or left
    pub(crate) read_on: Notify,
}

/// Keeps a log while somebody is about to read it; see [`Log::hold`].
#[derive(Debug)]
pub struct Hold {
    log: Arc<Log>,
    reader: u64,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.log.with_index(|index| index.detach(self.reader));
    }
}

/// What an attempt to drop something from a log came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dropped {
    Segment,
    /// a paced reader has not read it
    Held,
    /// there is nothing to drop
    Nothing,
}

/// How much a log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// bytes of standard output that came, kept or not
    pub stdout: u64,
    /// bytes of standard error that came, kept or not
    pub stderr: u64,
    /// events that came, kept or not
    pub events: u64,
    /// bytes of standard output that are not there any more
    pub stdout_dropped: u64,
    /// bytes of standard error that are not there any more
    pub stderr_dropped: u64,
    /// events that are not there any more
    pub events_dropped: u64,
    /// it has a tail
    pub finished: bool,
    /// it has no tail and will not get one
    pub interrupted: bool,
    /// its files are gone
    pub evicted: bool,
}

impl Log {
    pub(crate) fn new(
        ids: (SandboxId, ExecutionId),
        head: Bytes,
        (ground, journal, bounds): (Arc<Ground>, Weak<Inner>, Bounds),
        writer: Writer,
        index: Index,
    ) -> Self {
        Self {
            sandbox: ids.0,
            execution: ids.1,
            head,
            ground,
            journal,
            bounds,
            writer: Mutex::new(writer),
            index: Mutex::new(index),
            grown: Notify::new(),
            read_on: Notify::new(),
        }
    }

    /// The sandbox it ran in.
    #[must_use]
    pub fn sandbox(&self) -> SandboxId {
        self.sandbox
    }

    /// The execution.
    #[must_use]
    pub fn execution(&self) -> ExecutionId {
        self.execution
    }

    /// What it was created with. Stays when the log is evicted.
    #[must_use]
    pub fn head(&self) -> Bytes {
        self.head.clone()
    }

    /// What it was finished with. Stays when the log is evicted.
    #[must_use]
    pub fn tail(&self) -> Option<Bytes> {
        self.with_index(|index| match &index.end {
            End::Finished(tail) => Some(tail.clone()),
            End::Running | End::Interrupted => None,
        })
    }

    /// Whether it was closed without a tail: its node's process ended under it, or its sandbox was removed.
    #[must_use]
    pub fn interrupted(&self) -> bool {
        self.with_index(|index| matches!(index.end, End::Interrupted))
    }

    /// When it ended: for a log of an earlier process without a tail, when it was found, so that nobody misses that how
    /// it ended is not known.
    #[must_use]
    pub fn ended_at(&self) -> Option<SystemTime> {
        self.with_index(|index| index.ended_at)
    }

    /// How much there was and is, and whether there will be more.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.with_index(|index| {
            let dropped = index.totals.minus(index.kept());
            Totals {
                stdout: index.totals.stdout,
                stderr: index.totals.stderr,
                events: index.totals.events,
                stdout_dropped: dropped.stdout,
                stderr_dropped: dropped.stderr,
                events_dropped: dropped.events,
                finished: matches!(index.end, End::Finished(_)),
                interrupted: matches!(index.end, End::Interrupted),
                evicted: index.evicted,
            }
        })
    }

    /// Closes the log without a tail: readers end after what is there. For executions whose end will never be known.
    /// A log that has ended already stays as it is.
    pub fn interrupt(&self) {
        let mut writer = lock(&self.writer);
        if self.close(&mut writer, End::Interrupted) {
            drop(writer);
            self.announce_end();
        }
    }

    /// Keeps the log, once it has ended, from being evicted for the sake of others. Does not slow its writer, and does not
    /// keep what is dropped while it runs. For somebody who reads it as soon as it has ended.
    #[must_use]
    pub fn hold(self: &Arc<Self>) -> Hold {
        Hold { log: Arc::clone(self), reader: self.with_index(|index| index.attach(Progress::END)) }
    }

    /// Ends the log unless it has ended.
    pub(crate) fn close(&self, writer: &mut Writer, end: End) -> bool {
        writer.close();
        self.with_index(|index| {
            let running = !index.closed();
            if running {
                index.end = end;
                index.ended_at = Some(SystemTime::now());
            }
            running
        })
    }

    /// Tells the journal and the readers that the log has ended.
    pub(crate) fn announce_end(&self) {
        if let (Some(journal), Some(ended_at)) = (self.journal.upgrade(), self.ended_at()) {
            journal.ended(self, ended_at);
        }
        self.grown.notify_waiters();
        self.ground.room.notify_waiters();
    }

    pub(crate) fn with_index<T>(&self, f: impl FnOnce(&mut Index) -> T) -> T {
        f(&mut lock(&self.index))
    }

    pub(crate) fn view(&self, segment: u64) -> View {
        self.with_index(|index| index.view(segment))
    }

    pub(crate) fn segment_path(&self, number: u64) -> PathBuf {
        self.ground.folder(self.sandbox).join(format!("{}.{number}", self.execution))
    }

    /// Drops the oldest segment of the middle, if no paced reader needs it who has read something within `patience`.
    pub(crate) fn drop_oldest(&self, patience: Option<Duration>) -> Dropped {
        match self.with_index(|index| index.drop_oldest(patience)) {
            Taken::Segment(segment) => {
                metrics::counter!("cloud_sandbox_journal_dropped_bytes_total", "cause" => "full")
                    .increment(segment.kept.bytes());
                self.delete([segment]);
                Dropped::Segment
            }
            Taken::Held => Dropped::Held,
            Taken::Nothing => Dropped::Nothing,
        }
    }

    /// Deletes every file of the log, running or not. Head, tail and totals stay.
    pub(crate) fn evict(&self) {
        let mut writer = lock(&self.writer);
        let interrupted = self.close(&mut writer, End::Interrupted);
        let segments: Vec<Segment> = self.with_index(|index| {
            index.evicted = true;
            index.segments.drain(..).collect()
        });
        drop(writer);
        self.delete(segments);
        self.grown.notify_waiters();
        if interrupted {
            // whoever waits in `append` finds the log closed
            self.read_on.notify_waiters();
        }
    }

    /// Gets rid of the files of segments that are not in the index any more.
    fn delete(&self, segments: impl IntoIterator<Item = Segment>) {
        let mut freed = 0;
        for mut segment in segments {
            freed += segment.bytes;
            let path = self.segment_path(segment.number);
            // leases are only given by the index, so none is added
            let unused = Arc::get_mut(&mut segment.lease).is_some();
            let gone = if unused { self.ground.spares.give(&path) } else { std::fs::remove_file(&path) };
            if let Err(error) = gone
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(path = %path.display(), %error, "failed to remove a journal segment");
            }
        }
        self.ground.freed(freed);
    }
}
