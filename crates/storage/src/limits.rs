//! How often callers may call, counted by several edges together, in Redis (6.2 or later).
//!
//! A bucket is one key, `cloud-sandbox:rate:{caller}`: the time, in microseconds of the server's clock, at which the bucket
//! is full again ("theoretical arrival time" of the generic cell rate algorithm, ITU-T I.371). It is read and written by one script,
//! so that no two calls take the same place, and goes by itself when the bucket is full.

use std::{num::NonZeroU32, time::Duration};

use fred::{
    interfaces::{ClientLike, LuaInterface},
    prelude::{Client, Error},
};
use tokio::task::JoinHandle;

use crate::{
    error::StorageError,
    redis::{self, Absence},
};

const STORE: &str = "redis";
/// Longer than whoever asks waits: a late answer is thrown away, and no command stays for ever.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Takes a place from a bucket. Arguments: microseconds per call, and calls at once. Gives whether there was one, how many
/// are left, and the microseconds until there is one. Times have 16 digits, of which `tostring` would keep 14.
const TAKE: &str = "local time = redis.call('time') \
    local now = time[1] * 1000000 + time[2] \
    local step, most = tonumber(ARGV[1]), ARGV[2] * ARGV[1] \
    local full = math.max(tonumber(redis.call('get', KEYS[1]) or 0) or 0, now) \
    local wait = full + step - most - now \
    if wait > 0.5 then return {0, 0, math.ceil(wait)} end \
    full = full + step \
    redis.call('set', KEYS[1], string.format('%.3f', full), 'PX', math.ceil((full - now) / 1000) + 1) \
    return {1, math.floor((now + most - full) / step + 0.001), 0}";

/// What came of taking a call from a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// whether there was one
    pub granted: bool,
    /// how many more there are
    pub remaining: u32,
    /// how long until there is one; zero where this one was granted
    pub wait: Duration,
}

/// Buckets in Redis.
pub struct RedisLimits {
    client: Client,
    connection: JoinHandle<Result<(), Error>>,
}

impl Drop for RedisLimits {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl RedisLimits {
    /// Begins to connect to `url`, and goes on with it for as long as it lives: limits are wanted before Redis is there.
    pub fn connect(url: &str) -> Result<Self, StorageError> {
        let client = redis::client(url, ANSWER_WITHIN, Absence::Passes).map_err(unavailable)?;
        let connection = client.connect();
        Ok(Self { client, connection })
    }

    /// Takes one call from the bucket of `caller`.
    pub async fn take(&self, caller: &str, per_second: NonZeroU32, burst: NonZeroU32) -> Result<Place, StorageError> {
        let key = format!("cloud-sandbox:rate:{caller}");
        let step = 1_000_000.0 / f64::from(per_second.get());
        let taken = self.client.eval::<(i64, u32, u64), _, _, _>(TAKE, key, vec![step.to_string(), burst.to_string()]);
        let (granted, remaining, wait) = taken.await.map_err(unavailable)?;
        Ok(Place { granted: granted == 1, remaining, wait: Duration::from_micros(wait) })
    }
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StorageError {
    StorageError::Unavailable { store: STORE, source: error.into() }
}
