//! The sessions of one machine, in an SQLite file.

use std::{collections::BTreeSet, path::Path, time::SystemTime};

use async_trait::async_trait;
use cloud_sandbox_model::{CheckpointId, SessionId};
use sqlx::{Sqlite, query_builder::QueryBuilder};

use super::{
    Along, CheckpointRecord, Inserted, SessionEvent, SessionFilter, SessionRecord, SessionStore,
    sql::{self, Words, read},
    to_millis,
};
use crate::{
    error::StorageError,
    sql::{sqlite::SqliteDatabase, unavailable},
};

const WORDS: Words = Words { json: "", same: "IS" };

/// A [`SessionStore`] in an SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteSessions {
    pub(crate) database: SqliteDatabase,
}

impl SqliteSessions {
    /// Those in the file at `path`, made if it is not there.
    pub async fn open(path: &Path) -> Result<Self, StorageError> {
        Ok(SqliteDatabase::open(path).await?.sessions())
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
            return Ok(self.database.execute(first).await? > 0);
        }
        let mut transaction = self.database.begin().await?;
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

    async fn by_request(&self, record: &SessionRecord) -> Result<Option<SessionRecord>, StorageError> {
        let row = sqlx::query("SELECT * FROM sessions WHERE tenant = ? AND user_id = ? AND request_id = ?")
            .bind(&record.tenant)
            .bind(&record.user)
            .bind(&record.request_id)
            .fetch_optional(&self.database.pool)
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
        let row = row.fetch_optional(&self.database.pool).await.map_err(unavailable)?;
        row.as_ref().map(read).transpose()
    }

    async fn list(
        &self,
        filter: &SessionFilter,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionRecord>, StorageError> {
        let rows = self.database.rows(sql::select("*", filter, after, limit, label)).await?;
        rows.iter().map(read).collect()
    }

    async fn update(&self, record: &SessionRecord, along: &Along) -> Result<bool, StorageError> {
        self.write(sql::update(&WORDS, record)?, record, along).await
    }

    async fn postpone(&self, record: &SessionRecord, due_at: Option<SystemTime>) -> Result<bool, StorageError> {
        Ok(self.database.execute(sql::postpone(&WORDS, record, due_at.map(to_millis))).await? > 0)
    }

    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError> {
        let delete =
            sqlx::query("DELETE FROM sessions WHERE id = ? AND version = ?").bind(id.to_string()).bind(version);
        let done = delete.execute(&self.database.pool).await.map_err(unavailable)?;
        Ok(done.rows_affected() > 0 || self.get(id).await?.is_none())
    }

    async fn events(&self, session: SessionId, after: i64, limit: usize) -> Result<Vec<SessionEvent>, StorageError> {
        let rows = self.database.rows(sql::events(&session.to_string(), after, limit)).await?;
        rows.iter().map(sql::read_event).collect()
    }

    async fn checkpoints(&self, session: SessionId) -> Result<Vec<CheckpointRecord>, StorageError> {
        let rows = self.database.rows(sql::checkpoints(&session.to_string())).await?;
        rows.iter().map(sql::read_checkpoint).collect()
    }

    async fn needed_folders(&self) -> Result<BTreeSet<CheckpointId>, StorageError> {
        let mut needed = BTreeSet::new();
        for row in self.database.rows(QueryBuilder::new(sql::NEEDED)).await? {
            sql::read_needed(&row, &mut needed)?;
        }
        Ok(needed)
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.database.check().await
    }

    async fn close(&self) {
        self.database.close().await;
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
        sqlx::query("UPDATE sessions SET state = 'lost'").execute(&store.database.pool).await.unwrap();
        assert!(matches!(store.get(record.id).await, Err(StorageError::Corrupt { .. })));
    }

    #[tokio::test]
    async fn file_of_a_later_version_is_refused_and_left_alone() {
        let (folder, store) = store().await;
        let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                     VALUES (99, 'later', true, x'00', 0)";
        sqlx::query(later).execute(&store.database.pool).await.unwrap();
        store.close().await;
        let opened = SqliteSessions::open(&folder.path().join("sessions.db")).await;
        assert!(matches!(opened, Err(StorageError::Newer { found: 99, known: 3, .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn folder_that_is_not_there_is_unavailable() {
        let opened = SqliteSessions::open(Path::new("/nonexistent/sessions.db")).await;
        assert!(matches!(opened, Err(StorageError::Unavailable { .. })));
    }
}
