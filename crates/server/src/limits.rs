//! The rates that edges count together, in Redis.

use std::{error::Error, num::NonZeroU32, sync::Arc};

use anyhow::Context as _;
use async_trait::async_trait;
use cloud_sandbox_gateway_rest::{Key, Limits, RateLimit, Taken};
use cloud_sandbox_storage::{Place, RedisLimits};

use crate::settings::Settings;

/// How often a caller may call, by the settings.
pub fn rate(settings: &Settings) -> RateLimit {
    RateLimit { per_second: settings.rate_limit_per_second, burst: settings.rate_limit_burst }
}

/// The buckets that edges share; `None` where the settings name no Redis, or no limit.
pub fn shared(settings: &Settings) -> anyhow::Result<Option<Arc<dyn Limits>>> {
    let Some((url, (per_second, burst))) = settings.redis_url.as_ref().zip(rate(settings).numbers()) else {
        return Ok(None);
    };
    let redis = RedisLimits::connect(url).context("failed to use Redis for rate limits (setting redis_url)")?;
    Ok(Some(Arc::new(SharedLimits { redis, per_second, burst })))
}

struct SharedLimits {
    redis: RedisLimits,
    per_second: NonZeroU32,
    burst: NonZeroU32,
}

#[async_trait]
impl Limits for SharedLimits {
    async fn take(&self, key: &Key) -> Result<Taken, Box<dyn Error + Send + Sync>> {
        let taken = self.redis.take(&key.to_string(), self.per_second, self.burst).await?;
        let Place { granted, remaining, wait } = taken;
        Ok(Taken { granted, remaining, wait })
    }
}

#[cfg(test)]
mod tests;
