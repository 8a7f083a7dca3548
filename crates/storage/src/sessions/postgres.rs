//! The sessions of a fleet, in PostgreSQL (12 or newer), for any number of session managers at once.
//!
//! Every write is one statement or one transaction over the version it was decided on, so that a connection that breaks in
//! the middle leaves the old session or the new one. Whether it was written is not known then, and so a write is never sent a
//! second time: the caller hears that the store is unavailable. A read is, once.
//!
//! Invariant: a connection that failed, fell silent, or was left by a caller who gave up is closed and not used again.
//! So a server that hangs, or one that became a read-only standby, does not hold on to the pool.

mod start;
mod text;
mod url;

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use cloud_sandbox_model::{CheckpointId, SessionId};
use sqlx::{
    Connection, Executor, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
    query_builder::QueryBuilder,
};
use tokio::time::{sleep, timeout};

use super::{
    Along, CheckpointRecord, Inserted, SessionEvent, SessionFilter, SessionRecord, SessionStore,
    sql::{self, Words, read, unavailable},
    to_millis,
};
use crate::error::StorageError;
pub use url::check_url;

/// Each statement takes about a millisecond, so that ten do thousands a second; and a server has a hundred to give.
const CONNECTIONS: u32 = 10;
/// How long a call waits for a connection, new ones included.
const ACQUIRE_WITHIN: Duration = Duration::from_secs(2);
/// After this the server gives a statement up (a lock that is held, a disk that is slow); milliseconds.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = 4000";
/// After this we do: the server is gone without a word.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A connection that was used so recently is not asked whether it is alive: a round trip less.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Sooner than whoever asks gives up, so that it hears why.
const CHECK_WITHIN: Duration = Duration::from_secs(1);
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// Before a read is sent again, in milliseconds: some at random, so that not all come back at once.
const AGAIN_AFTER: std::ops::Range<u64> = 10..60;
const COLUMNS: &str = "id, tenant, user_id, state, sandbox_id, template, metadata::text AS metadata, failure, \
                       request_id, request_fingerprint, created_at, updated_at, version, due_at, details";
const WORDS: Words = Words { json: "::jsonb", same: "IS NOT DISTINCT FROM" };

/// A [`SessionStore`] in PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresSessions {
    pool: PgPool,
}

/// What went wrong, and whether it passes by itself.
#[derive(Debug)]
struct Failure {
    error: StorageError,
    /// the connection broke or the server is on its way down or up: another try may go well
    passing: bool,
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        let passing = match &error {
            // a certificate that is not trusted comes as invalid data
            sqlx::Error::Io(error) => error.kind() != ErrorKind::InvalidData,
            // 57P..: shutting down, starting; 53300: too many connections (PostgreSQL, appendix A)
            sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("57P") || code == "53300"),
            _ => false,
        };
        Self { error: unavailable(error), passing }
    }
}

/// A connection until its statement is done.
struct Lease(Option<PoolConnection<Postgres>>);

impl Lease {
    fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is given back once, by what consumes the lease")
    }

    /// Gives the connection back after a success.
    fn settle<T>(mut self, done: Result<T, Failure>) -> Result<T, Failure> {
        if done.is_ok() {
            drop(self.0.take());
        }
        done
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }
}

/// Waits for a statement's end, for as long as one may take.
async fn answered<T>(statement: impl Future<Output = sqlx::Result<T>>) -> Result<T, Failure> {
    match timeout(ANSWER_WITHIN, statement).await {
        Ok(done) => done.map_err(Failure::from),
        Err(elapsed) => Err(Failure { error: unavailable(elapsed), passing: false }),
    }
}

/// Sends `first` and, if it wrote something, `rest`.
async fn transact(
    connection: &mut PgConnection,
    mut first: QueryBuilder<Postgres>,
    rest: Vec<QueryBuilder<Postgres>>,
) -> sqlx::Result<bool> {
    let mut transaction = connection.begin().await?;
    if first.build().execute(&mut *transaction).await?.rows_affected() == 0 {
        transaction.rollback().await?;
        return Ok(false);
    }
    for mut statement in rest {
        statement.build().execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// That a label has a value, in PostgreSQL's words.
fn label(query: &mut QueryBuilder<Postgres>, key: &str, value: &str) {
    query.push("metadata @> jsonb_build_object(");
    query.push_bind(text::keep(key)).push("::text, ").push_bind(text::keep(value)).push("::text)");
}

impl PostgresSessions {
    /// Connects to `url` (`postgres://user:password@host:port/database`, with the parameters of libpq) and brings the
    /// tables up to date; of several that start at once, one does. A server that is not up yet is waited for.
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        let options = url::options(url).map_err(unavailable)?;
        start::prepare(&options).await?;
        Ok(Self { pool: Self::pool(options) })
    }

    fn pool(options: PgConnectOptions) -> PgPool {
        PgPoolOptions::new()
            .min_connections(1)
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_WITHIN)
            .test_before_acquire(false)
            .before_acquire(|connection, used| {
                Box::pin(async move {
                    if used.idle_for > TRUSTED_FOR {
                        connection.ping().await?;
                    }
                    Ok(true)
                })
            })
            // as a statement, since a pooler in front would refuse it as an option of the connection
            .after_connect(|connection, _| {
                Box::pin(async move { connection.execute(STATEMENT_TIMEOUT).await.map(drop) })
            })
            .connect_lazy_with(options)
    }

    async fn lease(&self) -> Result<Lease, StorageError> {
        self.pool.acquire().await.map(|connection| Lease(Some(connection))).map_err(unavailable)
    }

    /// What a query finds. A connection that breaks is a reason to ask again, once.
    async fn rows(&self, query: impl Fn() -> QueryBuilder<Postgres> + Send) -> Result<Vec<PgRow>, StorageError> {
        let mut again = true;
        loop {
            let mut lease = self.lease().await?;
            let mut query = query();
            let done = answered(query.build().fetch_all(lease.connection())).await;
            match lease.settle(done) {
                Ok(rows) => return Ok(rows),
                Err(failure) if failure.passing && again => again = false,
                Err(failure) => return Err(failure.error),
            }
            sleep(Duration::from_millis(rand::random_range(AGAIN_AFTER))).await;
        }
    }

    async fn records(
        &self,
        query: impl Fn() -> QueryBuilder<Postgres> + Send,
    ) -> Result<Vec<SessionRecord>, StorageError> {
        let rows = self.rows(query).await?;
        rows.iter().map(|row| read(row).map(|record| text::given_all(&record))).collect()
    }

    /// How many rows a statement wrote. It is sent once, whatever comes of it.
    async fn execute(&self, mut statement: QueryBuilder<Postgres>) -> Result<u64, StorageError> {
        let mut lease = self.lease().await?;
        let done = answered(statement.build().execute(lease.connection())).await;
        lease.settle(done).map(|done| done.rows_affected()).map_err(|failure| failure.error)
    }

    /// Writes a session by `first`, and what belongs to it, all or nothing. `false`, and nothing written, when `first` did
    /// not find its row. All is sent once, whatever comes of it.
    async fn write(
        &self,
        first: QueryBuilder<Postgres>,
        record: &SessionRecord,
        along: &Along,
    ) -> Result<bool, StorageError> {
        if along.is_empty() {
            return Ok(self.execute(first).await? > 0);
        }
        let rest = sql::along(record, &text::keep_along(along))?;
        let mut lease = self.lease().await?;
        let done = answered(transact(lease.connection(), first, rest)).await;
        lease.settle(done).map_err(|failure| failure.error)
    }

    async fn by_request(&self, record: &SessionRecord) -> Result<Option<SessionRecord>, StorageError> {
        let found = self.records(|| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM sessions WHERE tenant = "));
            query.push_bind(record.tenant.clone()).push(" AND user_id = ").push_bind(record.user.clone());
            query.push(" AND request_id = ").push_bind(record.request_id.clone());
            query
        });
        Ok(found.await?.pop())
    }
}

#[async_trait]
impl SessionStore for PostgresSessions {
    async fn insert(&self, record: &SessionRecord, along: &Along) -> Result<Inserted, StorageError> {
        let record = &text::keep_all(record);
        if self.write(sql::insert(&WORDS, record)?, record, along).await? {
            return Ok(Inserted::New);
        }
        match self.by_request(record).await? {
            Some(existing) => Ok(Inserted::Existing(Box::new(existing))),
            // deleted between the two statements: as good as busy, and a retry makes it
            None => Err(unavailable("the session with this request id was just deleted")),
        }
    }

    async fn get(&self, id: SessionId) -> Result<Option<SessionRecord>, StorageError> {
        let found = self.records(|| {
            let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM sessions WHERE id = "));
            query.push_bind(id.to_string());
            query
        });
        Ok(found.await?.pop())
    }

    async fn list(
        &self,
        filter: &SessionFilter,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionRecord>, StorageError> {
        let keep = |text: &Option<String>| text.as_deref().map(text::keep);
        let filter = SessionFilter { tenant: keep(&filter.tenant), user: keep(&filter.user), ..filter.clone() };
        self.records(|| sql::select(COLUMNS, &filter, after, limit, label)).await
    }

    async fn update(&self, record: &SessionRecord, along: &Along) -> Result<bool, StorageError> {
        let record = &text::keep_all(record);
        self.write(sql::update(&WORDS, record)?, record, along).await
    }

    async fn postpone(&self, record: &SessionRecord, due_at: Option<SystemTime>) -> Result<bool, StorageError> {
        Ok(self.execute(sql::postpone(&WORDS, record, due_at.map(to_millis))).await? > 0)
    }

    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError> {
        let mut delete = QueryBuilder::new("DELETE FROM sessions WHERE id = ");
        delete.push_bind(id.to_string()).push(" AND version = ").push_bind(version);
        Ok(self.execute(delete).await? > 0 || self.get(id).await?.is_none())
    }

    async fn events(&self, session: SessionId, after: i64, limit: usize) -> Result<Vec<SessionEvent>, StorageError> {
        let rows = self.rows(|| sql::events(&session.to_string(), after, limit)).await?;
        rows.iter().map(|row| sql::read_event(row).map(text::given_event)).collect()
    }

    async fn checkpoints(&self, session: SessionId) -> Result<Vec<CheckpointRecord>, StorageError> {
        let rows = self.rows(|| sql::checkpoints(&session.to_string())).await?;
        rows.iter().map(sql::read_checkpoint).collect()
    }

    async fn needed_folders(&self) -> Result<BTreeSet<CheckpointId>, StorageError> {
        let mut needed = BTreeSet::new();
        for row in self.rows(|| QueryBuilder::new(sql::NEEDED)).await? {
            sql::read_needed(&row, &mut needed)?;
        }
        Ok(needed)
    }

    async fn check(&self) -> Result<(), StorageError> {
        // a standby answers, and takes no writes
        let read_only = || QueryBuilder::new("SELECT 1 WHERE current_setting('transaction_read_only')::boolean");
        let rows = timeout(CHECK_WITHIN, self.rows(read_only)).await.map_err(unavailable)??;
        if rows.is_empty() { Ok(()) } else { Err(unavailable("the server is read-only")) }
    }

    async fn close(&self) {
        // a server that hangs does not hold up our end
        _ = timeout(CLOSE_WITHIN, self.pool.close()).await;
    }
}

#[cfg(test)]
mod tests;
