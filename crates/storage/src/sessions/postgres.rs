//! The sessions of a fleet, in PostgreSQL, for any number of session managers at once.

mod text;

use std::{collections::BTreeSet, time::SystemTime};

use async_trait::async_trait;
use cloud_sandbox_model::{CheckpointId, SessionId};
use sqlx::{Postgres, query_builder::QueryBuilder};

use super::{
    Along, CheckpointRecord, Inserted, SessionEvent, SessionFilter, SessionRecord, SessionStore,
    sql::{self, Words, read},
    to_millis,
};
use crate::{
    error::StorageError,
    sql::{
        postgres::{PostgresDatabase, text::keep},
        unavailable,
    },
};

const COLUMNS: &str = "id, tenant, user_id, state, sandbox_id, template, metadata::text AS metadata, failure, \
                       request_id, request_fingerprint, created_at, updated_at, version, due_at, details";
const WORDS: Words = Words { json: "::jsonb", same: "IS NOT DISTINCT FROM" };

/// A [`SessionStore`] in PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresSessions {
    pub(crate) database: PostgresDatabase,
}

/// That a label has a value, in PostgreSQL's words.
fn label(query: &mut QueryBuilder<Postgres>, key: &str, value: &str) {
    query.push("metadata @> jsonb_build_object(");
    query.push_bind(keep(key)).push("::text, ").push_bind(keep(value)).push("::text)");
}

impl PostgresSessions {
    async fn records(
        &self,
        query: impl Fn() -> QueryBuilder<Postgres> + Send,
    ) -> Result<Vec<SessionRecord>, StorageError> {
        let rows = self.database.rows(query).await?;
        rows.iter().map(|row| read(row).map(|record| text::given_all(&record))).collect()
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
            return Ok(self.database.execute(first).await? > 0);
        }
        self.database.transact(first, sql::along(record, &text::keep_along(along))?).await
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
        let keep = |text: &Option<String>| text.as_deref().map(keep);
        let filter = SessionFilter { tenant: keep(&filter.tenant), user: keep(&filter.user), ..filter.clone() };
        self.records(|| sql::select(COLUMNS, &filter, after, limit, label)).await
    }

    async fn update(&self, record: &SessionRecord, along: &Along) -> Result<bool, StorageError> {
        let record = &text::keep_all(record);
        self.write(sql::update(&WORDS, record)?, record, along).await
    }

    async fn postpone(&self, record: &SessionRecord, due_at: Option<SystemTime>) -> Result<bool, StorageError> {
        Ok(self.database.execute(sql::postpone(&WORDS, record, due_at.map(to_millis))).await? > 0)
    }

    async fn delete(&self, id: SessionId, version: i64) -> Result<bool, StorageError> {
        let mut delete = QueryBuilder::new("DELETE FROM sessions WHERE id = ");
        delete.push_bind(id.to_string()).push(" AND version = ").push_bind(version);
        Ok(self.database.execute(delete).await? > 0 || self.get(id).await?.is_none())
    }

    async fn events(&self, session: SessionId, after: i64, limit: usize) -> Result<Vec<SessionEvent>, StorageError> {
        let rows = self.database.rows(|| sql::events(&session.to_string(), after, limit)).await?;
        rows.iter().map(|row| sql::read_event(row).map(text::given_event)).collect()
    }

    async fn checkpoints(&self, session: SessionId) -> Result<Vec<CheckpointRecord>, StorageError> {
        let rows = self.database.rows(|| sql::checkpoints(&session.to_string())).await?;
        rows.iter().map(sql::read_checkpoint).collect()
    }

    async fn needed_folders(&self) -> Result<BTreeSet<CheckpointId>, StorageError> {
        let mut needed = BTreeSet::new();
        for row in self.database.rows(|| QueryBuilder::new(sql::NEEDED)).await? {
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
mod tests;
