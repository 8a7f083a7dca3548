//! Packs: objects with compressed chunks.

use std::fmt;

use cloud_sandbox_model::CheckpointId;
use cloud_sandbox_proto::checkpoint::v1::Pack;

/// What a pack's name begins with; its number follows.
const PREFIX: &str = "pack-";

/// Which pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId {
    /// the checkpoint in whose folder it lies
    pub checkpoint: CheckpointId,
    /// its number there
    pub number: u32,
}

impl PackId {
    /// The object's name in its folder.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{PREFIX}{:05}", self.number)
    }

    pub(crate) fn record(&self) -> Pack {
        Pack { checkpoint_id: self.checkpoint.to_string(), number: self.number }
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.checkpoint, self.name())
    }
}
