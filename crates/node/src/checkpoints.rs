//! Checkpoints of sandboxes: saving one to the workspace store, and making a fresh one what a checkpoint holds.
//!
//! Each runs in a task of its own, so that a caller that hangs up leaves no sandbox half done: the task hears of it and
//! lets everything go on. While it runs, other calls are refused with SANDBOX_BUSY; what was under way stands still.
//!
//! Invariant: after a checkpoint, however it ended, the processes go on, unless it succeeded and was asked to leave them
//! standing still. A sandbox that had been paused is paused again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloud_sandbox_checkpoint::{Checkpoint, Save, Saved, restore as read};
use cloud_sandbox_model::{
    CheckpointId,
    error::{Error, ErrorKind, Result, chain, reason},
};
use cloud_sandbox_proto::{
    agent::v1::{ContinueProcessesRequest, ProcessInfo, RestoreTreeResponse, StopProcessesRequest},
    checkpoint::v1::{Contents, LostThing},
    node::v1::{
        CheckpointRef, CheckpointSandboxRequest, CheckpointSandboxResponse, RestoreSandboxRequest,
        RestoreSandboxResponse,
    },
    v1::{self, ExecutionState},
};
use futures::StreamExt;
use tokio::{
    sync::{SemaphorePermit, oneshot},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};
use tracing::Instrument;

use crate::{
    contents,
    node::Shared,
    sandbox::{Busy, Sandbox, start},
    service::sandbox_id,
};

/// Sandboxes of a node that are saved or restored at once. Each may hold some 50 MiB in memory on its way.
pub(crate) const AT_ONCE: usize = 4;
/// How long an agent may take to let processes go on; it takes milliseconds unless the sandbox is starved.
const CONTINUE_PATIENCE: Duration = Duration::from_secs(10);

/// What is to be saved, validated.
struct Wanted {
    id: CheckpointId,
    base: Option<Reference>,
    keep_stopped: bool,
}

/// A checkpoint with its digest.
struct Reference {
    id: CheckpointId,
    digest: Vec<u8>,
}

impl Reference {
    fn new(reference: &CheckpointRef, field: &str) -> Result<Self> {
        let id = reference.checkpoint_id.parse();
        let id = id.map_err(|error: Error| {
            let rule = error.violations().first().map_or("must be an id", |violation| &violation.rule).to_owned();
            Error::invalid(format!("{field}.checkpoint_id"), rule)
        })?;
        if reference.digest.len() != 32 {
            return Err(Error::invalid(format!("{field}.digest"), "must have 32 bytes"));
        }
        Ok(Self { id, digest: reference.digest.to_vec() })
    }

    async fn open(&self, node: &Shared) -> Result<Arc<Checkpoint>> {
        Checkpoint::open(&*node.workspaces, self.id, &self.digest).await
    }
}

/// Saves a sandbox.
pub(crate) async fn checkpoint(
    node: &Arc<Shared>,
    request: CheckpointSandboxRequest,
) -> Result<CheckpointSandboxResponse> {
    let sandbox = node.sandbox(sandbox_id(&request.sandbox_id)?)?;
    let base = request.base.as_ref().map(|base| Reference::new(base, "base")).transpose()?;
    let wanted = Wanted { id: request.checkpoint_id.parse()?, base, keep_stopped: request.keep_stopped };
    let (answer, answered) = oneshot::channel();
    let gone = CancellationToken::new();
    let _gone_when_dropped = gone.clone().drop_guard();
    let work = {
        let node = Arc::clone(node);
        async move {
            let saved = save_held(&node, &sandbox, &wanted, &gone).await;
            // one that nobody is told of is no reason to stand still
            if let Err(Ok(_)) = answer.send(saved)
                && sandbox.busy() == Some(Busy::Stopped)
                && wanted.keep_stopped
            {
                go_on_logged(&sandbox).await;
            }
        }
    };
    node.tasks.spawn(work.in_current_span());
    let saved = answered.await.map_err(|error| Error::internal("save the sandbox", error))??;
    Ok(CheckpointSandboxResponse {
        checkpoint: Some(CheckpointRef { checkpoint_id: saved.id.to_string(), digest: saved.digest.to_vec().into() }),
        files: saved.files,
        bytes: saved.bytes,
        stored_bytes: saved.stored_bytes,
        pack_checkpoint_ids: saved.pack_checkpoints.iter().map(ToString::to_string).collect(),
    })
}

async fn permit<'a>(node: &'a Shared, gone: &CancellationToken) -> Result<SemaphorePermit<'a>> {
    tokio::select! {
        permit = node.checkpointing.acquire() => Ok(permit.expect("the semaphore is never closed")),
        () = gone.cancelled() => Err(hung_up()),
    }
}

fn hung_up() -> Error {
    Error::new(ErrorKind::Cancelled, reason::CANCELLED, "the caller hung up")
}

/// What is done, unless the caller or the sandbox goes first.
async fn unless_gone<T>(
    sandbox: &Sandbox,
    gone: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased;
        () = gone.cancelled() => Err(hung_up()),
        () = sandbox.ended.cancelled() => Err(sandbox.ending_error()),
        done = work => done,
    }
}

async fn save_held(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    wanted: &Wanted,
    gone: &CancellationToken,
) -> Result<Saved> {
    let _permit = permit(node, gone).await?;
    let base = match &wanted.base {
        Some(base) => Some(unless_gone(sandbox, gone, base.open(node)).await?),
        None => None,
    };
    // not to be dropped half-way: what was held must be let go
    let paused = sandbox.hold().await?;
    let was_stopped = sandbox.busy() == Some(Busy::Stopped);
    let mut gathered = Contents::default();
    let saved = unless_gone(sandbox, gone, save(node, sandbox, wanted.id, base, &mut gathered)).await;
    contents::discard(sandbox, &gathered).await;
    let stay = paused || (wanted.keep_stopped && saved.is_ok()) || (was_stopped && saved.is_err());
    if stay {
        sandbox.set_busy(Some(Busy::Stopped));
    } else {
        go_on_logged(sandbox).await;
    }
    // one that is to be released need not be frozen
    let freeze = paused && !(wanted.keep_stopped && saved.is_ok());
    if let Err(error) = sandbox.let_go(freeze).await
        && !sandbox.ended.is_cancelled()
    {
        tracing::warn!(error = chain(&error), "a paused sandbox stands still, but is not frozen");
    }
    saved
}

async fn save(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    id: CheckpointId,
    base: Option<Arc<Checkpoint>>,
    gathered: &mut Contents,
) -> Result<Saved> {
    let lease = sandbox.view().lease.ok_or_else(|| Error::sandbox_not_found(sandbox.id))?;
    // interpreters must run to say what they hold; those of a sandbox that stood still are asked as they go on for it
    *gathered = contents::gather(node, sandbox).await;
    let mut contents = gathered.clone();
    sandbox.set_busy(Some(Busy::Checkpoint));
    let stopped = sandbox.agent.client().stop_processes(StopProcessesRequest {}).await;
    let stopped = stopped.map_err(|status| agent_error("stop the sandbox's processes", &status))?;
    contents::note_executions(sandbox, &mut contents);
    contents.lost.extend(lost(sandbox, &stopped.into_inner().processes));

    let roots = roots(sandbox)?;
    let save = Save::new(Arc::clone(&node.workspaces), id, roots, contents, lease.limits.disk_bytes)?.with_base(base);
    let tree = sandbox.agent.trees().save_tree(save.requests()).await;
    let tree = tree.map_err(|status| agent_error("read the sandbox's files", &status))?.into_inner();
    save.run(tree.map(|part| part.map_err(|status| agent_error("read the sandbox's files", &status)))).await
}

fn roots(sandbox: &Sandbox) -> Result<Vec<String>> {
    let folders = sandbox.origin.runtime.writable_folders(&sandbox.origin.prepared);
    let names = folders.into_iter().map(|folder| folder.into_os_string().into_string());
    let names: Result<Vec<_>, _> = names.collect();
    names.map_err(|name| Error::internal("name the sandbox's folders", format!("{name:?} is no text")))
}

/// The processes and sockets that a checkpoint does not hold. Interpreters of contexts and what executions started are not
/// among them: they are told of by themselves.
fn lost(sandbox: &Sandbox, processes: &[ProcessInfo]) -> Vec<LostThing> {
    let mut known: Vec<_> = sandbox.contexts.list(sandbox.id).iter().map(|context| context.pid).collect();
    let executions =
        sandbox.executions.list(None, usize::MAX, |execution| execution.state() == ExecutionState::Running);
    // a restore starts it anew
    known.extend(sandbox.started.pid());
    known.extend(executions.iter().map(|execution| execution.describe().pid));
    let others = processes.iter().filter(|process| !known.contains(&process.pid));
    let things = others.flat_map(|ProcessInfo { command, sockets, pid }| {
        let what = if command.is_empty() { format!("process {pid}") } else { command.clone() };
        let reason = "a checkpoint holds no running processes".to_owned();
        let process = LostThing { kind: "process".to_owned(), what: what.clone(), reason };
        let sockets = (*sockets > 0).then(|| LostThing {
            kind: "socket".to_owned(),
            what: format!("{sockets} of {what}"),
            reason: "a checkpoint holds no connections".to_owned(),
        });
        [Some(process), sockets]
    });
    things.flatten().collect()
}

/// What a caller is told when an agent refuses.
fn agent_error(operation: &str, status: &Status) -> Error {
    let kind = match status.code() {
        Code::FailedPrecondition => ErrorKind::FailedPrecondition,
        Code::Aborted => ErrorKind::Aborted,
        Code::ResourceExhausted => ErrorKind::ResourceExhausted,
        _ => return Error::internal(operation, status.clone()),
    };
    Error::new(kind, reason::FILE_REFUSED, format!("failed to {operation}: {}", status.message()))
}

/// Lets processes go on that stand still after a checkpoint.
pub(crate) async fn go_on(sandbox: &Sandbox) -> Result<()> {
    let mut agent = sandbox.agent.client();
    let going_on = timeout(CONTINUE_PATIENCE, agent.continue_processes(ContinueProcessesRequest {}));
    match going_on.await {
        Ok(Ok(_)) => {
            sandbox.set_busy(None);
            Ok(())
        }
        Ok(Err(status)) => Err(Error::internal("let the sandbox's processes go on", status)),
        Err(elapsed) => Err(Error::internal("let the sandbox's processes go on in time", elapsed)),
    }
}

async fn go_on_logged(sandbox: &Sandbox) {
    if sandbox.ended.is_cancelled() {
        return;
    }
    if let Err(error) = go_on(sandbox).await {
        // a resume tries again
        sandbox.set_busy(Some(Busy::Stopped));
        tracing::error!(error = chain(&error), "processes of a sandbox still stand still after a checkpoint");
    }
}

/// Makes a fresh sandbox what a checkpoint holds.
pub(crate) async fn restore(node: &Arc<Shared>, request: RestoreSandboxRequest) -> Result<RestoreSandboxResponse> {
    let sandbox = node.sandbox(sandbox_id(&request.sandbox_id)?)?;
    let wanted = request.checkpoint.ok_or_else(|| Error::invalid("checkpoint", "must be given"))?;
    let wanted = Reference::new(&wanted, "checkpoint")?;
    let restart_commands = request.restart_commands;
    let (answer, answered) = oneshot::channel();
    let gone = CancellationToken::new();
    let _gone_when_dropped = gone.clone().drop_guard();
    let work = {
        let node = Arc::clone(node);
        async move {
            let restored = restore_held(&node, &sandbox, &wanted, restart_commands, &gone).await;
            // a caller that has gone has no use for the sandbox either
            let _ = answer.send(restored);
        }
    };
    node.tasks.spawn(work.in_current_span());
    let manifest = answered.await.map_err(|error| Error::internal("restore the sandbox", error))??;
    Ok(RestoreSandboxResponse { manifest: Some(manifest) })
}

async fn restore_held(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    wanted: &Reference,
    restart_commands: bool,
    gone: &CancellationToken,
) -> Result<v1::ResumeManifest> {
    check_fresh(sandbox)?;
    let _permit = permit(node, gone).await?;
    let checkpoint = unless_gone(sandbox, gone, wanted.open(node)).await?;
    sandbox.hold().await?;
    sandbox.set_busy(Some(Busy::Restore));
    // it may have been used meanwhile; from here on it cannot be
    let filled = match check_fresh_now(sandbox) {
        Ok(()) => {
            // what it has open would be replaced under its hands
            sandbox.started.stop().await;
            unless_gone(sandbox, gone, fill(node, sandbox, &checkpoint)).await
        }
        Err(error) => {
            sandbox.set_busy(None);
            sandbox.let_go(false).await?;
            return Err(error);
        }
    };
    sandbox.set_busy(filled.is_err().then_some(Busy::Broken));
    sandbox.let_go(false).await?;
    let filled = filled?;
    let not_started = unless_gone(sandbox, gone, async { Ok(start_anew(node, sandbox).await) }).await?;
    let restoring = contents::restore(node, sandbox, checkpoint.contents(), restart_commands);
    let mut restored = unless_gone(sandbox, gone, async { Ok(restoring.await) }).await?;
    restored.lost.extend(not_started);
    Ok(v1::ResumeManifest {
        checkpoint_id: checkpoint.id().to_string(),
        files: filled.entries,
        bytes: filled.bytes,
        contexts: restored.contexts,
        commands: restored.commands,
        lost: restored.lost,
        ..v1::ResumeManifest::default()
    })
}

/// Starts what the template starts over the files that were restored; what is lost when that fails.
async fn start_anew(node: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Option<v1::LostItem> {
    let command = sandbox.origin.template.start.as_ref()?;
    let error = start(node, sandbox, command).await.err()?;
    tracing::warn!(error = chain(&error), "what the template starts did not start over what was restored");
    let (what, reason) = (command.command.clone(), error.message().to_owned());
    Some(v1::LostItem { kind: "process".to_owned(), what, reason })
}

fn check_fresh(sandbox: &Sandbox) -> Result<()> {
    sandbox.usable()?;
    check_fresh_now(sandbox)
}

fn check_fresh_now(sandbox: &Sandbox) -> Result<()> {
    if sandbox.activity().used() {
        let message = format!("sandbox {} was used already; a checkpoint is restored into a fresh one", sandbox.id);
        return Err(Error::new(ErrorKind::FailedPrecondition, reason::SANDBOX_USED, message));
    }
    Ok(())
}

async fn fill(node: &Shared, sandbox: &Sandbox, checkpoint: &Arc<Checkpoint>) -> Result<RestoreTreeResponse> {
    let fault = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&fault);
    let parts = read(Arc::clone(&node.workspaces), Arc::clone(checkpoint));
    // at a fault the stream ends without its commit, which the agent takes for what it is
    let parts = tokio_stream::StreamExt::map_while(parts, move |part| match part {
        Ok(part) => Some(part),
        Err(error) => {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            None
        }
    });
    let answer = sandbox.agent.trees().restore_tree(parts).await;
    if let Some(error) = fault.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(error);
    }
    answer.map(tonic::Response::into_inner).map_err(|status| agent_error("write the sandbox's files", &status))
}
