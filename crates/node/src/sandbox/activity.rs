//! When a sandbox was last in use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cloud_sandbox_runtime::Usage;
use tokio::time::Instant;

/// A process that takes less than this much of a core is idle: timers and the agent's own needs.
const IDLE_SHARE: u32 = 100;

/// What is known of a sandbox's use.
#[derive(Debug, Default)]
pub(crate) struct Activity {
    under_way: AtomicUsize,
    used: AtomicBool,
    /// in milliseconds since 1970
    last: AtomicU64,
}

/// Something that is under way in a sandbox, for as long as this lives.
#[derive(Debug)]
pub(crate) struct InUse(Arc<Activity>);

impl Activity {
    /// Something begins that a caller asked for.
    pub(crate) fn begin(self: &Arc<Self>) -> InUse {
        self.used.store(true, Relaxed);
        self.under_way.fetch_add(1, Relaxed);
        InUse(Arc::clone(self))
    }

    /// The sandbox is in use at this moment.
    pub(super) fn touch(&self) {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last.fetch_max(u64::try_from(since.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// Whether a caller has ever asked for anything in it.
    pub(crate) fn used(&self) -> bool {
        self.used.load(Relaxed)
    }

    /// When it was last in use: now, if it is.
    pub(crate) fn last(&self) -> SystemTime {
        if self.under_way.load(Relaxed) > 0 {
            self.touch();
        }
        UNIX_EPOCH + Duration::from_millis(self.last.load(Relaxed))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
        self.0.under_way.fetch_sub(1, Relaxed);
    }
}

/// CPU time from sample to sample.
#[derive(Debug, Default)]
pub(super) struct CpuTime(Option<(Instant, Duration)>);

impl CpuTime {
    /// Takes a sample. Says whether processes did more than idle since the one before.
    pub(super) fn busy(&mut self, now: Instant, usage: &Usage) -> bool {
        let Some(time) = usage.cpu_time else { return false };
        let before = self.0.replace((now, time));
        before.is_some_and(|(then, used)| time.saturating_sub(used) > now.saturating_duration_since(then) / IDLE_SHARE)
    }

    /// Counts what was used until the next sample for nothing.
    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_a_hundredth_of_a_core_is_use() {
        let (mut cpu, start) = (CpuTime::default(), Instant::now());
        let mut sample = |seconds, millis| {
            let usage = Usage { cpu_time: Some(Duration::from_millis(millis)), ..Usage::default() };
            cpu.busy(start + Duration::from_secs(seconds), &usage)
        };
        assert!(!sample(0, 10_000), "there is nothing to compare the first with");
        assert!(!sample(5, 10_050));
        assert!(sample(10, 10_101));
        assert!(!sample(15, 10_101));
        cpu.forget();
        let much = Usage { cpu_time: Some(Duration::from_secs(99)), ..Usage::default() };
        assert!(!cpu.busy(start + Duration::from_secs(20), &much));
        assert!(!cpu.busy(start + Duration::from_secs(25), &Usage::default()), "the host cannot tell");
    }

    #[test]
    fn what_is_under_way_is_use_until_it_ends() {
        let activity = Arc::new(Activity::default());
        assert!(!activity.used());
        let begun = SystemTime::now() - Duration::from_millis(2);
        let call = activity.begin();
        assert!(activity.used() && activity.last() >= begun);
        drop(call);
        let last = activity.last();
        assert!(last >= begun);
        assert_eq!(activity.last(), last, "it stays when it was");
    }
}
