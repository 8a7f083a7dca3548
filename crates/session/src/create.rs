//! Creating and forking: a row first, then the sandbox, then the row again.
//!
//! The acquire's own `request_id` is made of the session's id, so that whoever goes on with a session that was left behind
//! while creating gets the sandbox of the first try.

use std::{collections::HashMap, time::SystemTime};

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::{
    CheckpointId, Error, ErrorKind, Result, SessionId, SessionState, error::reason, input::Violations,
};
use cloud_sandbox_proto::v1::CreateSessionRequest;
use cloud_sandbox_rpc::{CallContext, limits_of, network_policy};
use cloud_sandbox_storage::{
    CheckpointRecord, SessionRecord, StorageError,
    sessions::{Inserted, SessionDetails, WantedNetwork},
};
use sha2::{Digest, Sha256};

use crate::{
    bring_up::{Source, is_known},
    change::{Change, event},
    due::due,
    life::{Sessions, WRITES_AGAIN, no_checkpoint, not_found, now, overtaken, write_again_after},
    pilot::Pilot,
    steps::Step,
    timeouts::{self, TIMEOUT_DEFAULT},
    wire::wanted_network,
};

/// How long a retry of a create whose outcome nobody knows may take to come.
const RETRY_WITHIN_MS: i64 = 60_000;

impl Sessions {
    pub(crate) async fn create(
        &self,
        who: &Principal,
        context: &CallContext,
        request: CreateSessionRequest,
    ) -> Result<SessionRecord> {
        // what the store keeps is checked here, all else by the node
        let mut violations = Violations::default();
        violations.request_id("request_id", &request.request_id);
        violations.metadata("metadata", &request.metadata);
        violations.env("env", &request.env);
        violations.template("template", &request.template);
        violations.take(network_policy("network", request.network.as_ref()));
        timeouts::check(
            &mut violations,
            Some(request.timeout_seconds).filter(|seconds| *seconds != 0),
            Some(request.idle_timeout_seconds),
        );
        let on_timeout = violations.take(timeouts::action(request.on_timeout));
        violations.finish()?;

        let template = if request.template.is_empty() { &self.options.default_template } else { &request.template };
        let details = SessionDetails {
            env: request.env.clone().into_iter().collect(),
            limits: request.limits.map(limits_of),
            network: wanted_network(request.network.as_ref()),
            timeout_seconds: if request.timeout_seconds == 0 { TIMEOUT_DEFAULT } else { request.timeout_seconds },
            idle_timeout_seconds: request.idle_timeout_seconds,
            on_timeout: on_timeout.flatten().unwrap_or_default(),
            auto_resume: request.auto_resume,
            ..SessionDetails::default()
        };
        let fingerprint = fingerprint(&request);
        let record = self.new_record(who, template, request.metadata, request.request_id, fingerprint, details);
        self.start(context, record, None).await
    }

    /// A new session from `source`, of which it has what makes a sandbox.
    pub(crate) async fn fork(
        &self,
        who: &Principal,
        context: &CallContext,
        of: SessionRecord,
        source: CheckpointRecord,
        metadata: HashMap<String, String>,
        request_id: String,
    ) -> Result<SessionRecord> {
        let details = SessionDetails {
            forked_from: Some(of.id),
            env: of.details.env,
            limits: of.details.limits,
            network: of.details.network,
            timeout_seconds: of.details.timeout_seconds,
            idle_timeout_seconds: of.details.idle_timeout_seconds,
            on_timeout: of.details.on_timeout,
            auto_resume: of.details.auto_resume,
            ..SessionDetails::default()
        };
        let record = self.new_record(who, &of.template, metadata, request_id, String::new(), details);
        self.start(context, record, Some(source)).await
    }

    fn new_record(
        &self,
        who: &Principal,
        template: &str,
        metadata: HashMap<String, String>,
        request_id: String,
        request_fingerprint: String,
        details: SessionDetails,
    ) -> SessionRecord {
        let now = now();
        SessionRecord {
            id: SessionId::generate(),
            tenant: who.tenant.clone(),
            user: who.user.clone(),
            state: SessionState::Creating,
            sandbox: None,
            template: template.to_owned(),
            metadata: metadata.into_iter().collect(),
            failure: String::new(),
            request_id: (!request_id.is_empty()).then_some(request_id),
            request_fingerprint,
            created_at: now,
            updated_at: now,
            version: 1,
            due_at: None,
            details: SessionDetails { flight: Some(self.flight()), ..details },
        }
    }

    /// Stores the session and brings it up, unless the user's `request_id` has made one.
    async fn start(
        &self,
        context: &CallContext,
        mut record: SessionRecord,
        source: Option<CheckpointRecord>,
    ) -> Result<SessionRecord> {
        let own = source.as_ref().map(|source| CheckpointRecord {
            id: CheckpointId::generate(),
            session: record.id,
            parent: None,
            stored_bytes: 0,
            ..source.clone()
        });
        record.details.checkpoint = own.as_ref().map(|own| own.id);
        if source.is_some() {
            record.request_fingerprint = fork_fingerprint(&record);
        }
        record.due_at = due(&record, now(), &self.options);
        let mut first = Change::of(&record);
        first.next.updated_at = record.updated_at;
        if let Some(own) = own {
            first = first.checkpoint(own);
        }
        let pilot = match self.steps.take(Step::Insert, || self.insert(&first)).await? {
            Inserted::New => {
                let pilot = Pilot { sessions: self.clone(), record };
                if let Some(source) = &source {
                    self.still_there(source, &pilot).await?;
                }
                pilot
            }
            Inserted::Existing(existing) => {
                if existing.request_fingerprint != record.request_fingerprint {
                    let message = "another request with this request_id made a session before";
                    return Err(Error::new(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, message));
                }
                match self.take_over(*existing, context).await? {
                    Started::Already(record) => return Ok(*record),
                    Started::Here(pilot) => *pilot,
                }
            }
        };
        // that of an earlier try is another one, when the session that is forked was saved for each
        let own = match pilot.record.details.checkpoint {
            Some(own) => Some(self.checkpoint(pilot.record.id, own).await?),
            None => None,
        };
        let source = own.map(|checkpoint| Source { checkpoint, restart_commands: false, lost_work: String::new() });
        let outbound = context.clone();
        self.fly(context, pilot.create(outbound, source)).await
    }

    async fn insert(&self, first: &Change) -> Result<Inserted> {
        let id = first.next.id;
        let mut again = WRITES_AGAIN;
        loop {
            let error = match self.store.insert(&first.next, &first.along).await {
                // written by a try of ours of which nobody told us
                Ok(Inserted::Existing(existing)) if existing.id == id => return Ok(Inserted::New),
                Ok(inserted) => return Ok(inserted),
                Err(error) => error,
            };
            if self.store.get(id).await.is_ok_and(|stored| stored.is_some()) {
                return Ok(Inserted::New);
            }
            if again == 0 || !matches!(error, StorageError::Unavailable { .. }) {
                return Err(error.into());
            }
            again -= 1;
            tokio::time::sleep(write_again_after()).await;
        }
    }

    /// The checkpoint of the session that is forked could go while nothing needed it yet; now the fork does.
    async fn still_there(&self, source: &CheckpointRecord, pilot: &Pilot) -> Result<()> {
        let kept = self.store.checkpoints(source.session).await?;
        if kept.iter().any(|checkpoint| checkpoint.id == source.id) {
            return Ok(());
        }
        self.store.delete(pilot.record.id, pilot.record.version).await?;
        Err(no_checkpoint(source.id))
    }

    /// Goes on with a session that an earlier try has begun, once that one is over.
    async fn take_over(&self, existing: SessionRecord, context: &CallContext) -> Result<Started> {
        let mut existing = existing;
        let mut pause = std::time::Duration::from_millis(2);
        while existing.state == SessionState::Creating {
            let over = existing.details.flight.as_ref().is_none_or(|flight| self.is_over(flight, SystemTime::now()));
            if over {
                let begun = Pilot::begin(self, &existing, Step::Insert, |change, flight| {
                    change.with(|session| session.details.flight = Some(flight))
                });
                if let Some(pilot) = begun.await? {
                    return Ok(Started::Here(Box::new(pilot)));
                }
            }
            if context.remaining().is_some_and(|left| left <= pause) {
                return Err(cloud_sandbox_node_client::deadline_exceeded());
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(std::time::Duration::from_millis(100));
            existing = self.store.get(existing.id).await?.ok_or_else(|| not_found(existing.id))?;
        }
        Ok(Started::Already(Box::new(existing)))
    }
}

enum Started {
    Here(Box<Pilot>),
    Already(Box<SessionRecord>),
}

impl Pilot {
    async fn create(mut self, context: CallContext, source: Option<Source>) -> Result<SessionRecord> {
        let told = match (&source, self.record.details.forked_from) {
            (Some(source), Some(of)) => (
                event::FORKED,
                format!("forked from session {of}, whose checkpoint lies in {}", source.checkpoint.folder),
            ),
            _ => (event::CREATED, "created, and runs".to_owned()),
        };
        let done = self.bring_up(&context, source.as_ref(), |change| change.event(told.0, told.1.clone())).await;
        match done {
            Ok(()) => Ok(self.record),
            Err(error) => self.give_up(error).await,
        }
    }

    /// Removes the row of a session that got no sandbox. Where a sandbox may have been acquired and a retry can ask for
    /// it, the row stays for that; when none comes, the keeper fails it.
    async fn give_up(mut self, error: Error) -> Result<SessionRecord> {
        let stored = self.sessions.store.get(self.record.id).await?.ok_or_else(|| not_found(self.record.id))?;
        if stored.state != SessionState::Creating {
            // another call with the same request_id was quicker
            return if stored.state == SessionState::Running { Ok(stored) } else { Err(error) };
        }
        if error.reason() == overtaken(self.record.id).reason() && error.kind() == ErrorKind::Aborted {
            return Err(error);
        }
        if !is_known(&error) && stored.request_id.is_some() {
            let until_ms = cloud_sandbox_storage::sessions::to_millis(SystemTime::now());
            let left = Change::of(&stored).with(|session| {
                if let Some(flight) = &mut session.details.flight {
                    flight.until_ms = until_ms;
                }
            });
            if let Some(left) = self.sessions.commit(&left).await? {
                let later = cloud_sandbox_storage::sessions::from_millis(until_ms + RETRY_WITHIN_MS);
                self.sessions.store.postpone(&left, Some(later)).await?;
            }
            return Err(error);
        }
        if let Some(sandbox) = stored.details.flight.as_ref().and_then(|flight| flight.sandbox) {
            let _ = self.sessions.hosts.release(sandbox, false).await;
        }
        self.record = stored;
        self.sessions.store.delete(self.record.id, self.record.version).await?;
        self.sessions.superfluous.notify_one();
        Err(error)
    }
}

/// Parts of a request, each with its length before it, so that no two lists of parts look the same.
#[derive(Default)]
struct Fingerprint(Sha256);

impl Fingerprint {
    fn add(&mut self, part: &[u8]) {
        self.0.update((part.len() as u64).to_be_bytes());
        self.0.update(part);
    }

    fn add_map<'a>(&mut self, map: impl IntoIterator<Item = (&'a String, &'a String)>) {
        let mut entries: Vec<_> = map.into_iter().collect();
        entries.sort();
        self.add(&entries.len().to_be_bytes());
        for (key, value) in entries {
            self.add(key.as_bytes());
            self.add(value.as_bytes());
        }
    }

    fn finish(self) -> String {
        self.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// What a request asks for, in a form that tells requests apart and keeps no secret of theirs.
fn fingerprint(request: &CreateSessionRequest) -> String {
    let mut digest = Fingerprint::default();
    digest.add(request.template.as_bytes());
    digest.add(&request.timeout_seconds.to_be_bytes());
    let limits = request.limits.unwrap_or_default();
    digest.add(&limits.memory_bytes.to_be_bytes());
    digest.add(&limits.cpu_millis.to_be_bytes());
    digest.add(&limits.pids.to_be_bytes());
    digest.add(&limits.disk_bytes.to_be_bytes());
    digest.add_map(&request.env);
    digest.add_map(&request.metadata);
    digest.add(&request.idle_timeout_seconds.to_be_bytes());
    digest.add(&request.on_timeout.to_be_bytes());
    digest.add(&[u8::from(request.auto_resume)]);
    // what earlier versions did not know is hashed only where it is asked for, so that the retry of a request that one of
    // them took is still the same
    let later = [limits.open_files, limits.execution_seconds, limits.cpu_weight];
    if later != [0; 3] || limits.output_bytes != 0 {
        digest.add(b"limits");
        later.iter().for_each(|limit| digest.add(&limit.to_be_bytes()));
        digest.add(&limits.output_bytes.to_be_bytes());
    }
    let network = wanted_network(request.network.as_ref());
    if network != WantedNetwork::default() {
        digest.add(b"network");
        digest.add(network.mode.as_bytes());
        for entries in [&network.allow, &network.deny] {
            digest.add(&(entries.len() as u64).to_be_bytes());
            entries.iter().for_each(|entry| digest.add(entry.as_bytes()));
        }
    }
    digest.finish()
}

/// The same for a fork: what is forked, and under which labels.
fn fork_fingerprint(record: &SessionRecord) -> String {
    let mut digest = Fingerprint::default();
    digest.add(b"fork");
    digest.add(record.details.forked_from.map(|id| id.to_string()).unwrap_or_default().as_bytes());
    digest.add_map(&record.metadata);
    digest.finish()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_proto::v1::ResourceLimits;

    use super::*;

    fn request(env: &[(&str, &str)], metadata: &[(&str, &str)]) -> CreateSessionRequest {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        CreateSessionRequest { env: map(env), metadata: map(metadata), ..CreateSessionRequest::default() }
    }

    fn network(allow: &[&str], deny: &[&str]) -> Option<cloud_sandbox_proto::v1::NetworkPolicy> {
        let list = |entries: &[&str]| entries.iter().map(ToString::to_string).collect();
        let mode = cloud_sandbox_proto::v1::NetworkMode::Egress.into();
        Some(cloud_sandbox_proto::v1::NetworkPolicy { mode, allow: list(allow), deny: list(deny) })
    }

    #[test]
    fn fingerprint_tells_requests_apart_but_not_their_ids_or_order() {
        let first = fingerprint(&request(&[("a", "1"), ("b", "2")], &[]));
        assert_eq!(first, fingerprint(&request(&[("b", "2"), ("a", "1")], &[])));
        let renamed = CreateSessionRequest { request_id: "r".into(), ..request(&[("a", "1"), ("b", "2")], &[]) };
        assert_eq!(first, fingerprint(&renamed));
        let base = || request(&[("a", "1"), ("b", "2")], &[]);
        let limited = |limits| CreateSessionRequest { limits: Some(limits), ..base() };
        let others = [
            request(&[("a", "1")], &[("b", "2")]),
            request(&[("a", "12"), ("b", "")], &[]),
            request(&[], &[("a", "1"), ("b", "2")]),
            CreateSessionRequest { template: "x".into(), ..base() },
            CreateSessionRequest { timeout_seconds: 1, ..base() },
            CreateSessionRequest { idle_timeout_seconds: 1, ..base() },
            CreateSessionRequest { on_timeout: 2, ..base() },
            CreateSessionRequest { auto_resume: true, ..base() },
            CreateSessionRequest { network: network(&[], &[]), ..base() },
            CreateSessionRequest { network: network(&["a", "b"], &[]), ..base() },
            CreateSessionRequest { network: network(&["a"], &["b"]), ..base() },
            limited(ResourceLimits { pids: 9, ..ResourceLimits::default() }),
            limited(ResourceLimits { open_files: 9, ..ResourceLimits::default() }),
            limited(ResourceLimits { output_bytes: 9, ..ResourceLimits::default() }),
            limited(ResourceLimits { execution_seconds: 9, ..ResourceLimits::default() }),
            limited(ResourceLimits { cpu_weight: 9, ..ResourceLimits::default() }),
        ];
        for other in others {
            assert_ne!(first, fingerprint(&other), "{other:?}");
        }
    }
}
