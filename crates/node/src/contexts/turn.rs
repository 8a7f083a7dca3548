//! One execution's turn in a context: what the interpreter does goes to the execution, and signals, its time and its
//! caller's leaving go to the interpreter.
//!
//! ```text
//! running ─→ interrupted (timeout, SIGTERM, hang-up) ─→ killed ─→ given up
//!     └────────────── SIGKILL, restart, delete ─────────↗
//! ```
//! Invariant: a turn ends, whatever an interpreter, an agent or a reader does, and no signal that was sent in it reaches
//! the next.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use cloud_sandbox_model::error::{Error, Result};
use cloud_sandbox_proto::agent::v1::{Exited, RunRequest};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    context::{Command, Reply, Waiting},
    frames::{Frame, Kept},
    idle::Idle,
    interpreter::{Happened, Interpreter, message},
};
use crate::{agent::Remote, executions::Execution, sandbox::Sandbox, signals};

/// How long what was interrupted may take to end before it is killed.
const INTERRUPT_GRACE: Duration = Duration::from_secs(1);
/// SIGINT's and SIGTERM's numbers.
const INTERRUPT: i32 = 2;
const TERMINATE: i32 = 15;

/// How a turn ended.
pub(super) enum Over {
    /// the code ended, with this exit code
    Done(i32),
    /// the interpreter did
    Exited(Exited),
    /// it was killed, and nobody said within the grace that it ended
    GivenUp,
    Malformed(String),
    Lost(Status),
    /// the sandbox has ended
    Gone,
}

/// Why a turn was made to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    TimedOut,
    HungUp,
    Signalled,
    Restart,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    Interrupted,
    Killed,
}

/// A turn.
pub(super) struct Turn<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) waiting: &'a mut Waiting,
    pub(super) mailbox: &'a mut mpsc::UnboundedReceiver<Command>,
    pub(super) grace: Duration,
    /// cancelled at its end
    pub(super) over: CancellationToken,
}

/// What a turn came to.
pub(super) struct Outcome {
    pub(super) over: Over,
    pub(super) cause: Option<Cause>,
    /// the interpreter was told to die
    pub(super) killed: bool,
    /// what its owner was asked for meanwhile
    pub(super) command: Option<Command>,
}

impl Turn<'_> {
    /// Has the interpreter run `document` and follows it to the end. The output begins with what was kept before.
    pub(super) async fn take(self, interpreter: &mut Interpreter, document: Value, kept: Idle) -> Outcome {
        let start = Start::default();
        let mut hands = Hands {
            start: &start,
            remote: interpreter.remote(),
            input: interpreter.input(),
            sent: FuturesUnordered::new(),
            phase: Phase::Running,
            cause: None,
            next: Instant::now() + self.waiting.job.timeout,
            grace: self.grace,
        };
        let execution = &self.waiting.execution;
        let signals = &mut self.waiting.signals;
        let mut command = None;
        let mut unwanted = Some(execution.unwanted.clone());
        let pump = async {
            kept.tell(execution).await;
            pump(interpreter, execution, &document, &start).await
        };
        tokio::pin!(pump);
        let over = loop {
            tokio::select! {
                // time comes first, so that an interpreter that never stops to talk cannot keep it from being noticed
                biased;
                () = self.sandbox.ended.cancelled() => break Over::Gone,
                () = sleep_until(hands.next) => {
                    if hands.time_passed() {
                        break Over::GivenUp;
                    }
                }
                () = cancelled(unwanted.as_ref()) => {
                    tracing::debug!("caller hung up; its execution is interrupted");
                    unwanted = None;
                    hands.stop(Cause::HungUp);
                }
                Some(()) = hands.sent.next() => {}
                Some((number, reply)) = signals.recv() => hands.signal(number, reply),
                Some(asked) = self.mailbox.recv(), if command.is_none() => match asked {
                    Command::Interrupt(reply) => {
                        hands.interrupt();
                        // who asked may have left
                        let _ = reply.send(Some(self.over.clone()));
                    }
                    Command::Restart(_) => {
                        hands.kill(Cause::Restart);
                        command = Some(asked);
                    }
                    Command::Delete(_) => {
                        hands.kill(Cause::Delete);
                        command = Some(asked);
                    }
                    // who asked may have left
                    Command::Keep(_, reply) => drop(reply.send(Kept::nothing("its code was running"))),
                },
                over = &mut pump => break over,
            }
        };
        hands.rest().await;
        Outcome { over, cause: hands.cause, killed: hands.phase == Phase::Killed, command }
    }
}

async fn cancelled(token: Option<&CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

/// How far it is with handing over the code. An interrupt that came before that would be one of nothing.
#[derive(Default)]
struct Start {
    is_sent: AtomicBool,
    is_interrupted: AtomicBool,
}

/// Moves what the interpreter does to the execution until it has ended.
async fn pump(interpreter: &mut Interpreter, execution: &Execution, document: &Value, start: &Start) -> Over {
    let id = execution.id.to_string();
    // an interpreter that does not take it ends, of which its events tell
    let _ = interpreter.input().send(message(document)).await;
    start.is_sent.store(true, Ordering::Relaxed);
    if start.is_interrupted.load(Ordering::Relaxed) {
        let _ = interpreter.input().send(interrupt()).await;
    }
    loop {
        match interpreter.next().await {
            Happened::Stdout(piece) => execution.stdout(&piece).await,
            Happened::Stderr(piece) => execution.stderr(&piece).await,
            Happened::Frame(Frame::Result { id: whose, result }) if whose == id => execution.result(*result).await,
            Happened::Frame(Frame::Error { id: whose, error }) if whose == id => execution.error(error).await,
            Happened::Frame(Frame::Done { id: whose, exit_code }) if whose == id => return Over::Done(exit_code),
            // of others there may be any number at hand, and the time must be looked at between them
            Happened::Frame(_) => tokio::task::yield_now().await,
            Happened::Exited(exited) => return Over::Exited(exited),
            Happened::Malformed(why) => return Over::Malformed(why),
            Happened::Lost(status) => return Over::Lost(status),
        }
    }
}

fn interrupt() -> RunRequest {
    message(&json!({"op": "interrupt"}))
}

/// What reaches into an interpreter while it runs.
struct Hands<'a> {
    start: &'a Start,
    remote: Remote,
    input: mpsc::Sender<RunRequest>,
    /// signals on their way
    sent: FuturesUnordered<BoxFuture<'static, ()>>,
    phase: Phase,
    cause: Option<Cause>,
    /// when the phase is over
    next: Instant,
    grace: Duration,
}

impl Hands<'_> {
    /// The time of the phase is over. Says whether that was the last one.
    fn time_passed(&mut self) -> bool {
        match self.phase {
            Phase::Running => self.stop(Cause::TimedOut),
            Phase::Interrupted => self.kill(Cause::Signalled),
            Phase::Killed => return true,
        }
        false
    }

    /// Ends it: kindly at first.
    fn stop(&mut self, cause: Cause) {
        if self.phase == Phase::Running {
            self.cause.get_or_insert(cause);
            self.phase = Phase::Interrupted;
            self.next = Instant::now() + INTERRUPT_GRACE;
            self.interrupt();
        }
    }

    fn interrupt(&mut self) {
        if !self.start.is_sent.load(Ordering::Relaxed) {
            return self.start.is_interrupted.store(true, Ordering::Relaxed);
        }
        self.send(INTERRUPT, None);
        // the signal is there too: a queue that is full does not matter
        let _ = self.input.try_send(interrupt());
    }

    fn kill(&mut self, cause: Cause) {
        let first = self.cause.get_or_insert(cause);
        if matches!(cause, Cause::Restart | Cause::Delete) && *first != Cause::TimedOut {
            *first = cause;
        }
        if self.phase != Phase::Killed {
            self.phase = Phase::Killed;
            self.next = Instant::now() + self.grace;
            let remote = self.remote.clone();
            // an agent that does not answer is given up after the grace
            self.sent.push(Box::pin(async move { drop(remote.kill().await) }));
        }
    }

    fn signal(&mut self, number: i32, reply: Reply<()>) {
        match number {
            signals::KILL => self.kill(Cause::Signalled),
            TERMINATE => self.stop(Cause::Signalled),
            INTERRUPT => self.interrupt(),
            number => return self.send(number, Some(reply)),
        }
        // who asked may have left
        let _ = reply.send(Ok(()));
    }

    fn send(&mut self, number: i32, reply: Option<Reply<()>>) {
        let remote = self.remote.clone();
        self.sent.push(Box::pin(async move {
            let sent = remote.signal(number).await;
            if let Some(reply) = reply {
                let sent: Result<()> = sent.map(drop).map_err(|status| Error::internal("send the signal", status));
                // who asked may have left
                let _ = reply.send(sent);
            }
        }));
    }

    /// Waits until no signal is on its way any more.
    async fn rest(&mut self) {
        let _ = timeout(self.grace, async { while self.sent.next().await.is_some() {} }).await;
    }
}
