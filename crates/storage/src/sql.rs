//! What is the same for all that lies in SQL: the database itself, how a column is read, and what a failure means.

pub mod postgres;
pub mod sqlite;

use std::str::FromStr;

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    ColumnIndex, Database, Decode, Row, Type,
    migrate::{MigrateError, Migrator},
};

use crate::error::StorageError;

const STORE: &str = "the database";
/// No room on the disk: SQLITE_FULL (sqlite.org/rescode.html), and disk_full (PostgreSQL, appendix A).
const FULL: [&str; 2] = ["13", "53100"];

/// A database that takes texts and numbers.
pub(crate) trait Plain: Database<Arguments: Default> {}

impl<DB: Database<Arguments: Default>> Plain for DB {}

/// What a failure means: a database without room is told apart.
pub(crate) fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StorageError {
    let source = error.into();
    let is_full = match source.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(error)) => error.code().is_some_and(|code| FULL.contains(&&*code)),
        _ => false,
    };
    if is_full {
        StorageError::Full { store: STORE, source }
    } else {
        StorageError::Unavailable { store: STORE, source }
    }
}

pub(crate) fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { store: STORE, what: what.into() }
}

/// Why the tables could not be brought to what `known` makes of them.
fn not_migrated(error: MigrateError, known: &Migrator) -> StorageError {
    match error {
        // migrations are never taken back: one that is not known here is one of a later version
        MigrateError::VersionMissing(found) => {
            let known = known.iter().map(|migration| migration.version).max().unwrap_or_default();
            StorageError::Newer { store: STORE, found, known }
        }
        error => unavailable(error),
    }
}

/// A value as JSON.
pub(crate) fn text(value: &impl Serialize) -> Result<String, StorageError> {
    serde_json::to_string(value).map_err(|error| corrupt(format!("a value to write: {error}")))
}

/// The value of a column in JSON.
pub(crate) fn json<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, StorageError> {
    serde_json::from_str(text).map_err(|error| corrupt(format!("column {name}: {error}")))
}

pub(crate) fn column<'r, R, T>(row: &'r R, name: &str) -> Result<T, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    T: Decode<'r, R::Database> + Type<R::Database>,
{
    row.try_get(name).map_err(|error| corrupt(format!("column {name}: {error}")))
}

pub(crate) fn parsed<T: FromStr>(name: &str, text: &str) -> Result<T, StorageError> {
    text.parse().map_err(|_| corrupt(format!("column {name}: {text:?}")))
}
