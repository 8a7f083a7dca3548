//! Templates as they are stored. TemplateService alone writes them.
//!
//! Invariant: a template never changes, and no version of a name is given twice, also when the one that had it is deleted.
//! So whoever knows a template by name and version knows it for good. What all templates are together has a revision,
//! which grows with each change.

#[cfg(test)]
pub(crate) mod conformance;
pub mod memory;
pub mod postgres;
mod sql;
pub mod sqlite;

use std::time::SystemTime;

use async_trait::async_trait;
use cloud_sandbox_model::Template;

use crate::error::StorageError;

/// The most templates that there may be, each version for itself.
pub const TEMPLATES_MAX: usize = 1000;
/// The most bytes of JSON that all of them may take: a node is told all of them in one message.
pub const BYTES_MAX: usize = 12 * 1024 * 1024;

/// A template, and who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateRecord {
    /// the template; the version of one that is not stored yet means nothing
    pub template: Template,
    /// the tenant of who made it
    pub tenant: String,
    /// the user within the tenant
    pub user: String,
    /// what makes a retry of its create return it; one template of a user has it
    pub request_id: Option<String>,
    /// when it was made, in whole milliseconds
    pub created_at: SystemTime,
}

impl TemplateRecord {
    /// The same as it is stored, with its version.
    fn numbered(&self, version: i64) -> Result<Self, StorageError> {
        let mut record = self.clone();
        record.template.version = sql::version(version)?;
        Ok(record)
    }
}

/// What came of a create.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Created {
    /// It is stored, as the next version of its name.
    New(TemplateRecord),
    /// The user has a template with this `request_id`: here it is. Nothing was stored.
    Existing(TemplateRecord),
    /// There are as many as there may be. Nothing was stored.
    Full,
}

/// All templates at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllTemplates {
    /// which state this is; a later one has a higher one
    pub revision: u64,
    /// the templates, by name and version
    pub templates: Vec<Template>,
}

/// Where templates are.
#[async_trait]
pub trait TemplateStore: Send + Sync + 'static {
    /// Stores a template as the next version of its name, unless the user's `request_id` has made one.
    async fn create(&self, record: &TemplateRecord) -> Result<Created, StorageError>;

    /// A version of a template, the newest when none is named.
    async fn get(&self, name: &str, version: Option<u32>) -> Result<Option<TemplateRecord>, StorageError>;

    /// At most `limit` templates, the newest version of each name, in order of their names, those after `after` only.
    async fn newest(&self, after: Option<&str>, limit: usize) -> Result<Vec<TemplateRecord>, StorageError>;

    /// At most `limit` versions of a template, newest first, those before `before` only.
    async fn versions(
        &self,
        name: &str,
        before: Option<u32>,
        limit: usize,
    ) -> Result<Vec<TemplateRecord>, StorageError>;

    /// All templates.
    async fn all(&self) -> Result<AllTemplates, StorageError>;

    /// The revision of all templates, which costs less than to read them.
    async fn revision(&self) -> Result<u64, StorageError>;

    /// Deletes a version of a template, all of them when none is named, and gives those that are gone, in order.
    async fn delete(&self, name: &str, version: Option<u32>) -> Result<Vec<u32>, StorageError>;

    /// Whether the store answers and takes writes.
    async fn check(&self) -> Result<(), StorageError>;

    /// Ends the store's connections after what is under way.
    async fn close(&self);
}

/// Whether there is no room for one more that takes `more` bytes.
fn is_full(count: usize, bytes: usize, more: usize) -> bool {
    count >= TEMPLATES_MAX || bytes.saturating_add(more) > BYTES_MAX
}
