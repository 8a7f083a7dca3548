//! The statements that write. They are the same in each database but for a few [`Words`].

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use cloud_sandbox_model::CheckpointId;
use sqlx::{Encode, Type, query_builder::QueryBuilder};

use super::to_millis;
use crate::{
    error::StorageError,
    sessions::{Along, CheckpointRecord, EVENTS_MAX, SessionEvent, SessionRecord},
    sql::{Plain, text},
};

/// What a database says in words of its own.
pub(in crate::sessions) struct Words {
    /// what makes a text JSON
    pub(in crate::sessions) json: &'static str,
    /// what compares two values of which each may be NULL
    pub(in crate::sessions) same: &'static str,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Inserts a session, unless the user's request has made one.
pub(in crate::sessions) fn insert<DB: Plain>(
    words: &Words,
    record: &SessionRecord,
) -> Result<QueryBuilder<DB>, StorageError>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
    Option<i64>: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(
        "INSERT INTO sessions (id, tenant, user_id, state, sandbox_id, template, failure, request_id, \
         request_fingerprint, created_at, updated_at, version, due_at, details, metadata) VALUES (",
    );
    query.push_bind(record.id.to_string()).push(", ").push_bind(record.tenant.clone());
    query.push(", ").push_bind(record.user.clone()).push(", ").push_bind(record.state.as_str().to_owned());
    query.push(", ").push_bind(record.sandbox.map(|id| id.to_string()));
    query.push(", ").push_bind(record.template.clone()).push(", ").push_bind(record.failure.clone());
    query.push(", ").push_bind(record.request_id.clone()).push(", ").push_bind(record.request_fingerprint.clone());
    query.push(", ").push_bind(to_millis(record.created_at)).push(", ").push_bind(to_millis(record.updated_at));
    query.push(", ").push_bind(record.version).push(", ").push_bind(record.due_at.map(to_millis));
    query.push(", ").push_bind(text(&record.details)?);
    query.push(", ").push_bind(text(&record.metadata)?).push(words.json);
    query.push(") ON CONFLICT (tenant, user_id, request_id) DO NOTHING");
    Ok(query)
}

/// Writes a session over its version.
pub(in crate::sessions) fn update<DB: Plain>(
    words: &Words,
    record: &SessionRecord,
) -> Result<QueryBuilder<DB>, StorageError>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
    Option<i64>: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new("UPDATE sessions SET version = version + 1, state = ");
    query.push_bind(record.state.as_str().to_owned());
    query.push(", sandbox_id = ").push_bind(record.sandbox.map(|id| id.to_string()));
    query.push(", metadata = ").push_bind(text(&record.metadata)?).push(words.json);
    query.push(", failure = ").push_bind(record.failure.clone());
    query.push(", updated_at = ").push_bind(to_millis(record.updated_at));
    query.push(", due_at = ").push_bind(record.due_at.map(to_millis));
    query.push(", details = ").push_bind(text(&record.details)?);
    query.push(" WHERE id = ").push_bind(record.id.to_string());
    query.push(" AND version = ").push_bind(record.version);
    Ok(query)
}

/// Says when a session is due, unless somebody else has.
pub(in crate::sessions) fn postpone<DB: Plain>(
    words: &Words,
    record: &SessionRecord,
    due_at: Option<i64>,
) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
    Option<i64>: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new("UPDATE sessions SET due_at = ");
    query.push_bind(due_at).push(" WHERE id = ").push_bind(record.id.to_string());
    query.push(" AND version = ").push_bind(record.version);
    query.push(format!(" AND due_at {} ", words.same)).push_bind(record.due_at.map(to_millis));
    query
}

/// What is written along with a session, statement by statement.
pub(in crate::sessions) fn along<DB: Plain>(
    record: &SessionRecord,
    along: &Along,
) -> Result<Vec<QueryBuilder<DB>>, StorageError>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let id = record.id.to_string();
    let mut statements: Vec<_> = along.events.iter().map(|event| insert_event(&id, event)).collect();
    if let Some(last) = along.events.last() {
        let mut trim = QueryBuilder::new("DELETE FROM session_events WHERE session_id = ");
        trim.push_bind(id).push(" AND sequence <= ").push_bind(last.sequence - EVENTS_MAX);
        statements.push(trim);
    }
    for checkpoint in &along.checkpoints {
        statements.push(put_checkpoint(checkpoint)?);
    }
    statements.extend(along.removed.iter().map(remove_checkpoint));
    Ok(statements)
}

fn insert_event<DB: Plain>(session: &str, event: &SessionEvent) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query =
        QueryBuilder::new("INSERT INTO session_events (session_id, sequence, happened_at, kind, message) VALUES (");
    query.push_bind(session.to_owned()).push(", ").push_bind(event.sequence);
    query.push(", ").push_bind(to_millis(event.happened_at));
    query.push(", ").push_bind(event.kind.clone()).push(", ").push_bind(event.message.clone()).push(")");
    query
}

fn put_checkpoint<DB: Plain>(checkpoint: &CheckpointRecord) -> Result<QueryBuilder<DB>, StorageError>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(
        "INSERT INTO checkpoints (id, session_id, complete, folder, digest, parent_id, packs, files, bytes, \
         stored_bytes, created_at) VALUES (",
    );
    query.push_bind(checkpoint.id.to_string()).push(", ").push_bind(checkpoint.session.to_string());
    query.push(", ").push_bind(i64::from(checkpoint.complete)).push(", ").push_bind(checkpoint.folder.to_string());
    query.push(", ").push_bind(URL_SAFE_NO_PAD.encode(&checkpoint.digest));
    query.push(", ").push_bind(checkpoint.parent.map(|id| id.to_string()));
    query.push(", ").push_bind(text(&checkpoint.packs)?).push(", ").push_bind(number(checkpoint.files));
    query.push(", ").push_bind(number(checkpoint.bytes)).push(", ").push_bind(number(checkpoint.stored_bytes));
    query.push(", ").push_bind(to_millis(checkpoint.created_at));
    query.push(
        ") ON CONFLICT (id) DO UPDATE SET complete = excluded.complete, digest = excluded.digest, \
         parent_id = excluded.parent_id, \
         packs = excluded.packs, files = excluded.files, bytes = excluded.bytes, \
         stored_bytes = excluded.stored_bytes, created_at = excluded.created_at",
    );
    Ok(query)
}

fn remove_checkpoint<DB: Plain>(id: &CheckpointId) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new("DELETE FROM checkpoints WHERE id = ");
    query.push_bind(id.to_string());
    query
}

/// The events of a session after one of them.
pub(in crate::sessions) fn events<DB: Plain>(session: &str, after: i64, limit: usize) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new("SELECT * FROM session_events WHERE session_id = ");
    query.push_bind(session.to_owned()).push(" AND sequence > ").push_bind(after);
    query.push(" ORDER BY sequence LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    query
}

/// The checkpoints of a session.
pub(in crate::sessions) fn checkpoints<DB: Plain>(session: &str) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new("SELECT * FROM checkpoints WHERE session_id = ");
    query.push_bind(session.to_owned()).push(" ORDER BY id");
    query
}

/// Every folder and list of packs.
pub(in crate::sessions) const NEEDED: &str = "SELECT folder, packs FROM checkpoints";
