//! The node as a whole: what all its tasks share, its start and its end.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use cloud_sandbox_egress::Upstream;
use cloud_sandbox_journal::{Journal, Recovered};
use cloud_sandbox_model::{
    NodeId, SandboxId,
    error::{Error, Result, chain},
};
use cloud_sandbox_proto::{
    node::v1::node_service_server::NodeServiceServer,
    v1::{
        context_service_server::ContextServiceServer, exec_service_server::ExecServiceServer,
        file_service_server::FileServiceServer,
    },
};
use cloud_sandbox_storage::{Directory, WorkspaceStore};
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    archive::{Archive, Archived},
    checkpoints,
    claims::Claims,
    executions::Place,
    keeper::{journal_keeper, pool_keeper},
    options::Options,
    own_addresses::OwnAddresses,
    pool::Pool,
    report::reporter,
    runtimes::Runtimes,
    sandbox::{EndCause, Sandbox},
    service::{ContextService, ExecService, FileService, NodeService},
    templates::Templates,
    walls::Secrets,
};

/// What the tasks of a node share.
pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) runtimes: Runtimes,
    pub(crate) templates: Templates,
    pub(crate) directory: Arc<dyn Directory>,
    /// where checkpoints lie
    pub(crate) workspaces: Arc<dyn WorkspaceStore>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) claims: Claims,
    /// where this host itself is reached, which no sandbox may do
    pub(crate) own_addresses: OwnAddresses,
    /// how sandboxes reach the network
    pub(crate) upstream: Arc<dyn Upstream>,
    /// what of this host its sandboxes may not see
    pub(crate) secrets: Secrets,
    /// what executions print
    pub(crate) journal: Journal,
    /// sandboxes that have ended, with executions that are kept
    pub(crate) archive: Archive,
    /// how many sandboxes may be made at once
    pub(crate) creating: Arc<Semaphore>,
    /// how many may be saved or restored at once
    pub(crate) checkpointing: Semaphore,
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
        let found = self.table().get(&id).cloned();
        found.ok_or_else(|| match self.archive.get(id) {
            Some(archived) => archived.gone_error(),
            None => Error::sandbox_not_found(id),
        })
    }

    /// Where executions of a sandbox are asked for.
    pub(crate) fn place(&self, id: SandboxId) -> Result<Place> {
        // a sandbox leaves the table only after it has come into the archive
        let live = self.table().get(&id).filter(|sandbox| sandbox.view().lease.is_some()).cloned();
        let ended = || self.archive.get(id).map(Place::Ended);
        live.map(Place::Live).or_else(ended).ok_or_else(|| Error::sandbox_not_found(id))
    }

    /// Drops what the executions of a sandbox printed.
    pub(crate) async fn forget_journal(&self, id: SandboxId) {
        let journal = self.journal.clone();
        let removed = tokio::task::spawn_blocking(move || journal.remove_sandbox(id)).await;
        let error = match removed {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(error) => chain(&error),
        };
        tracing::warn!(sandbox_id = %id, error, "failed to remove what a sandbox's executions printed");
    }

    /// Writes into the directory that a sandbox has ended and can still be asked. A failure is made up for later.
    pub(crate) async fn list_archived(&self, archived: &Archived) {
        // the journal's keeper tries again
        let _ = self.put_archived(archived).await;
    }

    async fn put_archived(&self, archived: &Archived) -> Answered {
        let entry = archived.entry(&self.options);
        match timeout(self.options.directory_deadline, self.directory.put_sandbox(&entry)).await {
            Ok(Ok(())) => archived.listed.store(true, Ordering::Relaxed),
            Ok(Err(error)) => {
                tracing::warn!(sandbox_id = %archived.id, error = chain(&error), "the directory does not list an ended sandbox yet");
                return Answered::No;
            }
            Err(_) => {
                tracing::warn!(sandbox_id = %archived.id, "the directory did not answer; an ended sandbox is not listed yet");
                return Answered::No;
            }
        }
        // it was forgotten while it was being listed
        if self.archive.get(archived.id).is_none() { self.unlist(archived.id).await } else { Answered::Yes }
    }

    /// Lists ended sandboxes until the directory fails, or has taken as long as it may for one call.
    pub(crate) async fn list_all_archived(&self, unlisted: &[Arc<Archived>]) -> Answered {
        let begun = Instant::now();
        for archived in unlisted {
            let late = begun.elapsed() >= self.options.directory_deadline;
            if late || self.put_archived(archived).await == Answered::No {
                return Answered::No;
            }
        }
        Answered::Yes
    }

    /// Takes an ended sandbox out of the directory.
    pub(crate) async fn unlist(&self, id: SandboxId) -> Answered {
        let removed = timeout(self.options.directory_deadline, self.directory.remove_sandbox(id)).await;
        if matches!(removed, Ok(Ok(()))) {
            return Answered::Yes;
        }
        tracing::warn!(sandbox_id = %id, "the directory lists an ended sandbox until its time passes");
        Answered::No
    }

    /// Forgets an ended sandbox with all its executions. Says whether there was one.
    pub(crate) async fn release_archived(&self, id: SandboxId) -> bool {
        if self.archive.remove(id).is_none() {
            return false;
        }
        let ((), _answered) = tokio::join!(self.forget_journal(id), self.unlist(id));
        true
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Destroys an acquired sandbox, and returns when nothing of it is left, but, if it is to be kept, for what its
    /// executions printed.
    pub(crate) async fn release(&self, id: SandboxId, keep_journal: bool) -> Result<()> {
        let Some(sandbox) = self.table().get(&id).cloned() else {
            if keep_journal && self.archive.get(id).is_some() {
                return Ok(());
            }
            let released = self.release_archived(id).await;
            return if released { Ok(()) } else { Err(Error::sandbox_not_found(id)) };
        };
        if sandbox.view().lease.is_none() {
            return Err(Error::sandbox_not_found(id));
        }
        sandbox.end(if keep_journal { EndCause::Paused } else { EndCause::Released });
        let finished = timeout(self.options.release_patience, sandbox.finished.cancelled()).await;
        finished.map_err(|elapsed| sandbox.undestroyed(elapsed))?;
        // it had ended in another way just before
        if !keep_journal {
            self.release_archived(id).await;
        }
        Ok(())
    }
}

/// Whether the directory did what it was asked; one that did not is not asked for more at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub(crate) enum Answered {
    Yes,
    No,
}

impl Shared {
    /// Takes up the executions that earlier processes left, findable before anybody can ask. What the directory does not
    /// list now, the journal's keeper lists later.
    async fn take_up(&self, left: &[Recovered]) {
        let (mut found, mut gone) = (Vec::with_capacity(left.len()), Vec::new());
        for sandbox in left {
            match Archived::recovered(&self.journal, sandbox) {
                Some(archived) => found.push(self.archive.insert(archived)),
                None => {
                    self.forget_journal(sandbox.sandbox).await;
                    gone.push(sandbox.sandbox);
                }
            }
        }
        let mut answered = self.list_all_archived(&found).await;
        for id in gone {
            if answered == Answered::Yes {
                // what it keeps, it keeps until its time passes
                answered = self.unlist(id).await;
            }
        }
        if !found.is_empty() {
            let listed = answered == Answered::Yes;
            tracing::info!(sandboxes = found.len(), listed, "found what executions of earlier sandboxes printed");
        }
    }
}

/// Opens the journal, and drops what is past its time already: nobody is told of it any more.
async fn open_journal(options: cloud_sandbox_journal::Options) -> Result<(Journal, Vec<Recovered>)> {
    let opening = move || {
        let (journal, left) = Journal::open(options)?;
        journal.sweep(SystemTime::now());
        Ok::<_, std::io::Error>((journal, left))
    };
    let opened = tokio::task::spawn_blocking(opening).await;
    let opened = opened.map_err(|error| Error::internal("open the journal of executions", error))?;
    opened.map_err(|error| Error::internal("open the journal of executions", error))
}

/// A running node. It needs an orderly [`Node::shutdown`]; what a dropped one leaves is reclaimed at the next start.
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// Destroys what an earlier process left behind, prepares the built-in templates, then starts to fill the pool and to
    /// report. A runtime that is not there now is waited for in the background.
    ///
    /// # Errors
    /// When the options contradict themselves, or the journal cannot be opened.
    pub async fn start(
        options: Options,
        runtimes: Runtimes,
        directory: Arc<dyn Directory>,
        workspaces: Arc<dyn WorkspaceStore>,
    ) -> Result<Self> {
        let options = options.within_journal();
        options.check()?;
        let upstream = cloud_sandbox_egress::from_environment();
        let upstream = upstream.map_err(|error| Error::internal("read where hosts of tests are", error))?;
        let (journal, left) = open_journal(options.journal.of_journal()).await?;
        let shared = Arc::new(Shared {
            own_addresses: OwnAddresses::default(),
            upstream,
            secrets: Secrets::of_host(&options.journal.dir),
            pool: Pool::new(options.pool_min, options.pool_max),
            creating: Arc::new(Semaphore::new(options.create_parallelism)),
            templates: Templates::new(&options.default_template),
            options,
            runtimes,
            directory,
            workspaces,
            checkpointing: Semaphore::new(checkpoints::AT_ONCE),
            claims: Claims::default(),
            journal,
            archive: Archive::default(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            draining: AtomicBool::new(false),
            table: Mutex::default(),
        });
        // in this order, so that what can still be asked for is never missing from the directory
        shared.take_up(&left).await;
        Templates::begin(&shared).await;
        shared.tasks.spawn(journal_keeper(Arc::clone(&shared)));
        shared.tasks.spawn(pool_keeper(Arc::clone(&shared)));
        shared.tasks.spawn(reporter(Arc::clone(&shared)));
        tracing::info!(node_id = %shared.options.id, runtimes = ?shared.runtimes.families(), "node started");
        Ok(Self { shared })
    }

    /// The lives of its sandboxes, as something that can be served or called in this process.
    #[must_use]
    pub fn service(&self) -> NodeServiceServer<NodeService> {
        NodeService::server(&self.shared)
    }

    /// What runs in its sandboxes.
    #[must_use]
    pub fn exec_service(&self) -> ExecServiceServer<ExecService> {
        ExecService::server(&self.shared)
    }

    /// The code contexts of its sandboxes.
    #[must_use]
    pub fn context_service(&self) -> ContextServiceServer<ContextService> {
        ContextService::server(&self.shared)
    }

    /// The files of its sandboxes.
    #[must_use]
    pub fn file_service(&self) -> FileServiceServer<FileService> {
        FileService::server(&self.shared)
    }

    /// The node, as the directory names it.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.shared.options.id
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

    /// What its tasks share, for tests.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The census, for tests.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> crate::pool::Counts {
        self.shared.pool.counts()
    }
}
