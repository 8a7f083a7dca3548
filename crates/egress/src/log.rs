//! One line for each connection at its end, and its place in the metrics.

use std::{
    fmt::Display,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use cloud_sandbox_model::SandboxId;
use tokio::time::Instant;

/// How many lines about connections that were not made are written at once,
const BURST: u32 = 20;
/// and after them one in this time: a sandbox can ask for thousands in a second.
const REFILL: Duration = Duration::from_secs(5);

/// What became of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// it was made
    Allowed,
    /// the policy refused it
    Denied,
    /// it was allowed, but could not be made
    Failed,
}

impl Outcome {
    const fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// What a line says.
pub(crate) struct Line<'a> {
    /// through the proxy (`egress`) or the interface (`open`)
    pub(crate) mode: &'static str,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) address: Option<IpAddr>,
    pub(crate) outcome: Outcome,
    /// why it was refused or failed, or what ended it
    pub(crate) reason: &'a dyn Display,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) duration: Duration,
}

/// The lines of one sandbox.
pub(crate) struct Log {
    sandbox_id: SandboxId,
    allowance: Mutex<Allowance>,
}

impl Log {
    pub(crate) fn new(sandbox_id: SandboxId) -> Self {
        Self { sandbox_id, allowance: Mutex::new(Allowance::new(Instant::now())) }
    }

    pub(crate) fn write(&self, line: &Line<'_>) {
        let decision = line.outcome.word();
        metrics::counter!("cloud_sandbox_network_connections_total", "decision" => decision, "mode" => line.mode)
            .increment(1);
        let left_out = match line.outcome {
            Outcome::Allowed => Some(0),
            Outcome::Denied | Outcome::Failed => self.take(Instant::now()),
        };
        let Some(left_out) = left_out else { return };
        tracing::info!(
            sandbox_id = %self.sandbox_id,
            mode = line.mode,
            host = line.host,
            port = line.port,
            address = line.address.map(tracing::field::display),
            decision,
            reason = %line.reason,
            sent = line.sent,
            received = line.received,
            duration_ms = line.duration.as_millis() as u64,
            left_out,
            "network connection",
        );
    }

    fn take(&self, now: Instant) -> Option<u64> {
        self.allowance.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let left_out = self.allowance.get_mut().unwrap_or_else(PoisonError::into_inner).left_out;
        if left_out > 0 {
            tracing::info!(sandbox_id = %self.sandbox_id, left_out, "network connections that were not made");
        }
    }
}

/// Lines that may still be written, and how many were not.
struct Allowance {
    lines: u32,
    refilled: Instant,
    left_out: u64,
}

impl Allowance {
    const fn new(now: Instant) -> Self {
        Self { lines: BURST, refilled: now, left_out: 0 }
    }

    /// Whether a line may be written now; it says how many before it were not.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let refills = now.saturating_duration_since(self.refilled).as_millis() / REFILL.as_millis();
        if refills > 0 {
            self.lines = BURST.min(self.lines.saturating_add(u32::try_from(refills).unwrap_or(BURST)));
            self.refilled = now;
        }
        if self.lines == 0 {
            self.left_out += 1;
            return None;
        }
        self.lines -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_is_counted_instead_of_written() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let written = (0..1000).filter(|_| allowance.take(start).is_some()).count();
        assert_eq!(written, BURST as usize);
        assert_eq!(allowance.take(start + REFILL), Some(1000 - u64::from(BURST)));
        assert_eq!(allowance.take(start + REFILL), None);
        assert_eq!(allowance.take(start + REFILL * 1000), Some(1));
        let written = (0..1000).filter(|_| allowance.take(start + REFILL * 1000).is_some()).count();
        assert_eq!(written, BURST as usize - 1);
    }
}
