//! What is stored, as ports, and their implementations: embedded for one machine, shared for a fleet.

pub mod directory;
pub mod error;
pub mod limits;
pub mod page;
mod redis;
pub mod sessions;
#[cfg(test)]
mod small_disk;
mod sql;
pub mod templates;
pub mod workspaces;

pub use directory::{Claim, Directory, NodeEntry, NodeTemplate, SandboxEntry, SandboxFilter, TemplateState};
pub use directory::{memory::MemoryDirectory, redis::RedisDirectory};
pub use error::StorageError;
pub use limits::{Place, RedisLimits};
pub use sessions::{CheckpointRecord, SessionFilter, SessionRecord, SessionStore};
pub use sessions::{postgres::PostgresSessions, sqlite::SqliteSessions};
pub use sql::{
    postgres::{PostgresDatabase, check_url as check_database_url},
    sqlite::SqliteDatabase,
};
pub use templates::{AllTemplates, TemplateRecord, TemplateStore, memory::MemoryTemplates};
pub use workspaces::{WorkspaceStore, file::FileWorkspaces, s3::S3Options, s3::S3Workspaces};
