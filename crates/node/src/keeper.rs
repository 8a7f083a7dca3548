//! Keeps the pool full: makes a sandbox whenever one is missing, and backs off from a template while making them of it
//! fails. And keeps the journal in its bounds: drops what is past its time.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use cloud_sandbox_model::error::{Error, chain};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    node::{Answered, Shared},
    sandbox::{Purpose, spawn},
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(30);

/// Runs until the node stops. Nothing in it fails; a panic would leave the pool empty, and acquires cold.
pub(crate) async fn pool_keeper(node: Arc<Shared>) {
    let (outcomes, mut outcome) = mpsc::unbounded_channel();
    let mut backoffs = Backoffs::default();
    loop {
        tokio::select! {
            biased;
            () = node.stop.cancelled() => return,
            Some((template, made)) = outcome.recv() => backoffs.note(&template, made),
            () = fill(&node, &backoffs, &outcomes) => {}
        }
    }
}

/// A template's reference, and what came of making a sandbox of it for the pool.
type Outcome = (String, Result<(), Error>);

/// Starts to make all that is missing, then waits until more may be.
async fn fill(node: &Arc<Shared>, backoffs: &Backoffs, outcomes: &mpsc::UnboundedSender<Outcome>) {
    loop {
        // the permit comes first: a slot that waits for it would count as being made
        let permit = Arc::clone(&node.creating).acquire_owned().await.expect("the semaphore is never closed");
        let Some((slot, origin)) = node.pool.want(|template| backoffs.allow(template)) else {
            drop(permit);
            return tokio::select! {
                () = node.pool.refill.notified() => {}
                () = backoffs.next() => {}
            };
        };
        let template = origin.reference().to_owned();
        let limits = origin.limits;
        let (_, made) = spawn(node, slot, origin, limits, Purpose::Pool, permit);
        let outcomes = outcomes.clone();
        node.tasks.spawn(async move {
            let made = made.await;
            // a keeper that is gone needs no word
            let _ = outcomes.send((template, made.unwrap_or(Ok(()))));
        });
    }
}

/// Runs until the node stops. A sweep that fails is made up for by the next.
pub(crate) async fn journal_keeper(node: Arc<Shared>) {
    loop {
        tokio::select! {
            () = node.stop.cancelled() => return,
            () = sleep(node.options.journal.sweep_interval) => sweep(&node).await,
        }
    }
}

async fn sweep(node: &Shared) {
    let journal = node.journal.clone();
    let swept = tokio::task::spawn_blocking(move || journal.sweep(SystemTime::now())).await;
    for (sandbox, execution) in swept.unwrap_or_default() {
        // one that was released meanwhile has forgotten it already
        if let Ok(place) = node.place(sandbox) {
            place.executions().evicted(execution);
        }
    }
    // a directory that does not answer must not keep the journal from being swept: the rest is for the next round
    for archived in node.archive.empty() {
        if !archived.has_left_directory(&node.options) && node.unlist(archived.id).await == Answered::No {
            return;
        }
        if node.archive.remove(archived.id).is_some() {
            node.forget_journal(archived.id).await;
        }
    }
    // what is not answered is tried again
    let _ = node.list_all_archived(&node.archive.unlisted()).await;
}

/// The templates of which sandboxes could not be made lately.
#[derive(Default)]
struct Backoffs(HashMap<String, Backoff>);

struct Backoff {
    pause: Duration,
    until: Instant,
    logged: String,
}

impl Backoffs {
    /// Whether a sandbox of a template may be made now.
    fn allow(&self, template: &str) -> bool {
        self.0.get(template).is_none_or(|backoff| backoff.until <= Instant::now())
    }

    /// Resolves when one may be made that may not be now.
    async fn next(&self) {
        let now = Instant::now();
        match self.0.values().map(|backoff| backoff.until).filter(|until| *until > now).min() {
            Some(until) => sleep_until(until).await,
            None => std::future::pending().await,
        }
    }

    /// Logs a failure once for as long as it stays the same.
    fn note(&mut self, template: &str, made: Result<(), Error>) {
        let Err(error) = made else {
            if self.0.remove(template).is_some() {
                tracing::info!(template, "sandboxes for the pool can be made again");
            }
            return;
        };
        let now = Instant::now();
        // those of templates that are gone are of no use any more
        self.0.retain(|_, backoff| now < backoff.until + LAST_PAUSE * 2);
        let text = chain(&error);
        let is_news = match self.0.get_mut(template) {
            Some(backoff) => {
                // several that were being made at once fail for one reason: the pause grows once for all of them
                if backoff.until <= now {
                    backoff.pause = (backoff.pause * 2).min(LAST_PAUSE);
                    backoff.until = now + backoff.pause;
                }
                std::mem::replace(&mut backoff.logged, text.clone()) != text
            }
            None => {
                let (until, logged) = (now + FIRST_PAUSE, text.clone());
                self.0.insert(template.to_owned(), Backoff { pause: FIRST_PAUSE, until, logged });
                true
            }
        };
        if is_news {
            let error = text;
            tracing::warn!(template, error, "failed to make a sandbox for the pool; trying again with growing pauses");
        }
    }
}
