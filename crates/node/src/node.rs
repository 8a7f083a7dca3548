//! The node as a whole: what all its tasks share, its start and its end.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cloud_sandbox_model::{
    SandboxId,
    error::{Error, Result, chain},
};
use cloud_sandbox_runtime::Runtime;
use cloud_sandbox_storage::Directory;
use tokio::{sync::Semaphore, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    claims::Claims,
    executions::OutputBudget,
    keeper::pool_keeper,
    options::Options,
    pool::Pool,
    report::reporter,
    sandbox::{EndCause, Sandbox},
    service::NodeService,
};

/// What the tasks of a node share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) directory: Arc<dyn Directory>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) claims: Claims,
    pub(crate) output: Arc<OutputBudget>,
    /// how many sandboxes may be made at once
    pub(crate) creating: Arc<Semaphore>,
    pub(crate) tasks: TaskTracker,
    /// cancelled at shutdown: every owner destroys its sandbox
    pub(crate) stop: CancellationToken,
    draining: AtomicBool,
    table: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
}

impl Shared {
    /// Every sandbox that exists.
    pub(crate) fn table(&self) -> MutexGuard<'_, HashMap<SandboxId, Arc<Sandbox>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sandbox(&self, id: SandboxId) -> Result<Arc<Sandbox>> {
        self.table().get(&id).cloned().ok_or_else(|| Error::sandbox_not_found(id))
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Destroys an acquired sandbox, and returns when nothing of it is left.
    pub(crate) async fn release(&self, sandbox: &Sandbox) -> Result<()> {
        let id = sandbox.id;
        if sandbox.view().lease.is_none() {
            return Err(Error::sandbox_not_found(id));
        }
        sandbox.end(EndCause::Released);
        let finished = timeout(self.options.release_patience, sandbox.finished.cancelled()).await;
        finished
            .map_err(|elapsed| Error::internal(&format!("destroy sandbox {id} in time; it is tried again"), elapsed))
    }
}

/// A running node. It needs an orderly [`Node::shutdown`]; what a dropped one leaves is reclaimed at the next start.
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// Destroys what an earlier process left behind, then starts to fill the pool and to report.
    ///
    /// # Errors
    /// When the options contradict themselves or leftovers cannot be looked for.
    pub async fn start(options: Options, runtime: Arc<dyn Runtime>, directory: Arc<dyn Directory>) -> Result<Self> {
        options.check()?;
        reclaim(&*runtime, &*directory).await?;
        let shared = Arc::new(Shared {
            pool: Pool::new(options.pool_min, options.pool_max),
            creating: Arc::new(Semaphore::new(options.create_parallelism)),
            options,
            runtime,
            directory,
            claims: Claims::default(),
            output: Arc::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            draining: AtomicBool::new(false),
            table: Mutex::default(),
        });
        shared.tasks.spawn(pool_keeper(Arc::clone(&shared)));
        shared.tasks.spawn(reporter(Arc::clone(&shared)));
        tracing::info!(node_id = %shared.options.id, runtime = shared.runtime.name(), "node started");
        Ok(Self { shared })
    }

    /// The `node.v1` service, cheap to clone.
    #[must_use]
    pub fn service(&self) -> NodeService {
        NodeService::new(Arc::clone(&self.shared))
    }

    /// Takes no more sandboxes; those there are stay usable.
    pub fn set_draining(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
        self.shared.pool.close();
        self.shared.pool.changed.notify_one();
    }

    /// Destroys every sandbox and takes the node out of the directory. Returns how many sandboxes could not be
    /// destroyed within `patience`; their owners' tasks go on trying.
    pub async fn shutdown(&self, patience: Duration) -> usize {
        self.set_draining();
        self.shared.stop.cancel();
        self.shared.tasks.close();
        let complete = timeout(patience, self.shared.tasks.wait()).await.is_ok();
        let removed = self.shared.directory.remove_node(self.shared.options.id);
        match timeout(self.shared.options.directory_deadline, removed).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "the directory keeps the node until its time passes")
            }
            Err(_) => tracing::warn!("the directory did not answer; it keeps the node until its time passes"),
        }
        let left: Vec<_> = self.shared.table().keys().copied().collect();
        if complete && left.is_empty() {
            tracing::info!("node stopped; nothing is left");
        } else {
            tracing::error!(sandboxes = ?left, "node stopped before everything was destroyed");
        }
        left.len()
    }

    /// The census, for tests.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> crate::pool::Counts {
        self.shared.pool.counts()
    }
}

async fn reclaim(runtime: &dyn Runtime, directory: &dyn Directory) -> Result<()> {
    let reclaimed = runtime.reclaim().await.map_err(|error| Error::internal("reclaim leftover sandboxes", error))?;
    for id in &reclaimed {
        tracing::warn!(sandbox_id = %id, "destroyed a sandbox that an earlier process left behind");
        if let Err(error) = directory.remove_sandbox(*id).await {
            tracing::warn!(sandbox_id = %id, error = chain(&error), "the directory keeps it until its lease ends");
        }
    }
    metrics::counter!("cloud_sandbox_reclaimed_total").increment(reclaimed.len() as u64);
    Ok(())
}
