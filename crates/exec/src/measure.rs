//! How many executions there were, how they ended and how long they took.

use std::time::Instant;

use cloud_sandbox_model::Error;
use metrics::{counter, histogram};

/// One execution. It is counted when dropped; without an outcome by then, its caller hung up.
pub(crate) struct Measure {
    kind: &'static str,
    outcome: &'static str,
    started: Instant,
}

impl Measure {
    /// Begins an execution of a kind: `unary`, `stream` or `interactive`.
    pub(crate) fn start(kind: &'static str) -> Self {
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
        counter!("cloud_sandbox_execute_total", "kind" => self.kind, "outcome" => self.outcome).increment(1);
        histogram!("cloud_sandbox_execute_duration_seconds", "kind" => self.kind).record(self.started.elapsed());
    }
}
