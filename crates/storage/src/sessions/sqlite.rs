//! The sessions of one machine, in an SQLite file.

use std::{path::Path, time::Duration};

use async_trait::async_trait;
use cloud_sandbox_model::SessionId;
use sqlx::{
    Sqlite, SqlitePool,
    migrate::Migrator,
    query_builder::QueryBuilder,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{
    Inserted, SessionFilter, SessionRecord, SessionStore,
    sql::{self, metadata, not_migrated, read, unavailable},
    to_millis,
};
use crate::error::StorageError;

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
/// How long a write waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// One write at a time is all that SQLite does; the others read meanwhile.
const CONNECTIONS: u32 = 4;

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
    async fn insert(&self, record: &SessionRecord) -> Result<Inserted, StorageError> {
        let insert = "INSERT INTO sessions (id, tenant, user_id, state, sandbox_id, template, metadata, failure, \
                      request_id, request_fingerprint, created_at, updated_at, version) \
                      VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) \
                      ON CONFLICT (tenant, user_id, request_id) DO NOTHING";
        let done = sqlx::query(insert)
            .bind(record.id.to_string())
            .bind(&record.tenant)
            .bind(&record.user)
            .bind(record.state.as_str())
            .bind(record.sandbox.map(|id| id.to_string()))
            .bind(&record.template)
            .bind(metadata(record)?)
            .bind(&record.failure)
            .bind(&record.request_id)
            .bind(&record.request_fingerprint)
            .bind(to_millis(record.created_at))
            .bind(to_millis(record.updated_at))
            .bind(record.version)
            .execute(&self.pool)
            .await
            .map_err(unavailable)?;
        if done.rows_affected() > 0 {
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
        let rows =
            sql::select("*", filter, after, limit, label).build().fetch_all(&self.pool).await.map_err(unavailable)?;
        rows.iter().map(read).collect()
    }

    async fn update(&self, record: &SessionRecord) -> Result<bool, StorageError> {
        let update = "UPDATE sessions SET state = ?, sandbox_id = ?, metadata = ?, failure = ?, updated_at = ?, \
                      version = version + 1 WHERE id = ? AND version = ?";
        let done = sqlx::query(update)
            .bind(record.state.as_str())
            .bind(record.sandbox.map(|id| id.to_string()))
            .bind(metadata(record)?)
            .bind(&record.failure)
            .bind(to_millis(record.updated_at))
            .bind(record.id.to_string())
            .bind(record.version)
            .execute(&self.pool)
            .await
            .map_err(unavailable)?;
        Ok(done.rows_affected() > 0)
    }

    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError> {
        let delete =
            sqlx::query("DELETE FROM sessions WHERE id = ? AND version = ?").bind(id.to_string()).bind(version);
        let done = delete.execute(&self.pool).await.map_err(unavailable)?;
        Ok(done.rows_affected() > 0 || self.get(id).await?.is_none())
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
        store.insert(&record).await.unwrap();
        store.close().await;
        let store = SqliteSessions::open(&folder.path().join("sessions.db")).await.unwrap();
        assert_eq!(store.get(record.id).await.unwrap(), Some(record));
    }

    #[tokio::test]
    async fn row_that_cannot_be_read_is_corrupt() {
        let (_folder, store) = store().await;
        let record = conformance::record("ada", None);
        store.insert(&record).await.unwrap();
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
        assert!(matches!(opened, Err(StorageError::Newer { found: 99, known: 1, .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn folder_that_is_not_there_is_unavailable() {
        let opened = SqliteSessions::open(Path::new("/nonexistent/sessions.db")).await;
        assert!(matches!(opened, Err(StorageError::Unavailable { .. })));
    }
}
