//! One execution: what is known of it, its log, and the way from its start to its end.
//!
//! ```text
//! starting ─→ queued ─→ running ─→ ended (exited | unknown)
//!     └─────────┴──→ ended (refused: it never ran)
//! ```
//! Whoever drives it reports here; everybody else reads. Invariant: it ends once, its log ends with it, and its place
//! among those that run is free before anybody can know that it has ended.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use cloud_sandbox_journal::{Kind, Log};
use cloud_sandbox_model::{
    ExecutionId,
    error::{Error, ErrorKind, Result, reason},
};
use cloud_sandbox_proto::v1::{
    self, CodeError, CodeResult, ExecEvent, ExecExited, ExecuteRequest, ExecutionState, FileChanges, exec_event::Event,
};
use cloud_sandbox_rpc::to_status;
use prost::Message;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{
    Executions, Exit,
    controls::{Controls, Driver},
    record::{Head, Tail},
};
use crate::sandbox::{InUse, hit};

/// How long a reader that does not read may hold up the last event of an execution that has ended.
const LAST_WORD: Duration = Duration::from_secs(1);

/// One run, from its start until it is forgotten.
pub(crate) struct Execution {
    pub(crate) id: ExecutionId,
    pub(crate) log: Arc<Log>,
    /// cancelled when nobody wants it any more: whoever drives it ends it
    pub(crate) unwanted: CancellationToken,
    pub(super) controls: Controls,
    head: Head,
    state: watch::Sender<State>,
    over: AtomicBool,
    /// somebody has been told its id before it ran, and may ask for it
    told_of: AtomicBool,
    /// what it printed goes with the last who knows it
    pub(super) forgotten: AtomicBool,
    /// what starts it again, while it runs and if anything does
    again: Mutex<Option<Box<ExecuteRequest>>>,
    register: Weak<Executions>,
}

impl Drop for Execution {
    fn drop(&mut self) {
        if *self.forgotten.get_mut()
            && let Some(register) = self.register.upgrade()
        {
            register.discard(self.id);
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Starting,
    Queued,
    Running,
}

#[derive(Debug, Clone, Default)]
struct State {
    phase: Phase,
    pid: u32,
    end: Option<End>,
    ended_at: Option<SystemTime>,
}

/// How it ended.
#[derive(Debug, Clone)]
pub(crate) enum End {
    /// with what is known of it, but for its changes, which are in the log
    Exited(Box<ExecExited>),
    /// before it began; nobody will find it again
    Refused(Status),
    /// nobody knows how; what those are told who were there, and why in words
    Unknown { status: Status, failure: String },
}

/// Waits for the end of an execution that has begun.
pub(super) struct Running(watch::Receiver<State>);

impl Running {
    /// Returns when it has ended.
    pub(super) async fn ended(&self) {
        // a sender that is gone has ended as well
        let _ = self.0.clone().wait_for(|state| state.end.is_some()).await;
    }
}

impl Execution {
    /// One that is about to be driven. `stdin` is how many bytes it is given first, and whether more may come.
    pub(super) fn new(
        id: ExecutionId,
        head: Head,
        log: Arc<Log>,
        stdin: (u64, bool),
        register: Weak<Executions>,
    ) -> Self {
        Self {
            id,
            log,
            unwanted: CancellationToken::new(),
            controls: Controls::new(stdin.0, stdin.1),
            head,
            state: watch::Sender::default(),
            over: AtomicBool::new(false),
            told_of: AtomicBool::new(false),
            forgotten: AtomicBool::new(false),
            again: Mutex::default(),
            register,
        }
    }

    /// One of an earlier process of this node, which has ended; none when it never ran or cannot be read.
    pub(super) fn recovered(id: ExecutionId, log: Arc<Log>, register: Weak<Executions>) -> Option<Self> {
        let head = Head::decode(log.head()).ok()?;
        let tail = log.tail().and_then(|tail| Tail::decode(tail).ok());
        let end = match tail {
            Some(Tail { refused: true, .. }) => return None,
            Some(Tail { exited: Some(exited), .. }) => End::Exited(Box::new(exited)),
            Some(Tail { failure, .. }) => End::unknown(failure),
            None => End::unknown("its node ended under it".to_owned()),
        };
        let execution = Self::new(id, head, log, (0, false), register);
        execution.over.store(true, Ordering::Relaxed);
        let ended_at = execution.log.ended_at();
        execution.state.send_replace(State { phase: Phase::Running, pid: 0, end: Some(end), ended_at });
        Some(execution)
    }

    /// Its sandbox is in use for as long as the answer lives; none when the sandbox is forgotten.
    pub(super) fn in_use(&self) -> Option<InUse> {
        self.register.upgrade().map(|register| register.activity.begin())
    }

    /// Keeps what starts it again.
    pub(super) fn keep_request(&self, request: ExecuteRequest) {
        *self.again.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(request));
    }

    /// What starts it again, of one that runs in the background.
    pub(super) fn request(&self) -> Option<ExecuteRequest> {
        self.again.lock().unwrap_or_else(PoisonError::into_inner).as_deref().cloned()
    }

    /// What it runs, in one line.
    pub(super) fn summary(&self) -> &str {
        &self.head.execution.summary
    }

    /// It waits for its context; [`Execution::started`] follows. Whoever may be asked for it is told beforehand.
    pub(crate) fn queued(&self) {
        self.state.send_modify(|state| state.phase = Phase::Queued);
    }

    /// It runs, as the process `pid`, or for all that is known it may run. From here on its end is never "it did not run".
    pub(crate) fn started(&self, pid: u32) {
        self.state.send_modify(|state| {
            state.phase = Phase::Running;
            state.pid = pid;
        });
    }

    /// From here on input and signals go to `driver`.
    pub(crate) fn drive(&self, driver: Driver) {
        self.controls.install(driver);
    }

    /// It has printed to standard output. Waits while the log is full of what a reader has not read yet.
    pub(crate) async fn stdout(&self, piece: &[u8]) {
        self.log.append(Kind::Stdout, piece).await;
    }

    /// It has printed to standard error.
    pub(crate) async fn stderr(&self, piece: &[u8]) {
        self.log.append(Kind::Stderr, piece).await;
    }

    /// Its code gave a result.
    pub(crate) async fn result(&self, result: CodeResult) {
        self.event(Event::Result(result)).await;
    }

    /// Its code ended with an error.
    pub(crate) async fn error(&self, error: CodeError) {
        self.event(Event::Error(error)).await;
    }

    async fn event(&self, event: Event) {
        let event = ExecEvent { event: Some(event) };
        self.log.append(Kind::Event, &event.encode_to_vec()).await;
    }

    /// It has ended. An error before [`Execution::started`] means that it never ran, and it is forgotten; one after that
    /// means that nobody knows how it ended.
    pub(crate) async fn finish(&self, end: Result<Exit>) {
        let end = match end {
            Ok(mut exit) => {
                if let Some(changes) = exit.changes.take() {
                    let told = self.event(Event::Exited(ExecExited { changes: Some(changes), ..Default::default() }));
                    if timeout(LAST_WORD, told).await.is_err() {
                        tracing::warn!("the changes of the execution are lost: a reader holds up its journal");
                    }
                }
                Ok(exit)
            }
            Err(error) if self.told_of.load(Ordering::SeqCst) && self.state.borrow().phase != Phase::Running => {
                Ok(self.failed_in_the_queue(&error).await)
            }
            Err(error) => Err(error),
        };
        self.end(end);
    }

    /// The same at once, without the changes.
    /// Notes that its id has been given to a caller, who will want to know what became of it even if it never runs.
    pub(crate) fn tell_of(&self) {
        self.told_of.store(true, Ordering::SeqCst);
    }

    /// How one ends that waited for its turn in vain: as code that failed, with the reason.
    async fn failed_in_the_queue(&self, error: &Error) -> Exit {
        let (name, value) = (error.reason().to_owned(), error.message().to_owned());
        let told = self.error(CodeError { name, value, traceback: String::new() });
        // a reader who does not read must not hold up whoever drives this
        let _ = timeout(LAST_WORD, told).await;
        Exit { exit_code: 1, context_id: self.context_id().to_owned(), ..Exit::default() }
    }

    pub(super) fn end(&self, end: Result<Exit>) {
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        let ran = self.state.borrow().phase == Phase::Running;
        let (end, outcome) = match end {
            Ok(exit) => {
                let outcome = if exit.timed_out { "timeout" } else { "ended" };
                (End::Exited(Box::new(self.counted(exit.exited()))), outcome)
            }
            Err(error) if ran => {
                (End::Unknown { failure: error.message().to_owned(), status: to_status(error) }, "failed")
            }
            Err(error) => (End::Refused(to_status(error)), "failed"),
        };
        metrics::counter!("cloud_sandbox_executions_total", "outcome" => outcome).increment(1);
        if let End::Exited(exited) = &end {
            self.count_hits(exited);
        }
        self.controls.remove();
        self.again.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.log.finish(&end.tail().encode_to_vec());
        if let Some(register) = self.register.upgrade() {
            register.end(self, matches!(end, End::Refused(_)));
        }
        self.state.send_modify(|state| {
            state.end = Some(end);
            state.ended_at = Some(SystemTime::now());
        });
    }

    /// Counts the limits that it ran into.
    fn count_hits(&self, exited: &ExecExited) {
        let totals = self.log.totals();
        let dropped = totals.stdout_dropped + totals.stderr_dropped > 0;
        for (reached, limit) in [
            (exited.oom_killed, "memory"),
            (exited.disk_limit, "disk"),
            (exited.pids_limit, "pids"),
            (dropped, "output"),
            (exited.timed_out, "execution_seconds"),
        ] {
            if reached {
                hit(limit);
            }
        }
    }

    fn counted(&self, exited: ExecExited) -> ExecExited {
        let totals = self.log.totals();
        ExecExited { stdout_bytes: totals.stdout, stderr_bytes: totals.stderr, ..exited }
    }

    /// How it ended, if it has.
    pub(crate) fn known_end(&self) -> Option<End> {
        self.state.borrow().end.clone()
    }

    /// Waits for the end.
    pub(crate) async fn until_ended(&self) -> End {
        let mut state = self.state.subscribe();
        // the sender is in `self`
        let ended = state.wait_for(|state| state.end.is_some()).await;
        let end = ended.ok().and_then(|state| state.end.clone());
        end.unwrap_or_else(|| End::unknown("it was lost".to_owned()))
    }

    /// Waits until it runs, waits for its context, or has ended; gives the process, or why it never ran.
    pub(crate) async fn until_begun(&self) -> Result<u32, Status> {
        let mut state = self.state.subscribe();
        let begun = state.wait_for(|state| state.phase != Phase::Starting || state.end.is_some()).await;
        match begun.as_deref() {
            Ok(State { end: Some(End::Refused(status)), .. }) => Err(status.clone()),
            Ok(State { pid, .. }) => Ok(*pid),
            Err(_) => Ok(0),
        }
    }

    /// Waits until input and signals have somebody to go to.
    pub(super) async fn until_running(&self) -> Result<Running> {
        let mut state = self.state.subscribe();
        let begun = state.wait_for(|state| state.phase != Phase::Starting || state.end.is_some()).await;
        let over = begun.map_or(true, |state| state.end.is_some());
        if over { Err(super::controls::ended()) } else { Ok(Running(state)) }
    }

    /// What those are told who come when nobody knows any more how it ended.
    pub(crate) fn outcome_unknown(&self, failure: &str) -> Error {
        let message = format!("execution {} was started, and how it ended is not known: {failure}", self.id);
        Error::new(ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN, message)
            .with_metadata("execution_id", self.id.to_string())
    }

    pub(crate) fn request_id(&self) -> &str {
        &self.head.execution.request_id
    }

    pub(super) fn fingerprint(&self) -> &[u8] {
        &self.head.fingerprint
    }

    pub(crate) fn has_terminal(&self) -> bool {
        self.head.execution.has_terminal
    }

    pub(crate) fn tag(&self) -> &str {
        &self.head.execution.tag
    }

    /// The code context it runs in; empty without one.
    pub(crate) fn context_id(&self) -> &str {
        &self.head.execution.context_id
    }

    /// What a caller sees of it.
    pub(crate) fn describe(&self) -> v1::Execution {
        let state = self.state.borrow().clone();
        let totals = self.log.totals();
        let mut execution = v1::Execution {
            state: state.word().into(),
            pid: if state.end.is_some() { 0 } else { state.pid },
            stdin_open: state.end.is_none() && self.controls.takes_input(),
            end_time: state.ended_at.map(Into::into),
            stdout_bytes: totals.stdout,
            stderr_bytes: totals.stderr,
            ..self.head.execution.clone()
        };
        match state.end {
            Some(End::Exited(exited)) => {
                // what it was told to run in may have been `default`
                if !exited.context_id.is_empty() {
                    execution.context_id.clone_from(&exited.context_id);
                }
                execution.exit = Some(*exited);
            }
            Some(End::Unknown { failure, .. }) => execution.failure = failure,
            Some(End::Refused(status)) => status.message().clone_into(&mut execution.failure),
            None => {}
        }
        execution
    }

    /// What it is doing.
    pub(crate) fn state(&self) -> ExecutionState {
        self.state.borrow().word()
    }
}

impl State {
    fn word(&self) -> ExecutionState {
        match (&self.end, self.phase) {
            (Some(End::Exited(_)), _) => ExecutionState::Exited,
            (Some(End::Unknown { .. } | End::Refused(_)), _) => ExecutionState::Unknown,
            (None, Phase::Queued) => ExecutionState::Queued,
            (None, Phase::Starting | Phase::Running) => ExecutionState::Running,
        }
    }
}

impl End {
    fn unknown(failure: String) -> Self {
        let error = Error::new(ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN, failure.clone());
        Self::Unknown { status: to_status(error), failure }
    }

    fn tail(&self) -> Tail {
        match self {
            Self::Exited(exited) => Tail { exited: Some((**exited).clone()), ..Tail::default() },
            Self::Refused(status) => Tail { refused: true, failure: status.message().to_owned(), ..Tail::default() },
            Self::Unknown { failure, .. } => Tail { failure: failure.clone(), ..Tail::default() },
        }
    }
}

/// An event of the log; none of one that a newer version wrote.
pub(super) fn decode_event(bytes: Bytes) -> Option<Event> {
    ExecEvent::decode(bytes).ok().and_then(|event| event.event)
}

/// The changes among an execution's last events.
pub(super) fn changes_of(event: Event) -> Option<FileChanges> {
    match event {
        Event::Exited(exited) => exited.changes,
        _ => None,
    }
}
