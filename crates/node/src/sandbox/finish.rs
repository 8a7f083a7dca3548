//! The end of a sandbox: nobody finds it any more, what its executions printed is kept for those who may ask for it, and its
//! runtime destroys it, however often that has to be tried.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::{SandboxState, error::chain};
use cloud_sandbox_runtime::RuntimeError;
use cloud_sandbox_storage::StorageError;
use tokio::time::{sleep, timeout};

use super::{EndCause, Lease, owner::Owner};
use crate::archive::Archived;

const DESTROY_PAUSE: Duration = Duration::from_millis(100);
const DESTROY_PAUSE_MAX: Duration = Duration::from_secs(30);
/// The same while its runtime is away, which may be back at any moment.
const AWAY_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long the end of a sandbox waits for its executions to be recorded as ended with it.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Owner {
    pub(super) async fn finish(mut self, cause: EndCause) {
        self.node.pool.forget(&self.sandbox);
        // also of a claim that failed: its entry may have been written without our being told
        let listed = matches!(self.slot.state(), SandboxState::Acquired | SandboxState::Paused);
        // every state but terminating may become terminating, and only this function leads there
        if let Err(error) = self.slot.enter(SandboxState::Terminating) {
            tracing::error!(error = chain(&error), "sandbox ended twice");
        }
        self.view.send_modify(|view| {
            view.state = SandboxState::Terminating;
            view.end = Some(cause.clone());
        });
        self.sandbox.ended.cancel();
        metrics::counter!("cloud_sandbox_sandbox_ended_total", "cause" => cause.label()).increment(1);
        let lease = self.view.borrow().lease.clone();
        match (&lease, &cause) {
            (None, EndCause::Shutdown | EndCause::Evicted | EndCause::Retired | EndCause::Abandoned) => {
                tracing::debug!(%cause, "sandbox ends")
            }
            (None, _) => tracing::warn!(%cause, "unused sandbox ends"),
            (Some(_), _) => tracing::info!(%cause, "sandbox ends"),
        }

        let leave = async {
            let archived = self.archive(lease.as_deref(), &cause).await;
            self.leave_directory(listed, archived.as_deref()).await;
        };
        tokio::join!(self.destroy(), leave);
        self.node.table().remove(&self.sandbox.id);
        if let Some(key) = lease.as_ref().and_then(|lease| lease.claim.as_ref()) {
            self.node.claims.forget(key, self.sandbox.id);
        }
        let finished = self.sandbox.finished.clone();
        drop(self);
        finished.cancel();
    }

    async fn destroy(&self) {
        let mut pause = DESTROY_PAUSE;
        let mut away = None;
        while let Err(error) = self.sandbox.origin.runtime.destroy(self.sandbox.id).await {
            metrics::counter!("cloud_sandbox_destroy_failed_total").increment(1);
            let why = if let RuntimeError::Unavailable(why) = &error { Some(why.clone()) } else { None };
            // said once for as long as it stays the same: it may be away for hours
            if why.is_none() || why != away {
                tracing::warn!(error = chain(&error), retry_in = ?pause, "failed to destroy the sandbox");
            }
            away.clone_from(&why);
            self.sandbox.note_away(why);
            sleep(pause).await;
            pause = (pause * 2).min(if away.is_some() { AWAY_PAUSE_MAX } else { DESTROY_PAUSE_MAX });
        }
    }

    /// Keeps what its executions printed, unless nobody will ask for it.
    async fn archive(&self, lease: Option<&Lease>, cause: &EndCause) -> Option<Arc<Archived>> {
        let executions = &self.sandbox.executions;
        executions.close();
        // those that drive them have heard of the end; the journal is better off when they have said their last
        if timeout(LAST_WORDS, executions.tasks.wait()).await.is_err() {
            tracing::warn!("executions of the sandbox take long to end");
        }
        let asked_for = !matches!(cause, EndCause::Released | EndCause::Abandoned);
        match lease.filter(|_| asked_for && !executions.is_empty()) {
            Some(lease) => {
                let mut owned = lease.owned(&self.sandbox);
                cause.label().clone_into(&mut owned.cause);
                owned.cause_text = cause.to_string();
                if let Err(error) = executions.describe(&owned) {
                    tracing::warn!(error = chain(&error), "the journal does not know why the sandbox ended");
                }
                Some(self.node.archive.insert(Archived::new(self.sandbox.id, Arc::clone(executions), owned)))
            }
            None => {
                if executions.have_begun() {
                    self.node.forget_journal(self.sandbox.id).await;
                }
                None
            }
        }
    }

    async fn leave_directory(&self, listed: bool, archived: Option<&Archived>) {
        if let Some(archived) = archived {
            return self.node.list_archived(archived).await;
        }
        if !listed {
            return;
        }
        let removed =
            timeout(self.node.options.directory_deadline, self.node.directory.remove_sandbox(self.sandbox.id));
        let error = match removed.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(_) => chain(&StorageError::Unavailable { store: "directory", source: "no answer in time".into() }),
        };
        tracing::warn!(error, "the directory keeps the sandbox until its lease ends");
    }
}
