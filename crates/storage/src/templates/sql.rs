//! What the template stores in SQL share. Every statement is the same in both databases.

use std::time::SystemTime;

use sqlx::{ColumnIndex, Decode, Encode, Executor, IntoArguments, Row, Type, query_builder::QueryBuilder};

use super::{AllTemplates, TemplateRecord, is_full};
use crate::{
    error::StorageError,
    sessions::{from_millis, to_millis},
    sql::{Plain, column, corrupt, json},
};

const COLUMNS: &str = "name, version, template, tenant, user_id, request_id, created_at";

/// The revision of all templates.
pub(super) const REVISION: &str = "SELECT revision FROM template_revision";
/// All templates with their revision, in one statement, so that the two belong together.
pub(super) const ALL: &str = "SELECT revision, version, template FROM template_revision LEFT JOIN templates ON true \
                              ORDER BY name, version";

/// A template to be stored, with its texts as the database keeps them.
pub(super) struct New {
    pub(super) name: String,
    /// the template in JSON
    pub(super) template: String,
    pub(super) tenant: String,
    pub(super) user: String,
    pub(super) request_id: Option<String>,
    pub(super) created_at: SystemTime,
}

/// What came of storing one.
pub(super) enum Stored<R> {
    /// its version
    New(i64),
    Existing(R),
    Full,
}

/// A database in which templates can lie.
pub(super) trait Fit: Plain<Arguments: IntoArguments<Self>> + Sized {}

impl<DB: Plain<Arguments: IntoArguments<DB>>> Fit for DB {}

pub(super) fn version(number: i64) -> Result<u32, StorageError> {
    u32::try_from(number).map_err(|_| corrupt(format!("column version: {number}")))
}

/// Stores a template, in a transaction of its own. What is returned without an error is to be committed.
pub(super) async fn create<DB: Fit>(connection: &mut DB::Connection, new: &New) -> sqlx::Result<Stored<DB::Row>>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB> + for<'r> Decode<'r, DB>,
    usize: ColumnIndex<DB::Row>,
{
    // others wait for this row until the transaction has ended
    next_revision::<DB>(new.created_at).build().execute(&mut *connection).await?;
    if new.request_id.is_some()
        && let Some(row) = by_request::<DB>(new).build().fetch_optional(&mut *connection).await?
    {
        return Ok(Stored::Existing(row));
    }
    let mut room = QueryBuilder::<DB>::new("SELECT COUNT(*), CAST(COALESCE(SUM(bytes), 0) AS BIGINT) FROM templates");
    let room = room.build().fetch_one(&mut *connection).await?;
    let count = |index: usize| room.try_get::<i64, _>(index).map(|count| usize::try_from(count).unwrap_or(0));
    if is_full(count(0)?, count(1)?, new.template.len()) {
        return Ok(Stored::Full);
    }
    let mut next = QueryBuilder::<DB>::new("INSERT INTO template_names (name, last_version) VALUES (");
    next.push_bind(new.name.clone());
    next.push(
        ", 1) ON CONFLICT (name) DO UPDATE SET last_version = template_names.last_version + 1 RETURNING last_version",
    );
    let version: i64 = next.build().fetch_one(&mut *connection).await?.try_get(0)?;
    insert::<DB>(new, version).build().execute(&mut *connection).await?;
    Ok(Stored::New(version))
}

/// Deletes templates, in a transaction of its own, and gives their versions. It is to be committed when there are some.
pub(super) async fn delete<DB: Fit>(
    connection: &mut DB::Connection,
    name: &str,
    version: Option<u32>,
    now: SystemTime,
) -> sqlx::Result<Vec<i64>>
where
    for<'c> &'c mut DB::Connection: Executor<'c, Database = DB>,
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB> + for<'r> Decode<'r, DB>,
    usize: ColumnIndex<DB::Row>,
{
    next_revision::<DB>(now).build().execute(&mut *connection).await?;
    let mut delete = QueryBuilder::<DB>::new("DELETE FROM templates WHERE name = ");
    delete.push_bind(name.to_owned());
    if let Some(version) = version {
        delete.push(" AND version = ").push_bind(i64::from(version));
    }
    delete.push(" RETURNING version");
    let rows = delete.build().fetch_all(&mut *connection).await?;
    let mut gone = rows.iter().map(|row| row.try_get(0)).collect::<sqlx::Result<Vec<i64>>>()?;
    gone.sort_unstable();
    Ok(gone)
}

/// The versions that [`delete`] gave.
pub(super) fn versions_of(gone: &[i64]) -> Result<Vec<u32>, StorageError> {
    gone.iter().map(|number| version(*number)).collect()
}

fn next_revision<DB: Plain>(now: SystemTime) -> QueryBuilder<DB>
where
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let now = to_millis(now);
    let mut query = QueryBuilder::new("UPDATE template_revision SET revision = CASE WHEN revision < ");
    query.push_bind(now).push(" THEN ").push_bind(now).push(" ELSE revision + 1 END");
    query
}

fn by_request<DB: Plain>(new: &New) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM templates WHERE tenant = "));
    query.push_bind(new.tenant.clone()).push(" AND user_id = ").push_bind(new.user.clone());
    query.push(" AND request_id = ").push_bind(new.request_id.clone());
    query
}

fn insert<DB: Plain>(new: &New, version: i64) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    Option<String>: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(format!("INSERT INTO templates ({COLUMNS}, bytes) VALUES ("));
    query.push_bind(new.name.clone()).push(", ").push_bind(version).push(", ").push_bind(new.template.clone());
    query.push(", ").push_bind(new.tenant.clone()).push(", ").push_bind(new.user.clone());
    query.push(", ").push_bind(new.request_id.clone()).push(", ").push_bind(to_millis(new.created_at));
    query.push(", ").push_bind(i64::try_from(new.template.len()).unwrap_or(i64::MAX)).push(")");
    query
}

/// A version of a template, or the newest.
pub(super) fn get<DB: Plain>(name: &str, version: Option<u32>) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM templates WHERE name = "));
    query.push_bind(name.to_owned());
    if let Some(version) = version {
        query.push(" AND version = ").push_bind(i64::from(version));
    }
    query.push(" ORDER BY version DESC LIMIT 1");
    query
}

/// The newest version of each name.
pub(super) fn newest<DB: Plain>(after: Option<&str>, limit: usize) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(format!(
        "SELECT {COLUMNS} FROM templates AS own WHERE version = \
         (SELECT MAX(version) FROM templates WHERE name = own.name)"
    ));
    if let Some(after) = after {
        query.push(" AND name > ").push_bind(after.to_owned());
    }
    query.push(" ORDER BY name LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    query
}

/// The versions of a name.
pub(super) fn versions<DB: Plain>(name: &str, before: Option<u32>, limit: usize) -> QueryBuilder<DB>
where
    String: for<'q> Encode<'q, DB> + Type<DB>,
    i64: for<'q> Encode<'q, DB> + Type<DB>,
{
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM templates WHERE name = "));
    query.push_bind(name.to_owned());
    if let Some(before) = before {
        query.push(" AND version < ").push_bind(i64::from(before));
    }
    query.push(" ORDER BY version DESC LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
    query
}

/// A row as a record.
pub(super) fn read<'r, R>(row: &'r R) -> Result<TemplateRecord, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    String: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut record = TemplateRecord {
        template: json("template", column(row, "template")?)?,
        tenant: column(row, "tenant")?,
        user: column(row, "user_id")?,
        request_id: column(row, "request_id")?,
        created_at: from_millis(column(row, "created_at")?),
    };
    record.template.version = version(column(row, "version")?)?;
    Ok(record)
}

/// The rows of [`ALL`].
pub(super) fn read_all<'r, R>(rows: &'r [R]) -> Result<AllTemplates, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    &'r str: Decode<'r, R::Database> + Type<R::Database>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let mut all = AllTemplates { revision: read_revision(rows)?, templates: Vec::new() };
    for row in rows {
        // without templates the revision is alone in its row
        let Some(text) = column::<_, Option<&str>>(row, "template")? else { continue };
        let mut template: cloud_sandbox_model::Template = json("template", text)?;
        template.version = version(column(row, "version")?)?;
        all.templates.push(template);
    }
    Ok(all)
}

/// The rows of [`REVISION`].
pub(super) fn read_revision<'r, R>(rows: &'r [R]) -> Result<u64, StorageError>
where
    R: Row,
    for<'n> &'n str: ColumnIndex<R>,
    i64: Decode<'r, R::Database> + Type<R::Database>,
{
    let row = rows.first().ok_or_else(|| corrupt("the revision of templates is not there"))?;
    Ok(u64::try_from(column::<_, i64>(row, "revision")?).unwrap_or(0))
}
