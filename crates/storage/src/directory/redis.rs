//! The directory of a fleet, in Redis (6.2 or later) or what speaks its protocol. When it is emptied, nodes are
//! back within seconds, by their reports; acquired sandboxes are not found any more and end with their leases.
//!
//! ```text
//! cloud-sandbox:sandbox:{id}        entry as JSON, until a little after its time has passed
//! cloud-sandbox:sandboxes:{tenant}  sorted set of living ones' ids, all of score 0 and so in order of their letters
//! cloud-sandbox:node:{id}           entry as JSON, for as long as the node's report counts
//! cloud-sandbox:nodes               sorted set of ids
//! cloud-sandbox:claim:{key}         the value it was claimed with
//! ```
//! A sorted set may name what is gone or has ended; whoever lists it takes that out. Every command is about one key, so a cluster
//! serves as well as one server.

mod record;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use cloud_sandbox_model::{NodeId, SandboxId};
use fred::{
    interfaces::{ClientLike, KeysInterface, LuaInterface, SortedSetsInterface},
    prelude::{Client, Error, Expiration, SetOptions},
    types::sorted_sets::{ZRange, ZRangeBound, ZRangeKind},
};
use tokio::task::JoinHandle;

use super::{Claim, Directory, ENDS_WITHIN, NodeEntry, SandboxEntry, SandboxFilter};
use crate::{
    error::StorageError,
    redis::{self, Absence, CONNECT_WITHIN},
};
use record::{NodeRecord, SandboxRecord, read, read_or_skip, write};

const STORE: &str = "redis";
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// An entry outlives its lease by this, so that it is found as long as it must be, and removing it later still finds the
/// tenant's set that names it.
const GRACE: Duration = Duration::from_secs(60 + ENDS_WITHIN.as_secs());
/// The set of a tenant that makes no more sandboxes goes by itself: later than the longest lease, which is a day.
const SET_KEPT_FOR: Duration = Duration::from_secs(25 * 3600);
const NODES: &str = "cloud-sandbox:nodes";
/// How many ids are looked up at once.
const BATCH: usize = 256;
/// Writes a living entry unless the one there has ended; what cannot be read is replaced.
const PUT_LIVING: &str = "local known = redis.call('get', KEYS[1]) \
    if known then local ok, entry = pcall(cjson.decode, known) \
    if ok and type(entry) == 'table' and entry.ended then return 0 end end \
    redis.call('set', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1";
const UNCLAIM: &str = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) end return 0";

/// A [`Directory`] in Redis.
pub struct RedisDirectory {
    client: Client,
    connection: JoinHandle<Result<(), Error>>,
}

impl Drop for RedisDirectory {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StorageError {
    StorageError::Unavailable { store: STORE, source: error.into() }
}

fn sandbox_key(id: SandboxId) -> String {
    format!("cloud-sandbox:sandbox:{id}")
}

fn tenant_key(tenant: &str) -> String {
    format!("cloud-sandbox:sandboxes:{tenant}")
}

fn node_key(id: &str) -> String {
    format!("cloud-sandbox:node:{id}")
}

fn claim_key(key: &str) -> String {
    format!("cloud-sandbox:claim:{key}")
}

/// Milliseconds of at least one, because Redis refuses to expire at once.
fn millis(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_millis()).unwrap_or(i64::MAX / 2).max(1)
}

fn lex(kind: ZRangeKind, range: ZRangeBound) -> ZRange {
    ZRange { kind, range }
}

impl RedisDirectory {
    /// Connects to `url` (`redis://[user:password@]host[:port][/database]`, `redis-cluster://…`, `redis-sentinel://…`)
    /// and fails if that cannot be done within seconds. A connection that breaks later is made again.
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        let client = redis::client(url, ANSWER_WITHIN, Absence::Fails).map_err(unavailable)?;
        let connected = tokio::time::timeout(CONNECT_WITHIN, client.init()).await;
        let connection = connected.map_err(unavailable)?.map_err(unavailable)?;
        Ok(Self { client, connection })
    }

    /// The values of `keys`, in their order.
    async fn values(&self, keys: impl Iterator<Item = String>) -> Result<Vec<Option<String>>, StorageError> {
        let pipeline = self.client.pipeline();
        let mut asked = 0;
        for key in keys {
            let () = pipeline.get(key).await.map_err(unavailable)?;
            asked += 1;
        }
        if asked == 0 { Ok(Vec::new()) } else { pipeline.all().await.map_err(unavailable) }
    }

    /// Takes ids out of a sorted set.
    async fn forget(&self, set: &str, ids: Vec<String>) -> Result<(), StorageError> {
        if ids.is_empty() {
            return Ok(());
        }
        let _: i64 = self.client.zrem(set, ids).await.map_err(unavailable)?;
        Ok(())
    }

    /// The ids of a tenant's set after `after`, up to [`BATCH`].
    async fn ids(&self, set: &str, after: Option<&str>) -> Result<Vec<String>, StorageError> {
        let from = match after {
            Some(id) => lex(ZRangeKind::Exclusive, ZRangeBound::Lex(id.to_owned())),
            None => lex(ZRangeKind::Inclusive, ZRangeBound::NegInfinityLex),
        };
        let to = lex(ZRangeKind::Inclusive, ZRangeBound::InfiniteLex);
        let batch = i64::try_from(BATCH).unwrap_or(i64::MAX);
        self.client.zrangebylex(set, from, to, Some((0, batch))).await.map_err(unavailable)
    }
}

#[async_trait]
impl Directory for RedisDirectory {
    async fn put_sandbox(&self, entry: &SandboxEntry) -> Result<(), StorageError> {
        // one whose time has passed is written all the same, unseen: it must not remove one that has ended
        let left = entry.expires_at.duration_since(SystemTime::now()).unwrap_or_default();
        let (key, id, set) = (sandbox_key(entry.id), entry.id.to_string(), tenant_key(&entry.tenant));
        let (text, kept) = (write(&SandboxRecord::from(entry))?, millis(left + GRACE));
        let pipeline = self.client.pipeline();
        if entry.ended {
            let queue = async {
                let () = pipeline.set(key, text, Some(Expiration::PX(kept)), None, false).await?;
                let () = pipeline.zrem(&set, id).await?;
                pipeline.all::<Vec<fred::types::Value>>().await
            };
            queue.await.map_err(unavailable)?;
            return Ok(());
        }
        let named = async {
            let () = pipeline.zadd(&set, None, None, false, false, (0.0, id)).await?;
            let () = pipeline.pexpire(&set, millis(left.max(SET_KEPT_FOR)), None).await?;
            pipeline.all::<Vec<fred::types::Value>>().await
        };
        // both at once: a pipeline takes no scripts
        let written = self.client.eval::<i64, _, _, _>(PUT_LIVING, key, vec![text, kept.to_string()]);
        tokio::try_join!(written, named).map_err(unavailable)?;
        Ok(())
    }

    async fn remove_sandbox(&self, id: SandboxId) -> Result<(), StorageError> {
        let text: Option<String> = self.client.getdel(sandbox_key(id)).await.map_err(unavailable)?;
        let Some(text) = text else { return Ok(()) };
        // an entry that cannot be read is gone all the same, and its id leaves the set when that is listed
        let Some(record) = read_or_skip::<SandboxRecord>(&text, "sandbox") else { return Ok(()) };
        self.forget(&tenant_key(&record.tenant), vec![id.to_string()]).await
    }

    async fn sandbox(&self, id: SandboxId) -> Result<Option<SandboxEntry>, StorageError> {
        let text: Option<String> = self.client.get(sandbox_key(id)).await.map_err(unavailable)?;
        let entry = text.map(|text| read::<SandboxRecord>(&text, "sandbox")?.entry()).transpose()?;
        Ok(entry.filter(|entry| entry.is_there(SystemTime::now())))
    }

    async fn sandboxes(
        &self,
        filter: &SandboxFilter,
        after: Option<SandboxId>,
        limit: usize,
    ) -> Result<Vec<SandboxEntry>, StorageError> {
        let set = tenant_key(&filter.tenant);
        let mut found = Vec::new();
        let mut after = after.map(|id| id.to_string());
        while found.len() < limit {
            let ids = self.ids(&set, after.as_deref()).await?;
            let values = self.values(ids.iter().map(|id| format!("cloud-sandbox:sandbox:{id}"))).await?;
            let mut gone = Vec::new();
            for (id, text) in ids.iter().zip(values) {
                let Some(text) = text else {
                    gone.push(id.clone());
                    continue;
                };
                let entry = read_or_skip::<SandboxRecord>(&text, "sandbox").and_then(|record| record.entry().ok());
                if entry.as_ref().is_some_and(|entry| entry.ended) {
                    gone.push(id.clone());
                    continue;
                }
                found.extend(entry.filter(|entry| SystemTime::now() < entry.expires_at && filter.matches(entry)));
            }
            self.forget(&set, gone).await?;
            if ids.len() < BATCH {
                break;
            }
            after = ids.last().cloned();
        }
        found.truncate(limit);
        Ok(found)
    }

    async fn put_node(&self, entry: &NodeEntry, ttl: Duration) -> Result<(), StorageError> {
        let text = write(&NodeRecord::from(entry))?;
        let id = entry.id.to_string();
        let pipeline = self.client.pipeline();
        let queue = async {
            let () = pipeline.set(node_key(&id), text, Some(Expiration::PX(millis(ttl))), None, false).await?;
            let () = pipeline.zadd(NODES, None, None, false, false, (0.0, id)).await?;
            pipeline.all::<Vec<fred::types::Value>>().await
        };
        queue.await.map_err(unavailable)?;
        Ok(())
    }

    async fn remove_node(&self, id: NodeId) -> Result<(), StorageError> {
        let id = id.to_string();
        let _: i64 = self.client.del(node_key(&id)).await.map_err(unavailable)?;
        self.forget(NODES, vec![id]).await
    }

    async fn nodes(&self) -> Result<Vec<NodeEntry>, StorageError> {
        let ids: Vec<String> = self.client.zrange(NODES, 0, -1, None, false, None, false).await.map_err(unavailable)?;
        let values = self.values(ids.iter().map(|id| node_key(id))).await?;
        let (mut nodes, mut gone) = (Vec::new(), Vec::new());
        for (id, text) in ids.into_iter().zip(values) {
            match text {
                Some(text) => {
                    let record = read_or_skip::<NodeRecord>(&text, "node");
                    nodes.extend(record.and_then(|record| record.entry().ok()));
                }
                None => gone.push(id),
            }
        }
        self.forget(NODES, gone).await?;
        Ok(nodes)
    }

    async fn claim(&self, key: &str, value: &str, ttl: Duration) -> Result<Claim, StorageError> {
        let key = claim_key(key);
        loop {
            let expiration = Some(Expiration::PX(millis(ttl)));
            let set: Option<String> =
                self.client.set(&key, value, expiration, Some(SetOptions::NX), false).await.map_err(unavailable)?;
            if set.is_some() {
                return Ok(Claim::Won);
            }
            let held: Option<String> = self.client.get(&key).await.map_err(unavailable)?;
            if let Some(held) = held {
                return Ok(Claim::Held(held));
            }
            // it ended between the two: try again
        }
    }

    async fn unclaim(&self, key: &str, value: &str) -> Result<(), StorageError> {
        let _: i64 = self.client.eval(UNCLAIM, claim_key(key), value).await.map_err(unavailable)?;
        Ok(())
    }

    async fn check(&self) -> Result<(), StorageError> {
        let _: String = self.client.ping(None).await.map_err(unavailable)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
