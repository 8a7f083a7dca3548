//! The database of one machine: an SQLite file.

use std::{
    fs::{OpenOptions, Permissions},
    io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    time::Duration,
};

use sqlx::{
    Sqlite, SqlitePool, Transaction,
    migrate::Migrator,
    query_builder::QueryBuilder,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous},
};

use super::{not_migrated, unavailable};
use crate::{error::StorageError, sessions::sqlite::SqliteSessions, templates::sqlite::SqliteTemplates};

static MIGRATIONS: Migrator = sqlx::migrate!("migrations/sqlite");
/// How long a write waits for another one.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const OPENED_AGAIN: u32 = 20;
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(50);
/// One write at a time is all that SQLite does; the others read meanwhile.
const CONNECTIONS: u32 = 4;
/// A transaction that will write says so at its begin: one that only finds out later cannot wait for another.
const BEGIN: &str = "BEGIN IMMEDIATE";
/// Environments and passwords lie in it. SQLite gives the files beside it the same mode.
const MODE: u32 = 0o600;

/// An SQLite file. Clones share its connections.
#[derive(Debug, Clone)]
pub struct SqliteDatabase {
    pub(crate) pool: SqlitePool,
}

impl SqliteDatabase {
    /// Opens the file at `path`, made if it is not there, and brings its tables up to date.
    pub async fn open(path: &Path) -> Result<Self, StorageError> {
        for_its_owner_alone(path).map_err(unavailable)?;
        let mut again = OPENED_AGAIN;
        loop {
            match Self::open_once(path).await {
                // roles of one machine start at once, and one of them makes the tables
                Err(StorageError::Unavailable { .. }) if again > 0 => again -= 1,
                opened => return opened,
            }
            tokio::time::sleep(OPEN_AGAIN_AFTER).await;
        }
    }

    async fn open_once(path: &Path) -> Result<Self, StorageError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
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

    /// The sessions in it.
    #[must_use]
    pub fn sessions(&self) -> SqliteSessions {
        SqliteSessions { database: self.clone() }
    }

    /// The templates in it.
    #[must_use]
    pub fn templates(&self) -> SqliteTemplates {
        SqliteTemplates { database: self.clone() }
    }

    /// What a query finds.
    pub(crate) async fn rows(&self, mut query: QueryBuilder<Sqlite>) -> Result<Vec<SqliteRow>, StorageError> {
        query.build().fetch_all(&self.pool).await.map_err(unavailable)
    }

    /// How many rows a statement wrote.
    pub(crate) async fn execute(&self, mut statement: QueryBuilder<Sqlite>) -> Result<u64, StorageError> {
        let done = statement.build().execute(&self.pool).await.map_err(unavailable)?;
        Ok(done.rows_affected())
    }

    /// A transaction that writes. Dropped, it has written nothing.
    pub(crate) async fn begin(&self) -> Result<Transaction<'static, Sqlite>, StorageError> {
        self.pool.begin_with(BEGIN).await.map_err(unavailable)
    }

    /// Whether it answers.
    pub(crate) async fn check(&self) -> Result<(), StorageError> {
        self.execute(QueryBuilder::new("SELECT 1")).await.map(drop)
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

/// Makes the file unless it is there, and keeps others from reading it.
fn for_its_owner_alone(path: &Path) -> io::Result<()> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(MODE).open(path);
    match opened {
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    let now = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if now & !MODE == 0 { Ok(()) } else { std::fs::set_permissions(path, Permissions::from_mode(now & MODE)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn processes_that_start_at_once_make_the_tables_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.db");
        let open = |_| {
            let path = path.clone();
            tokio::spawn(async move { SqliteDatabase::open(&path).await })
        };
        for opened in (0..6).map(open).collect::<Vec<_>>() {
            opened.await.unwrap().unwrap().check().await.unwrap();
        }
    }

    #[tokio::test]
    async fn file_and_those_beside_it_are_for_their_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sessions.db");
        // as an earlier version left it
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let database = SqliteDatabase::open(&path).await.unwrap();
        database.check().await.unwrap();
        let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 1, "{files:?}");
        for file in files {
            assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, MODE, "{}", file.display());
        }
    }
}
