//! Why a store did not do what it was asked to.

use std::error::Error as StdError;

use cloud_sandbox_model::error::{Error, ErrorKind, reason};

/// A store that failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// It cannot be reached or did not answer in time; the same call may work later.
    #[error("{store} is unavailable")]
    Unavailable { store: &'static str, source: Box<dyn StdError + Send + Sync> },
    /// It has no room left; the same call may work once somebody has made some.
    #[error("{store} is full")]
    Full { store: &'static str, source: Box<dyn StdError + Send + Sync> },
    /// It does not do this for us, now or later, until somebody changes a setting.
    #[error("{store} refuses: {what}")]
    Refused { store: &'static str, what: String },
    /// It holds something that this version cannot read.
    #[error("{store} holds an entry that cannot be read: {what}")]
    Corrupt { store: &'static str, what: String },
    /// A later version of this program has made its tables; this one would not know what is in them.
    #[error("{store} was made by a later version: its schema is {found}, and this program knows {known} at most")]
    Newer { store: &'static str, found: i64, known: i64 },
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Unavailable { .. } => {
                Self::new(ErrorKind::Unavailable, reason::STORE_UNAVAILABLE, error.to_string()).with_cause(error)
            }
            StorageError::Full { .. } => {
                Self::new(ErrorKind::Unavailable, reason::STORE_FULL, error.to_string()).with_cause(error)
            }
            StorageError::Refused { .. } => Self::internal("use a store", error),
            StorageError::Corrupt { .. } | StorageError::Newer { .. } => Self::internal("read from a store", error),
        }
    }
}
