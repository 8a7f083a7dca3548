//! The owner task of a context: it alone starts its interpreter, gives executions their turns in it, and ends it.
//!
//! ```text
//! begin ─→ idle ⇄ busy
//!            ↖  dead ↙     an interpreter that died is started anew by the next execution
//! ```
//! Invariant: every execution that was taken from the queue is finished here. What an interpreter prints while nobody
//! runs anything is read, so that it never waits; the next execution is given what is kept of it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use cloud_sandbox_model::error::{Error, Result};
use cloud_sandbox_proto::{
    agent::v1::Exited,
    v1::{CodeError, ContextState},
};
use cloud_sandbox_rpc::{from_status, to_status};
use serde_json::{Value, json};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    context::{Command, Context, Keeping, Waiting},
    frames::{Frame, Kept},
    idle::Idle,
    interpreter::{Beginning, Happened, Interpreter, how, message},
    turn::{Cause, Outcome, Over, Turn},
};
use crate::{
    executions::{Exit, changes, changes::Snapshot, environment::environment, hung_up, lost},
    node::Shared,
    sandbox::{Hits, Sandbox},
    signals,
};

/// What ends sooner has not run into the memory limit; it spares quick runs a look at the sandbox's counters.
const OOM_TIME: Duration = Duration::from_millis(20);
/// How long a reader that does not read may hold up the last event of an execution.
const LAST_WORD: Duration = Duration::from_secs(1);
/// How long an interpreter may take to save its variables, and to load them with all the modules that they need.
const SAVE_PATIENCE: Duration = Duration::from_secs(9);
const LOAD_PATIENCE: Duration = Duration::from_secs(60);
/// The most that the variables of a context are, in bytes.
const VALUES_MAX: u64 = 64 * 1024 * 1024;
const CONTROL: &str = "what it said on its control channel (descriptor 3) is no message:";

/// The owner.
pub(super) struct Owner {
    node: Arc<Shared>,
    sandbox: Arc<Sandbox>,
    context: Arc<Context>,
    mailbox: mpsc::UnboundedReceiver<Command>,
    interpreter: Option<Interpreter>,
    idle: Idle,
    /// how many interpreters its caller has known of
    starts: u32,
    /// how many there were
    generation: u32,
}

enum Next {
    Ended,
    Asked(Command),
    Turn(Box<Waiting>),
    Happened(Happened),
}

/// What an execution begins with.
struct Prepared {
    restarted: bool,
    snapshot: Option<Snapshot>,
    before: Hits,
}

impl Owner {
    pub(super) fn new(
        node: Arc<Shared>,
        sandbox: Arc<Sandbox>,
        context: Arc<Context>,
        mailbox: mpsc::UnboundedReceiver<Command>,
    ) -> Self {
        Self { node, sandbox, context, mailbox, interpreter: None, idle: Idle::default(), starts: 0, generation: 0 }
    }

    /// Lives until the sandbox ends or the context is deleted. `at_once` starts the interpreter before anybody needs it.
    pub(super) async fn run(mut self, at_once: bool) {
        if at_once && let Err(error) = self.start_within().await {
            return self.leave(error).await;
        }
        let ended = self.sandbox.ended.clone();
        loop {
            let next = tokio::select! {
                biased;
                () = ended.cancelled() => Next::Ended,
                Some(command) = self.mailbox.recv() => Next::Asked(command),
                waiting = self.context.next() => Next::Turn(Box::new(waiting)),
                happened = next_of(self.interpreter.as_mut()) => Next::Happened(happened),
            };
            let command = match next {
                Next::Ended => {
                    let error = self.sandbox.ending_error();
                    return self.leave(error).await;
                }
                Next::Asked(command) => Some(command),
                Next::Turn(waiting) => self.serve(*waiting).await,
                Next::Happened(happened) => {
                    self.overhear(happened).await;
                    None
                }
            };
            let is_deleted = match command {
                Some(command) => self.obey(command).await,
                None => false,
            };
            // one whose interpreter could not be started even once is not kept
            if is_deleted || matches!(self.context.view.borrow().begun, Some(Err(_))) {
                return;
            }
        }
    }

    /// Does what it is told while nothing runs. Says whether the context is no more. Who asked may have left.
    async fn obey(&mut self, command: Command) -> bool {
        match command {
            Command::Interrupt(reply) => drop(reply.send(None)),
            Command::Restart(reply) => {
                self.refuse(self.context.drain(), "ContextRestarted", "the context was restarted before this ran")
                    .await;
                self.end_interpreter().await;
                let started = self.start_within().await;
                drop(reply.send(started));
            }
            Command::Delete(reply) => {
                self.sandbox.contexts.remove(self.context.id);
                self.refuse(self.context.close(), "ContextDeleted", "the context was deleted before this ran").await;
                self.end_interpreter().await;
                drop(reply.send(Ok(())));
                return true;
            }
            Command::Keep(keeping, reply) => {
                let kept = self.keep(keeping).await;
                drop(reply.send(kept));
            }
        }
        false
    }

    /// Has the variables saved or loaded. There are none where no interpreter is; to load them it is started.
    async fn keep(&mut self, keeping: Keeping) -> Kept {
        let (operation, path, patience) = match keeping {
            Keeping::Save(path) => ("save", path, SAVE_PATIENCE),
            Keeping::Load(path) => ("load", path, LOAD_PATIENCE),
        };
        if self.interpreter.is_none() {
            if operation == "save" {
                return Kept::default();
            }
            if let Err(error) = self.start_within().await {
                let why = error.message().to_owned();
                self.leave(error).await;
                return Kept::nothing(why);
            }
        }
        let id = format!("{operation}-{}", self.generation);
        // the rest is for what is on its way, and for the bounds of the interpreter's own to be felt
        let seconds = (patience * 3 / 4).as_secs_f64();
        let document = json!({
            "op": operation, "id": id, "program": self.context.kernel.values, "path": path,
            "limit": VALUES_MAX, "seconds": seconds,
        });
        let Some(input) = self.interpreter.as_ref().map(Interpreter::input) else { return Kept::default() };
        let ended = self.sandbox.ended.clone();
        let kept = timeout(patience, async {
            // an interpreter that does not take it ends, of which its events tell
            let _ = input.send(message(&document)).await;
            loop {
                let happened = tokio::select! {
                    biased;
                    () = ended.cancelled() => return Kept::nothing("the sandbox has ended"),
                    happened = next_of(self.interpreter.as_mut()) => happened,
                };
                match happened {
                    Happened::Frame(Frame::Values { id: whose, kept }) if whose == id => return kept,
                    Happened::Frame(_) => tokio::task::yield_now().await,
                    other => self.overhear(other).await,
                }
                if self.interpreter.is_none() {
                    return Kept::nothing("its interpreter died");
                }
            }
        });
        let kept = kept.await.unwrap_or_else(|_| Kept::nothing("its interpreter did not answer in time"));
        if operation == "load" && kept.failure.is_some() {
            // half of what it had is worse than nothing: the next one begins clean
            self.end_interpreter().await;
        }
        kept
    }

    /// It is over: nobody finds it again, and what waits ends with `error`.
    async fn leave(&mut self, error: Error) {
        let status = to_status(error);
        self.sandbox.contexts.remove(self.context.id);
        self.bury();
        self.context.view.send_modify(|view| view.begun = Some(Err(status.clone())));
        for waiting in self.context.close() {
            waiting.execution.finish(Err(from_status(&status))).await;
        }
    }

    async fn end_interpreter(&mut self) {
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.kill(self.node.options.kill_grace).await;
        }
        self.bury();
    }

    /// The interpreter is no more.
    fn bury(&mut self) {
        self.interpreter = None;
        self.context.view.send_modify(|view| {
            view.state = ContextState::Dead;
            view.pid = 0;
        });
    }

    async fn start_within(&mut self) -> Result<()> {
        let ended = self.sandbox.ended.clone();
        tokio::select! {
            biased;
            () = ended.cancelled() => Err(self.sandbox.ending_error()),
            started = self.start() => started,
        }
    }

    /// Starts an interpreter where there is none.
    async fn start(&mut self) -> Result<()> {
        let (began, language) = (Instant::now(), self.context.kernel.language);
        let started = self.begin().await;
        let outcome = if started.is_ok() { "ok" } else { "failed" };
        metrics::counter!("cloud_sandbox_context_starts_total", "language" => language, "outcome" => outcome)
            .increment(1);
        metrics::histogram!("cloud_sandbox_context_start_duration_seconds", "language" => language)
            .record(began.elapsed().as_secs_f64());
        let interpreter = started?;
        tracing::debug!(elapsed_ms = began.elapsed().as_millis(), "interpreter is ready");
        self.starts += 1;
        self.idle = Idle::default();
        self.context.view.send_modify(|view| {
            view.state = ContextState::Idle;
            view.pid = interpreter.pid();
            view.version.clone_from(&interpreter.version);
            view.restarts = self.starts - 1;
            view.begun = Some(Ok(()));
        });
        self.interpreter = Some(interpreter);
        Ok(())
    }

    async fn begin(&mut self) -> Result<Interpreter> {
        let context = &self.context;
        let lease = self.sandbox.view().lease;
        let given = lease.as_ref().map(|lease| lease.environment()).unwrap_or_default();
        let mut env = environment(&self.sandbox.origin.env, &given, context.env.clone());
        context.kernel.prepare(&mut env, &context.cwd);
        self.generation += 1;
        let beginning = Beginning {
            sandbox: &self.sandbox,
            kernel: context.kernel,
            folder: format!("/tmp/.context-{}-{}-{}", context.id, self.sandbox.id, self.generation),
            env,
            cwd: context.cwd.clone(),
            is_personal: lease.is_some(),
        };
        let mut interpreter = beginning.start().await?;
        interpreter.learn(&self.sandbox, context.kernel).await?;
        Ok(interpreter)
    }

    /// Takes note of what an interpreter does while nothing runs.
    async fn overhear(&mut self, happened: Happened) {
        let why = match happened {
            Happened::Stdout(piece) => return self.idle.stdout(&piece),
            Happened::Stderr(piece) => return self.idle.stderr(&piece),
            Happened::Frame(_) => return,
            Happened::Exited(exited) => {
                self.bury();
                how(&exited)
            }
            Happened::Malformed(why) => format!("said what is no message: {why}"),
            Happened::Lost(status) => status.message().to_owned(),
        };
        tracing::debug!(why, "interpreter died while nothing ran");
        self.end_interpreter().await;
    }

    /// Gives an execution its turn. Returns what the owner was asked for meanwhile.
    async fn serve(&mut self, mut waiting: Waiting) -> Option<Command> {
        let ended = self.sandbox.ended.clone();
        let prepared = tokio::select! {
            biased;
            () = ended.cancelled() => Err(self.sandbox.ending_error()),
            prepared = self.prepare(&waiting) => prepared,
        };
        let prepared = match prepared {
            Ok(_) if waiting.execution.unwanted.is_cancelled() => {
                waiting.execution.finish(Err(hung_up())).await;
                return None;
            }
            Ok(prepared) => prepared,
            Err(error) => {
                let status = to_status(error);
                waiting.execution.finish(Err(from_status(&status))).await;
                if self.starts == 0 {
                    self.leave(from_status(&status)).await;
                }
                return None;
            }
        };
        let interpreter = self.interpreter.as_mut()?;
        waiting.execution.started(interpreter.pid());
        self.context.view.send_modify(|view| {
            view.state = ContextState::Busy;
            view.running = true;
        });
        let document = document(&mut waiting, interpreter, &self.sandbox, &self.context.env);
        let (began, over) = (Instant::now(), CancellationToken::new());
        let turn = Turn {
            sandbox: &self.sandbox,
            waiting: &mut waiting,
            mailbox: &mut self.mailbox,
            grace: self.node.options.kill_grace,
            over: over.clone(),
        };
        let outcome = turn.take(interpreter, document, std::mem::take(&mut self.idle)).await;
        let command = self.conclude(&waiting, outcome, began.elapsed(), prepared).await;
        over.cancel();
        command
    }

    async fn prepare(&mut self, waiting: &Waiting) -> Result<Prepared> {
        if self.interpreter.as_ref().is_some_and(|interpreter| !interpreter.fits(&self.sandbox)) {
            // nobody has run anything in it yet
            self.end_interpreter().await;
            self.starts = 0;
        }
        let restarted = self.interpreter.is_none() && self.starts > 0;
        if self.interpreter.is_none() {
            self.start().await?;
        }
        if let Some(interpreter) = &mut self.interpreter {
            interpreter.learn(&self.sandbox, waiting.kernel).await?;
        }
        let snapshot = if waiting.job.changes { Some(changes::take(&self.sandbox).await?) } else { None };
        Ok(Prepared { restarted, snapshot, before: self.sandbox.hits_seen() })
    }

    /// Finishes an execution whose turn is over.
    async fn conclude(
        &mut self,
        waiting: &Waiting,
        outcome: Outcome,
        ran: Duration,
        prepared: Prepared,
    ) -> Option<Command> {
        let Outcome { over, cause, killed, command } = outcome;
        match over {
            Over::Done(_) if !killed => {}
            Over::Exited(_) => self.bury(),
            _ => self.end_interpreter().await,
        }
        let ended = self.settle(over, cause).await;
        let end = match ended {
            Ok((exited, error)) => {
                if let Some(error) = error {
                    // a reader who does not read must not hold up the context
                    let _ = timeout(LAST_WORD, waiting.execution.error(error)).await;
                }
                Ok(self.exit(&exited, ran, cause == Some(Cause::TimedOut), prepared).await)
            }
            Err(error) => Err(error),
        };
        self.context.view.send_modify(|view| {
            view.running = false;
            if view.state == ContextState::Busy {
                view.state = ContextState::Idle;
            }
        });
        waiting.execution.finish(end).await;
        command
    }

    /// How a turn ended, and the error that its interpreter could not tell any more.
    async fn settle(&self, over: Over, cause: Option<Cause>) -> Result<(Exited, Option<CodeError>)> {
        let killed = Exited { signal: signals::KILL, ..Exited::default() };
        let (exited, why) = match over {
            Over::Done(exit_code) => return Ok((Exited { exit_code, ..Exited::default() }, None)),
            Over::Exited(exited) => {
                let why = format!("the interpreter {}", how(&exited));
                // code that ends its interpreter has not come to its own end
                let exit_code = if exited.signal == 0 { exited.exit_code.max(1) } else { 0 };
                (Exited { exit_code, ..exited }, why)
            }
            Over::GivenUp => (killed, "the interpreter was killed".to_owned()),
            Over::Malformed(why) => (killed, format!("the interpreter was killed: {CONTROL} {why}")),
            Over::Lost(status) => return Err(lost(&self.sandbox, &status).await),
            Over::Gone => return Err(self.sandbox.ending_error()),
        };
        let (name, value) = match cause {
            Some(Cause::Restart) => ("ContextRestarted", "the context was restarted while this ran".to_owned()),
            Some(Cause::Delete) => ("ContextDeleted", "the context was deleted while this ran".to_owned()),
            Some(Cause::TimedOut) => {
                ("InterpreterDied", "the interpreter was killed at the timeout; its variables are gone".to_owned())
            }
            _ => ("InterpreterDied", format!("{why}; its variables are gone")),
        };
        Ok((exited, Some(CodeError { name: name.to_owned(), value, traceback: String::new() })))
    }

    async fn exit(&self, exited: &Exited, ran: Duration, timed_out: bool, prepared: Prepared) -> Exit {
        let quick = ran < OOM_TIME && exited.exit_code == 0 && exited.signal == 0;
        let before = prepared.before;
        let (now, disk_limit) = if quick {
            (before, false)
        } else {
            (self.sandbox.hits().await, exited.disk_full || self.sandbox.disk_is_full().await)
        };
        let changes = match prepared.snapshot {
            Some(snapshot) => Some(changes::compare(&self.sandbox, snapshot).await),
            None => None,
        };
        Exit {
            exit_code: if exited.signal == 0 { exited.exit_code } else { 128 + exited.signal },
            signal: if exited.signal == 0 { String::new() } else { signals::name(exited.signal) },
            timed_out,
            oom_killed: now.oom_kills > before.oom_kills,
            disk_limit,
            pids_limit: now.pids_refused > before.pids_refused,
            wall_time_ms: ran.as_secs_f64() * 1000.0,
            context_id: self.context.id.to_string(),
            context_restarted: prepared.restarted,
            changes,
            ..Exit::default()
        }
    }

    /// Ends executions that have not begun with an error of code.
    async fn refuse(&self, waiting: VecDeque<Waiting>, name: &str, value: &str) {
        for waiting in waiting {
            let error = CodeError { name: name.to_owned(), value: value.to_owned(), traceback: String::new() };
            // a reader who does not read must not hold up the context
            let _ = timeout(LAST_WORD, waiting.execution.error(error)).await;
            let context_id = self.context.id.to_string();
            waiting.execution.finish(Ok(Exit { exit_code: 1, context_id, ..Exit::default() })).await;
        }
    }
}

async fn next_of(interpreter: Option<&mut Interpreter>) -> Happened {
    match interpreter {
        Some(interpreter) => interpreter.next().await,
        None => std::future::pending().await,
    }
}

/// What an interpreter is told to run.
fn document(
    waiting: &mut Waiting,
    interpreter: &mut Interpreter,
    sandbox: &Sandbox,
    own: &HashMap<String, String>,
) -> Value {
    let job = &mut waiting.job;
    // nothing takes a variable away
    let mut env: HashMap<String, Option<String>> = HashMap::new();
    let given = |variables: HashMap<String, String>| variables.into_iter().map(|(name, value)| (name, Some(value)));
    if let Some(lease) = sandbox.view().lease {
        if !interpreter.is_personal {
            // it was started before anybody had acquired the sandbox
            env.extend(given(lease.environment()));
            interpreter.is_personal = true;
        } else if interpreter.proxy != lease.proxy {
            // the way to the network has changed since; what its owner said of it himself stands
            let old = std::mem::take(&mut interpreter.proxy).into_keys().map(|name| (name, None));
            env.extend(old.chain(given(lease.proxy.clone())));
            env.retain(|name, _| !lease.env.contains_key(name) && !own.contains_key(name));
        }
        interpreter.proxy.clone_from(&lease.proxy);
    }
    env.extend(given(std::mem::take(&mut job.env)));
    json!({
        "op": "execute",
        "id": waiting.execution.id.to_string(),
        "code": std::mem::take(&mut job.code),
        "env": env,
        "cwd": job.cwd,
        "language": waiting.kernel.told,
    })
}
