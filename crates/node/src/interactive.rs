//! Interactive executions: the caller's messages go to the process, its output to the caller, each at the other's pace.
//!
//! Input has a task of its own, so that a signal gets through while the caller does not read; output is read only as
//! the caller takes it. The timeout goes with the input for the same reason. Dropping the output ends everything.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{
    ExecutionId,
    error::{Error, ErrorKind, Result, reason},
    input::Violations,
};
use cloud_sandbox_proto::{
    agent::v1::{CloseStdin, RunRequest, WindowSize, run_request::Input, run_response},
    v1::{ExecEvent, ExecRequest, ExecStart, ExecStarted, TerminalSize, exec_event::Event, exec_request},
};
use cloud_sandbox_rpc::to_status;
use futures::{Stream, StreamExt};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::Status;

use crate::{
    agent::{Process, Remote},
    executions::{
        Ending, Pieces, event, exit_of, lost,
        spec::{Mode, Spec},
        start,
    },
    node::Shared,
    sandbox::Sandbox,
    signals,
};

const STDIN_MAX: usize = 64 * 1024;
const TERMINAL_MAX: u32 = 1000;

/// What the input task says to the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Clock {
    Running,
    /// the timeout has passed and the process was told to die
    TimedOut,
    /// it did not within the grace
    GivenUp,
}

/// Counts an interactive execution among those of its sandbox.
struct Place(Arc<Sandbox>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.executions.leave();
    }
}

/// Starts what `first` says. `rest` are the caller's later messages; their end means nothing.
pub(crate) async fn exec<S>(
    node: &Arc<Shared>,
    sandbox: Arc<Sandbox>,
    first: ExecStart,
    rest: S,
) -> Result<impl Stream<Item = Result<ExecEvent, Status>> + Send + use<S>>
where
    S: Stream<Item = Result<ExecRequest, Status>> + Send + Unpin + 'static,
{
    let lease = sandbox.usable()?;
    let terminal = first.terminal.map(|size| window(size, "start.terminal")).transpose()?;
    let id = ExecutionId::generate();
    let request = first.request.unwrap_or_default();
    let mut spec = Spec::new(request, id, &lease.env, &sandbox.template, Mode::Interactive)?;
    if let Some(size) = terminal {
        spec = spec.on_terminal(size);
    }
    sandbox.executions.enter()?;
    let place = Place(Arc::clone(&sandbox));

    let began = Instant::now();
    let deadline = began + spec.timeout;
    let oom_kills_before = sandbox.oom_kills_seen();
    let process = tokio::select! {
        process = start(&sandbox, &mut spec, Spec::open_messages) => process?,
        () = sandbox.ended.cancelled() => return Err(sandbox.gone_error()),
        () = sleep_until(deadline) => {
            let message = "the execution did not start within its timeout";
            return Err(Error::new(ErrorKind::DeadlineExceeded, reason::INVALID_REQUEST, message));
        }
    };
    let (clock, watched) = watch::channel(Clock::Running);
    let (fault, faulted) = oneshot::channel();
    let (input, remote) = (process.input.clone(), process.remote.clone());
    let feeder = Feeder { input, remote, has_terminal: terminal.is_some(), clock };
    let feeding = feeder.feed(rest, fault, deadline, node.options.kill_grace);
    // it ends with the output below, which holds `faulted`
    node.tasks.spawn(feeding);
    let relay = Relay { id, sandbox, process, clock: watched, faulted, began, oom_kills_before, _place: place };
    Ok(relay.events())
}

/// The output's side.
struct Relay {
    id: ExecutionId,
    sandbox: Arc<Sandbox>,
    process: Process,
    clock: watch::Receiver<Clock>,
    faulted: oneshot::Receiver<Status>,
    began: Instant,
    oom_kills_before: u64,
    _place: Place,
}

impl Relay {
    fn events(mut self) -> impl Stream<Item = Result<ExecEvent, Status>> + Send {
        async_stream::stream! {
            yield Ok(event(Event::Started(ExecStarted { execution_id: self.id.to_string() })));
            let (mut stdout, mut stderr) = (Pieces::default(), Pieces::default());
            let mut printed = (0, 0);
            let ending = loop {
                let happened = match self.next().await {
                    Ok(happened) => happened,
                    Err(status) => {
                        yield Err(status);
                        return;
                    }
                };
                match happened {
                    Happened::Stdout(piece) => {
                        printed.0 += piece.len() as u64;
                        for piece in stdout.push(&piece, false) {
                            yield Ok(event(Event::Stdout(piece)));
                        }
                    }
                    Happened::Stderr(piece) => {
                        printed.1 += piece.len() as u64;
                        for piece in stderr.push(&piece, false) {
                            yield Ok(event(Event::Stderr(piece)));
                        }
                    }
                    Happened::Nothing => {}
                    Happened::Ended(ending) => break ending,
                }
            };
            for piece in stdout.push(&[], true) {
                yield Ok(event(Event::Stdout(piece)));
            }
            for piece in stderr.push(&[], true) {
                yield Ok(event(Event::Stderr(piece)));
            }
            let timed_out = *self.clock.borrow() != Clock::Running;
            let exit = exit_of(&self.sandbox, &ending, timed_out, self.oom_kills_before).await;
            let mut exited = exit.exited();
            (exited.stdout_bytes, exited.stderr_bytes) = printed;
            yield Ok(event(Event::Exited(exited)));
        }
    }

    async fn next(&mut self) -> Result<Happened, Status> {
        let given_up = async {
            if self.clock.wait_for(|clock| *clock == Clock::GivenUp).await.is_err() {
                // the feeder is gone, with a fault of which `faulted` tells
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            biased;
            Ok(status) = &mut self.faulted => Err(status),
            event = self.process.next() => match event {
                Ok(Some(event)) => Ok(Happened::of(event)),
                Ok(None) => Err(to_status(lost(&self.sandbox, &Status::unknown("the stream ended early")).await)),
                Err(status) => Err(to_status(lost(&self.sandbox, &status).await)),
            },
            () = self.sandbox.ended.cancelled() => Err(to_status(self.sandbox.gone_error())),
            () = given_up => Ok(Happened::Ended(Ending::GivenUp(self.began.elapsed()))),
        }
    }
}

enum Happened {
    Nothing,
    Stdout(bytes::Bytes),
    Stderr(bytes::Bytes),
    Ended(Ending),
}

impl Happened {
    fn of(event: run_response::Event) -> Self {
        match event {
            run_response::Event::Stdout(piece) => Self::Stdout(piece),
            run_response::Event::Stderr(piece) => Self::Stderr(piece),
            run_response::Event::Exited(exited) => Self::Ended(Ending::Reported(exited)),
            run_response::Event::Started(_) => Self::Nothing,
        }
    }
}

/// The input's side.
struct Feeder {
    input: mpsc::Sender<RunRequest>,
    remote: Remote,
    has_terminal: bool,
    clock: watch::Sender<Clock>,
}

impl Feeder {
    /// Runs until the output is dropped. A message that is wrong goes to the output as its error.
    async fn feed<S>(self, rest: S, mut fault: oneshot::Sender<Status>, deadline: Instant, grace: Duration)
    where
        S: Stream<Item = Result<ExecRequest, Status>> + Send + Unpin + 'static,
    {
        let error = tokio::select! {
            () = fault.closed() => return,
            () = self.watch_clock(deadline, grace) => return fault.closed().await,
            error = self.relay(rest) => error,
        };
        // an output that was dropped meanwhile wants to know nothing
        let _ = fault.send(to_status(error));
    }

    async fn watch_clock(&self, deadline: Instant, grace: Duration) {
        sleep_until(deadline).await;
        self.clock.send_replace(Clock::TimedOut);
        // an agent that does not answer is given up after the grace
        let _ = timeout(grace, self.remote.kill()).await;
        sleep(grace).await;
        self.clock.send_replace(Clock::GivenUp);
    }

    /// Relays messages; ends with a fault of the caller's only.
    async fn relay(&self, mut rest: impl Stream<Item = Result<ExecRequest, Status>> + Unpin) -> Error {
        // an error is a caller who hung up, which the output's end tells for certain
        while let Some(Ok(request)) = rest.next().await {
            match self.translate(request) {
                Ok(Some(Word::Input(input))) => {
                    if self.input.send(message(input)).await.is_err() {
                        break;
                    }
                }
                Ok(Some(Word::Signal(number))) => {
                    // one that cannot be delivered is one to a process that has ended, of which the output tells
                    let _ = self.remote.signal(number).await;
                }
                Ok(None) => {}
                Err(error) => return error,
            }
        }
        std::future::pending().await
    }

    fn translate(&self, request: ExecRequest) -> Result<Option<Word>> {
        let input = match request.input {
            // from a newer caller than this node
            None => return Ok(None),
            Some(exec_request::Input::Start(_)) => {
                return Err(Error::invalid("start", "must be the first message only"));
            }
            Some(exec_request::Input::Stdin(bytes)) if bytes.len() > STDIN_MAX => {
                return Err(Error::invalid("stdin", format!("must be at most {STDIN_MAX} bytes long")));
            }
            Some(exec_request::Input::Stdin(bytes)) => Input::Stdin(bytes),
            Some(exec_request::Input::CloseStdin(_)) => Input::CloseStdin(CloseStdin {}),
            Some(exec_request::Input::Resize(size)) => {
                let size = window(size, "resize")?;
                if !self.has_terminal {
                    let message = "the execution has no terminal to resize";
                    return Err(Error::new(ErrorKind::FailedPrecondition, reason::INVALID_REQUEST, message));
                }
                Input::Resize(size)
            }
            Some(exec_request::Input::Signal(name)) => {
                let number = signals::number(&name);
                let number =
                    number.ok_or_else(|| Error::invalid("signal", "must be a signal's name, SIGINT for example"));
                return Ok(Some(Word::Signal(number?)));
            }
        };
        Ok(Some(Word::Input(input)))
    }
}

/// What a caller's message is for the agent.
enum Word {
    /// part of the process's stream
    Input(Input),
    /// beside it
    Signal(i32),
}

fn window(size: TerminalSize, field: &str) -> Result<WindowSize> {
    let mut violations = Violations::default();
    violations.range(&format!("{field}.rows"), &size.rows, &1, &TERMINAL_MAX);
    violations.range(&format!("{field}.cols"), &size.cols, &1, &TERMINAL_MAX);
    violations.finish()?;
    Ok(WindowSize { rows: size.rows, cols: size.cols })
}

fn message(input: Input) -> RunRequest {
    RunRequest { input: Some(input) }
}
