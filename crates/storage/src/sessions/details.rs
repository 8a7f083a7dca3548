//! What is kept of a session and no query asks for: how it was asked for, and where it is on its way. Kept as JSON, to
//! which later versions may add; what an earlier one wrote is read with the defaults of what it did not know.

use std::{collections::BTreeMap, time::SystemTime};

use cloud_sandbox_model::{CheckpointId, Limits, NodeId, SandboxId, SessionId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{from_millis, to_millis};

/// What is kept of a session beside its columns.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionDetails {
    /// environment of all that runs in it
    pub env: BTreeMap<String, String>,
    /// limits other than the template's; a zero is the template's
    pub limits: Option<Limits>,
    /// what of the network its sandbox sees
    pub network: WantedNetwork,
    /// how long it may run, in seconds; 0 for ever, as sessions of early versions have it
    pub timeout_seconds: u32,
    /// how long it may be idle, in seconds; 0 for ever
    pub idle_timeout_seconds: u32,
    /// what happens at either
    pub on_timeout: TimeoutAction,
    /// a use resumes it
    pub auto_resume: bool,
    /// what it was forked from
    pub forked_from: Option<SessionId>,
    /// since when it runs
    #[serde(with = "millis")]
    pub running_since: Option<SystemTime>,
    /// how it is paused; nothing unless it is
    pub paused: Option<Paused>,
    /// its last complete checkpoint, or the one it went on from
    pub checkpoint: Option<CheckpointId>,
    /// what its last resume brought back: an encoded `ResumeManifest`
    #[serde(with = "base64")]
    pub manifest: Vec<u8>,
    /// the node that hosts its sandbox
    pub node: Option<NodeId>,
    /// since when nobody knows where its sandbox is
    #[serde(with = "millis")]
    pub missing_since: Option<SystemTime>,
    /// sandboxes that are not its own any more and still have to be released
    pub discarded: Vec<SandboxId>,
    /// what is being done with it
    pub flight: Option<Flight>,
    /// how many sandboxes have been asked for
    pub acquires: u32,
    /// how many events have been written
    pub events: i64,
}

/// A network policy as it was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WantedNetwork {
    /// the mode's word; empty for the default
    pub mode: String,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
}

/// What happens to a session at a timeout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeoutAction {
    #[default]
    Pause,
    Delete,
}

/// How a session is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paused {
    /// how deep
    pub depth: Depth,
    /// frozen for now, to be checkpointed after a while
    pub auto: bool,
    /// since when, in milliseconds since 1970
    pub since_ms: i64,
}

/// How deep a session is paused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Depth {
    Frozen,
    Checkpointed,
}

/// Something that takes several steps, under way. Whoever does it writes again and again that it still does; when it has
/// not for a while, somebody else finishes or undoes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flight {
    /// who does it
    pub pilot: String,
    /// until when that one is believed to be at it, in milliseconds since 1970
    pub until_ms: i64,
    /// the checkpoint that is being written or restored
    pub checkpoint: Option<CheckpointId>,
    /// the sandbox that it is being restored into
    pub sandbox: Option<SandboxId>,
    /// how it was paused before, if it was
    pub before: Option<Paused>,
    /// it had failed before, with these words
    pub failure: String,
}

impl Paused {
    /// Since when.
    #[must_use]
    pub fn since(&self) -> SystemTime {
        from_millis(self.since_ms)
    }
}

mod millis {
    use super::*;

    pub(super) fn serialize<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
        time.map(to_millis).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(from_millis))
    }
}

mod base64 {
    use ::base64::{Engine, engine::general_purpose::STANDARD};
    use serde::de::Error;

    use super::*;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        STANDARD.encode(bytes).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_earlier_version_wrote_is_read_with_defaults() {
        assert_eq!(serde_json::from_str::<SessionDetails>("{}").unwrap(), SessionDetails::default());
        let limits = r#"{"memory_bytes": 1, "cpu_millis": 2, "pids": 3, "disk_bytes": 4}"#;
        let known = Limits { memory_bytes: 1, cpu_millis: 2, pids: 3, disk_bytes: 4, ..Limits::default() };
        assert_eq!(serde_json::from_str::<Limits>(limits).unwrap(), known);
    }
}
