//! Contexts over a checkpoint: what of them is saved, and how they come back under the ids that they had.
//!
//! The interpreters themselves write their variables to files inside the sandbox, which are saved with all other files of
//! it, and read them there again. So however large they are, they pass through no message and no memory of the node.

use std::sync::Arc;

use cloud_sandbox_model::{error::Result, id::ContextId};
use cloud_sandbox_proto::checkpoint::v1::SavedContext;
use futures::future::join_all;
use tokio::time::{Instant, timeout_at};

use super::{
    CWD_DEFAULT,
    context::{Command, Context, Keeping, Wanted},
    frames::Kept,
    kernels::Kernel,
};
use crate::{node::Shared, sandbox::Sandbox};

/// Where a context's variables lie between a save and the end of the checkpoint, and until they are loaded. In `/tmp`,
/// which is saved, in a folder that is the user's alone.
pub(crate) fn values_file(context_id: &str) -> String {
    format!("/tmp/.context-values/{context_id}")
}

/// Has all contexts save their variables by `until`. Gives each with why its variables are lost altogether, if they are.
pub(crate) async fn save_all(sandbox: &Sandbox, until: Instant) -> Vec<(SavedContext, Option<String>)> {
    let contexts = sandbox.contexts.state().contexts.clone();
    join_all(contexts.iter().map(|context| save(sandbox, context, until))).await
}

async fn save(sandbox: &Sandbox, context: &Context, until: Instant) -> (SavedContext, Option<String>) {
    let path = values_file(&context.id.to_string());
    let asked = context.ask(|reply| Command::Keep(Keeping::Save(path), reply));
    let kept = match timeout_at(until, asked).await {
        Ok(Some(kept)) => kept,
        Ok(None) => Kept::nothing("it was deleted meanwhile"),
        Err(_) => Kept::nothing("its interpreter did not answer in time"),
    };
    let state = sandbox.contexts.state();
    let request = state.requests.iter().find(|(.., id)| *id == context.id);
    let saved = SavedContext {
        context_id: context.id.to_string(),
        language: context.kernel.language.to_owned(),
        is_default: context.is_default,
        cwd: context.cwd.clone(),
        env: context.env.clone(),
        request_id: request.map(|(request_id, ..)| request_id.clone()).unwrap_or_default(),
        variables: kept.variables,
        lost: kept.lost,
        // which are in the file
        ..SavedContext::default()
    };
    (saved, kept.failure)
}

/// Makes a saved context again, and loads its variables where it has some. An error means that the context is lost.
pub(crate) async fn bring_back(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, saved: &SavedContext) -> Result<Kept> {
    let id: ContextId = saved.context_id.parse()?;
    let kernel = Kernel::find("language", &saved.language)?;
    let cwd = if saved.cwd.is_empty() { CWD_DEFAULT.to_owned() } else { saved.cwd.clone() };
    let wanted = Wanted { kernel, is_default: saved.is_default, cwd, env: saved.env.clone() };
    if saved.is_default {
        make_room(sandbox, kernel).await;
    }
    let context = {
        let hash = sandbox.contexts.hash(&wanted);
        let mut state = sandbox.contexts.state();
        if state.contexts.iter().any(|context| context.id == id) {
            return Ok(Kept::nothing("it is there already"));
        }
        let context = state.add(node, sandbox, (id, wanted), false)?;
        state.remember(saved.request_id.clone(), hash, id);
        context
    };
    if saved.variables.is_empty() {
        return Ok(Kept::default());
    }
    let path = values_file(&saved.context_id);
    let kept = context.ask(|reply| Command::Keep(Keeping::Load(path), reply)).await;
    // one whose interpreter does not start is not kept
    let begun = context.view.borrow().begun.clone();
    match begun {
        Some(Err(status)) => Err(cloud_sandbox_rpc::from_status(&status)),
        _ => Ok(kept.unwrap_or_else(|| Kept::nothing("it ended meanwhile"))),
    }
}

/// Ends a default context that was started before anybody needed it: the saved one takes its place.
async fn make_room(sandbox: &Sandbox, kernel: &'static Kernel) {
    let found = sandbox.contexts.state().find_default(kernel).cloned();
    if let Some(context) = found {
        // one that is gone made room
        let _ = context.ask(Command::Delete).await;
    }
}
