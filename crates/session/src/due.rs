//! When a session should be looked at next: a pure function, so that every write can say it.

use std::time::{Duration, SystemTime};

use cloud_sandbox_model::SessionState;
use cloud_sandbox_storage::{
    SessionRecord,
    sessions::{Depth, from_millis, to_millis},
};

use crate::{options::Options, pilot::FIRST_LEASE};

/// How often a session with a sandbox is looked at in any case: its sandbox's lease is renewed then.
pub(crate) const LOOK_MAX: Duration = Duration::from_secs(600);
/// When a session that has just begun to run is looked at first, well before the lease ends that its sandbox was acquired
/// with: whoever brought it up may have ended before it made that longer.
const FIRST_LOOK_AFTER: Duration = Duration::from_secs(FIRST_LEASE as u64 / 2);
/// How often a session without one is: what is kept of it may have become old.
pub(crate) const AGE_EVERY: Duration = Duration::from_secs(86_400);

/// When to look at `record` next, as it is about to be written.
pub(crate) fn due(record: &SessionRecord, now: SystemTime, options: &Options) -> Option<SystemTime> {
    let details = &record.details;
    let at = if let Some(flight) = &details.flight {
        from_millis(flight.until_ms)
    } else if !details.discarded.is_empty() {
        now
    } else {
        match record.state {
            SessionState::Running => running(record, now),
            SessionState::Paused => match details.paused {
                Some(paused) if paused.depth == Depth::Frozen => {
                    let look = now + LOOK_MAX;
                    if paused.auto { look.min(paused.since() + options.frozen_for) } else { look }
                }
                _ => now + AGE_EVERY,
            },
            SessionState::Failed => now + AGE_EVERY,
            // left by somebody of an early version
            SessionState::Creating | SessionState::Pausing | SessionState::Resuming | SessionState::Deleting => now,
        }
    };
    Some(from_millis(to_millis(at)))
}

/// The earlier of its timeouts. That it was used meanwhile is only seen by looking.
fn running(record: &SessionRecord, now: SystemTime) -> SystemTime {
    let details = &record.details;
    let mut at = now + LOOK_MAX;
    let first_look = details.running_since.map(|since| since + FIRST_LOOK_AFTER);
    at = first_look.filter(|first| *first > now).map_or(at, |first| at.min(first));
    if let Some(end) = expiry(record) {
        at = at.min(end);
    }
    if details.idle_timeout_seconds > 0 {
        at = at.min(now + Duration::from_secs(details.idle_timeout_seconds.into()));
    }
    at
}

/// When a running session has run for its time; never when `None`.
pub(crate) fn expiry(record: &SessionRecord) -> Option<SystemTime> {
    let details = &record.details;
    let since = details.running_since.filter(|_| record.state == SessionState::Running)?;
    (details.timeout_seconds > 0).then(|| since + Duration::from_secs(details.timeout_seconds.into()))
}
