//! What of a sandbox's running work survives a checkpoint beside its files: the variables of code contexts, what ran in
//! the background, and the request ids that were answered.
//!
//! A checkpoint calls [`gather`] before it stops the processes, [`note_executions`] again when they stand still, and
//! [`discard`] when the files are read, whatever came of it. A resume calls [`restore`] when the files are there again.
//! The variables lie in files of the sandbox in between (`contexts::values_file`), `SavedContext.values` is empty.
//!
//! Nothing here fails: what cannot be saved or restored is lost, and said so.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_proto::{
    checkpoint::v1::{Contents, LostThing, SavedCommand, SavedContext},
    v1::{DeleteFileRequest, LostItem, RestoredCommand, RestoredContext},
};
use tokio::time::{Instant, timeout};

use crate::{contexts, executions, node::Shared, sandbox::Sandbox};

/// How long all contexts together may take to save their variables.
const GATHER_PATIENCE: Duration = Duration::from_secs(10);
/// How long the removal of a file may take.
const REMOVE_PATIENCE: Duration = Duration::from_secs(2);
const EXECUTION: &str = "process";

/// What came back of a checkpoint's contents.
#[derive(Debug, Default)]
pub(crate) struct Restored {
    pub(crate) contexts: Vec<RestoredContext>,
    pub(crate) commands: Vec<RestoredCommand>,
    pub(crate) lost: Vec<LostItem>,
}

/// What runs in a sandbox. Contexts that are idle write their variables to files; nothing is interrupted.
pub(crate) async fn gather(_node: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Contents {
    let mut contents = Contents::default();
    for (saved, failure) in contexts::save_all(sandbox, Instant::now() + GATHER_PATIENCE).await {
        if let Some(reason) = failure {
            contents.lost.push(all_variables(&saved, reason));
        }
        contents.contexts.push(saved);
    }
    note_executions(sandbox, &mut contents);
    contents
}

/// Notes what runs now and which requests were answered, instead of what was noted of that before.
pub(crate) fn note_executions(sandbox: &Sandbox, contents: &mut Contents) {
    let (commands, lost) = sandbox.executions.saved();
    contents.commands = commands;
    contents.lost.retain(|thing| thing.kind != EXECUTION);
    contents.lost.extend(lost);
    contents.requests = sandbox.executions.answered();
}

fn all_variables(context: &SavedContext, reason: String) -> LostThing {
    let what = format!("all variables of the {} context {}", context.language, context.context_id);
    LostThing { kind: "variable".to_owned(), what, reason }
}

/// Removes the files that [`gather`] had the contexts write. What is not removed is so at the next save or load.
pub(crate) async fn discard(sandbox: &Sandbox, contents: &Contents) {
    let saved = contents.contexts.iter().filter(|context| !context.variables.is_empty());
    for context in saved {
        remove(sandbox, contexts::values_file(&context.context_id)).await;
    }
}

async fn remove(sandbox: &Sandbox, path: String) {
    let request = DeleteFileRequest { path, ..DeleteFileRequest::default() };
    let removed = timeout(REMOVE_PATIENCE, sandbox.agent.files().delete_file(request)).await;
    if !matches!(removed, Ok(Ok(_))) {
        tracing::debug!(sandbox_id = %sandbox.id, "saved variables were not removed");
    }
}

/// Brings back what is in `contents`, in a sandbox that nobody has used yet and whose files are there.
pub(crate) async fn restore(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    contents: Contents,
    restart_commands: bool,
) -> Restored {
    let mut restored = Restored::default();
    // before anybody can ask for one of them again
    sandbox.executions.remember(contents.requests);
    restored.lost.extend(contents.lost.into_iter().map(|thing| lost(&thing.kind, thing.what, thing.reason)));
    for saved in contents.contexts {
        restore_context(node, sandbox, saved, &mut restored).await;
    }
    for command in contents.commands {
        restored.commands.push(restore_command(node, sandbox, command, restart_commands).await);
    }
    restored
}

async fn restore_context(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, saved: SavedContext, restored: &mut Restored) {
    let kept = match contexts::bring_back(node, sandbox, &saved).await {
        Ok(kept) => kept,
        Err(error) => {
            remove(sandbox, contexts::values_file(&saved.context_id)).await;
            let what = format!("the {} context {}", saved.language, saved.context_id);
            restored.lost.push(lost("context", what, error.message().to_owned()));
            return;
        }
    };
    let contexts::Kept { variables, lost: gone, failure } = kept;
    let mut all: Vec<_> =
        saved.lost.into_iter().chain(gone).map(|one| lost("variable", one.name, one.reason)).collect();
    if let Some(why) = failure {
        all.extend(saved.variables.into_iter().map(|name| lost("variable", name, why.clone())));
    }
    let SavedContext { context_id, language, .. } = saved;
    restored.contexts.push(RestoredContext { context_id, language, variables, lost: all });
}

async fn restore_command(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    saved: SavedCommand,
    restart: bool,
) -> RestoredCommand {
    let request = saved.request.unwrap_or_default();
    let mut command = RestoredCommand {
        execution_id: saved.execution_id,
        command: executions::describe_command(&request),
        tag: request.tag.clone(),
        ..RestoredCommand::default()
    };
    if restart {
        match executions::again(node, sandbox, &request).await {
            Ok(id) => command.restarted_as = id,
            Err(error) => error.message().clone_into(&mut command.failure),
        }
    }
    command.request = Some(request);
    command
}

fn lost(kind: &str, what: String, reason: String) -> LostItem {
    LostItem { kind: kind.to_owned(), what, reason }
}
