//! The templates of this node: which there are, how far each is, and what sandboxes are made from.
//!
//! Some are built in, the control plane names the others. A keeper task for each prepares it, and prepares it again when
//! its runtime has gone; when it has left the list it drops what was prepared, once no sandbox uses it. What earlier
//! processes prepared of templates that are not listed any more is dropped as well.
//!
//! Invariant: a reference has one keeper at most, from when it is first listed, or found to be left over, until what was
//! prepared of it is dropped.

mod keeper;
mod leftovers;
mod origin;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_sandbox_model::{
    RuntimeName, Template,
    error::{Error, ErrorKind, Result, reason},
    template::{DOCKER, HOST, Progress, split_reference},
};
use cloud_sandbox_storage::{NodeTemplate, TemplateState};
use tokio::{sync::watch, time::timeout};
use tracing::Instrument;

use crate::{node::Shared, pool::Pool, runtimes::Runtimes};

use keeper::Keeper;
pub(crate) use origin::Origin;

/// How long the start waits for the built-in ones: an image that has to be pulled takes longer in any case.
const START_PATIENCE: Duration = Duration::from_millis(500);
/// The same for the default one, which is what the first caller asks for.
const DEFAULT_PATIENCE: Duration = Duration::from_secs(5);
/// The same for `host`, which waits for nothing but what earlier processes left to be removed.
const HOST_PATIENCE: Duration = Duration::from_secs(60);
/// When one that is being prepared is ready is worth asking again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The register.
pub(crate) struct Templates {
    state: Mutex<State>,
    /// what an acquire gets that names none
    default: String,
    /// told whenever one is another state
    changed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    revision: u64,
    /// the control plane has told its list since the start
    is_told: bool,
    known: BTreeMap<String, Known>,
}

struct Known {
    is_built_in: bool,
    /// as it was asked for; none when it has left the list
    wanted: watch::Sender<Option<Template>>,
    status: Status,
}

/// How far a template is.
#[derive(Clone)]
enum Status {
    Preparing(Arc<Progress>),
    Ready(Arc<Origin>),
    Failed(Failure),
}

/// Why sandboxes cannot be made from a template.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failure {
    why: String,
    /// nothing is wrong with it but that no runtime of its is there
    is_unavailable: bool,
}

impl Status {
    fn begun() -> Self {
        let progress = Progress::default();
        progress.begin("waiting", 0);
        Self::Preparing(Arc::new(progress))
    }
}

impl Templates {
    pub(crate) fn new(default: &str) -> Self {
        Self { state: Mutex::default(), default: default.to_owned(), changed: watch::Sender::new(()) }
    }

    /// What sandboxes are made from by this name: a reference, or a name that means its newest version here, or nothing for
    /// the default one.
    pub(crate) fn find(&self, name: &str) -> Result<Arc<Origin>> {
        let name = if name.is_empty() { &self.default } else { name };
        let state = self.state();
        let Some((reference, known)) = state.find(name) else {
            let message = format!("template {name:?} does not exist");
            return Err(Error::new(ErrorKind::NotFound, reason::TEMPLATE_NOT_FOUND, message));
        };
        match &known.status {
            Status::Ready(origin) => Ok(Arc::clone(origin)),
            Status::Preparing(progress) => {
                let (phase, ..) = progress.now();
                let message = format!("template {reference} is not ready on this node yet: {phase}");
                let error = Error::new(ErrorKind::Unavailable, reason::TEMPLATE_NOT_READY, message);
                Err(error.with_retry_after(ASK_AGAIN))
            }
            Status::Failed(Failure { why, is_unavailable: true }) => {
                let message = format!("no runtime of template {reference} is available: {why}");
                Err(Error::new(ErrorKind::Unavailable, reason::RUNTIME_UNAVAILABLE, message))
            }
            Status::Failed(Failure { why, .. }) => {
                let message = format!("template {reference} could not be prepared: {why}");
                Err(Error::new(ErrorKind::FailedPrecondition, reason::TEMPLATE_FAILED, message))
            }
        }
    }

    /// How far the node is with each.
    pub(crate) fn report(&self) -> Vec<NodeTemplate> {
        let state = self.state();
        let listed = state.known.iter().filter(|(_, known)| known.is_listed());
        listed.map(|(reference, known)| known.status.report(reference)).collect()
    }

    /// Takes up the built-in ones, and waits a while for them.
    pub(crate) async fn begin(node: &Arc<Shared>) {
        let built_in = built_in(&node.runtimes, &node.options.image);
        {
            let mut state = node.templates.state();
            for template in built_in {
                state.list(node, template, true);
            }
        }
        let default = node.templates.default.as_str();
        let all = timeout(START_PATIENCE, node.templates.until_settled(|_| true)).await;
        let patience = if default == HOST { HOST_PATIENCE } else { DEFAULT_PATIENCE };
        let the_default = timeout(patience, node.templates.until_settled(|reference| reference == default)).await;
        if all.is_err() || the_default.is_err() {
            tracing::info!("templates are still being prepared; they are there when they are ready");
        }
    }

    /// Resolves when none of these is being prepared.
    async fn until_settled(&self, is_meant: impl Fn(&str) -> bool) {
        let is_open = |told: &NodeTemplate| told.state == TemplateState::Preparing && is_meant(&told.reference);
        let mut changed = self.changed.subscribe();
        while self.report().iter().any(is_open) {
            // its sender lives as long as the register
            let _ = changed.changed().await;
        }
    }

    /// Takes up the list of the control plane, beside what is built in. One that is older than the last changes nothing.
    pub(crate) fn set(node: &Arc<Shared>, revision: u64, templates: Vec<Template>) {
        let mut state = node.templates.state();
        if revision < state.revision {
            tracing::debug!(revision, newer = state.revision, "an old list of templates is left alone");
            return;
        }
        state.revision = revision;
        let listed: BTreeSet<_> = templates.iter().map(Template::reference).collect();
        for (_, known) in state.known.iter().filter(|(name, known)| !known.is_built_in && !listed.contains(*name)) {
            known.want(None);
        }
        for template in templates {
            state.list(node, template, false);
        }
        state.restock(&node.pool, &node.templates.default);
        let was_told = std::mem::replace(&mut state.is_told, true);
        drop(state);
        node.templates.tell(&node.pool);
        if !was_told {
            leftovers::begin(node);
        }
    }

    fn set_status(&self, pool: &Pool, reference: &str, status: Status) {
        let mut state = self.state();
        if let Some(known) = state.known.get_mut(reference) {
            known.status = status;
        }
        state.restock(pool, &self.default);
        drop(state);
        self.tell(pool);
    }

    /// Forgets one that has left the list. Says whether it is still not listed.
    fn forget(&self, reference: &str) -> bool {
        let mut state = self.state();
        let is_listed = state.known.get(reference).is_some_and(Known::is_listed);
        if !is_listed {
            state.known.remove(reference);
        }
        !is_listed
    }

    fn tell(&self, pool: &Pool) {
        self.changed.send_replace(());
        pool.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What needs no control plane.
fn built_in(runtimes: &Runtimes, image: &str) -> Vec<Template> {
    let host = runtimes.has(RuntimeName::Linux.family()).then(Template::host);
    let docker = runtimes.has(RuntimeName::DOCKER.family()).then(|| Template::docker(image));
    [host, docker].into_iter().flatten().collect()
}

impl State {
    fn find(&self, name: &str) -> Option<(&str, &Known)> {
        let reference = self.newest(name)?;
        let (reference, known) = self.known.get_key_value(&reference)?;
        known.is_listed().then_some((reference.as_str(), known))
    }

    /// The reference that a name stands for here.
    fn newest(&self, name: &str) -> Option<String> {
        let (plain, version) = split_reference(name)?;
        if version.is_some() || [HOST, DOCKER].contains(&plain) {
            return Some(name.to_owned());
        }
        let versions = self.known.values().filter_map(|known| {
            let wanted = known.wanted.borrow();
            wanted.as_ref().filter(|template| template.name == plain).map(|template| template.version)
        });
        versions.max().map(|version| format!("{plain}@{version}"))
    }

    /// Has a template prepared, if it is not so already.
    fn list(&mut self, node: &Arc<Shared>, template: Template, is_built_in: bool) {
        let reference = template.reference();
        if let Some(known) = self.known.get_mut(&reference) {
            if !known.is_listed() {
                known.status = Status::begun();
            }
            return known.want(Some(template));
        }
        let keeper = self.keeper(node, &reference, Some(template), is_built_in);
        start(keeper, node, &reference);
    }

    /// Has dropped what an earlier process prepared of a template, if that is not listed. Says whether it is so.
    fn drop_leftover(&mut self, node: &Arc<Shared>, reference: &str, family: &'static str) -> bool {
        if let Some(known) = self.known.get(reference) {
            return !known.is_listed();
        }
        tracing::info!(template = reference, runtime = family, "dropping what is left of a template that was deleted");
        let keeper = self.keeper(node, reference, None, false).holding_leftover(family);
        start(keeper, node, reference);
        true
    }

    fn keeper(&mut self, node: &Arc<Shared>, reference: &str, wanted: Option<Template>, is_built_in: bool) -> Keeper {
        let (wanted, watched) = watch::channel(wanted);
        self.known.insert(reference.to_owned(), Known { is_built_in, wanted, status: Status::begun() });
        Keeper::new(Arc::clone(node), reference.to_owned(), watched)
    }

    /// Tells the pool how many warm sandboxes each template is to have.
    fn restock(&self, pool: &Pool, default: &str) {
        let default = self.newest(default);
        for (reference, known) in &self.known {
            match &known.status {
                Status::Ready(origin) if known.is_listed() => {
                    let is_default = default.as_ref() == Some(reference);
                    let warm = if is_default { pool.min } else { origin.template.warm_size as usize };
                    pool.stock(origin, warm);
                }
                Status::Ready(_) | Status::Preparing(_) | Status::Failed(_) => pool.rest(reference),
            }
        }
    }
}

fn start(keeper: Keeper, node: &Shared, reference: &str) {
    let span = tracing::info_span!("template", template = reference);
    node.tasks.spawn(keeper.run().instrument(span));
}

impl Known {
    fn is_listed(&self) -> bool {
        self.wanted.borrow().is_some()
    }

    /// Tells its keeper, unless it knows.
    fn want(&self, template: Option<Template>) {
        self.wanted.send_if_modified(|wanted| {
            let is_other = *wanted != template;
            *wanted = template;
            is_other
        });
    }
}

impl Status {
    fn report(&self, reference: &str) -> NodeTemplate {
        let mut told = NodeTemplate::ready(reference, "");
        match self {
            Self::Ready(origin) => told.runtime = origin.prepared.runtime.to_string(),
            Self::Preparing(progress) => {
                let (phase, done, total) = progress.now();
                told.state = TemplateState::Preparing;
                phase.clone_into(&mut told.detail);
                (told.done_bytes, told.total_bytes) = (done, total);
            }
            Self::Failed(failure) => {
                told.state = TemplateState::Failed;
                told.detail.clone_from(&failure.why);
                told.runtime_unavailable = failure.is_unavailable;
            }
        }
        told
    }
}
