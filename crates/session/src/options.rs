//! What the session service can be told.

use std::time::Duration;

use cloud_sandbox_model::template::HOST;

/// What the session service can be told.
#[derive(Debug, Clone)]
pub struct Options {
    /// the template of a session whose caller names none
    pub default_template: String,
    /// how long a session that is paused `auto` stays frozen before it is checkpointed
    pub frozen_for: Duration,
    /// how many complete checkpoints of a session are kept, at least 1
    pub checkpoints_kept: usize,
    /// how long checkpoints are kept; the last one always is
    pub checkpoints_kept_for: Duration,
    /// how long whoever does something with a session is believed to be at it without a word
    pub flight_lease: Duration,
    /// how long a sandbox may be missing from a directory that others share, which may have lost its content, before
    /// its session fails
    pub missing_patience: Duration,
    /// no other process writes the store: what another one had under way at its end is over
    pub alone: bool,
    /// how often is looked for sessions that are due
    pub look_every: Duration,
    /// how often is looked for checkpoints that nobody needs
    pub collect_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            default_template: HOST.to_owned(),
            frozen_for: Duration::from_secs(600),
            checkpoints_kept: 5,
            checkpoints_kept_for: Duration::from_secs(30 * 86_400),
            flight_lease: Duration::from_secs(30),
            missing_patience: Duration::from_secs(30),
            alone: false,
            look_every: Duration::from_secs(1),
            collect_every: Duration::from_secs(300),
        }
    }
}
