//! How often a caller may call: a token bucket per principal, or per network address for those without one.
//!
//! Invariant: memory is bounded. Buckets that are full again are forgotten, and beyond [`KEYS_MAX`] all callers
//! without a token share one.

use std::{
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use governor::{
    Quota, RateLimiter,
    clock::{Clock, DefaultClock},
    middleware::StateInformationMiddleware,
    state::keyed::DashMapStateStore,
};
use http::{HeaderMap, HeaderName};

use crate::errors::whole_seconds;

/// How often a caller may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// calls a second in the long run; 0 for no limit
    pub per_second: u32,
    /// calls at once; 0 for as many as `per_second`
    pub burst: u32,
}

const KEYS_MAX: usize = 100_000;
/// Counting the keys locks every shard, so it is done this seldom.
const TIDY_EVERY: u32 = 1024;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// Whose calls are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Key {
    Principal {
        tenant: String,
        user: String,
    },
    Address(IpAddr),
    /// callers without an address, and those for whom there is no room
    Others,
}

impl Key {
    /// The key of a caller.
    pub fn of(principal: Option<&Principal>, address: Option<IpAddr>) -> Self {
        match (principal, address) {
            (Some(who), _) => Self::Principal { tenant: who.tenant.clone(), user: who.user.clone() },
            // one customer has a whole /64
            (None, Some(IpAddr::V6(address))) => {
                let network = u128::from(address) & !u128::from(u64::MAX);
                Self::Address(IpAddr::V6(Ipv6Addr::from(network)))
            }
            (None, Some(address)) => Self::Address(address),
            (None, None) => Self::Others,
        }
    }
}

type Buckets = RateLimiter<Key, DashMapStateStore<Key>, DefaultClock, StateInformationMiddleware>;

/// The buckets of all callers.
pub struct Limiter {
    buckets: Buckets,
    clock: DefaultClock,
    per_second: NonZeroU32,
    burst: NonZeroU32,
    calls: AtomicU32,
    full: AtomicBool,
}

/// What is left of a caller's bucket after a call.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    limit: u32,
    remaining: u32,
    reset: u64,
}

impl Limiter {
    /// `None` where there is no limit.
    pub fn new(limit: RateLimit) -> Option<Self> {
        let per_second = NonZeroU32::new(limit.per_second)?;
        let burst = NonZeroU32::new(limit.burst).unwrap_or(per_second);
        let quota = Quota::per_second(per_second).allow_burst(burst);
        let buckets = RateLimiter::dashmap(quota).with_middleware::<StateInformationMiddleware>();
        let (calls, full) = (AtomicU32::new(0), AtomicBool::new(false));
        Some(Self { buckets, clock: DefaultClock::default(), per_second, burst, calls, full })
    }

    /// Takes one call from the caller's bucket.
    pub fn take(&self, key: Key) -> Result<Standing, (Standing, Error)> {
        if self.calls.fetch_add(1, Ordering::Relaxed).is_multiple_of(TIDY_EVERY) {
            self.tidy();
        }
        let known = matches!(key, Key::Principal { .. });
        let key = if !known && self.full.load(Ordering::Relaxed) { Key::Others } else { key };
        match self.buckets.check_key(&key) {
            Ok(state) => Ok(self.standing(state.remaining_burst_capacity())),
            Err(until) => {
                let wait = until.wait_time_from(self.clock.now());
                let standing = Standing { reset: whole_seconds(wait), ..self.standing(0) };
                Err((standing, limited(wait)))
            }
        }
    }

    fn standing(&self, remaining: u32) -> Standing {
        let missing = self.burst.get().saturating_sub(remaining);
        let reset = u64::from(missing.div_ceil(self.per_second.get()));
        Standing { limit: self.burst.get(), remaining, reset }
    }

    fn tidy(&self) {
        self.buckets.retain_recent();
        self.buckets.shrink_to_fit();
        self.full.store(self.buckets.len() > KEYS_MAX, Ordering::Relaxed);
    }
}

impl Standing {
    /// Tells the caller, by the names of draft-ietf-httpapi-ratelimit-headers.
    pub fn write(self, headers: &mut HeaderMap) {
        headers.insert(LIMIT, self.limit.into());
        headers.insert(REMAINING, self.remaining.into());
        headers.insert(RESET, self.reset.into());
    }
}

fn limited(wait: Duration) -> Error {
    Error::new(ErrorKind::ResourceExhausted, reason::RATE_LIMITED, "too many calls").with_retry_after(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Key {
        Key::of(None, Some(text.parse().unwrap()))
    }

    #[test]
    fn caller_over_its_burst_is_told_when_to_come_back() {
        let limiter = Limiter::new(RateLimit { per_second: 1, burst: 2 }).unwrap();
        assert_eq!(limiter.take(address("10.0.0.1")).unwrap().remaining, 1);
        assert_eq!(limiter.take(address("10.0.0.1")).unwrap().remaining, 0);
        let (standing, error) = limiter.take(address("10.0.0.1")).unwrap_err();
        assert_eq!((standing.limit, standing.remaining, standing.reset), (2, 0, 1));
        assert!(error.retry_after().is_some_and(|after| after > Duration::ZERO));
        assert!(limiter.take(address("10.0.0.2")).is_ok(), "another caller has a bucket of its own");
    }

    #[test]
    fn ipv6_callers_are_counted_by_network() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
    }

    #[test]
    fn zero_is_no_limit() {
        assert!(Limiter::new(RateLimit { per_second: 0, burst: 5 }).is_none());
    }

    #[test]
    fn full_buckets_are_forgotten() {
        let limiter = Limiter::new(RateLimit { per_second: 1_000_000, burst: 1 }).unwrap();
        for n in 0..2000_u32 {
            let _ = limiter.take(Key::Address(IpAddr::V4(n.into())));
        }
        std::thread::sleep(Duration::from_millis(2));
        limiter.tidy();
        assert_eq!(limiter.buckets.len(), 0);
    }
}
