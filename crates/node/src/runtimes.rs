//! The runtimes of this machine, by their families.
//!
//! Invariant: before anything is made by a runtime, what earlier processes left of its sandboxes is gone. One that cannot
//! be asked at the start is asked when it can first be used.

use std::{collections::HashMap, sync::Arc, time::Duration};

use cloud_sandbox_model::RuntimeName;
use cloud_sandbox_runtime::{Runtime, RuntimeError};
use tokio::{
    sync::{Mutex, Semaphore, SemaphorePermit},
    time::{Instant, timeout},
};

use crate::node::{Answered, Shared};

/// How long a runtime may take to say whether it is there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often in a row it may say nothing before it counts as gone.
const GONE_AFTER: u32 = 3;
/// How many templates are prepared at once: each takes the network and the disk for itself.
const PREPARED_AT_ONCE: usize = 2;
/// How long its answer is as good as a new one: all templates ask for themselves.
const GOOD_FOR: Duration = Duration::from_secs(4);
/// The same of an answer that it is not there.
const BAD_FOR: Duration = Duration::from_secs(1);

/// The runtimes that a node may use, one of each family.
#[derive(Default)]
pub struct Runtimes {
    members: Vec<Member>,
}

struct Member {
    runtime: Arc<dyn Runtime>,
    known: Mutex<Known>,
    preparing: Semaphore,
}

#[derive(Default)]
struct Known {
    /// what earlier processes left of its sandboxes is gone
    reclaimed: bool,
    /// when it last said whether it is there, by the names that it was asked by, and why not
    answers: HashMap<RuntimeName, (Instant, Option<String>)>,
    /// how often in a row it has said nothing
    silent: u32,
}

impl Runtimes {
    /// These runtimes. Of two of one family the first is used.
    pub fn new(runtimes: impl IntoIterator<Item = Arc<dyn Runtime>>) -> Self {
        let member = |runtime| Member { runtime, known: Mutex::default(), preparing: Semaphore::new(PREPARED_AT_ONCE) };
        Self { members: runtimes.into_iter().map(member).collect() }
    }

    /// Whether there is one of this family.
    #[must_use]
    pub fn has(&self, family: &str) -> bool {
        self.get(family).is_some()
    }

    /// The families that there are.
    #[must_use]
    pub fn families(&self) -> Vec<&'static str> {
        self.members.iter().map(|member| member.runtime.name()).collect()
    }

    pub(crate) fn get(&self, family: &str) -> Option<&Arc<dyn Runtime>> {
        self.member(family).map(|member| &member.runtime)
    }

    fn member(&self, family: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.runtime.name() == family)
    }

    /// Waits until this family may prepare one more template. Those of one do not wait for what another's daemon or registry
    /// takes its time with.
    pub(crate) async fn turn_to_prepare(&self, family: &str) -> Option<SemaphorePermit<'_>> {
        let member = self.member(family)?;
        Some(member.preparing.acquire().await.expect("the semaphore is never closed"))
    }

    /// The runtime that makes sandboxes by this name, if it can do so now.
    pub(crate) async fn usable(&self, node: &Shared, name: &RuntimeName) -> Result<Arc<dyn Runtime>, RuntimeError> {
        let Some(member) = self.member(name.family()) else {
            return Err(RuntimeError::Unsupported(format!("use the runtime {name}: its node is not set up for that")));
        };
        let mut known = member.known.lock().await;
        if !known.reclaimed {
            reclaim(node, &*member.runtime).await?;
            known.reclaimed = true;
        }
        match known.answers.get(name) {
            Some((at, None)) if at.elapsed() < GOOD_FOR => {}
            Some((at, Some(why))) if at.elapsed() < BAD_FOR => return Err(RuntimeError::Unavailable(why.clone())),
            _ => {
                let answer = timeout(PATIENCE, member.runtime.available(name)).await;
                known.silent = if answer.is_err() { known.silent + 1 } else { 0 };
                let was_there = matches!(known.answers.get(name), Some((_, None)));
                let answer = answer.unwrap_or_else(|_| {
                    // one that answered the last time is busy rather than gone: its warm sandboxes are of use meanwhile
                    let is_slow = was_there && known.silent < GONE_AFTER;
                    if is_slow { Ok(()) } else { Err(RuntimeError::Unavailable("it does not answer".into())) }
                });
                let why = match &answer {
                    Ok(()) => None,
                    Err(RuntimeError::Unavailable(why)) => Some(why.clone()),
                    Err(_) => return answer.map(|()| Arc::clone(&member.runtime)),
                };
                known.answers.insert(name.clone(), (Instant::now(), why));
                answer?;
            }
        }
        Ok(Arc::clone(&member.runtime))
    }

    /// Has each asked anew whether it is there.
    pub(crate) async fn ask_anew(&self) {
        for member in &self.members {
            member.known.lock().await.answers.clear();
        }
    }
}

impl FromIterator<Arc<dyn Runtime>> for Runtimes {
    fn from_iter<T: IntoIterator<Item = Arc<dyn Runtime>>>(runtimes: T) -> Self {
        Self::new(runtimes)
    }
}

/// Destroys what earlier processes left of a runtime's sandboxes.
async fn reclaim(node: &Shared, runtime: &dyn Runtime) -> Result<(), RuntimeError> {
    let reclaimed = runtime.reclaim().await?;
    let mut answered = Answered::Yes;
    for id in &reclaimed {
        tracing::warn!(sandbox_id = %id, runtime = runtime.name(), "destroyed a sandbox that an earlier process left behind");
        if answered == Answered::Yes && node.archive.get(*id).is_none() {
            // what it keeps, it keeps until the lease ends
            answered = node.unlist(*id).await;
        }
    }
    metrics::counter!("cloud_sandbox_reclaimed_total").increment(reclaimed.len() as u64);
    Ok(())
}
