//! Why a store did not do what it was asked to.

use std::error::Error as StdError;

use cloud_sandbox_model::error::{Error, ErrorKind, reason};

/// A store that failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It cannot be reached or did not answer in time; the same call may work later.
    #[error("{store} is unavailable")]
    Unavailable { store: &'static str, source: Box<dyn StdError + Send + Sync> },
    /// It holds something that this version cannot read.
    #[error("{store} holds an entry that cannot be read: {what}")]
    Corrupt { store: &'static str, what: String },
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Unavailable { .. } => {
                Self::new(ErrorKind::Unavailable, reason::STORE_UNAVAILABLE, error.to_string()).with_cause(error)
            }
            StorageError::Corrupt { .. } => Self::internal("read from a store", error),
        }
    }
}
