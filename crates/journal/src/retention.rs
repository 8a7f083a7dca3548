//! What goes when, and in which order.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use cloud_sandbox_model::{ExecutionId, SandboxId};

use crate::{
    journal::{Inner, Journal},
    lock,
    log::{Dropped, Log},
};

/// Looking through all logs for something to drop takes a while where many run, and every piece would ask for it.
const BARREN: Duration = Duration::from_millis(20);

impl Journal {
    /// Evicts the logs whose time is over at `now`, and the oldest that have ended while all logs together take more
    /// than they may; then the middles of running ones. Has writers that wait for their readers look whether those still
    /// read. Returns everything that was evicted since the last call, also what `append` and `create` evicted to make
    /// room; not what [`Journal::remove`] and [`Journal::remove_sandbox`] removed. For calling every few seconds.
    /// Blocks for as long as there is something to delete.
    pub fn sweep(&self, now: SystemTime) -> Vec<(SandboxId, ExecutionId)> {
        let retention = self.0.ground.options.retention;
        while self.0.evict(|ended_at, _| now.duration_since(ended_at).is_ok_and(|age| age >= retention)) {}
        while self.0.ground.short_of(0) && (self.0.evict_oldest() || self.0.drop_elsewhere()) {}
        self.0.ground.room.notify_waiters();
        metrics::gauge!("cloud_sandbox_journal_bytes").set(self.bytes() as f64);
        self.0.take_evicted()
    }
}

impl Inner {
    /// Evicts the log that ended first and that no paced reader is reading.
    pub fn evict_oldest(&self) -> bool {
        let patience = Some(self.ground.options.reader_patience);
        self.evict(|_, log| !log.with_index(|index| index.attended(patience)))
    }

    /// Drops a segment from the middle of the running log that has most to drop, of those that have more than their
    /// floor.
    pub fn drop_elsewhere(&self) -> bool {
        let patience = Some(self.ground.options.reader_patience);
        let droppable = |log: &Arc<Log>| {
            let floor = log.bounds.floor;
            log.with_index(|index| if index.taken_of(floor) > floor { index.droppable(patience) } else { 0 })
        };
        let candidates = self.running().into_iter().map(|log| (droppable(&log), log));
        let largest = candidates.filter(|(bytes, _)| *bytes > 0).max_by_key(|(bytes, _)| *bytes);
        largest.is_some_and(|(_, log)| log.drop_oldest(patience) == Dropped::Segment)
    }

    /// The same, but for a moment after there was nothing to drop it is not looked for again.
    pub fn drop_elsewhere_soon(&self) -> bool {
        let now = Instant::now();
        if lock(&self.barren).is_some_and(|since| now.duration_since(since) < BARREN) {
            return false;
        }
        let dropped = self.drop_elsewhere();
        *lock(&self.barren) = (!dropped).then_some(now);
        dropped
    }
}
