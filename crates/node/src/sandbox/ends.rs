//! Why sandboxes end.

use std::fmt;

/// Why a sandbox ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndCause {
    Released,
    /// released, to go on later from a checkpoint
    Paused,
    LeaseEnded,
    AgentEnded,
    /// the kernel killed its agent for the memory limit
    OutOfMemory,
    /// somebody or something outside ended it, in words that follow "it"
    FromOutside(String),
    Shutdown,
    /// it could not be made, or not be made what the caller wanted
    Failed,
    /// its template is another now, or gone
    Retired,
    /// it had to make room for one of another shape
    Evicted,
    /// its caller hung up before it was told of it
    Abandoned,
}

impl EndCause {
    /// The word in metrics.
    pub(crate) const fn label(&self) -> &'static str {
        match self {
            Self::Released => "released",
            Self::Paused => "paused",
            Self::LeaseEnded => "lease",
            Self::AgentEnded => "agent",
            Self::OutOfMemory => "oom_killed",
            Self::FromOutside(_) => "killed",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Retired => "retired",
            Self::Evicted => "evicted",
            Self::Abandoned => "abandoned",
        }
    }
}

impl fmt::Display for EndCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromOutside(what) => return write!(f, "it {what}"),
            Self::Released => "it was released",
            Self::Paused => "its session was paused",
            Self::LeaseEnded => "its lease ended",
            Self::AgentEnded => "its agent ended",
            Self::OutOfMemory => "the kernel ended it at its memory limit",
            Self::Shutdown => "its node shut down",
            Self::Failed => "it failed",
            Self::Retired => "its template is not the same any more",
            Self::Evicted => "it made room for another",
            Self::Abandoned => "its caller hung up",
        })
    }
}
