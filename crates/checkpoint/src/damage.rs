//! How damage is told of.

use std::fmt;

use cloud_sandbox_model::{
    CheckpointId,
    error::{Error, ErrorKind, reason},
};

/// A checkpoint that is not what was saved; `what` follows "is damaged: ".
pub(crate) fn damaged(checkpoint: CheckpointId, what: impl fmt::Display) -> Error {
    let message = format!("checkpoint {checkpoint} is damaged: {what}");
    Error::new(ErrorKind::DataLoss, reason::CHECKPOINT_DAMAGED, message)
        .with_metadata("checkpoint_id", checkpoint.to_string())
}

/// An agent that sent what no tree is.
pub(crate) fn nonsense(what: impl fmt::Display) -> Error {
    Error::internal("read the sandbox's files", format!("its agent sent what no tree is: {what}"))
}

/// Bytes of a path or a name, for a person.
pub(crate) fn shown(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(bytes))
}

/// A hash, for a person.
pub(crate) fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
