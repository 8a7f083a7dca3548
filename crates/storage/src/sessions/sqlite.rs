//! The sessions of one machine, in an SQLite file.

use std::{
    collections::BTreeSet,
    path::Path,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use cloud_sandbox_model::{CheckpointId, SessionId};
use sqlx::{
    Sqlite, SqlitePool,
    migrate::Migrator,
    query_builder::QueryBuilder,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use super::{
    Along, CheckpointRecord, Inserted, SessionEvent, SessionFilter, SessionRecord, SessionStore,
    sql::{self, Words, not_migrated, read, unavailable},
    to_millis,
};
use crate::error::StorageError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
/// How long a write waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// One write at a time is all that SQLite does; the others read meanwhile.
const CONNECTIONS: u32 = 4;
const WORDS: Words = Words { json: "", same: "IS" };
/// A transaction that will write says so at its begin: one that only finds out later cannot wait for another.
const BEGIN: &str = "BEGIN IMMEDIATE";

/// A [`SessionStore`] in an SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteSessions {
    pool: SqlitePool,
}

impl SqliteSessions {
    /// Opens the file at `path`, made if it is not there, and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, StorageError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // with a write-ahead log this may lose the last writes to a power cut, but never consistency
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .foreign_keys(true);
        let pool = SqlitePoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(BUSY_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(unavailable)?;
        MIGRATIONS.run(&pool).await.map_err(|error| not_migrated(error, &MIGRATIONS))?;
        Ok(Self { pool })
    }

    /// Writes a session by `first`, and what belongs to it, all or nothing. `false`, and nothing written, when `first` did
    /// not find its row.
    async fn write(
        &self,
        mut first: QueryBuilder<Sqlite>,
        record: &SessionRecord,
        along: &Along,
    ) -> Result<bool, StorageError> {
        if along.is_empty() {
            let done = first.build().execute(&self.pool).await.map_err(unavailable)?;
            return Ok(done.rows_affected() > 0);
        }
        let mut transaction = self.pool.begin_with(BEGIN).await.map_err(unavailable)?;
        let done = first.build().execute(&mut *transaction).await.map_err(unavailable)?;
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        for mut statement in sql::along(record, along)? {
            statement.build().execute(&mut *transaction).await.map_err(unavailable)?;
        }
        transaction.commit().await.map_err(unavailable)?;
        Ok(true)
    }

    async fn rows(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<SqliteRow>, StorageError> {
        query.build().fetch_all(&self.pool).await.map_err(unavailable)
    }

    async fn by_request(&self, record: &SessionRecord) -> Result<Option<SessionRecord>, StorageError> {
        let row = sqlx::query("SELECT * FROM sessions WHERE tenant = ? AND user_id = ? AND request_id = ?")
            .bind(&record.tenant)
            .bind(&record.user)
            .bind(&record.request_id)
            .fetch_optional(&self.pool)
            .await
            .map_err(unavailable)?;
        row.as_ref().map(read).transpose()
    }
}

/// A key may hold what a JSON path would read as its own, so the labels are walked instead.
fn label(query: &mut QueryBuilder<Sqlite>, key: &str, value: &str) {
    query.push("EXISTS (SELECT 1 FROM json_each(sessions.metadata) AS label WHERE label.key = ");
    query.push_bind(key.to_owned()).push(" AND label.value = ").push_bind(value.to_owned()).push(")");
}

#[async_trait]
impl SessionStore for SqliteSessions {
    async fn insert(&self, record: &SessionRecord, along: &Along) -> Result<Inserted, StorageError> {
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
        let row = sqlx::query("SELECT * FROM sessions WHERE id = ?").bind(id.to_string());
        let row = row.fetch_optional(&self.pool).await.map_err(unavailable)?;
        row.as_ref().map(read).transpose()
    }

    async fn list(
        &self,
        filter: &SessionFilter,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionRecord>, StorageError> {
        let rows = self.rows(sql::select("*", filter, after, limit, label)).await?;
        rows.iter().map(read).collect()
    }

    async fn update(&self, record: &SessionRecord, along: &Along) -> Result<bool, StorageError> {
        self.write(sql::update(&WORDS, record)?, record, along).await
    }

    async fn postpone(&self, record: &SessionRecord, due_at: Option<SystemTime>) -> Result<bool, StorageError> {
        let mut query = sql::postpone::<Sqlite>(&WORDS, record, due_at.map(to_millis));
        let done = query.build().execute(&self.pool).await.map_err(unavailable)?;
        Ok(done.rows_affected() > 0)
    }

    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError> {
        let delete =
            sqlx::query("DELETE FROM sessions WHERE id = ? AND version = ?").bind(id.to_string()).bind(version);
        let done = delete.execute(&self.pool).await.map_err(unavailable)?;
        Ok(done.rows_affected() > 0 || self.get(id).await?.is_none())
    }

    async fn events(&self, session: SessionId, after: i64, limit: usize) -> Result<Vec<SessionEvent>, StorageError> {
        let rows = self.rows(sql::events(&session.to_string(), after, limit)).await?;
        rows.iter().map(sql::read_event).collect()
    }

    async fn checkpoints(&self, session: SessionId) -> Result<Vec<CheckpointRecord>, StorageError> {
        let rows = self.rows(sql::checkpoints(&session.to_string())).await?;
        rows.iter().map(sql::read_checkpoint).collect()
    }

    async fn needed_folders(&self) -> Result<BTreeSet<CheckpointId>, StorageError> {
        let mut needed = BTreeSet::new();
        for row in self.rows(QueryBuilder::new(sql::NEEDED)).await? {
            sql::read_needed(&row, &mut needed)?;
        }
        Ok(needed)
    }

    async fn check(&self) -> Result<(), StorageError> {
        sqlx::query("SELECT 1").execute(&self.pool).await.map_err(unavailable)?;
        Ok(())
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

#[cfg(test)]
mod faults;
#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::conformance::{self, session_cases, test_each};

    async fn store() -> (tempfile::TempDir, SqliteSessions) {
        let folder = tempfile::tempdir().unwrap();
        let store = SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap();
        (folder, store)
    }

    session_cases!(test_each!(store().await));

    #[tokio::test]
    async fn sessions_survive_a_restart() {
        let (folder, store) = store().await;
        let record = conformance::record("ada", None);
        store.insert(&record, &Along::default()).await.unwrap();
        store.close().await;
        let store = SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap();
        assert_eq!(store.get(record.id).await.unwrap(), Some(record));
    }

    #[tokio::test]
    async fn row_that_cannot_be_read_is_corrupt() {
        let (_folder, store) = store().await;
        let record = conformance::record("ada", None);
        store.insert(&record, &Along::default()).await.unwrap();
        sqlx::query("UPDATE sessions SET state = 'lost'").execute(&store.pool).await.unwrap();
        assert!(matches!(store.get(record.id).await, Err(StorageError::Corrupt { .. })));
    }

    #[tokio::test]
    async fn file_of_a_later_version_is_refused_and_left_alone() {
        let (folder, store) = store().await;
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (99, 'later', true, x'00', 0)";
        sqlx::query(later).execute(&store.pool).await.unwrap();
        store.close().await;
        let opened = SqliteSessions::open(&folder.path().join("sessions.db")).await;
        assert!(matches!(opened, Err(StorageError::Newer { found: 99, known: 2, .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn folder_that_is_not_there_is_unavailable() {
        let opened = SqliteSessions::open(Path::new("/nonexistent/sessions.db")).await;
        assert!(matches!(opened, Err(StorageError::Unavailable { .. })));
    }
}
