//! How often a caller may call: a token bucket per principal, or per network address for those without one.
//!
//! Several edges may share their buckets. While what they share is away, each counts for itself: a caller then has a
//! bucket at each, which is more than it should have, and less than no limit.

mod memory;

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    num::NonZeroU32,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::error::{Error, ErrorKind, chain, reason};
use http::{HeaderMap, HeaderName};
use tokio::time::{Instant, timeout};

use crate::errors::whole_seconds;
pub use memory::MemoryLimits;

/// How often a caller may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    /// calls a second in the long run; 0 for no limit
    pub per_second: u32,
    /// calls at once; 0 for as many as `per_second`
    pub burst: u32,
}

impl RateLimit {
    /// Calls a second and at once; `None` where there is no limit.
    #[must_use]
    pub fn numbers(self) -> Option<(NonZeroU32, NonZeroU32)> {
        let per_second = NonZeroU32::new(self.per_second)?;
        Some((per_second, NonZeroU32::new(self.burst).unwrap_or(per_second)))
    }
}

/// Every call waits for what is shared; what answers later than this is as good as away.
const ANSWER_WITHIN: Duration = Duration::from_millis(250);
/// What is away is left alone for so long, so that few calls wait for it.
const AWAY_FOR: Duration = Duration::from_secs(1);
pub(crate) const UNSHARED: &str = "cloud_sandbox_rate_limit_unshared_total";

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

impl fmt::Display for Key {
    /// One text for each key: what comes first has no colon.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Principal { tenant, user } => write!(f, "principal:{}:{tenant}:{user}", tenant.len()),
            Self::Address(address) => write!(f, "address:{address}"),
            Self::Others => f.write_str("others"),
        }
    }
}

/// What came of taking a call from a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// whether there was one
    pub granted: bool,
    /// how many more there are
    pub remaining: u32,
    /// how long until there is one; zero where this one was granted
    pub wait: Duration,
}

/// The buckets of all callers.
#[async_trait]
pub trait Limits: Send + Sync + 'static {
    /// Takes one call from the caller's bucket.
    async fn take(&self, key: &Key) -> Result<Taken, Box<dyn std::error::Error + Send + Sync>>;
}

/// Counts calls in the buckets that edges share, or in its own.
pub struct Limiter {
    own: MemoryLimits,
    shared: Option<Arc<dyn Limits>>,
    /// while what is shared is not asked
    away_until: Mutex<Option<Instant>>,
    per_second: NonZeroU32,
    burst: NonZeroU32,
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
    pub fn new(limit: RateLimit, shared: Option<Arc<dyn Limits>>) -> Option<Self> {
        let (per_second, burst) = limit.numbers()?;
        let own = MemoryLimits::new(per_second, burst);
        Some(Self { own, shared, away_until: Mutex::default(), per_second, burst })
    }

    /// Takes one call from the caller's bucket.
    pub async fn take(&self, key: Key) -> Result<Standing, (Standing, Error)> {
        let Taken { granted, remaining, wait } = match self.take_shared(&key).await {
            Some(taken) => taken,
            None => self.own.take_now(&key),
        };
        if granted {
            return Ok(self.standing(remaining));
        }
        let standing = Standing { reset: whole_seconds(wait), ..self.standing(0) };
        Err((standing, limited(wait)))
    }

    /// `None` where nothing is shared, and while that is away.
    async fn take_shared(&self, key: &Key) -> Option<Taken> {
        let shared = self.shared.as_ref()?;
        let now = Instant::now();
        if self.away_until.lock().unwrap_or_else(PoisonError::into_inner).is_none_or(|until| until <= now) {
            match timeout(ANSWER_WITHIN, shared.take(key)).await {
                Ok(Ok(taken)) => {
                    self.answered();
                    return Some(taken);
                }
                Ok(Err(error)) => self.failed(&chain(&*error)),
                Err(_) => self.failed("no answer in time"),
            }
        }
        metrics::counter!(UNSHARED).increment(1);
        None
    }

    fn answered(&self) {
        if self.away_until.lock().unwrap_or_else(PoisonError::into_inner).take().is_some() {
            tracing::info!("rates are counted together with the other edges again");
        }
    }

    fn failed(&self, error: &str) {
        let until = Some(Instant::now() + AWAY_FOR);
        let before = std::mem::replace(&mut *self.away_until.lock().unwrap_or_else(PoisonError::into_inner), until);
        if before.is_none() {
            tracing::warn!(error, "rates are counted by this edge alone: what edges share them in is away");
        }
    }

    fn standing(&self, remaining: u32) -> Standing {
        let missing = self.burst.get().saturating_sub(remaining);
        let reset = u64::from(missing.div_ceil(self.per_second.get()));
        Standing { limit: self.burst.get(), remaining, reset }
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
mod tests;
