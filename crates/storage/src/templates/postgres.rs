//! The templates of a fleet, in PostgreSQL, for any number of schedulers at once.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::{Connection, Postgres, query_builder::QueryBuilder};

use super::{
    AllTemplates, Created, TemplateRecord, TemplateStore,
    sql::{self, New, Stored, read},
};
use crate::{
    error::StorageError,
    sql::{
        postgres::{
            PostgresDatabase,
            text::{given, keep},
        },
        text,
    },
};

/// A [`TemplateStore`] in PostgreSQL.
#[derive(Debug, Clone)]
pub struct PostgresTemplates {
    pub(crate) database: PostgresDatabase,
}

impl PostgresTemplates {
    async fn records(
        &self,
        query: impl Fn() -> QueryBuilder<Postgres> + Send,
    ) -> Result<Vec<TemplateRecord>, StorageError> {
        self.database.rows(query).await?.iter().map(|row| read(row).map(as_given)).collect()
    }
}

/// A record with its texts as they were given. JSON holds no NUL.
fn as_given(record: TemplateRecord) -> TemplateRecord {
    TemplateRecord {
        tenant: given(&record.tenant),
        user: given(&record.user),
        request_id: record.request_id.as_deref().map(given),
        ..record
    }
}

#[async_trait]
impl TemplateStore for PostgresTemplates {
    async fn create(&self, record: &TemplateRecord) -> Result<Created, StorageError> {
        let new = New {
            name: keep(&record.template.name),
            template: text(&record.template)?,
            tenant: keep(&record.tenant),
            user: keep(&record.user),
            request_id: record.request_id.as_deref().map(keep),
            created_at: record.created_at,
        };
        let stored = self.database.lease().await?.answered(async |connection| {
            let mut transaction = connection.begin().await?;
            let stored = sql::create::<Postgres>(&mut transaction, &new).await?;
            match &stored {
                Stored::New(_) => transaction.commit().await?,
                Stored::Existing(_) | Stored::Full => transaction.rollback().await?,
            }
            Ok(stored)
        });
        match stored.await? {
            Stored::New(version) => record.numbered(version).map(Created::New),
            Stored::Existing(row) => read(&row).map(as_given).map(Created::Existing),
            Stored::Full => Ok(Created::Full),
        }
    }

    async fn get(&self, name: &str, version: Option<u32>) -> Result<Option<TemplateRecord>, StorageError> {
        Ok(self.records(|| sql::get(&keep(name), version)).await?.pop())
    }

    async fn newest(&self, after: Option<&str>, limit: usize) -> Result<Vec<TemplateRecord>, StorageError> {
        self.records(|| sql::newest(after.map(keep).as_deref(), limit)).await
    }

    async fn versions(
        &self,
        name: &str,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<TemplateRecord>, StorageError> {
        self.records(|| sql::versions(&keep(name), before, limit)).await
    }

    async fn all(&self) -> Result<AllTemplates, StorageError> {
        sql::read_all(&self.database.rows(|| QueryBuilder::new(sql::ALL)).await?)
    }

    async fn revision(&self) -> Result<u64, StorageError> {
        sql::read_revision(&self.database.rows(|| QueryBuilder::new(sql::REVISION)).await?)
    }

    async fn delete(&self, name: &str, version: Option<u32>) -> Result<Vec<u32>, StorageError> {
        let (name, now) = (keep(name), SystemTime::now());
        let gone = self.database.lease().await?.answered(async |connection| {
            let mut transaction = connection.begin().await?;
            let gone = sql::delete::<Postgres>(&mut transaction, &name, version, now).await?;
            if gone.is_empty() {
                transaction.rollback().await?
            } else {
                transaction.commit().await?
            }
            Ok(gone)
        });
        sql::versions_of(&gone.await?)
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
