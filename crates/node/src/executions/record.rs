//! What the journal keeps of an execution beside what it printed: its head before it starts, its tail when it has ended,
//! and of a sandbox whose it was. Other versions of the server read it again, so fields are added, never changed.

use cloud_sandbox_proto::v1::{self, ExecExited, FileChanges};
use prost::Message;

/// What is known of an execution from its beginning.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Head {
    /// the fields that do not change
    #[prost(message, required, tag = "1")]
    pub(crate) execution: v1::Execution,
    /// of the request, when it has a `request_id`
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) fingerprint: Vec<u8>,
}

/// How an execution ended.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tail {
    /// how its process ended
    #[prost(message, optional, tag = "1")]
    pub(crate) exited: Option<ExecExited>,
    /// why that is not known
    #[prost(string, tag = "2")]
    pub(crate) failure: String,
    /// it never ran
    #[prost(bool, tag = "3")]
    pub(crate) refused: bool,
}

/// Whose a sandbox was, and as what.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Owned {
    #[prost(string, tag = "1")]
    pub(crate) tenant: String,
    #[prost(string, tag = "2")]
    pub(crate) user: String,
    #[prost(string, tag = "3")]
    pub(crate) template: String,
    #[prost(message, optional, tag = "4")]
    pub(crate) limits: Option<v1::ResourceLimits>,
    /// seconds since 1970
    #[prost(uint64, tag = "5")]
    pub(crate) acquired_at: u64,
    /// why it ended, in the words of metrics and of messages; empty while it lives
    #[prost(string, tag = "6")]
    pub(crate) cause: String,
    #[prost(string, tag = "7")]
    pub(crate) cause_text: String,
    /// what made it; empty where an earlier version wrote this
    #[prost(string, tag = "8")]
    pub(crate) runtime: String,
}

/// How an execution ended.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Exit {
    pub(crate) exit_code: i32,
    pub(crate) signal: String,
    pub(crate) timed_out: bool,
    pub(crate) oom_killed: bool,
    pub(crate) disk_limit: bool,
    pub(crate) pids_limit: bool,
    pub(crate) wall_time_ms: f64,
    pub(crate) cpu_time_ms: f64,
    pub(crate) peak_memory_bytes: u64,
    /// the context it ran in; empty without one
    pub(crate) context_id: String,
    /// whether the context's interpreter was started anew for it
    pub(crate) context_restarted: bool,
    /// what became of the files, when that was asked for
    pub(crate) changes: Option<FileChanges>,
}

impl Exit {
    /// As an event has it, without what was counted of the output.
    pub(crate) fn exited(self) -> ExecExited {
        ExecExited {
            exit_code: self.exit_code,
            signal: self.signal,
            timed_out: self.timed_out,
            oom_killed: self.oom_killed,
            disk_limit: self.disk_limit,
            pids_limit: self.pids_limit,
            wall_time_ms: self.wall_time_ms,
            cpu_time_ms: self.cpu_time_ms,
            peak_memory_bytes: self.peak_memory_bytes,
            context_id: self.context_id,
            context_restarted: self.context_restarted,
            changes: self.changes,
            ..ExecExited::default()
        }
    }
}
