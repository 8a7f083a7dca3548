//! How many executions there were, how they ended and how long they took.

use std::time::Instant;

use cloud_sandbox_model::Error;
use metrics::{counter, histogram};

/// A call that is measured when it begins an execution: how long it took and how it ended, which for one in the
/// background is how its start did. It is counted when dropped; without an outcome by then, its caller hung up.
pub(crate) struct Measure {
    kind: Option<&'static str>,
    outcome: &'static str,
    started: Instant,
}

impl Measure {
    /// Begins a call that begins an execution of `kind`, or none.
    pub(crate) fn start(kind: Option<&'static str>) -> Self {
        Self { kind, outcome: "CANCELLED", started: Instant::now() }
    }

    /// Notes how it ended.
    pub(crate) fn ended<T>(&mut self, result: &Result<T, Error>) {
        self.outcome = match result {
            Ok(_) => "OK",
            Err(error) => error.kind().name(),
        };
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        let Some(kind) = self.kind else { return };
        counter!("cloud_sandbox_execute_total", "kind" => kind, "outcome" => self.outcome).increment(1);
        histogram!("cloud_sandbox_execute_duration_seconds", "kind" => kind).record(self.started.elapsed());
    }
}
