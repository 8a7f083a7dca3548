//! Bringing a session up in a sandbox of its own: a new one, a fork, or one that goes on from a checkpoint.

use cloud_sandbox_model::{Error, Result, SandboxId, SessionState};
use cloud_sandbox_node_client::{missing, within};
use cloud_sandbox_proto::{
    node::v1 as node,
    v1::{self, AcquireSandboxRequest, PauseDepth, ResumeManifest},
};
use cloud_sandbox_rpc::{CallContext, from_status, limits_message};
use cloud_sandbox_storage::{CheckpointRecord, SessionRecord};
use prost::Message;
use tonic::Status;

use crate::{
    change::Change,
    hosts::is_gone,
    life::{Sessions, now},
    pilot::{FIRST_LEASE, Pilot},
    steps::Step,
    wire::network_message,
};

/// The lease of a running session's sandbox, in seconds: the longest there is, renewed by the keeper.
pub(crate) const LEASE: u32 = 86_400;

/// What is restored.
pub(crate) struct Source {
    pub(crate) checkpoint: CheckpointRecord,
    pub(crate) restart_commands: bool,
    /// what the session had after the checkpoint and is not in it, in words; empty when there is nothing
    pub(crate) lost_work: String,
}

impl Pilot {
    /// Acquires a sandbox, restores `source` into it, and has the session run there. `news` adds what is to be told.
    pub(crate) async fn bring_up(
        &mut self,
        context: &CallContext,
        source: Option<&Source>,
        news: impl Fn(Change) -> Change,
    ) -> Result<()> {
        let sandbox = self.acquire(context).await?;
        let manifest = match source {
            None => None,
            Some(source) => {
                let noted = self.write(Step::NoteSandbox, |change| {
                    change.with(|session| {
                        if let Some(flight) = &mut session.details.flight {
                            flight.sandbox = Some(sandbox.id);
                        }
                    })
                });
                let noted = noted.await;
                self.or_release(sandbox.id, noted).await?;
                Some(self.restore(&sandbox, source).await?)
            }
        };
        let noted = self.write(Step::NoteRunning, |change| {
            let change = change.discard_sandbox().state(SessionState::Running).with(|session| {
                session.sandbox = Some(sandbox.id);
                session.failure.clear();
                let details = &mut session.details;
                details.node = sandbox.node;
                details.running_since = Some(now());
                details.paused = None;
                if let (Some(source), Some(manifest)) = (source, &manifest) {
                    details.checkpoint = Some(source.checkpoint.id);
                    details.manifest.clone_from(manifest);
                }
            });
            news(change.landed())
        });
        let noted = noted.await;
        self.or_release(sandbox.id, noted).await?;
        self.lend(&sandbox).await;
        self.release_discarded().await;
        Ok(())
    }

    /// Makes the sandbox's lease long, now that the row names it: one that no row names goes soon. The keeper, which
    /// looks at a new session before its first lease ends, does what fails here.
    async fn lend(&self, sandbox: &Acquired) {
        let (hosts, steps) = (&self.sessions.hosts, &self.sessions.steps);
        if let Err(error) = steps.take(Step::Lend, || hosts.keep_alive(sandbox.id, sandbox.node, LEASE)).await {
            let error = cloud_sandbox_model::error::chain(&error);
            tracing::warn!(session_id = %self.record.id, error, "failed to renew a new session's lease; it is tried again");
        }
    }

    /// Acquires a sandbox for the session, in the caller's name. Asked again, it is the same one.
    async fn acquire(&mut self, context: &CallContext) -> Result<Acquired> {
        let wanted = request(&self.record);
        let scheduler = self.sessions.scheduler.clone();
        let steps = self.sessions.steps.clone();
        let acquiring = steps.take(Step::Acquire, || {
            let (mut scheduler, call) = (scheduler.clone(), context.outbound_as_caller(wanted.clone()));
            async move {
                let answer = within(context, scheduler.acquire_sandbox(call)).await?;
                let answer = answer.map_err(|status| scheduler_failure(&status))?;
                Acquired::of(&missing(answer.into_inner().sandbox, "sandbox")?)
            }
        });
        self.during(None, acquiring).await
    }

    async fn restore(&mut self, sandbox: &Acquired, source: &Source) -> Result<Vec<u8>> {
        let request = node::RestoreSandboxRequest {
            sandbox_id: sandbox.id.to_string(),
            checkpoint: Some(reference(&source.checkpoint)),
            restart_commands: source.restart_commands,
        };
        let (hosts, steps) = (self.sessions.hosts.clone(), self.sessions.steps.clone());
        let restoring = steps.take(Step::Restore, || hosts.restore(request.clone(), sandbox.id, sandbox.node));
        let restored = self.during(Some(sandbox.id), restoring).await?;
        let mut manifest = missing(restored.manifest, "manifest")?;
        self.complete(&mut manifest, source);
        Ok(manifest.encode_to_vec())
    }

    /// Adds what the node does not know.
    fn complete(&self, manifest: &mut ResumeManifest, source: &Source) {
        manifest.set_depth(PauseDepth::Checkpointed);
        manifest.checkpoint_id = source.checkpoint.id.to_string();
        manifest.checkpoint_time = Some(source.checkpoint.created_at.into());
        manifest.env = self.record.details.env.keys().cloned().collect();
        if !source.lost_work.is_empty() {
            manifest.lost.push(v1::LostItem {
                kind: "work".into(),
                what: "what was done after the checkpoint".into(),
                reason: source.lost_work.clone(),
            });
        }
    }

    /// A sandbox that no row names is released at once, not only at the end of its lease.
    async fn or_release<T>(&self, sandbox: SandboxId, done: Result<T>) -> Result<T> {
        let named = self.record.sandbox == Some(sandbox)
            || self.record.details.flight.as_ref().is_some_and(|flight| flight.sandbox == Some(sandbox));
        if done.is_err() && !named {
            let stored = self.sessions.store.get(self.record.id).await;
            // another call with the same request_id may have been quicker with the same sandbox
            if stored.is_ok_and(|stored| stored.is_none_or(|stored| stored.sandbox != Some(sandbox))) {
                let _ = self.sessions.hosts.release(sandbox, true).await;
            }
        }
        done
    }
}

struct Acquired {
    id: SandboxId,
    node: Option<cloud_sandbox_model::NodeId>,
}

impl Acquired {
    fn of(sandbox: &v1::Sandbox) -> Result<Self> {
        let id = sandbox.sandbox_id.parse();
        let id = id.map_err(|error| Error::internal("read the scheduler's answer", error))?;
        Ok(Self { id, node: sandbox.node_id.parse().ok() })
    }
}

/// What asks for the session's next sandbox.
fn request(record: &SessionRecord) -> AcquireSandboxRequest {
    let details = &record.details;
    AcquireSandboxRequest {
        template: record.template.clone(),
        timeout_seconds: FIRST_LEASE,
        env: details.env.clone().into_iter().collect(),
        metadata: record.metadata.clone().into_iter().collect(),
        limits: details.limits.map(limits_message),
        request_id: format!("{}-{}", record.id, details.acquires),
        network: Some(network_message(&details.network)),
    }
}

/// How nodes are told of a checkpoint.
pub(crate) fn reference(checkpoint: &CheckpointRecord) -> node::CheckpointRef {
    node::CheckpointRef { checkpoint_id: checkpoint.folder.to_string(), digest: checkpoint.digest.clone().into() }
}

/// What the scheduler said, or that it cannot be reached.
pub(crate) fn scheduler_failure(status: &Status) -> Error {
    let error = from_status(status);
    if !error.reason().is_empty() {
        return error;
    }
    let cause = format!("{:?}: {}", status.code(), status.message());
    Error::new(cloud_sandbox_model::ErrorKind::Unavailable, "SCHEDULER_UNREACHABLE", "the scheduler cannot be reached")
        .with_cause(cause)
}

/// Whether what failed cannot have had an effect that nobody knows of.
pub(crate) fn is_known(error: &Error) -> bool {
    use cloud_sandbox_model::ErrorKind::{DeadlineExceeded, Internal, Unavailable};
    is_gone(error) || !matches!(error.kind(), Unavailable | DeadlineExceeded | Internal)
}

impl Sessions {
    /// The session as it would be restored from `checkpoint`.
    pub(crate) fn lost_work(record: &SessionRecord, checkpoint: &CheckpointRecord) -> String {
        if !record.failure.is_empty() {
            return format!("the session failed: {}", record.failure);
        }
        if record.details.checkpoint != Some(checkpoint.id) || record.sandbox.is_some() {
            return "the session was taken back to this checkpoint".to_owned();
        }
        String::new()
    }
}
