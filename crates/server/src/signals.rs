//! SIGTERM and Ctrl-C.

use std::process;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code of a process that Ctrl-C has ended (128 + SIGINT).
pub const EXIT_INTERRUPTED: u8 = 130;
/// The exit code of a process that SIGTERM has ended (128 + SIGTERM).
pub const EXIT_TERMINATED: u8 = 143;

/// The signals that ask for an end. While it lives they do nothing by themselves.
#[derive(Debug)]
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub fn listen() -> anyhow::Result<Self> {
        let on = |kind| signal(kind).context("failed to listen for signals");
        Ok(Self { interrupt: on(SignalKind::interrupt())?, terminate: on(SignalKind::terminate())? })
    }

    /// The next one: its name, and the exit code of a process that it ends.
    pub async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.interrupt.recv() => ("SIGINT", EXIT_INTERRUPTED),
            _ = self.terminate.recv() => ("SIGTERM", EXIT_TERMINATED),
        }
    }

    /// From now on, the next one ends the process at once. Its sandboxes die with it, by the kernel's hand.
    pub fn exit_at_the_next(mut self) {
        tokio::spawn(async move {
            let (name, code) = self.next().await;
            tracing::warn!(signal = name, "second signal: exiting at once");
            process::exit(code.into());
        });
    }
}
