//! Buckets of this process alone.
//!
//! Invariant: memory is bounded. Buckets that are full again are forgotten, and beyond [`KEYS_MAX`] all callers
//! without a token share one.

use std::{
    error::Error as StdError,
    num::NonZeroU32,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use async_trait::async_trait;
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DashMapStateStore,
};

use super::{Key, Limits, Taken};

const KEYS_MAX: usize = 100_000;
/// Counting the keys locks every shard, so it is done this seldom.
const TIDY_EVERY: u32 = 1024;

type Buckets = RateLimiter<Key, DashMapStateStore<Key>, DefaultClock, StateInformationMiddleware>;

/// The buckets of an edge that shares them with no other.
pub struct MemoryLimits {
    buckets: Buckets,
    clock: DefaultClock,
    calls: AtomicU32,
    full: AtomicBool,
}

impl MemoryLimits {
    /// Full buckets of `burst` calls.
    #[must_use]
    pub fn new(per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let buckets = RateLimiter::dashmap(quota).with_middleware::<StateInformationMiddleware>();
        let (calls, full) = (AtomicU32::new(0), AtomicBool::new(false));
        Self { buckets, clock: DefaultClock::default(), calls, full }
    }

    pub(super) fn take_now(&self, key: &Key) -> Taken {
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIDY_EVERY) {
            self.tidy();
        }
        let known = matches!(key, Key::Principal { .. });
        let key = if !known && self.full.load(Ordering::Relaxed) { &Key::Others } else { key };
        match self.buckets.check_key(key) {
            Ok(state) => Taken { granted: true, remaining: state.remaining_burst_capacity(), wait: Duration::ZERO },
            Err(until) => Taken { granted: false, remaining: 0, wait: until.wait_time_from(self.clock.now()) },
        }
    }

    fn tidy(&self) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
        self.full.store(self.buckets.len() > KEYS_MAX, Ordering::Relaxed);
    }
}

#[async_trait]
impl Limits for MemoryLimits {
    async fn take(&self, key: &Key) -> Result<Taken, Box<dyn StdError + Send + Sync>> {
        Ok(self.take_now(key))
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn full_buckets_are_forgotten() {
        let limits = MemoryLimits::new(NonZeroU32::new(1_000_000).unwrap(), NonZeroU32::MIN);
        for n in 0..2000_u32 {
            let _ = limits.take_now(&Key::Address(IpAddr::V4(n.into())));
        }
        std::thread::sleep(Duration::from_millis(2));
        limits.tidy();
        assert_eq!(limits.buckets.len(), 0);
    }
}
