//! The keeper of one template: prepares it on the first of its runtimes that can, looks after that, and drops what was
//! prepared when the template has left the list.
//!
//! ```text
//! preparing ⇄ failed      tried again with growing pauses, and as soon as a runtime is there that was not
//!     ↓↑
//!   ready                 until its runtime has gone, or one that comes before that in its list is there
//! ```
//! Nothing in it ends but with the node, or with the template.

use std::{collections::BTreeSet, convert::Infallible, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use cloud_sandbox_model::{
    RuntimeName, Template,
    error::{chain, said},
    template::{Progress, Source},
};
use cloud_sandbox_runtime::{Prepared, Runtime, RuntimeError};
use futures::FutureExt;
use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::TaskTracker;

use super::{Failure, Origin, Status};
use crate::node::Shared;

const FIRST_PAUSE: Duration = Duration::from_secs(5);
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How often it is looked whether runtimes are there.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// A doubt about what was found good so lately can wait.
const DOUBT_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Keeper {
    node: Arc<Shared>,
    reference: String,
    wanted: watch::Receiver<Option<Template>>,
    /// what sandboxes are made from, and which of the template's runtimes that is on
    made: Option<(Arc<Origin>, usize)>,
    /// what its state says, so that it is not said that what works is being prepared
    is_ready: bool,
    /// what something may be prepared of, and the families of the runtimes that may have it
    held: Held,
    holders: BTreeSet<&'static str>,
    /// one for each sandbox that was made of it, until nothing is left of that
    users: TaskTracker,
    better: Backoff,
    logged: Option<String>,
}

/// What something may be prepared of.
enum Held {
    Nothing,
    From(Source),
    /// an earlier process prepared it, of nobody knows what
    Leftover,
}

impl Held {
    /// Whether it is of use for what is wanted, or nothing.
    fn suits(&self, wanted: Option<&Template>) -> bool {
        match self {
            Self::Nothing => true,
            Self::From(source) => wanted.is_some_and(|wanted| is_same(source, &wanted.source)),
            Self::Leftover => false,
        }
    }
}

/// When something is worth another attempt.
pub(super) struct Backoff {
    pause: Duration,
    pub(super) at: Instant,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { pause: FIRST_PAUSE, at: Instant::now() }
    }

    pub(super) fn put_off(&mut self) {
        self.at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
    }
}

/// Why a template that is ready is looked at again.
enum Doubt {
    /// its runtime may not be there, or what was prepared
    Gone,
    /// a runtime that is preferred is there
    Better,
}

/// What came of the attempts on all runtimes of a template.
struct Attempts(Vec<(RuntimeName, RuntimeError)>);

impl Attempts {
    /// The runtimes that may come back.
    fn unavailable(&self) -> Vec<RuntimeName> {
        let names = self.0.iter().filter(|(_, error)| matches!(error, RuntimeError::Unavailable(_)));
        names.map(|(name, _)| name.clone()).collect()
    }

    fn failure(&self) -> Failure {
        let words = self.0.iter().map(|(name, error)| match error {
            RuntimeError::Template { why, .. } | RuntimeError::Unavailable(why) => format!("{name}: {}", said(why)),
            RuntimeError::Gone(_)
            | RuntimeError::Unsupported(_)
            | RuntimeError::Exhausted(_)
            | RuntimeError::Host { .. } => format!("{name}: {}", said(&chain(error))),
        });
        let why = words.collect::<Vec<_>>().join("; ");
        Failure { why, is_unavailable: !self.0.is_empty() && self.unavailable().len() == self.0.len() }
    }
}

impl Keeper {
    pub(super) fn new(node: Arc<Shared>, reference: String, wanted: watch::Receiver<Option<Template>>) -> Self {
        Self {
            node,
            reference,
            wanted,
            made: None,
            is_ready: false,
            held: Held::Nothing,
            holders: BTreeSet::new(),
            users: TaskTracker::new(),
            better: Backoff::new(),
            logged: None,
        }
    }

    /// The same of a template of which an earlier process prepared something by this family of runtimes.
    pub(super) fn holding_leftover(self, family: &'static str) -> Self {
        Self { held: Held::Leftover, holders: [family].into(), ..self }
    }

    /// Lives as long as the template is listed, and until what was prepared of it is dropped.
    pub(super) async fn run(mut self) {
        let stop = self.node.stop.clone();
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&mut self) {
        let mut changes = self.wanted.clone();
        let mut dropping = Backoff::new();
        loop {
            let wanted = changes.borrow_and_update().clone();
            if !self.held.suits(wanted.as_ref()) {
                self.retire();
                tokio::select! {
                    biased;
                    _ = changes.changed() => continue,
                    () = self.until_unused() => {}
                }
                self.made = None;
                if self.discard().await.is_err() && wanted.is_none() {
                    dropping.put_off();
                    tokio::select! {
                        _ = changes.changed() => {}
                        () = sleep_until(dropping.at) => {}
                    }
                    continue;
                }
            }
            let Some(template) = wanted else {
                if self.node.templates.forget(&self.reference) {
                    return;
                }
                continue;
            };
            self.better = Backoff::new();
            tokio::select! {
                biased;
                _ = changes.changed() => {}
                never = self.keep_ready(&template) => match never {},
            }
        }
    }

    /// Keeps the template ready, as far as that can be.
    async fn keep_ready(&mut self, template: &Template) -> Infallible {
        let mut retry = Backoff::new();
        loop {
            match self.make(template).await {
                Ok((origin, choice)) => {
                    retry = Backoff::new();
                    self.take(&origin, choice);
                    if let Doubt::Gone = self.until_doubted(template, &origin, choice).await {
                        self.is_ready = false;
                        self.node.runtimes.ask_anew().await;
                        self.say(Status::begun());
                    }
                }
                Err(attempts) => {
                    self.is_ready = false;
                    retry.put_off();
                    let failure = attempts.failure();
                    self.log(&failure.why);
                    self.say(Status::Failed(failure));
                    self.until_worth_it(&attempts.unavailable(), retry.at).await;
                }
            }
        }
    }

    /// Has it made by the first of its runtimes that can.
    async fn make(&mut self, template: &Template) -> Result<(Arc<Origin>, usize), Attempts> {
        let mut attempts = Attempts(Vec::new());
        let options = &self.node.options;
        let limits = match options.default_limits.overlaid(template.limits, options.max_limits) {
            Ok(limits) => limits,
            Err(error) => {
                let why = format!("this node does not allow its limits: {}", error.message());
                let error = RuntimeError::Template { template: self.reference.clone(), why };
                return Err(Attempts(
                    template.runtimes.first().map(|name| (name.clone(), error)).into_iter().collect(),
                ));
            }
        };
        for (choice, name) in template.runtimes.iter().enumerate() {
            let error = match self.prepare(template, name).await {
                Ok((prepared, runtime)) => {
                    let same = self.made.take().filter(|(made, _)| made.is_like(template, &prepared));
                    let made = same.map(|(made, _)| made).filter(|made| !made.retired.is_cancelled());
                    let users = self.users.clone();
                    let new = || Origin::new(template.clone(), prepared, runtime, limits, users);
                    return Ok((made.unwrap_or_else(new), choice));
                }
                Err(error) => error,
            };
            attempts.0.push((name.clone(), error));
        }
        Err(attempts)
    }

    async fn prepare(
        &mut self,
        template: &Template,
        name: &RuntimeName,
    ) -> Result<(Prepared, Arc<dyn Runtime>), RuntimeError> {
        let node = Arc::clone(&self.node);
        let runtime = node.runtimes.usable(&node, name).await?;
        let progress = Arc::new(Progress::default());
        progress.begin("waiting", 0);
        if !self.is_ready {
            self.say(Status::Preparing(Arc::clone(&progress)));
        }
        let _turn = node.runtimes.turn_to_prepare(name.family()).await;
        progress.begin("preparing", 0);
        self.held = Held::From(template.source.clone());
        self.holders.insert(name.family());
        // what it reads was made by strangers: whatever that does to it, the next attempt may go well
        let prepared = AssertUnwindSafe(runtime.prepare(template, name, &progress)).catch_unwind().await;
        let broken =
            |_| RuntimeError::host("prepare a template", io::Error::other("it panicked, which the log tells more of"));
        Ok((prepared.map_err(broken)??, runtime))
    }

    /// Makes this what sandboxes are made from.
    fn take(&mut self, origin: &Arc<Origin>, choice: usize) {
        if self.logged.take().is_some() || self.made.is_none() {
            tracing::info!(runtime = %origin.prepared.runtime, "template is ready");
        }
        self.is_ready = true;
        self.made = Some((Arc::clone(origin), choice));
        self.say(Status::Ready(Arc::clone(origin)));
    }

    /// Returns when it is doubtful whether this is what sandboxes should be made from.
    async fn until_doubted(&mut self, template: &Template, origin: &Origin, choice: usize) -> Doubt {
        let node = Arc::clone(&self.node);
        if choice > 0 {
            self.better.put_off();
        } else {
            self.better = Backoff::new();
        }
        sleep(DOUBT_PAUSE).await;
        loop {
            tokio::select! {
                () = origin.doubted.notified() => return Doubt::Gone,
                () = sleep(LOOK_AGAIN) => {}
            }
            if node.runtimes.usable(&node, &template.runtimes[choice]).await.is_err() {
                return Doubt::Gone;
            }
            if Instant::now() >= self.better.at && self.is_any_there(&template.runtimes[..choice]).await {
                return Doubt::Better;
            }
        }
    }

    /// Returns when it is time for another attempt, or one of the runtimes is there.
    async fn until_worth_it(&self, missing: &[RuntimeName], at: Instant) {
        loop {
            let look = Instant::now() + LOOK_AGAIN;
            sleep_until(at.min(look)).await;
            if at <= look || self.is_any_there(missing).await {
                return;
            }
        }
    }

    async fn is_any_there(&self, names: &[RuntimeName]) -> bool {
        for name in names {
            if self.node.runtimes.usable(&self.node, name).await.is_ok() {
                return true;
            }
        }
        false
    }

    /// Has no more sandboxes made from what there is. Warm ones end.
    fn retire(&mut self) {
        self.is_ready = false;
        if let Some((origin, _)) = &self.made {
            origin.retired.cancel();
        }
        self.node.pool.clear(&self.reference);
        if self.wanted.borrow().is_some() {
            self.say(Status::begun());
        }
    }

    /// Returns when no sandbox is left of what there was.
    async fn until_unused(&self) {
        self.users.close();
        self.users.wait().await;
        self.users.reopen();
    }

    /// Drops what was prepared.
    async fn discard(&mut self) -> Result<(), RuntimeError> {
        let mut failed = Ok(());
        for family in self.holders.clone() {
            if let Some(runtime) = self.node.runtimes.get(family)
                && let Err(error) = runtime.discard(&self.reference).await
            {
                tracing::warn!(
                    runtime = family,
                    error = chain(&error),
                    "failed to drop what was prepared of a template"
                );
                failed = Err(error);
                continue;
            }
            self.holders.remove(family);
        }
        failed?;
        self.held = Held::Nothing;
        Ok(())
    }

    fn say(&self, status: Status) {
        self.node.templates.set_status(&self.node.pool, &self.reference, status);
    }

    /// Logs a failure once for as long as it stays the same.
    fn log(&mut self, why: &str) {
        if self.logged.as_deref() != Some(why) {
            tracing::warn!(why, "template is not ready; trying again with growing pauses");
            self.logged = Some(why.to_owned());
        }
    }
}

/// Whether what was prepared of one source is what the other asks for, whoever asks the registry for it.
fn is_same(held: &Source, wanted: &Source) -> bool {
    let [mut held, mut wanted] = [held.clone(), wanted.clone()];
    for source in [&mut held, &mut wanted] {
        if let Some(image) = source.image_mut() {
            image.credentials = None;
            image.pull = Default::default();
        }
    }
    held == wanted
}
