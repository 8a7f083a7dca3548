//! Keeps the pool full: makes a sandbox whenever one is missing, and backs off while making them fails. And keeps the
//! journal in its bounds: drops what is past its time.

use std::{
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
    let mut backoff = Backoff::default();
    loop {
        tokio::select! {
            biased;
            () = node.stop.cancelled() => return,
            Some(made) = outcome.recv() => backoff.note(made),
            () = fill(&node, backoff.until, &outcomes) => {}
        }
    }
}

/// Starts to make all that is missing, then waits until more may be.
async fn fill(node: &Arc<Shared>, not_before: Option<Instant>, outcomes: &mpsc::UnboundedSender<Result<(), Error>>) {
    if let Some(not_before) = not_before {
        sleep_until(not_before).await;
    }
    loop {
        // the permit comes first: a slot that waits for it would count as being made
        let permit = Arc::clone(&node.creating).acquire_owned().await.expect("the semaphore is never closed");
        let Some(slot) = node.pool.want() else {
            drop(permit);
            return node.pool.refill.notified().await;
        };
        let (_, made) = spawn(node, slot, node.options.default_limits, Purpose::Pool);
        let outcomes = outcomes.clone();
        node.tasks.spawn(async move {
            let made = made.await;
            drop(permit);
            // a keeper that is gone needs no word
            let _ = outcomes.send(made.unwrap_or(Ok(())));
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

#[derive(Default)]
struct Backoff {
    pause: Option<Duration>,
    until: Option<Instant>,
    logged: Option<String>,
}

impl Backoff {
    /// Logs a failure once for as long as it stays the same.
    fn note(&mut self, made: Result<(), Error>) {
        let Err(error) = made else {
            if self.logged.take().is_some() {
                tracing::info!("sandboxes for the pool can be made again");
            }
            self.pause = None;
            self.until = None;
            return;
        };
        // several that were being made at once fail for one reason: the pause grows once for all of them
        if self.until.is_none_or(|until| until <= Instant::now()) {
            let pause = self.pause.map_or(FIRST_PAUSE, |pause| (pause * 2).min(LAST_PAUSE));
            self.pause = Some(pause);
            self.until = Some(Instant::now() + pause);
        }
        let text = chain(&error);
        if self.logged.as_ref() != Some(&text) {
            tracing::warn!(error = text, "failed to make a sandbox for the pool; trying again with growing pauses");
            self.logged = Some(text);
        }
    }
}
