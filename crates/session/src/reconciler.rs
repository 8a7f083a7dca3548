//! The session reconciler: sessions that were left on their way are brought to where their sandbox says they are.
//!
//! It takes no input: at its start and every half minute it rereads the store and acts on what it finds, over the
//! version that it read, so that several may run at once and none undoes what a call did meanwhile.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use cloud_sandbox_model::{ErrorKind, Result, SessionState, error::chain};
use cloud_sandbox_node_client::{NodeClient, Nodes, missing};
use cloud_sandbox_proto::{node::v1, v1::SandboxState};
use cloud_sandbox_rpc::{CallContext, Dial};
use cloud_sandbox_storage::{Directory, SandboxEntry, SessionFilter, SessionRecord, SessionStore};

use crate::life::{SANDBOX_ENDED, Sessions};

/// Longer than any call takes from one step to the next.
const STUCK_AFTER: Duration = Duration::from_secs(60);
const EVERY: Duration = Duration::from_secs(30);
const BATCH: usize = 100;
/// A node that does not answer is asked again in the next round.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Keeps true that no session is on its way for ever.
#[derive(Clone)]
pub struct SessionReconciler {
    sessions: Sessions,
}

impl SessionReconciler {
    /// A reconciler of the sessions in `store`.
    #[must_use]
    pub fn new(store: Arc<dyn SessionStore>, directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Self {
        Self { sessions: Sessions { store, nodes: Nodes::new(directory, dial) } }
    }

    /// Reconciles now and then, until `shutdown`. A round that fails is logged; the next one begins anew.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => return,
                () = self.reconcile() => {}
            }
            tokio::select! {
                () = &mut shutdown => return,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    /// One round.
    pub async fn reconcile(&self) {
        let filter = SessionFilter {
            states: vec![SessionState::Creating, SessionState::Pausing, SessionState::Resuming, SessionState::Deleting],
            idle_since: Some(SystemTime::now() - STUCK_AFTER),
            ..SessionFilter::default()
        };
        let mut after = None;
        loop {
            let stuck = match self.sessions.store.list(&filter, after, BATCH).await {
                Ok(stuck) => stuck,
                Err(error) => return tracing::warn!(error = chain(&error), "failed to list sessions to reconcile"),
            };
            after = stuck.last().map(|record| record.id);
            let last = stuck.len() < BATCH;
            for record in stuck {
                let (id, state) = (record.id, record.state.as_str());
                match self.settle(record).await {
                    Ok(()) => tracing::info!(session_id = %id, state, "settled a session that was left on its way"),
                    Err(error) => {
                        tracing::warn!(session_id = %id, state, error = chain(&error), "failed to settle a session");
                    }
                }
            }
            if last {
                return;
            }
        }
    }

    /// Ends what was begun, as far as it came.
    async fn settle(&self, record: SessionRecord) -> Result<()> {
        let host = self.host(&record).await?;
        match (record.state, host) {
            (SessionState::Deleting, host) => {
                if let Some(entry) = host {
                    self.release(&entry).await?;
                }
                self.sessions.store.delete(record.id, record.version).await?;
            }
            (SessionState::Creating, _) => {
                self.sessions.fail(record, "its creation was interrupted").await?;
            }
            (_, Some(entry)) if !entry.ended => self.follow(record, &entry).await?,
            (_, _) => {
                self.sessions.fail(record, SANDBOX_ENDED).await?;
            }
        }
        Ok(())
    }

    /// Where the session's sandbox is, or was; `None` when nobody knows it any more.
    async fn host(&self, record: &SessionRecord) -> Result<Option<SandboxEntry>> {
        let Some(id) = record.sandbox else { return Ok(None) };
        Ok(self.sessions.nodes.directory().sandbox(id).await?)
    }

    /// Brings a session that was pausing or resuming to what its node says of the sandbox.
    async fn follow(&self, record: SessionRecord, entry: &SandboxEntry) -> Result<()> {
        let mut node: NodeClient = self.sessions.nodes.client(&entry.node_address)?;
        let mut request = tonic::Request::new(v1::GetSandboxRequest { sandbox_id: entry.id.to_string() });
        request.set_timeout(ANSWER_WITHIN);
        let call = tokio::time::timeout(ANSWER_WITHIN, node.get_sandbox(request)).await;
        let answer = match call.map_err(cloud_sandbox_node_client::unreachable)? {
            Ok(answer) => answer.into_inner(),
            Err(status) => {
                let error = self.sessions.nodes.failed(entry, &status).await;
                if error.kind() != ErrorKind::NotFound {
                    return Err(error);
                }
                self.sessions.fail(record, SANDBOX_ENDED).await?;
                return Ok(());
            }
        };
        let paused = missing(answer.sandbox, "sandbox")?.state() == SandboxState::Paused;
        let state = if paused { SessionState::Paused } else { SessionState::Running };
        // a call that was quicker has settled it
        self.sessions.write(&record, |session| session.state = state).await?;
        Ok(())
    }

    /// Releases the sandbox; one that is gone is released.
    async fn release(&self, entry: &SandboxEntry) -> Result<()> {
        let mut timed = tonic::Request::new(());
        timed.set_timeout(ANSWER_WITHIN);
        match self.sessions.nodes.release_entry(&CallContext::of(&timed), entry).await {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
