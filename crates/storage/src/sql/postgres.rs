//! The database of a fleet: PostgreSQL (12 or newer), for any number of processes at once.
//!
//! Every write is one statement or one transaction, so that a connection that breaks in the middle leaves what was before
//! or what is new. Whether it was written is not known then, and so a write is never sent a second time: the caller hears
//! that the database is unavailable. A read is, once.
//!
//! Invariant: a connection that failed, fell silent, or was left by a caller who gave up is closed and not used again.
//! So a server that hangs, or one that became a read-only standby, does not hold on to the pool.

#[cfg(test)]
#[path = "../../../../tests/setup/postgres.rs"]
pub(crate) mod server;
mod start;
pub(crate) mod text;
mod url;

use std::{io::ErrorKind, time::Duration};

use sqlx::{
    Connection, Executor, PgConnection, PgPool, Postgres,
    pool::PoolConnection,
    postgres::{PgConnectOptions, PgPoolOptions, PgRow},
    query_builder::QueryBuilder,
};
use tokio::time::{sleep, timeout};

use super::unavailable;
use crate::{error::StorageError, sessions::postgres::PostgresSessions, templates::postgres::PostgresTemplates};
pub use url::check_url;
pub(crate) use url::options;

/// Each statement takes about a millisecond, so that ten do thousands a second; and a server has a hundred to give.
pub(crate) const CONNECTIONS: u32 = 10;
/// How long a call waits for a connection, new ones included.
pub(crate) const ACQUIRE_WITHIN: Duration = Duration::from_secs(2);
/// After this the server gives a statement up (a lock that is held, a disk that is slow); milliseconds.
const STATEMENT_TIMEOUT: &str = "SET statement_timeout = 4000";
/// After this we do: the server is gone without a word.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// A connection that was used so recently is not asked whether it is alive: a round trip less.
pub(crate) const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Sooner than whoever asks gives up, so that it hears why.
const CHECK_WITHIN: Duration = Duration::from_secs(1);
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// Before a read is sent again, in milliseconds: some at random, so that not all come back at once.
const AGAIN_AFTER: std::ops::Range<u64> = 10..60;

/// A database in PostgreSQL. Clones share its connections.
#[derive(Debug, Clone)]
pub struct PostgresDatabase {
    pub(crate) pool: PgPool,
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
pub(crate) struct Lease(Option<PoolConnection<Postgres>>);

impl Lease {
    pub(crate) fn connection(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect("it is given back once, by what consumes the lease")
    }

    /// Gives the connection back after a success.
    fn settle<T>(mut self, done: Result<T, Failure>) -> Result<T, Failure> {
        if done.is_ok() {
            drop(self.0.take());
        }
        done
    }

    /// Waits for what was sent over the connection, for as long as one statement may take.
    pub(crate) async fn answered<T>(
        mut self,
        send: impl AsyncFnOnce(&mut PgConnection) -> sqlx::Result<T>,
    ) -> Result<T, StorageError> {
        let done = answered(send(self.connection())).await;
        self.settle(done).map_err(|failure| failure.error)
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

impl PostgresDatabase {
    /// Connects to `url` (`postgres://user:password@host:port/database`, with the parameters of libpq) and brings the
    /// tables up to date; of several that start at once, one does. A server that is not up yet is waited for.
    pub async fn connect(url: &str) -> Result<Self, StorageError> {
        let options = options(url).map_err(unavailable)?;
        start::prepare(&options).await?;
        Ok(Self { pool: Self::pool(options) })
    }

    /// The sessions in it.
    #[must_use]
    pub fn sessions(&self) -> PostgresSessions {
        PostgresSessions { database: self.clone() }
    }

    /// The templates in it.
    #[must_use]
    pub fn templates(&self) -> PostgresTemplates {
        PostgresTemplates { database: self.clone() }
    }

    pub(crate) fn pool(options: PgConnectOptions) -> PgPool {
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

    /// A connection for one transaction.
    pub(crate) async fn lease(&self) -> Result<Lease, StorageError> {
        self.pool.acquire().await.map(|connection| Lease(Some(connection))).map_err(unavailable)
    }

    /// What a query finds. A connection that breaks is a reason to ask again, once.
    pub(crate) async fn rows(
        &self,
        query: impl Fn() -> QueryBuilder<Postgres> + Send,
    ) -> Result<Vec<PgRow>, StorageError> {
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

    /// How many rows a statement wrote. It is sent once, whatever comes of it.
    pub(crate) async fn execute(&self, mut statement: QueryBuilder<Postgres>) -> Result<u64, StorageError> {
        let mut lease = self.lease().await?;
        let done = answered(statement.build().execute(lease.connection())).await;
        lease.settle(done).map(|done| done.rows_affected()).map_err(|failure| failure.error)
    }

    /// Sends `first` and, if it wrote something, `rest`, all or nothing, once. Whether it wrote.
    pub(crate) async fn transact(
        &self,
        first: QueryBuilder<Postgres>,
        rest: Vec<QueryBuilder<Postgres>>,
    ) -> Result<bool, StorageError> {
        let mut lease = self.lease().await?;
        let done = answered(transact(lease.connection(), first, rest)).await;
        lease.settle(done).map_err(|failure| failure.error)
    }

    /// Whether it answers and takes writes.
    pub(crate) async fn check(&self) -> Result<(), StorageError> {
        // a standby answers, and takes no writes
        let read_only = || QueryBuilder::new("SELECT 1 WHERE current_setting('transaction_read_only')::boolean");
        let rows = timeout(CHECK_WITHIN, self.rows(read_only)).await.map_err(unavailable)??;
        if rows.is_empty() { Ok(()) } else { Err(unavailable("the server is read-only")) }
    }

    pub(crate) async fn close(&self) {
        // a server that hangs does not hold up our end
        _ = timeout(CLOSE_WITHIN, self.pool.close()).await;
    }
}
