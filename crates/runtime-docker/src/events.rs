//! Watches what happens to the containers of this server: one task for all of them, for as long as the runtime lives.
//!
//! Invariant: nothing that happens is missed for good. The daemon is asked for what happened since the last event that was
//! seen; and, as one that was restarted has forgotten that, for the containers that there are.

use std::{
    collections::HashSet,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bollard::{models::EventMessage, query_parameters::EventsOptionsBuilder};
use cloud_sandbox_model::SandboxId;
use cloud_sandbox_runtime::{End, RuntimeError};
use futures::StreamExt;
use tokio::{sync::watch, time::sleep};

use crate::{
    container::{self, SANDBOX},
    runtime::Inner,
    sandbox::{REASON_WITHIN, Reason, Sandbox, from_outside},
};

/// How long to wait before a daemon that is gone is looked for again: at first, and at most.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(2);
/// Events are asked for from a little before the last one, so that none of the same moment is missed.
const OVERLAP: Duration = Duration::from_millis(1);

/// How long after its end a daemon may take to say that a container has had no memory left.
const MEMORY_WITHIN: Duration = Duration::from_millis(200);

/// What became of a sandbox.
pub const ENGINE_AWAY: &str = "ended while its Docker Engine was stopped or did not answer";
const REMOVED: &str = "was removed from outside";

/// Whether events are being followed.
#[derive(Default)]
pub struct Following(AtomicU64);

impl Following {
    /// A number that is another one after each break, and `None` while there is one.
    pub fn unbroken(&self) -> Option<u64> {
        // odd between a beginning and an end
        Some(self.0.load(Ordering::Relaxed)).filter(|count| count % 2 == 1)
    }

    fn begin(&self) {
        self.0.fetch_or(1, Ordering::Relaxed);
    }

    fn end(&self) {
        if self.unbroken().is_some() {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Watches until the runtime is dropped, which `living` tells.
pub async fn watch(runtime: Weak<Inner>, mut living: watch::Receiver<()>) {
    let watching = async {
        let (mut since, mut pause, mut again) = (now(), AGAIN, false);
        while let Some(inner) = runtime.upgrade() {
            let seen = since;
            let broken = follow(inner, &runtime, &mut since, again).await;
            if let Some(inner) = runtime.upgrade() {
                inner.following.end();
            }
            if since > seen {
                pause = AGAIN;
            }
            again = true;
            tracing::warn!(error = %broken, "the Docker Engine tells no events any more; it is asked again");
            sleep(pause).await;
            pause = (pause * 2).min(AGAIN_MAX);
        }
    };
    tokio::select! {
        () = watching => {}
        // nothing is ever sent: an error, which says that the runtime is gone
        _ = living.changed() => {}
    }
}

/// Reads events until there are none any more, and says why. `since` is when the last one happened.
async fn follow(inner: Arc<Inner>, runtime: &Weak<Inner>, since: &mut Duration, again: bool) -> RuntimeError {
    let client = match inner.engine.client() {
        Ok(client) => client,
        Err(error) => return error,
    };
    let mut filters = container::filters(&inner.options.instance);
    filters.insert("type", vec!["container".to_owned()]);
    let (from, asked) = (since.saturating_sub(OVERLAP), now());
    let from = format!("{}.{:09}", from.as_secs(), from.subsec_nanos());
    let options = EventsOptionsBuilder::default().since(&from).filters(&filters).build();
    let mut events = pin!(client.events(Some(options)));
    let mut looked = pin!(look(runtime.clone(), again));
    let mut looking = true;
    drop(inner);
    loop {
        tokio::select! {
            event = events.next() => match (event, runtime.upgrade()) {
                (Some(Ok(event)), Some(inner)) => {
                    let nanos = event.time_nano.and_then(|nanos| u64::try_from(nanos).ok());
                    let at = nanos.map(Duration::from_nanos);
                    *since = at.unwrap_or(*since);
                    take(&inner, &event, again && at.is_some_and(|at| at < asked));
                }
                (Some(Err(error)), Some(inner)) => return inner.engine.error("follow the Docker Engine's events", error),
                (None, _) => return RuntimeError::Unavailable("the Docker Engine has closed its events".into()),
                (_, None) => return RuntimeError::Unavailable("the runtime is gone".into()),
            },
            seen = &mut looked, if looking => {
                looking = false;
                match seen {
                    // a daemon that answers is there, whether or not anything happens
                    Ok(()) => *since = (*since).max(now().saturating_sub(REASON_WITHIN)),
                    Err(error) => return error,
                }
            }
        }
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Takes note of an event; `missed` says that nobody listened when it happened.
fn take(inner: &Arc<Inner>, event: &EventMessage, missed: bool) {
    let Some(actor) = &event.actor else { return };
    let attribute = |name: &str| actor.attributes.as_ref()?.get(name).map(String::as_str);
    let id: Option<SandboxId> = attribute(SANDBOX).and_then(|id| id.parse().ok());
    let Some(sandbox) = id.and_then(|id| inner.find(id)) else { return };
    if actor.id.as_deref() != Some(&*sandbox.container) {
        return;
    }
    match event.action.as_deref().unwrap_or_default() {
        "die" => {
            let status = attribute("exitCode").and_then(|status| status.parse().ok()).unwrap_or(-1);
            exited(inner, sandbox, status, missed);
        }
        "kill" => sandbox.signalled(),
        "oom" => sandbox.ran_out_of_memory(),
        // one that has died has a better reason, which may take a moment
        "destroy" if sandbox.status().is_none() => sandbox.end(from_outside(REMOVED)),
        "pause" => check_frozen(inner, &sandbox, true),
        "unpause" => check_frozen(inner, &sandbox, false),
        _ => {}
    }
}

/// Takes note that a container has died. A daemon that stops says so of all its containers, as if they were killed one by one.
fn exited(inner: &Arc<Inner>, sandbox: Arc<Sandbox>, status: i64, missed: bool) {
    if sandbox.exited(status).is_none() {
        return sandbox.end(End::default());
    }
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let away = missed || inner.engine.is_away().await;
        // that it was for memory may be told after it
        let reason = match sandbox.reason() {
            Some(Reason::Killed { .. }) if !away && !sandbox.was_signalled() => {
                sleep(MEMORY_WITHIN).await;
                sandbox.reason()
            }
            reason => reason,
        };
        sandbox.end(reason.map_or_else(End::default, |reason| reason.told(away)));
    });
}

/// Takes note that a container was paused or let go on. The event of what this server did may come after it has done the next
/// thing already, so that whatever is news is asked for.
fn check_frozen(inner: &Arc<Inner>, sandbox: &Arc<Sandbox>, frozen: bool) {
    let (inner, sandbox) = (Arc::clone(inner), Arc::clone(sandbox));
    tokio::spawn(async move {
        let _acting = sandbox.acting.lock().await;
        if sandbox.is_frozen() == frozen {
            return;
        }
        if let Some(paused) = inner.is_paused(&sandbox).await {
            sandbox.set_frozen(paused);
        }
    });
}

/// Looks which containers there are, and ends the sandboxes of those that are gone without anybody having said why.
async fn look(runtime: Weak<Inner>, again: bool) -> Result<(), RuntimeError> {
    let Some(inner) = runtime.upgrade() else { return Ok(()) };
    // what is being started is not listed yet
    let there = |sandbox: &Arc<Sandbox>| sandbox.first.get().is_some() && !sandbox.has_ended();
    let known: Vec<_> = inner.all().into_iter().filter(there).collect();
    let listed = inner.engine.containers(&inner.options.instance).await?;
    inner.following.begin();
    if again {
        // it may be another one, with other settings
        inner.engine.forget();
        tracing::info!(containers = listed.len(), "the Docker Engine tells events again");
    }
    match inner.remove_strangers().await {
        Ok(removed) => removed
            .iter()
            .for_each(|id| tracing::warn!(sandbox_id = %id, "a container that an earlier server left was removed")),
        Err(error @ RuntimeError::Unavailable(_)) => return Err(error),
        // what happens to the others is to be told all the same
        Err(error) => tracing::warn!(%error, "a container that an earlier server left cannot be removed"),
    }
    for container in &listed {
        let sandbox = known.iter().find(|sandbox| sandbox.container == container.id);
        if let Some(sandbox) = sandbox {
            check_frozen(&inner, sandbox, container.paused);
        }
    }
    drop(inner);
    let living: HashSet<_> = listed.iter().filter(|seen| !seen.ended).map(|container| &*container.id).collect();
    let gone = known.into_iter().filter(|sandbox| !living.contains(&*sandbox.container));
    // not kept from being destroyed as a whole meanwhile
    let gone: Vec<_> = gone.map(|sandbox| Arc::downgrade(&sandbox)).collect();
    if !gone.is_empty() {
        // events of what has happened meanwhile say it better
        sleep(REASON_WITHIN).await;
    }
    for sandbox in gone.iter().filter_map(Weak::upgrade) {
        sandbox.end(from_outside(if again { ENGINE_AWAY } else { REMOVED }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn break_in_the_events_is_told_also_after_it() {
        let following = Following::default();
        assert_eq!(following.unbroken(), None);
        following.end();
        following.begin();
        let first = following.unbroken().unwrap();
        following.begin();
        assert_eq!(following.unbroken(), Some(first));
        following.end();
        assert_eq!(following.unbroken(), None);
        following.begin();
        assert!(following.unbroken().is_some_and(|second| second != first));
    }
}
