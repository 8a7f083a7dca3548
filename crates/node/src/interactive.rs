//! Interactive calls: the caller's messages go to what runs, its output to the caller, each at the other's pace.
//!
//! Input has a task of its own, so that a signal gets through while the caller does not read. It reads at most one
//! message ahead of input that a process does not take, so that a signal gets through then as well.

use std::sync::Arc;

use bytes::Bytes;
use cloud_sandbox_journal::Position;
use cloud_sandbox_model::{
    error::{Error, Result, reason},
    input::Violations,
};
use cloud_sandbox_proto::{
    agent::v1::WindowSize,
    v1::{ExecAttach, ExecEvent, ExecRequest, ExecStart, TerminalSize, exec_request::Input},
};
use cloud_sandbox_rpc::to_status;
use futures::{Stream, StreamExt, future::BoxFuture};
use tokio::sync::oneshot;
use tonic::Status;

use crate::{
    executions::{
        Caller, Execution, events, execute,
        spec::{Mode, validate_size},
    },
    node::Shared,
    service::addressed,
    signals,
};

const STDIN_MAX: usize = 64 * 1024;

/// Starts or attaches to what `first` says. `rest` are the caller's later messages; their end means nothing.
pub(crate) fn exec<S>(
    node: &Arc<Shared>,
    first: Input,
    rest: S,
) -> Result<(Arc<Execution>, impl Stream<Item = Result<ExecEvent, Status>> + Send + use<S>)>
where
    S: Stream<Item = Result<ExecRequest, Status>> + Send + Unpin + 'static,
{
    let (caller, from) = match first {
        Input::Start(start) => (begin(node, start)?, Position::default()),
        Input::Attach(attach) => join(node, &attach)?,
        _ => return Err(Error::invalid("start", "must be the first message, or attach")),
    };
    let execution = Arc::clone(&caller.execution);
    let (fault, faulted) = oneshot::channel();
    let feeder = Feeder { execution: Arc::clone(&execution) };
    // it ends with the output below, which holds `faulted`
    node.tasks.spawn(feeder.feed(rest, fault));
    Ok((execution, merged(events(caller, from, None), faulted)))
}

fn begin(node: &Arc<Shared>, start: ExecStart) -> Result<Caller> {
    let mut request = start.request.unwrap_or_default();
    if let Some(size) = start.terminal {
        let mut violations = Violations::default();
        violations.check(request.terminal.is_none(), "start.terminal", "must be empty when request.terminal is given");
        validate_size(&mut violations, size, "start.terminal");
        violations.finish()?;
        request.terminal = Some(size);
    }
    // a code context has no input
    request.stdin_open |= request.context_id.is_empty();
    let place = node.place(addressed(&request)?)?;
    execute(node, place, request, Mode::Interactive, start.detached)
}

fn join(node: &Arc<Shared>, attach: &ExecAttach) -> Result<(Caller, Position)> {
    let place = node.place(addressed(attach)?)?;
    let caller = Caller::attached(place.execution(&attach.execution_id)?);
    Ok((caller, Position { stdout: attach.stdout_offset, stderr: attach.stderr_offset }))
}

/// The events until there is a fault of the caller's.
fn merged(
    events: impl Stream<Item = Result<ExecEvent, Status>> + Send,
    mut faulted: oneshot::Receiver<Status>,
) -> impl Stream<Item = Result<ExecEvent, Status>> + Send {
    async_stream::stream! {
        let mut events = std::pin::pin!(events);
        loop {
            let event = tokio::select! {
                biased;
                Ok(status) = &mut faulted, if !faulted.is_terminated() => {
                    yield Err(status);
                    return;
                }
                event = events.next() => event,
            };
            match event {
                Some(event) => yield event,
                None => return,
            }
        }
    }
}

/// What is done with a message in its turn.
type Step = BoxFuture<'static, Result<()>>;

/// What a caller's message is.
enum Word {
    /// after what came before
    InTurn(Step),
    /// at once
    Signal(i32),
    Nothing,
}

/// The input's side.
struct Feeder {
    execution: Arc<Execution>,
}

impl Feeder {
    /// Runs until the output is dropped. A message that is wrong goes to the output as its error.
    async fn feed<S>(self, rest: S, mut fault: oneshot::Sender<Status>)
    where
        S: Stream<Item = Result<ExecRequest, Status>> + Send + Unpin + 'static,
    {
        let error = tokio::select! {
            () = fault.closed() => return,
            error = self.relay(rest) => error,
        };
        // an output that was dropped meanwhile wants to know nothing
        let _ = fault.send(to_status(error));
    }

    /// Relays messages; ends with a fault of the caller's only.
    async fn relay(&self, mut rest: impl Stream<Item = Result<ExecRequest, Status>> + Unpin) -> Error {
        let mut under_way: Option<Step> = None;
        let mut ahead: Option<Step> = None;
        let mut open = true;
        loop {
            let done = tokio::select! {
                done = async { under_way.as_mut().expect("guarded").await }, if under_way.is_some() => {
                    under_way = ahead.take();
                    done
                }
                // an error is a caller who hung up, which the output's end tells for certain
                message = rest.next(), if open && ahead.is_none() => match message {
                    Some(Ok(request)) => match self.understand(request) {
                        Ok(Word::InTurn(step)) if under_way.is_none() => {
                            under_way = Some(step);
                            Ok(())
                        }
                        Ok(Word::InTurn(step)) => {
                            ahead = Some(step);
                            Ok(())
                        }
                        Ok(Word::Signal(number)) => self.execution.signal(number).await,
                        Ok(Word::Nothing) => Ok(()),
                        Err(error) => return error,
                    },
                    _ => {
                        open = false;
                        Ok(())
                    }
                },
                else => std::future::pending().await,
            };
            match done {
                // of one that has ended the output tells
                Err(error) if error.reason() != reason::EXECUTION_ENDED => return error,
                _ => {}
            }
        }
    }

    fn understand(&self, request: ExecRequest) -> Result<Word> {
        Ok(match request.input {
            // from a newer caller than this node
            None => Word::Nothing,
            Some(Input::Start(_) | Input::Attach(_)) => {
                return Err(Error::invalid("start", "must be the first message only"));
            }
            Some(Input::Stdin(bytes)) if bytes.len() > STDIN_MAX => {
                return Err(Error::invalid("stdin", format!("must be at most {STDIN_MAX} bytes long")));
            }
            Some(Input::Stdin(bytes)) => self.write(bytes, false),
            Some(Input::CloseStdin(_)) => self.write(Bytes::new(), true),
            Some(Input::Resize(size)) => {
                let size = window(size, "resize")?;
                let execution = Arc::clone(&self.execution);
                Word::InTurn(Box::pin(async move { execution.resize(size).await }))
            }
            Some(Input::Signal(name)) => Word::Signal(signal_number(&name)?),
        })
    }

    fn write(&self, bytes: Bytes, close: bool) -> Word {
        let execution = Arc::clone(&self.execution);
        Word::InTurn(Box::pin(async move { execution.write_stdin(None, bytes, close).await.map(drop) }))
    }
}

/// The number of a signal that a caller has named.
pub(crate) fn signal_number(name: &str) -> Result<i32> {
    signals::number(name).ok_or_else(|| Error::invalid("signal", "must be a signal's name, SIGINT for example"))
}

/// A terminal's size, checked.
pub(crate) fn window(size: TerminalSize, field: &str) -> Result<WindowSize> {
    let mut violations = Violations::default();
    validate_size(&mut violations, size, field);
    violations.finish()?;
    Ok(WindowSize { rows: size.rows, cols: size.cols })
}
