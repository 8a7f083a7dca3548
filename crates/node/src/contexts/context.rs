//! The handle of a context: what everybody but its owner task knows of it and may ask of it.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use cloud_sandbox_model::{
    ExecutionId, SandboxId,
    error::{Error, ErrorKind, Result, reason},
    id::ContextId,
};
use cloud_sandbox_proto::v1::{self, ContextState};
use cloud_sandbox_rpc::from_status;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{frames::Kept, kernels::Kernel};
use crate::executions::{Execution, Job};

/// Executions that may wait in one context.
const WAITING_MAX: usize = 64;
/// How much code they may be, in bytes.
const WAITING_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A signal on its way to what runs.
pub(super) type Signal = (i32, Reply<()>);

/// What the owner is asked for.
pub(super) enum Command {
    Restart(Reply<()>),
    /// answered with what is cancelled when the running execution has ended, or with nothing when none runs
    Interrupt(oneshot::Sender<Option<CancellationToken>>),
    Delete(Reply<()>),
    /// save the variables to a file, or load them from it
    Keep(Keeping, oneshot::Sender<Kept>),
}

/// What is done with the variables, and the file that is for it.
#[derive(Debug)]
pub(super) enum Keeping {
    Save(String),
    Load(String),
}

/// An execution that waits.
pub(super) struct Waiting {
    pub(super) execution: Arc<Execution>,
    pub(super) kernel: &'static Kernel,
    pub(super) job: Job,
    pub(super) signals: mpsc::UnboundedReceiver<Signal>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    closed: bool,
}

/// What a context is doing, as its owner last said.
#[derive(Debug, Clone, Default)]
pub(super) struct View {
    pub(super) state: ContextState,
    pub(super) running: bool,
    pub(super) pid: u32,
    pub(super) version: String,
    pub(super) restarts: u32,
    /// how its first start went
    pub(super) begun: Option<Result<(), Status>>,
}

/// A context that is wanted.
pub(super) struct Wanted {
    pub(super) kernel: &'static Kernel,
    pub(super) is_default: bool,
    pub(super) cwd: String,
    pub(super) env: HashMap<String, String>,
}

/// The handle.
pub(crate) struct Context {
    pub(crate) id: ContextId,
    pub(super) kernel: &'static Kernel,
    pub(super) is_default: bool,
    pub(super) cwd: String,
    pub(super) env: HashMap<String, String>,
    created_at: SystemTime,
    pub(super) view: watch::Sender<View>,
    queue: Mutex<Queue>,
    arrived: Notify,
    mailbox: mpsc::UnboundedSender<Command>,
}

impl Context {
    /// One whose owner is about to be started with what it hears through `mailbox`.
    pub(super) fn new(id: ContextId, wanted: Wanted, mailbox: mpsc::UnboundedSender<Command>) -> Self {
        let Wanted { kernel, is_default, cwd, env } = wanted;
        let view = View { state: ContextState::Dead, ..View::default() };
        Self {
            id,
            kernel,
            is_default,
            cwd,
            env,
            created_at: SystemTime::now(),
            view: watch::Sender::new(view),
            queue: Mutex::default(),
            arrived: Notify::new(),
            mailbox,
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets an execution wait for its turn.
    pub(super) fn enqueue(&self, waiting: Waiting) -> Result<()> {
        let mut queue = self.queue();
        if queue.closed {
            let begun = self.view.borrow().begun.clone();
            return Err(begun.and_then(Result::err).map_or_else(|| not_found(self.id), |status| from_status(&status)));
        }
        if queue.waiting.len() >= WAITING_MAX {
            let message = format!("{WAITING_MAX} executions wait in context {} already", self.id);
            return Err(Error::new(ErrorKind::ResourceExhausted, reason::CONTEXT_LIMIT, message));
        }
        let code = |waiting: &Waiting| waiting.job.code.len();
        if queue.waiting.iter().map(code).sum::<usize>() + code(&waiting) > WAITING_BYTES_MAX {
            let message = format!("{WAITING_BYTES_MAX} bytes of code wait in context {} already", self.id);
            return Err(Error::new(ErrorKind::ResourceExhausted, reason::CONTEXT_LIMIT, message));
        }
        waiting.execution.queued();
        queue.waiting.push_back(waiting);
        drop(queue);
        self.arrived.notify_one();
        Ok(())
    }

    /// Takes an execution out that has not begun.
    pub(super) fn withdraw(&self, id: ExecutionId) -> Option<Waiting> {
        let mut queue = self.queue();
        let index = queue.waiting.iter().position(|waiting| waiting.execution.id == id)?;
        queue.waiting.remove(index)
    }

    /// The execution whose turn it is, once there is one.
    pub(super) async fn next(&self) -> Waiting {
        loop {
            if let Some(waiting) = self.queue().waiting.pop_front() {
                return waiting;
            }
            self.arrived.notified().await;
        }
    }

    /// Takes out all that wait.
    pub(super) fn drain(&self) -> VecDeque<Waiting> {
        std::mem::take(&mut self.queue().waiting)
    }

    /// The same, and nothing waits here again.
    pub(super) fn close(&self) -> VecDeque<Waiting> {
        let mut queue = self.queue();
        queue.closed = true;
        std::mem::take(&mut queue.waiting)
    }

    /// Waits until its interpreter is ready for the first time, or says why it is not.
    pub(super) async fn until_begun(&self) -> Result<()> {
        let mut view = self.view.subscribe();
        // the sender is in `self`
        let begun = view.wait_for(|view| view.begun.is_some()).await.ok().and_then(|view| view.begun.clone());
        begun.unwrap_or(Ok(())).map_err(|status| from_status(&status))
    }

    /// Asks the owner; none when the owner is gone.
    pub(super) async fn ask<T>(&self, command: impl FnOnce(oneshot::Sender<T>) -> Command) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.send(command(reply)).ok()?;
        answer.await.ok()
    }

    /// Has it deleted, whenever its owner comes to it.
    pub(super) fn abandon(&self) {
        let (reply, _) = oneshot::channel();
        // an owner that is gone has left already
        let _ = self.mailbox.send(Command::Delete(reply));
    }

    /// What a caller sees of it.
    pub(super) fn describe(&self, sandbox: SandboxId) -> v1::Context {
        let view = self.view.borrow().clone();
        let waiting = self.queue().waiting.len();
        let executions = waiting + usize::from(view.running);
        v1::Context {
            context_id: self.id.to_string(),
            sandbox_id: sandbox.to_string(),
            language: self.kernel.language.to_owned(),
            is_default: self.is_default,
            cwd: self.cwd.clone(),
            state: view.state.into(),
            executions: u32::try_from(executions).unwrap_or(u32::MAX),
            restarts: view.restarts,
            version: view.version,
            pid: view.pid,
            create_time: Some(self.created_at.into()),
        }
    }
}

pub(super) fn not_found(id: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::NotFound, reason::CONTEXT_NOT_FOUND, format!("context {id} not found"))
}
