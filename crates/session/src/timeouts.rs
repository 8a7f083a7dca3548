//! The rules of timeouts, and what a session's time and use mean for it: pure functions.

use std::time::{Duration, SystemTime};

use cloud_sandbox_model::{Error, Result, input::Violations};
use cloud_sandbox_proto::v1;
use cloud_sandbox_storage::{
    SessionRecord,
    sessions::{Depth, TimeoutAction},
};

use crate::{due::expiry, options::Options};

/// How long a session may run unless it says otherwise, in seconds (see the contract).
pub(crate) const TIMEOUT_DEFAULT: u32 = 3600;
const TIMEOUT_MAX: u32 = 30 * 86_400;

/// Checks what is given of a session's timeouts.
pub(crate) fn check(violations: &mut Violations, timeout: Option<u32>, idle: Option<u32>) {
    if let Some(seconds) = timeout {
        violations.range("timeout_seconds", &seconds, &1, &TIMEOUT_MAX);
    }
    if let Some(seconds) = idle {
        violations.range("idle_timeout_seconds", &seconds, &0, &TIMEOUT_MAX);
    }
}

/// What `on_timeout` asks for; `None` when it is not given.
pub(crate) fn action(word: i32) -> Result<Option<TimeoutAction>> {
    match v1::TimeoutAction::try_from(word) {
        Ok(v1::TimeoutAction::Unspecified) => Ok(None),
        Ok(v1::TimeoutAction::Pause) => Ok(Some(TimeoutAction::Pause)),
        Ok(v1::TimeoutAction::Delete) => Ok(Some(TimeoutAction::Delete)),
        Err(_) => Err(Error::invalid("on_timeout", "must be pause or delete")),
    }
}

/// What is to be done with a session that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// nothing before this
    Keep { until: SystemTime },
    /// it has run for its time
    Expired,
    /// it was not used for so long
    Idle(Duration),
    /// it has been frozen for long enough
    FrozenForLong,
}

/// What becomes of a running session that was last used so long ago.
pub(crate) fn running(record: &SessionRecord, now: SystemTime, idle: Duration, look_max: Duration) -> Verdict {
    let end = expiry(record);
    if end.is_some_and(|end| end <= now) {
        return Verdict::Expired;
    }
    let mut until = now + look_max;
    until = until.min(end.unwrap_or(until));
    let allowed = Duration::from_secs(record.details.idle_timeout_seconds.into());
    if !allowed.is_zero() {
        if idle >= allowed {
            return Verdict::Idle(idle);
        }
        until = until.min(now + (allowed - idle));
    }
    Verdict::Keep { until }
}

/// What becomes of a frozen one.
pub(crate) fn frozen(record: &SessionRecord, now: SystemTime, look_max: Duration, options: &Options) -> Verdict {
    let mut until = now + look_max;
    if let Some(paused) = record.details.paused.filter(|paused| paused.auto && paused.depth == Depth::Frozen) {
        let end = paused.since() + options.frozen_for;
        if end <= now {
            return Verdict::FrozenForLong;
        }
        until = until.min(end);
    }
    Verdict::Keep { until }
}
