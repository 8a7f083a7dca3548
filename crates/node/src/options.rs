//! What a node can be told.

use std::{path::PathBuf, time::Duration};

use cloud_sandbox_model::{
    Limits, NodeId,
    error::{Error, Result},
    template::HOST,
};

/// The image of the built-in template of the Docker runtime, unless the settings name another.
pub const IMAGE: &str = "python:3.11-slim";
/// Warm sandboxes to keep ready: enough for a small burst, cheap enough for a laptop.
pub const POOL_MIN: usize = 5;
/// Sandboxes that may exist at once.
pub const POOL_MAX: usize = 50;
/// Sandboxes made at once. A create waits for the kernel more than it computes; more of them only slow each other.
pub const CREATE_PARALLELISM: usize = 4;
/// How often a node reports itself. It counts as dead after three reports that did not come.
pub const REPORT_INTERVAL: Duration = Duration::from_secs(5);
/// How long a new sandbox's agent may take to answer; it answers within milliseconds on a machine that is not stuck.
pub const AGENT_DEADLINE: Duration = Duration::from_secs(10);
/// How long the directory may take.
pub const DIRECTORY_DEADLINE: Duration = Duration::from_secs(5);
/// How long a killed process may take to be reported as ended before the node reports it by itself.
pub const KILL_GRACE: Duration = Duration::from_secs(3);
/// How long a release waits for a sandbox that cannot be destroyed yet.
pub const RELEASE_PATIENCE: Duration = Duration::from_secs(30);

/// How long what an execution printed is kept after its end: long enough to come back after lunch.
pub const JOURNAL_RETENTION: Duration = Duration::from_secs(60 * 60);
/// What of one execution's output is kept, in bytes of disk.
pub const JOURNAL_EXECUTION_BYTES: u64 = 64 * 1024 * 1024;
/// What of all executions' output is kept, in bytes of disk.
pub const JOURNAL_TOTAL_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// How often the journal is looked through for what is past its time.
pub const JOURNAL_SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Where a node keeps what executions print, and how much of it for how long.
#[derive(Debug, Clone)]
pub struct JournalOptions {
    /// the folder; one node's process at a time, and the next one finds there what the last one left
    pub dir: PathBuf,
    /// how long after the end of an execution
    pub retention: Duration,
    /// bytes of disk for one execution; beyond them the middle of its output is dropped
    pub execution_bytes: u64,
    /// bytes of disk for all; beyond them what ended first is dropped
    pub total_bytes: u64,
    /// how often it is looked through for what is past its time
    pub sweep_interval: Duration,
}

impl JournalOptions {
    /// The defaults, in `dir`.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            retention: JOURNAL_RETENTION,
            execution_bytes: JOURNAL_EXECUTION_BYTES,
            total_bytes: JOURNAL_TOTAL_BYTES,
            sweep_interval: JOURNAL_SWEEP_INTERVAL,
        }
    }

    pub(crate) fn of_journal(&self) -> cloud_sandbox_journal::Options {
        cloud_sandbox_journal::Options {
            retention: self.retention,
            log_bytes: self.execution_bytes,
            total_bytes: self.total_bytes,
            ..cloud_sandbox_journal::Options::new(&self.dir)
        }
    }
}

/// The settings of a node.
#[derive(Debug, Clone)]
pub struct Options {
    /// this node
    pub id: NodeId,
    /// where `node.v1` is served, for the directory
    pub address: String,
    /// the template of a sandbox that names none
    pub default_template: String,
    /// the image of the built-in template of the Docker runtime
    pub image: String,
    /// languages whose default code contexts are started in every sandbox of the pool before it counts as ready
    pub warm_contexts: Vec<String>,
    /// what is kept of executions
    pub journal: JournalOptions,
    /// warm sandboxes of the default template to keep ready
    pub pool_min: usize,
    /// sandboxes that may exist at once, in whatever state
    pub pool_max: usize,
    /// limits of a sandbox that asks for none
    pub default_limits: Limits,
    /// the most that a caller may ask for
    pub max_limits: Limits,
    /// sandboxes made at once
    pub create_parallelism: usize,
    /// how often the node reports itself
    pub report_interval: Duration,
    /// how long a new sandbox's agent may take to answer
    pub agent_deadline: Duration,
    /// how long the directory may take
    pub directory_deadline: Duration,
    /// how long a killed process may take to end
    pub kill_grace: Duration,
    /// how long a release waits for the sandbox to be gone
    pub release_patience: Duration,
}

impl Options {
    /// The defaults, with the journal in a folder of its own.
    #[must_use]
    pub fn new(id: NodeId, address: impl Into<String>, journal_dir: impl Into<PathBuf>) -> Self {
        Self {
            id,
            address: address.into(),
            default_template: HOST.to_owned(),
            image: IMAGE.to_owned(),
            warm_contexts: Vec::new(),
            journal: JournalOptions::new(journal_dir),
            pool_min: POOL_MIN,
            pool_max: POOL_MAX,
            default_limits: Limits::DEFAULT,
            max_limits: Limits::MAX,
            create_parallelism: CREATE_PARALLELISM,
            report_interval: REPORT_INTERVAL,
            agent_deadline: AGENT_DEADLINE,
            directory_deadline: DIRECTORY_DEADLINE,
            kill_grace: KILL_GRACE,
            release_patience: RELEASE_PATIENCE,
        }
    }

    /// The same, with no more output of an execution allowed than the journal keeps of one.
    pub(crate) fn within_journal(mut self) -> Self {
        // a journal keeps so much in any case
        let kept = self.journal.execution_bytes.max(Limits::MIN.output_bytes);
        for limits in [&mut self.default_limits, &mut self.max_limits] {
            limits.output_bytes = limits.output_bytes.min(kept);
        }
        self
    }

    /// All that contradicts itself.
    pub(crate) fn check(&self) -> Result<()> {
        let mut violations = cloud_sandbox_model::input::Violations::default();
        violations.check(self.pool_max >= 1, "pool_max", "must be at least 1");
        violations.check(self.pool_min <= self.pool_max, "pool_min", "must be at most pool_max");
        violations.check(self.create_parallelism >= 1, "create_parallelism", "must be at least 1");
        let known = self.warm_contexts.iter().all(|language| crate::contexts::is_language(language));
        violations.check(known, "warm_contexts", "must be languages that have code contexts");
        violations.check(!self.report_interval.is_zero(), "report_interval", "must not be zero");
        violations.check(
            self.journal.total_bytes >= self.journal.execution_bytes,
            "journal.total_bytes",
            "must be at least journal.execution_bytes",
        );
        violations.check(!self.journal.sweep_interval.is_zero(), "journal.sweep_interval", "must not be zero");
        let fits = self.default_limits.overlaid(self.default_limits, self.max_limits);
        violations.take(fits.map_err(|error| Error::invalid("default_limits", error.message())));
        violations.finish()
    }
}
