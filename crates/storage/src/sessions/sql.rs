//! What the stores in SQL share: how a row is a record, which query a filter stands for, and what a failure means.

use std::str::FromStr;

use cloud_sandbox_model::{SessionId, SessionState};
use sqlx::{
    ColumnIndex, Database, Decode, Encode, Row, Type,
    migrate::{MigrateError, Migrator},
    query_builder::QueryBuilder,
};

use super::{SessionFilter, SessionRecord, from_millis, to_millis};
use crate::error::StorageError;

pub(super) const STORE: &str = "the session store";
/// No room on the disk: SQLITE_FULL (sqlite.org/rescode.html), and disk_full (PostgreSQL, appendix A).
const FULL: [&str; 2] = ["13", "53100"];

/// What a failure means: a database without room is told apart.
pub(super) fn unavailable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StorageError {
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

pub(super) fn corrupt(what: impl Into<String>) -> StorageError {
    StorageError::Corrupt { store: STORE, what: what.into() }
}

/// Why the tables could not be brought to what `known` makes of them.
pub(super) fn not_migrated(error: MigrateError, known: &Migrator) -> StorageError {
    match error {
        // migrations are never taken back: one that is not known here is one of a later version
        MigrateError::VersionMissing(found) => {
            let known = known.iter().map(|migration| migration.version).max().unwrap_or_default();
            StorageError::Newer { store: STORE, found, known }
        }
        error => unavailable(error),
    }
}

/// A row as a record. `metadata` must come as text.
pub(super) fn read<'r, R>(row: &'r R) -> Result<SessionRecord, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |name| column::<_, &str>(row, name);
    let state = text("state")?;
    let sandbox = column::<_, Option<&str>>(row, "sandbox_id")?;
    Ok(SessionRecord {
        id: parsed("id", text("id")?)?,
        tenant: column(row, "tenant")?,
        user: column(row, "user_id")?,
        state: SessionState::from_word(state).ok_or_else(|| corrupt(format!("column state: {state:?}")))?,
        sandbox: sandbox.map(|text| parsed("sandbox_id", text)).transpose()?,
        template: column(row, "template")?,
        metadata: serde_json::from_str(text("metadata")?)
            .map_err(|error| corrupt(format!("column metadata: {error}")))?,
        failure: column(row, "failure")?,
        request_id: column(row, "request_id")?,
        request_fingerprint: column(row, "request_fingerprint")?,
        created_at: from_millis(column(row, "created_at")?),
        updated_at: from_millis(column(row, "updated_at")?),
        version: column(row, "version")?,
    })
}

fn column<'r, R, T>(row: &'r R, name: &str) -> Result<T, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    T: Decode<'r, R::Database> + Type<R::Database>,
{
    row.try_get(name).map_err(|error| corrupt(format!("column {name}: {error}")))
}

fn parsed<T: FromStr>(name: &str, text: &str) -> Result<T, StorageError> {
    text.parse().map_err(|_| corrupt(format!("column {name}: {text:?}")))
}

/// The labels as they are stored.
pub(super) fn metadata(record: &SessionRecord) -> Result<String, StorageError> {
    serde_json::to_string(&record.metadata).map_err(|error| corrupt(format!("labels to write: {error}")))
}

/// The query that a filter stands for. `label` adds the condition that a label has a value, each database in its words.
pub(super) fn select<DB: Database>(
    columns: &str,
    filter: &SessionFilter,
    after: Option<SessionId>,
    limit: usize,
    label: fn(&mut QueryBuilder<DB>, &str, &str),
) -> QueryBuilder<DB>
where
    DB::Arguments: Default,
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(format!("SELECT {columns} FROM sessions WHERE true"));
    if let Some(after) = after {
        query.push(" AND id > ").push_bind(after.to_string());
    }
    if let Some(tenant) = &filter.tenant {
        query.push(" AND tenant = ").push_bind(tenant.clone());
    }
    if let Some(user) = &filter.user {
        query.push(" AND user_id = ").push_bind(user.clone());
    }
    if let Some(idle_since) = filter.idle_since {
        query.push(" AND updated_at <= ").push_bind(to_millis(idle_since));
    }
    if !filter.states.is_empty() {
        query.push(" AND state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(state.as_str().to_owned());
        }
        query.push(")");
    }
    for (key, value) in &filter.metadata {
        query.push(" AND ");
        label(&mut query, key, value);
    }
    query.push(" ORDER BY id LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    query
}
