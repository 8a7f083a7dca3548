//! How input, signals and terminal sizes reach what runs, from whichever call they come.
//!
//! Invariant: what `stdin_bytes` counts has been handed on, once and in order. Writers take turns; one that waits for a
//! process that does not read gives up its turn when its caller does, with what was handed on counted.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_proto::agent::v1::{CloseStdin, RunRequest, WindowSize, run_request::Input};
use futures::future::BoxFuture;
use tokio::{sync::mpsc, time::timeout};

use super::Execution;
use crate::{agent::Remote, signals};

/// The most input in one message to the agent.
const CHUNK: usize = 64 * 1024;

/// How long a process may leave its input unread before whoever writes to it is told so.
const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a signal by its number.
pub(crate) type Signaller = Box<dyn Fn(i32) -> BoxFuture<'static, Result<()>> + Send + Sync>;

/// Who drives an execution.
pub(crate) enum Driver {
    /// a process of its own
    Process { input: mpsc::Sender<RunRequest>, remote: Remote },
    /// a code context, which has no input and no terminal; it is told signals
    Context(Signaller),
}

/// What was handed on of the input.
#[derive(Debug)]
pub(super) struct Stdin {
    /// bytes so far
    accepted: u64,
    open: bool,
}

/// The slot for a driver, and the turns of its writers.
pub(super) struct Controls {
    driver: Mutex<Option<Driver>>,
    stdin: tokio::sync::Mutex<Stdin>,
}

impl Controls {
    /// Of an execution whose input begins with `given` bytes.
    pub(super) fn new(given: u64, open: bool) -> Self {
        Self { driver: Mutex::default(), stdin: tokio::sync::Mutex::new(Stdin { accepted: given, open }) }
    }

    pub(super) fn install(&self, driver: Driver) {
        *self.driver.lock().unwrap_or_else(PoisonError::into_inner) = Some(driver);
    }

    pub(super) fn remove(&self) {
        let removed = self.driver.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(removed);
    }

    /// Whether input would be taken; of one that is being written, it is.
    pub(super) fn takes_input(&self) -> bool {
        self.stdin.try_lock().map_or(true, |stdin| stdin.open)
    }

    fn with<T>(&self, ask: impl FnOnce(&Driver) -> T) -> Option<T> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(ask)
    }

    fn input(&self) -> Result<mpsc::Sender<RunRequest>> {
        let input = self.with(|driver| match driver {
            Driver::Process { input, .. } => Some(input.clone()),
            Driver::Context(_) => None,
        });
        input.ok_or_else(ended)?.ok_or_else(stdin_closed)
    }
}

impl Execution {
    /// Hands `data` on, from `offset` of the input on when one is given, and says how much was handed on in all.
    pub(crate) async fn write_stdin(&self, offset: Option<u64>, mut data: Bytes, close: bool) -> Result<u64> {
        let running = self.until_running().await?;
        let mut stdin = tokio::select! {
            biased;
            () = running.ended() => return Err(ended()),
            stdin = self.controls.stdin.lock() => stdin,
        };
        if let Some(offset) = offset {
            let known = stdin.accepted.checked_sub(offset).ok_or_else(|| {
                let message = format!("offset {offset} is beyond the end of the input at {}", stdin.accepted);
                Error::new(ErrorKind::OutOfRange, reason::INVALID_REQUEST, message)
                    .with_metadata("stdin_bytes", stdin.accepted.to_string())
            })?;
            let known = usize::try_from(known).unwrap_or(usize::MAX).min(data.len());
            data = data.split_off(known);
        }
        if !stdin.open {
            // a repeated call that has nothing new to say was heard the first time
            return if offset.is_some() && data.is_empty() { Ok(stdin.accepted) } else { Err(stdin_closed()) };
        }
        let input = self.controls.input()?;
        let hand_on = async {
            while !data.is_empty() {
                let permit = room(&input, stdin.accepted).await?;
                let piece = data.split_to(data.len().min(CHUNK));
                stdin.accepted += piece.len() as u64;
                permit.send(message(Input::Stdin(piece)));
            }
            if close {
                let permit = room(&input, stdin.accepted).await?;
                stdin.open = false;
                permit.send(message(Input::CloseStdin(CloseStdin {})));
            }
            Ok(stdin.accepted)
        };
        tokio::select! {
            biased;
            () = running.ended() => Err(ended()),
            written = hand_on => written,
        }
    }

    /// Sends a signal; SIGKILL reaches everything in the process's session.
    pub(crate) async fn signal(&self, number: i32) -> Result<()> {
        let running = self.until_running().await?;
        let sending = self.controls.with(|driver| match driver {
            Driver::Process { remote, .. } => {
                let remote = remote.clone();
                let sending: BoxFuture<'static, Result<()>> = Box::pin(async move {
                    let sent = match number {
                        signals::KILL => remote.kill().await,
                        number => remote.signal(number).await,
                    };
                    match sent {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(ended()),
                        Err(status) => Err(Error::internal("send the signal", status)),
                    }
                });
                sending
            }
            Driver::Context(signaller) => signaller(number),
        });
        let sending = sending.ok_or_else(ended)?;
        tokio::select! {
            biased;
            sent = sending => sent,
            // it ran when it was asked for: most likely the signal was why it does no more
            () = running.ended() => Ok(()),
        }
    }

    /// Gives the terminal another size.
    pub(crate) async fn resize(&self, size: WindowSize) -> Result<()> {
        let running = self.until_running().await?;
        if !self.has_terminal() {
            let message = "the execution has no terminal to resize";
            return Err(Error::new(ErrorKind::FailedPrecondition, reason::NO_TERMINAL, message));
        }
        let input = self.controls.input()?;
        tokio::select! {
            biased;
            () = running.ended() => Err(ended()),
            sent = input.send(message(Input::Resize(size))) => sent.map_err(|_| ended()),
        }
    }
}

/// Nothing reaches it any more.
pub(super) fn ended() -> Error {
    Error::new(ErrorKind::FailedPrecondition, reason::EXECUTION_ENDED, "the execution has ended")
}

/// Room for one more message, once the process has read so far.
async fn room(input: &mpsc::Sender<RunRequest>, accepted: u64) -> Result<mpsc::Permit<'_, RunRequest>> {
    match timeout(PATIENCE, input.reserve()).await {
        Ok(room) => room.map_err(|_| ended()),
        Err(_) => {
            let message = format!("the process does not read its input; {accepted} bytes of it were accepted so far");
            Err(Error::new(ErrorKind::ResourceExhausted, reason::STDIN_FULL, message)
                .with_metadata("stdin_bytes", accepted.to_string()))
        }
    }
}

fn stdin_closed() -> Error {
    let message = "the execution's standard input is not open";
    Error::new(ErrorKind::FailedPrecondition, reason::STDIN_CLOSED, message)
}

fn message(input: Input) -> RunRequest {
    RunRequest { input: Some(input) }
}
