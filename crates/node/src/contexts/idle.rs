//! What an interpreter printed while nobody ran anything in it, threads of earlier code for example.

use crate::executions::Execution;

/// What is kept of it, in bytes.
const KEPT_MAX: usize = 64 * 1024;

/// The beginning of it, up to a bound.
#[derive(Debug, Default)]
pub(super) struct Idle {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    dropped: u64,
}

impl Idle {
    pub(super) fn stdout(&mut self, piece: &[u8]) {
        let fits = self.fits(piece);
        self.stdout.extend_from_slice(&piece[..fits]);
    }

    pub(super) fn stderr(&mut self, piece: &[u8]) {
        let fits = self.fits(piece);
        self.stderr.extend_from_slice(&piece[..fits]);
    }

    fn fits(&mut self, piece: &[u8]) -> usize {
        let fits = piece.len().min(KEPT_MAX - self.stdout.len() - self.stderr.len());
        self.dropped += (piece.len() - fits) as u64;
        fits
    }

    /// Gives it to the next execution.
    pub(super) async fn tell(self, execution: &Execution) {
        if self.dropped > 0 {
            tracing::debug!(bytes = self.dropped, "dropped what an interpreter printed while nothing ran");
            metrics::counter!("cloud_sandbox_context_output_dropped_bytes_total").increment(self.dropped);
        }
        if !self.stdout.is_empty() {
            execution.stdout(&self.stdout).await;
        }
        if !self.stderr.is_empty() {
            execution.stderr(&self.stderr).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginning_of_both_streams_is_kept_and_the_rest_counted() {
        let mut idle = Idle::default();
        idle.stderr(b"first");
        idle.stdout(&[b'x'; KEPT_MAX]);
        idle.stderr(b"more");
        assert_eq!((idle.stderr.as_slice(), idle.stdout.len()), (&b"first"[..], KEPT_MAX - 5));
        assert_eq!(idle.dropped, 5 + 4);
    }
}
