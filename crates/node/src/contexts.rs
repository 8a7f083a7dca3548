//! The code contexts of one sandbox: interpreters whose variables live from call to call.
//!
//! Each has an owner task that starts the interpreter, a program of ours that the agent runs with a control channel, and
//! gives executions their turns in it, in the order in which they came. An interpreter belongs to the code it runs: it may
//! die, hang, or say anything, and all it can harm is its own context.
//!
//! Invariant: a context is in its sandbox's register exactly as long as its owner takes executions.

mod context;
mod frames;
mod idle;
mod interpreter;
mod kernels;
mod owner;
mod saved;
mod turn;

use std::{
    collections::{BTreeMap, VecDeque},
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_sandbox_model::{
    SandboxId,
    error::{Error, ErrorKind, Result, chain, reason},
    id::ContextId,
    input::Violations,
};
use cloud_sandbox_proto::v1;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tracing::Instrument;

use crate::{
    executions::{Driver, Execution, Exit, Job, environment::CWD_DEFAULT, hung_up},
    node::Shared,
    sandbox::Sandbox,
    signals,
};

use context::{Command, Context, Waiting, Wanted, not_found};
use kernels::Kernel;
use owner::Owner;

pub(crate) use frames::Kept;
pub(crate) use saved::{bring_back, save_all, values_file};

/// Contexts of one sandbox.
const CONTEXTS_MAX: usize = 16;
/// Request ids remembered.
const REMEMBERED_MAX: usize = 1000;
/// What a caller means who means the default context of a language.
const DEFAULT: &str = "default";
/// How long an interrupt waits to see whether it did something.
const INTERRUPT_PATIENCE: Duration = Duration::from_secs(2);

/// The register of a sandbox's contexts.
#[derive(Default)]
pub(crate) struct Contexts {
    state: Mutex<State>,
    keys: RandomState,
}

#[derive(Default)]
struct State {
    /// oldest first
    contexts: Vec<Arc<Context>>,
    /// what was created for a `request_id`, with the hash of what was wanted, oldest first
    requests: VecDeque<(String, u64, ContextId)>,
}

impl Contexts {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them, oldest first.
    pub(crate) fn list(&self, sandbox: SandboxId) -> Vec<v1::Context> {
        let contexts = self.state().contexts.clone();
        contexts.iter().map(|context| context.describe(sandbox)).collect()
    }

    fn get(&self, id: &str) -> Result<Arc<Context>> {
        let id: ContextId = id.parse()?;
        let state = self.state();
        state.contexts.iter().find(|context| context.id == id).cloned().ok_or_else(|| not_found(id))
    }

    fn remove(&self, id: ContextId) {
        self.state().contexts.retain(|context| context.id != id);
    }

    fn hash(&self, wanted: &Wanted) -> u64 {
        let env: BTreeMap<_, _> = wanted.env.iter().collect();
        self.keys.hash_one((wanted.kernel.language, &wanted.cwd, env))
    }
}

impl State {
    fn find_default(&self, kernel: &Kernel) -> Option<&Arc<Context>> {
        self.contexts.iter().find(|context| context.is_default && context.kernel.language == kernel.language)
    }

    /// What was created for a `request_id`, unless it is gone.
    fn earlier(&self, request_id: &str, hash: u64) -> Result<Option<Arc<Context>>> {
        if request_id.is_empty() {
            return Ok(None);
        }
        let Some((_, wanted, id)) = self.requests.iter().find(|(known, ..)| known == request_id) else {
            return Ok(None);
        };
        if *wanted != hash {
            let message = format!("request_id {request_id} stands for another context");
            return Err(Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message));
        }
        let found = self.contexts.iter().find(|context| context.id == *id);
        found.map(|context| Some(Arc::clone(context))).ok_or_else(|| not_found(id))
    }

    fn remember(&mut self, request_id: String, hash: u64, id: ContextId) {
        if request_id.is_empty() {
            return;
        }
        self.requests.push_back((request_id, hash, id));
        if self.requests.len() > REMEMBERED_MAX {
            self.requests.pop_front();
        }
    }

    /// Adds a context and starts its owner.
    fn add(
        &mut self,
        node: &Arc<Shared>,
        sandbox: &Arc<Sandbox>,
        (id, wanted): (ContextId, Wanted),
        at_once: bool,
    ) -> Result<Arc<Context>> {
        if self.contexts.len() >= CONTEXTS_MAX {
            let message = format!("the sandbox has {CONTEXTS_MAX} contexts already");
            return Err(Error::new(ErrorKind::ResourceExhausted, reason::CONTEXT_LIMIT, message));
        }
        let (commands, mailbox) = mpsc::unbounded_channel();
        let context = Arc::new(Context::new(id, wanted, commands));
        self.contexts.push(Arc::clone(&context));
        let owner = Owner::new(Arc::clone(node), Arc::clone(sandbox), Arc::clone(&context), mailbox);
        let span = tracing::info_span!("context", sandbox_id = %sandbox.id, context_id = %context.id);
        node.tasks.spawn(owner.run(at_once).instrument(span));
        Ok(context)
    }
}

/// Deletes a context that nobody was told of.
struct Untold<'a>(Option<&'a Arc<Context>>);

impl Drop for Untold<'_> {
    fn drop(&mut self) {
        if let Some(context) = self.0 {
            context.abandon();
        }
    }
}

/// Creates a context and waits until its interpreter is ready.
pub(crate) async fn create(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    request: v1::CreateContextRequest,
) -> Result<v1::Context> {
    sandbox.usable()?;
    let kernel = validate(&request)?;
    sandbox.origin.allows(kernel.language)?;
    let cwd = if request.cwd.is_empty() { CWD_DEFAULT.to_owned() } else { request.cwd };
    let wanted = Wanted { kernel, is_default: false, cwd, env: request.env };
    let hash = sandbox.contexts.hash(&wanted);
    let (context, is_ours) = {
        let mut state = sandbox.contexts.state();
        match state.earlier(&request.request_id, hash)? {
            Some(earlier) => (earlier, false),
            None => {
                let context = state.add(node, sandbox, (ContextId::generate(), wanted), true)?;
                let is_named = !request.request_id.is_empty();
                state.remember(request.request_id, hash, context.id);
                (context, !is_named)
            }
        }
    };
    let mut untold = Untold(is_ours.then_some(&context));
    let begun = context.until_begun().await;
    untold.0 = None;
    if let Err(error) = begun {
        // a repeat tries again
        sandbox.contexts.state().requests.retain(|(.., id)| *id != context.id);
        return Err(error);
    }
    Ok(context.describe(sandbox.id))
}

fn validate(request: &v1::CreateContextRequest) -> Result<&'static Kernel> {
    let mut violations = Violations::default();
    let kernel = violations.take(Kernel::find("language", &request.language));
    if !request.cwd.is_empty() {
        violations.path("cwd", &request.cwd);
    }
    violations.env("env", &request.env);
    violations.request_id("request_id", &request.request_id);
    violations.finish()?;
    kernel.ok_or_else(|| Error::invalid("language", "must be known"))
}

/// What a context is doing.
pub(crate) fn get(sandbox: &Sandbox, id: &str) -> Result<v1::Context> {
    Ok(sandbox.contexts.get(id)?.describe(sandbox.id))
}

/// Ends a context's interpreter and starts a new one.
pub(crate) async fn restart(sandbox: &Sandbox, id: &str) -> Result<v1::Context> {
    sandbox.usable()?;
    let context = sandbox.contexts.get(id)?;
    ask(sandbox, &context, Command::Restart).await??;
    Ok(context.describe(sandbox.id))
}

/// Interrupts what runs in a context: whether something ran, and whether it has ended.
pub(crate) async fn interrupt(sandbox: &Sandbox, id: &str) -> Result<(bool, bool)> {
    sandbox.usable()?;
    let context = sandbox.contexts.get(id)?;
    let Some(over) = ask(sandbox, &context, Command::Interrupt).await? else { return Ok((false, false)) };
    Ok((true, timeout(INTERRUPT_PATIENCE, over.cancelled()).await.is_ok()))
}

/// Ends a context.
pub(crate) async fn delete(sandbox: &Sandbox, id: &str) -> Result<()> {
    sandbox.usable()?;
    let context = sandbox.contexts.get(id)?;
    ask(sandbox, &context, Command::Delete).await?
}

async fn ask<T>(
    sandbox: &Sandbox,
    context: &Context,
    command: impl FnOnce(oneshot::Sender<T>) -> Command,
) -> Result<T> {
    let answer = tokio::select! {
        biased;
        answer = context.ask(command) => answer,
        () = sandbox.ended.cancelled() => return Err(sandbox.gone_error()),
    };
    answer.ok_or_else(|| not_found(context.id))
}

/// Whether there are contexts of a language.
pub(crate) fn is_language(name: &str) -> bool {
    Kernel::find("language", name).is_ok()
}

/// Starts the default contexts of languages before anybody has acquired the sandbox. One that does not start is left
/// out: it is tried again when it is used.
pub(crate) async fn warm(node: &Arc<Shared>, sandbox: &Arc<Sandbox>) {
    let mut warming = Vec::new();
    for language in &node.options.warm_contexts {
        match Kernel::find("warm_contexts", language) {
            Ok(kernel) if !sandbox.origin.may_have(kernel.language) => {}
            Ok(kernel) => match default_context(node, sandbox, kernel, true) {
                Ok(context) => warming.push(context),
                Err(error) => tracing::warn!(language, error = chain(&error), "failed to warm a code context"),
            },
            Err(error) => tracing::warn!(language, error = chain(&error), "failed to warm a code context"),
        }
    }
    for context in warming {
        if let Err(error) = context.until_begun().await {
            let language = context.kernel.language;
            // one that the template has not is not tried in its other sandboxes
            if error.reason() == reason::LANGUAGE_UNAVAILABLE && !sandbox.origin.lacks(language) {
                continue;
            }
            tracing::warn!(
                language,
                template = sandbox.template(),
                error = chain(&error),
                "failed to warm a code context; going on without"
            );
        }
    }
}

/// The default context of a language, made now if there is none.
fn default_context(
    node: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    kernel: &'static Kernel,
    at_once: bool,
) -> Result<Arc<Context>> {
    let mut state = sandbox.contexts.state();
    if let Some(context) = state.find_default(kernel) {
        return Ok(Arc::clone(context));
    }
    let wanted = Wanted { kernel, is_default: true, cwd: CWD_DEFAULT.to_owned(), env: Default::default() };
    state.add(node, sandbox, (ContextId::generate(), wanted), at_once)
}

/// Runs a job as `execution`: waits for its turn in its context and returns when it has ended.
pub(crate) async fn run(node: Arc<Shared>, sandbox: Arc<Sandbox>, execution: Arc<Execution>, job: Job) {
    let context = match enter(&node, &sandbox, &execution, job) {
        Ok(context) => context,
        Err(error) => return execution.finish(Err(error)).await,
    };
    tokio::select! {
        biased;
        _ = execution.until_ended() => {}
        () = execution.unwanted.cancelled() => {
            match context.withdraw(execution.id) {
                Some(waiting) => waiting.execution.finish(Err(hung_up())).await,
                // it has its turn, which ends it
                None => drop(execution.until_ended().await),
            }
        }
    }
}

/// Puts an execution into the queue of its context.
fn enter(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, execution: &Arc<Execution>, job: Job) -> Result<Arc<Context>> {
    let (context, kernel) = find(node, sandbox, &job)?;
    let (sender, signals) = mpsc::unbounded_channel();
    let (place, context_id, id) = (Arc::downgrade(&context), context.id, execution.id);
    execution.drive(Driver::Context(Box::new(move |number| {
        let (place, sender) = (place.clone(), sender.clone());
        Box::pin(async move {
            let withdrawn = place.upgrade().filter(|_| is_deadly(number)).and_then(|context| context.withdraw(id));
            if let Some(waiting) = withdrawn {
                let (signal, context_id) = (signals::name(number), context_id.to_string());
                let exit = Exit { exit_code: 128 + number, signal, context_id, ..Exit::default() };
                waiting.execution.finish(Ok(exit)).await;
                return Ok(());
            }
            let (reply, sent) = oneshot::channel();
            // one that nobody hears any more was for an execution that has ended, which the caller is told
            let _ = sender.send((number, reply));
            sent.await.unwrap_or(Ok(()))
        })
    })));
    context.enqueue(Waiting { execution: Arc::clone(execution), kernel, job, signals })?;
    Ok(context)
}

/// The context of a job, and what runs its code there.
fn find(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, job: &Job) -> Result<(Arc<Context>, &'static Kernel)> {
    if job.context_id == DEFAULT {
        let kernel = Kernel::find("language", &job.language)?;
        sandbox.origin.allows(kernel.language)?;
        return Ok((default_context(node, sandbox, kernel, false)?, kernel));
    }
    let context = sandbox.contexts.get(&job.context_id)?;
    if job.language.is_empty() {
        let kernel = context.kernel;
        return Ok((context, kernel));
    }
    let kernel = Kernel::find("language", &job.language)?;
    if !context.kernel.runs(kernel) {
        let rule = format!("must be {}, as the context's is, or empty", context.kernel.language);
        return Err(Error::invalid("language", rule));
    }
    sandbox.origin.allows(kernel.language)?;
    Ok((context, kernel))
}

/// Whether a signal ends what has not begun yet.
fn is_deadly(number: i32) -> bool {
    matches!(signals::name(number).as_str(), "SIGHUP" | "SIGINT" | "SIGQUIT" | "SIGKILL" | "SIGTERM")
}
