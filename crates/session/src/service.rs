//! SessionService: takes requests apart and hands them on.

use cloud_sandbox_auth::{Principal, Role};
use cloud_sandbox_model::{
    CheckpointId, Result, SandboxId, SessionState,
    input::{Violations, page_size, parse_labels},
};
use cloud_sandbox_proto::v1::{
    self, CreateCheckpointRequest, CreateCheckpointResponse, CreateSessionRequest, CreateSessionResponse,
    DeleteSessionRequest, DeleteSessionResponse, ForkSessionRequest, ForkSessionResponse, GetSessionRequest,
    GetSessionResponse, ListCheckpointsRequest, ListCheckpointsResponse, ListSessionEventsRequest,
    ListSessionEventsResponse, ListSessionsRequest, ListSessionsResponse, PauseSessionRequest, PauseSessionResponse,
    ResumeSessionRequest, ResumeSessionResponse, Session, UpdateSessionRequest, UpdateSessionResponse,
    session_service_server::SessionServiceServer,
};
use cloud_sandbox_rpc::{CallContext, network_policy, to_status, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::{SessionFilter, SessionRecord, page};
use tonic::{Request, Response, Status};

use crate::{
    change::event,
    hosts::is_gone,
    life::{SANDBOX_ENDED, Sessions, overtaken, wrong_state},
    resume::Wanted,
    timeouts,
    wire::{depth, newest_first, shown, shown_checkpoint, shown_event, state_filter, wanted_network},
};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// Keeps users' work over time.
#[derive(Clone)]
pub struct SessionService {
    sessions: Sessions,
}

impl SessionService {
    /// The service of `sessions`.
    #[must_use]
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> SessionServiceServer<Self> {
        SessionServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn get(&self, request: Request<GetSessionRequest>) -> Result<SessionRecord> {
        let record = self.sessions.find(Principal::of(&request)?, &request.get_ref().session_id).await?;
        self.refreshed(record).await
    }

    /// The session, failed if its sandbox is gone. A node that cannot be asked leaves it as it is.
    async fn refreshed(&self, record: SessionRecord) -> Result<SessionRecord> {
        let (SessionState::Running | SessionState::Paused, Some(sandbox)) = (record.state, record.sandbox) else {
            return Ok(record);
        };
        match self.sessions.hosts.look(sandbox, record.details.node).await {
            Err(error) if is_gone(&error) => self.sessions.fail(record, SANDBOX_ENDED).await,
            _ => Ok(record),
        }
    }

    async fn list(&self, request: Request<ListSessionsRequest>) -> Result<ListSessionsResponse> {
        let principal = Principal::of(&request)?;
        let wanted = request.get_ref();
        let size = page_size(wanted.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        let after = page::after(&wanted.page_token)?;
        let filter = SessionFilter {
            tenant: Some(principal.tenant.clone()),
            user: (principal.role == Role::User).then(|| principal.user.clone()),
            states: state_filter(wanted.state)?.into_iter().collect(),
            due_by: None,
            metadata: parse_labels("metadata", &wanted.metadata)?,
            newest_first: newest_first(wanted.order_by)?,
        };
        let mut found = self.sessions.store.list(&filter, after, size + 1).await?;
        let next_page_token = page::cut(&mut found, size, |record| record.id);
        Ok(ListSessionsResponse { sessions: found.into_iter().map(shown).collect(), next_page_token })
    }

    async fn update(&self, request: Request<UpdateSessionRequest>) -> Result<SessionRecord> {
        let record = self.sessions.find(Principal::of(&request)?, &request.get_ref().session_id).await?;
        let wanted = request.into_inner();
        let mut violations = Violations::default();
        timeouts::check(&mut violations, wanted.timeout_seconds, wanted.idle_timeout_seconds);
        let on_timeout = violations.take(timeouts::action(wanted.on_timeout)).flatten();
        violations.take(network_policy("network", wanted.network.as_ref()));
        violations.finish()?;
        let told = match wanted.network.clone() {
            Some(network) => Some(self.tell(&record, network).await?),
            None => None,
        };
        self.sessions
            .apply(record, |change| {
                if change.next.state == SessionState::Deleting {
                    return Err(wrong_state(&change.next, "updated"));
                }
                if told.is_some_and(|told| told != change.next.sandbox || change.next.details.flight.is_some()) {
                    return Err(overtaken(change.next.id));
                }
                let mut metadata = change.next.metadata.clone();
                metadata.extend(wanted.metadata.clone());
                for key in &wanted.remove_metadata {
                    metadata.remove(key);
                }
                let mut violations = Violations::default();
                violations.metadata("metadata", &metadata);
                violations.finish()?;
                let change = change.with(|session| {
                    session.metadata = metadata;
                    let details = &mut session.details;
                    details.timeout_seconds = wanted.timeout_seconds.unwrap_or(details.timeout_seconds);
                    details.idle_timeout_seconds = wanted.idle_timeout_seconds.unwrap_or(details.idle_timeout_seconds);
                    details.on_timeout = on_timeout.unwrap_or(details.on_timeout);
                    details.auto_resume = wanted.auto_resume.unwrap_or(details.auto_resume);
                    if wanted.network.is_some() {
                        details.network = wanted_network(wanted.network.as_ref());
                    }
                });
                Ok(change.event(event::UPDATED, "labels, timeouts or the network policy were changed"))
            })
            .await
    }

    /// Has the session's sandbox, which is given, see of the network what `network` says. One that is being made or
    /// restored has been asked for with the policy before.
    async fn tell(&self, record: &SessionRecord, network: v1::NetworkPolicy) -> Result<Option<SandboxId>> {
        if record.details.flight.is_some() {
            return Err(wrong_state(record, "given another network policy; try again"));
        }
        if let Some(sandbox) = record.sandbox {
            self.sessions.hosts.set_network(sandbox, record.details.node, network).await?;
        }
        Ok(record.sandbox)
    }

    async fn resume(&self, request: Request<ResumeSessionRequest>) -> Result<SessionRecord> {
        let context = CallContext::of(&request);
        let wanted = request.get_ref();
        let checkpoint = checkpoint_id(&wanted.checkpoint_id)?;
        let how = Wanted { checkpoint, restart_commands: wanted.restart_commands };
        self.sessions.resume(Principal::of(&request)?, &context, &wanted.session_id, how).await
    }

    async fn checkpoints(&self, request: Request<ListCheckpointsRequest>) -> Result<ListCheckpointsResponse> {
        let record = self.sessions.find(Principal::of(&request)?, &request.get_ref().session_id).await?;
        let kept = self.sessions.store.checkpoints(record.id).await?;
        let complete = kept.into_iter().rev().filter(|checkpoint| checkpoint.complete);
        Ok(ListCheckpointsResponse { checkpoints: complete.map(|kept| shown_checkpoint(&kept)).collect() })
    }

    async fn fork(&self, request: Request<ForkSessionRequest>) -> Result<SessionRecord> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner();
        let mut violations = Violations::default();
        violations.request_id("request_id", &wanted.request_id);
        violations.metadata("metadata", &wanted.metadata);
        violations.finish()?;
        let given = checkpoint_id(&wanted.checkpoint_id)?;
        let record = self.sessions.find_settled(&principal, &context, &wanted.session_id).await?;
        let source = match (given, record.details.checkpoint) {
            (Some(given), _) => self.sessions.checkpoint(record.id, given).await?,
            (None, _) if record.state == SessionState::Running => {
                self.sessions.save_running(&principal, &context, &wanted.session_id).await?.1
            }
            (None, Some(last)) => self.sessions.checkpoint(record.id, last).await?,
            (None, None) => return Err(wrong_state(&record, "forked: it has no checkpoint")),
        };
        self.sessions.fork(&principal, &context, record, source, wanted.metadata, wanted.request_id).await
    }

    async fn events(&self, request: Request<ListSessionEventsRequest>) -> Result<ListSessionEventsResponse> {
        let record = self.sessions.find(Principal::of(&request)?, &request.get_ref().session_id).await?;
        let wanted = request.get_ref();
        let size = page_size(wanted.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        let after = i64::try_from(wanted.after_sequence).unwrap_or(i64::MAX);
        let events = self.sessions.store.events(record.id, after, size).await?;
        Ok(ListSessionEventsResponse { events: events.into_iter().map(shown_event).collect() })
    }
}

fn checkpoint_id(text: &str) -> Result<Option<CheckpointId>> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// A session as the answer of a method.
fn answered<T>(
    result: Result<SessionRecord>,
    answer: impl FnOnce(Option<Session>) -> T,
) -> Result<Response<T>, Status> {
    result.map(|record| Response::new(answer(Some(shown(record))))).map_err(to_status)
}

#[tonic::async_trait]
impl v1::session_service_server::SessionService for SessionService {
    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request).map_err(to_status)?.clone();
        let created = self.sessions.create(&principal, &context, request.into_inner()).await;
        answered(created, |session| CreateSessionResponse { session })
    }

    async fn get_session(&self, request: Request<GetSessionRequest>) -> Result<Response<GetSessionResponse>, Status> {
        answered(self.get(request).await, |session| GetSessionResponse { session })
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        self.list(request).await.map(Response::new).map_err(to_status)
    }

    async fn update_session(
        &self,
        request: Request<UpdateSessionRequest>,
    ) -> Result<Response<UpdateSessionResponse>, Status> {
        answered(self.update(request).await, |session| UpdateSessionResponse { session })
    }

    async fn pause_session(
        &self,
        request: Request<PauseSessionRequest>,
    ) -> Result<Response<PauseSessionResponse>, Status> {
        let context = CallContext::of(&request);
        let wanted = depth(request.get_ref().depth).map_err(to_status)?;
        let principal = Principal::of(&request).map_err(to_status)?;
        let paused = self.sessions.pause(principal, &context, &request.get_ref().session_id, wanted).await;
        answered(paused, |session| PauseSessionResponse { session })
    }

    async fn resume_session(
        &self,
        request: Request<ResumeSessionRequest>,
    ) -> Result<Response<ResumeSessionResponse>, Status> {
        answered(self.resume(request).await, |session| ResumeSessionResponse { session })
    }

    async fn delete_session(
        &self,
        request: Request<DeleteSessionRequest>,
    ) -> Result<Response<DeleteSessionResponse>, Status> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request).map_err(to_status)?;
        let deleted = self.sessions.delete(principal, &context, &request.get_ref().session_id).await;
        deleted.map_err(to_status)?;
        Ok(Response::new(DeleteSessionResponse { session_id: request.into_inner().session_id, deleted: true }))
    }

    async fn create_checkpoint(
        &self,
        request: Request<CreateCheckpointRequest>,
    ) -> Result<Response<CreateCheckpointResponse>, Status> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request).map_err(to_status)?;
        let saved = self.sessions.save_running(principal, &context, &request.get_ref().session_id).await;
        let (_, checkpoint) = saved.map_err(to_status)?;
        Ok(Response::new(CreateCheckpointResponse { checkpoint: Some(shown_checkpoint(&checkpoint)) }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<ListCheckpointsRequest>,
    ) -> Result<Response<ListCheckpointsResponse>, Status> {
        self.checkpoints(request).await.map(Response::new).map_err(to_status)
    }

    async fn fork_session(
        &self,
        request: Request<ForkSessionRequest>,
    ) -> Result<Response<ForkSessionResponse>, Status> {
        answered(self.fork(request).await, |session| ForkSessionResponse { session })
    }

    async fn list_session_events(
        &self,
        request: Request<ListSessionEventsRequest>,
    ) -> Result<Response<ListSessionEventsResponse>, Status> {
        self.events(request).await.map(Response::new).map_err(to_status)
    }
}
