//! Creating: a row first, then the sandbox, then the row again.
//!
//! The acquire's own `request_id` is the session's id, so that whoever goes on with a session that was left behind
//! while creating gets the sandbox of the first try.

use std::collections::HashMap;

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{
    Error, ErrorKind, Result, SandboxId, SessionId, SessionState,
    error::reason,
    input::{TEMPLATE_DEFAULT, Violations},
};
use cloud_sandbox_node_client::{missing, within};
use cloud_sandbox_proto::v1::{AcquireSandboxRequest, CreateSessionRequest, Sandbox};
use cloud_sandbox_rpc::{CallContext, from_status};
use cloud_sandbox_storage::{SessionRecord, sessions::Inserted};
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::{
    life::{Sessions, not_found, now},
    service::SchedulerClient,
};

/// The lease of a session's sandbox unless the caller says otherwise (see the contract).
const LEASE_SECONDS: u32 = 3600;

/// One create.
pub(crate) struct Create<'a> {
    pub(crate) sessions: &'a Sessions,
    pub(crate) scheduler: SchedulerClient,
    pub(crate) principal: &'a Principal,
    pub(crate) context: &'a CallContext,
}

impl Create<'_> {
    pub(crate) async fn run(mut self, request: CreateSessionRequest) -> Result<SessionRecord> {
        // what the store keeps is checked here, all else by the node
        let mut violations = Violations::default();
        violations.request_id("request_id", &request.request_id);
        violations.metadata("metadata", &request.metadata);
        violations.template("template", &request.template);
        violations.finish()?;

        let record = self.record(&request);
        let record = match self.sessions.store.insert(&record).await? {
            Inserted::New => record,
            Inserted::Existing(first) if first.request_fingerprint != record.request_fingerprint => {
                let message = "another request with this request_id made a session before";
                return Err(Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message));
            }
            Inserted::Existing(first) if first.state != SessionState::Creating => return Ok(*first),
            // the first try is under way still, or was left behind: go on with it
            Inserted::Existing(first) => *first,
        };
        match self.acquire(record.id, request).await {
            Ok(sandbox) => self.started(record, &sandbox).await,
            Err(error) => {
                self.give_up(&record, &error).await;
                Err(error)
            }
        }
    }

    fn record(&self, request: &CreateSessionRequest) -> SessionRecord {
        let now = now();
        let template = if request.template.is_empty() { TEMPLATE_DEFAULT } else { &request.template };
        SessionRecord {
            id: SessionId::generate(),
            tenant: self.principal.tenant.clone(),
            user: self.principal.user.clone(),
            state: SessionState::Creating,
            sandbox: None,
            template: template.to_owned(),
            metadata: request.metadata.clone().into_iter().collect(),
            failure: String::new(),
            request_id: (!request.request_id.is_empty()).then(|| request.request_id.clone()),
            request_fingerprint: fingerprint(request),
            created_at: now,
            updated_at: now,
            version: 1,
        }
    }

    async fn acquire(&mut self, id: SessionId, request: CreateSessionRequest) -> Result<Sandbox> {
        let wanted = AcquireSandboxRequest {
            template: request.template,
            timeout_seconds: if request.timeout_seconds == 0 { LEASE_SECONDS } else { request.timeout_seconds },
            env: request.env,
            metadata: request.metadata,
            limits: request.limits,
            request_id: id.to_string(),
            ..Default::default()
        };
        let call = self.scheduler.acquire_sandbox(self.context.outbound_as_caller(wanted));
        let answer = within(self.context, call).await?.map_err(|status| scheduler_failure(&status))?;
        missing(answer.into_inner().sandbox, "sandbox")
    }

    /// The session has its sandbox. If it was deleted meanwhile, the sandbox has no owner and goes too.
    async fn started(&self, record: SessionRecord, sandbox: &Sandbox) -> Result<SessionRecord> {
        let id: SandboxId =
            sandbox.sandbox_id.parse().map_err(|error| Error::internal("read the scheduler's answer", error))?;
        let running = self.sessions.write(&record, |session| {
            session.state = SessionState::Running;
            session.sandbox = Some(id);
        });
        if let Some(running) = running.await? {
            return Ok(running);
        }
        match self.sessions.store.get(record.id).await? {
            // another call with the same request_id was quicker
            Some(stored) if stored.sandbox == Some(id) => Ok(stored),
            _ => {
                let orphan = SessionRecord { sandbox: Some(id), ..record };
                self.sessions.release(self.principal, self.context, &orphan).await?;
                Err(not_found(orphan.id))
            }
        }
    }

    /// Removes the row of a session that got no sandbox. Where a sandbox may have been acquired and a retry can ask for
    /// it, the row stays for that; nobody else's retry comes within a minute, and then the reconciler fails it.
    async fn give_up(&self, record: &SessionRecord, error: &Error) {
        let unsure = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::DeadlineExceeded | ErrorKind::Internal);
        if unsure && record.request_id.is_some() {
            return;
        }
        if let Err(error) = self.sessions.store.delete(record.id, record.version).await {
            let error = cloud_sandbox_model::error::chain(&error);
            tracing::warn!(session_id = %record.id, error, "failed to remove a session that got no sandbox");
        }
    }
}

/// What the scheduler said, or that it cannot be reached.
pub(crate) fn scheduler_failure(status: &Status) -> Error {
    let error = from_status(status);
    if !error.reason().is_empty() {
        return error;
    }
    let cause = format!("{:?}: {}", status.code(), status.message());
    Error::new(ErrorKind::Unavailable, "SCHEDULER_UNREACHABLE", "the scheduler cannot be reached").with_cause(cause)
}

/// What a request asks for, in a form that tells requests apart and keeps no secret of theirs.
fn fingerprint(request: &CreateSessionRequest) -> String {
    let mut digest = Sha256::new();
    // each part with its length before it, so that no two lists of parts look the same
    let mut add = |part: &[u8]| {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    };
    add(request.template.as_bytes());
    add(&request.timeout_seconds.to_be_bytes());
    let limits = request.limits.unwrap_or_default();
    add(&limits.memory_bytes.to_be_bytes());
    add(&limits.cpu_millis.to_be_bytes());
    add(&limits.pids.to_be_bytes());
    add(&limits.disk_bytes.to_be_bytes());
    for map in [&request.env, &request.metadata] {
        add(&map.len().to_be_bytes());
        for (key, value) in sorted(map) {
            add(key.as_bytes());
            add(value.as_bytes());
        }
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sorted(map: &HashMap<String, String>) -> Vec<(&String, &String)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort();
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(env: &[(&str, &str)], metadata: &[(&str, &str)]) -> CreateSessionRequest {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CreateSessionRequest { env: map(env), metadata: map(metadata), ..CreateSessionRequest::default() }
    }

    #[test]
    fn fingerprint_tells_requests_apart_but_not_their_ids_or_order() {
        let first = fingerprint(&request(&[("a", "1"), ("b", "2")], &[]));
        assert_eq!(first, fingerprint(&request(&[("b", "2"), ("a", "1")], &[])));
        let renamed = CreateSessionRequest { request_id: "r".into(), ..request(&[("a", "1"), ("b", "2")], &[]) };
        assert_eq!(first, fingerprint(&renamed));
        let others = [
            request(&[("a", "1")], &[("b", "2")]),
            request(&[("a", "12"), ("b", "")], &[]),
            request(&[], &[("a", "1"), ("b", "2")]),
            CreateSessionRequest { template: "x".into(), ..request(&[("a", "1"), ("b", "2")], &[]) },
            CreateSessionRequest { timeout_seconds: 1, ..request(&[("a", "1"), ("b", "2")], &[]) },
        ];
        for other in others {
            assert_ne!(first, fingerprint(&other), "{other:?}");
        }
    }
}
