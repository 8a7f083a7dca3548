//! The templates of one machine, in an SQLite file.

use std::time::SystemTime;

use async_trait::async_trait;
use sqlx::{Sqlite, query_builder::QueryBuilder};

use super::{
    AllTemplates, Created, TemplateRecord, TemplateStore,
    sql::{self, New, Stored, read},
};
use crate::{
    error::StorageError,
    sql::{sqlite::SqliteDatabase, text, unavailable},
};

/// A [`TemplateStore`] in an SQLite file.
#[derive(Debug, Clone)]
pub struct SqliteTemplates {
    pub(crate) database: SqliteDatabase,
}

impl SqliteTemplates {
    async fn records(&self, query: QueryBuilder<Sqlite>) -> Result<Vec<TemplateRecord>, StorageError> {
        self.database.rows(query).await?.iter().map(read).collect()
    }
}

#[async_trait]
impl TemplateStore for SqliteTemplates {
    async fn create(&self, record: &TemplateRecord) -> Result<Created, StorageError> {
        let new = New {
            name: record.template.name.clone(),
            template: text(&record.template)?,
            tenant: record.tenant.clone(),
            user: record.user.clone(),
            request_id: record.request_id.clone(),
            created_at: record.created_at,
        };
        let mut transaction = self.database.begin().await?;
        match sql::create::<Sqlite>(&mut transaction, &new).await.map_err(unavailable)? {
            Stored::New(version) => {
                transaction.commit().await.map_err(unavailable)?;
                record.numbered(version).map(Created::New)
            }
            Stored::Existing(row) => read(&row).map(Created::Existing),
            Stored::Full => Ok(Created::Full),
        }
    }

    async fn get(&self, name: &str, version: Option<u32>) -> Result<Option<TemplateRecord>, StorageError> {
        Ok(self.records(sql::get(name, version)).await?.pop())
    }

    async fn newest(&self, after: Option<&str>, limit: usize) -> Result<Vec<TemplateRecord>, StorageError> {
        self.records(sql::newest(after, limit)).await
    }

    async fn versions(
        &self,
        name: &str,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<TemplateRecord>, StorageError> {
        self.records(sql::versions(name, before, limit)).await
    }

    async fn all(&self) -> Result<AllTemplates, StorageError> {
        sql::read_all(&self.database.rows(QueryBuilder::new(sql::ALL)).await?)
    }

    async fn revision(&self) -> Result<u64, StorageError> {
        sql::read_revision(&self.database.rows(QueryBuilder::new(sql::REVISION)).await?)
    }

    async fn delete(&self, name: &str, version: Option<u32>) -> Result<Vec<u32>, StorageError> {
        let mut transaction = self.database.begin().await?;
        let deleted = sql::delete::<Sqlite>(&mut transaction, name, version, SystemTime::now()).await;
        let gone = deleted.map_err(unavailable)?;
        if !gone.is_empty() {
            transaction.commit().await.map_err(unavailable)?;
        }
        sql::versions_of(&gone)
    }

    async fn check(&self) -> Result<(), StorageError> {
        self.database.check().await
    }

    async fn close(&self) {
        self.database.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::templates::conformance::{self, template_cases, test_each};

    async fn store() -> (tempfile::TempDir, SqliteTemplates) {
        let folder = tempfile::tempdir().unwrap();
        let database = SqliteDatabase::open(&folder.path().join("sessions.db")).await.unwrap();
        (folder, database.templates())
    }

    template_cases!(test_each!(store().await));

    #[tokio::test]
    async fn templates_and_their_numbers_survive_a_restart() {
        let (folder, store) = store().await;
        let record = conformance::record("python", "ada", None);
        for _ in 0..2 {
            store.create(&record).await.unwrap();
        }
        store.delete("python", None).await.unwrap();
        let revision = store.revision().await.unwrap();
        store.close().await;
        let store = SqliteDatabase::open(&folder.path().join("sessions.db")).await.unwrap().templates();
        assert_eq!(store.revision().await.unwrap(), revision);
        let Created::New(third) = store.create(&record).await.unwrap() else { panic!("it is new") };
        assert_eq!(third.template.version, 3);
        assert_eq!(store.get("python", Some(3)).await.unwrap(), Some(third));
    }

    #[tokio::test]
    async fn template_that_cannot_be_read_is_corrupt() {
        let (_folder, store) = store().await;
        store.create(&conformance::record("python", "ada", None)).await.unwrap();
        store.database.execute(QueryBuilder::new("UPDATE templates SET template = '{}'")).await.unwrap();
        assert!(matches!(store.get("python", None).await, Err(StorageError::Corrupt { .. })));
        assert!(matches!(store.all().await, Err(StorageError::Corrupt { .. })));
    }
}
