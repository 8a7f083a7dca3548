//! What the session stores in SQL share: how a row is a record, and which query a filter stands for.

mod statements;

use std::collections::BTreeSet;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use cloud_sandbox_model::{CheckpointId, SessionId, SessionState};
use sqlx::{ColumnIndex, Database, Decode, Encode, Row, Type, query_builder::QueryBuilder};

use super::{CheckpointRecord, SessionEvent, SessionFilter, SessionRecord, from_millis, to_millis};
use crate::{
    error::StorageError,
    sql::{column, corrupt, json, parsed},
};
pub(super) use statements::{NEEDED, Words, along, checkpoints, events, insert, postpone, update};

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
        metadata: json("metadata", text("metadata")?)?,
        failure: column(row, "failure")?,
        request_id: column(row, "request_id")?,
        request_fingerprint: column(row, "request_fingerprint")?,
        created_at: from_millis(column(row, "created_at")?),
        updated_at: from_millis(column(row, "updated_at")?),
        version: column(row, "version")?,
        due_at: column::<_, Option<i64>>(row, "due_at")?.map(from_millis),
        details: json("details", text("details")?)?,
    })
}

/// A row as an event.
pub(super) fn read_event<'r, R>(row: &'r R) -> Result<SessionEvent, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    Ok(SessionEvent {
        sequence: column(row, "sequence")?,
        happened_at: from_millis(column(row, "happened_at")?),
        kind: column(row, "kind")?,
        message: column(row, "message")?,
    })
}

/// A row as a checkpoint.
pub(super) fn read_checkpoint<'r, R>(row: &'r R) -> Result<CheckpointRecord, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let text = |name| column::<_, &str>(row, name);
    let number = |name| column::<_, i64>(row, name);
    let count = |name| number(name).map(|number| u64::try_from(number).unwrap_or(0));
    let parent = column::<_, Option<&str>>(row, "parent_id")?;
    let digest = text("digest")?;
    Ok(CheckpointRecord {
        id: parsed("id", text("id")?)?,
        session: parsed("session_id", text("session_id")?)?,
        complete: number("complete")? != 0,
        folder: parsed("folder", text("folder")?)?,
        digest: URL_SAFE_NO_PAD.decode(digest).map_err(|_| corrupt(format!("column digest: {digest:?}")))?,
        parent: parent.map(|text| parsed("parent_id", text)).transpose()?,
        packs: json("packs", text("packs")?)?,
        files: count("files")?,
        bytes: count("bytes")?,
        stored_bytes: count("stored_bytes")?,
        created_at: from_millis(number("created_at")?),
    })
}

/// The folders that a row of [`NEEDED`] names.
pub(super) fn read_needed<'r, R>(row: &'r R, needed: &mut BTreeSet<CheckpointId>) -> Result<(), StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
{
    needed.insert(parsed("folder", column(row, "folder")?)?);
    needed.extend(json::<BTreeSet<CheckpointId>>("packs", column(row, "packs")?)?);
    Ok(())
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
        query.push(if filter.newest_first { " AND id < " } else { " AND id > " }).push_bind(after.to_string());
    }
    if let Some(tenant) = &filter.tenant {
        query.push(" AND tenant = ").push_bind(tenant.clone());
    }
    if let Some(user) = &filter.user {
        query.push(" AND user_id = ").push_bind(user.clone());
    }
    if let Some(due_by) = filter.due_by {
        query.push(" AND due_at <= ").push_bind(to_millis(due_by));
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
    query.push(if filter.newest_first { " ORDER BY id DESC LIMIT " } else { " ORDER BY id LIMIT " });
    query.push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    query
}
