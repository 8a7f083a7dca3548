//! SessionService.

use std::sync::Arc;

use cloud_sandbox_auth::{Principal, Role};
use cloud_sandbox_model::{
    Error, ErrorKind, Result, SessionState,
    input::{page_size, parse_labels},
};
use cloud_sandbox_node_client::{Nodes, within};
use cloud_sandbox_proto::v1::{
    self, CreateSessionRequest, CreateSessionResponse, DeleteSessionRequest, DeleteSessionResponse, GetSandboxRequest,
    GetSessionRequest, GetSessionResponse, ListSessionsRequest, ListSessionsResponse, PauseDepth, PauseSessionRequest,
    PauseSessionResponse, ResumeSessionRequest, ResumeSessionResponse, Session,
    scheduler_service_client::SchedulerServiceClient, session_service_server::SessionServiceServer,
};
use cloud_sandbox_rpc::{CallContext, Dial, Upstream, to_status, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::{Directory, SessionFilter, SessionRecord, SessionStore, page};
use tonic::{Request, Response, Status};

use crate::{
    create::{Create, scheduler_failure},
    life::{SANDBOX_ENDED, Sessions, shown, state_filter},
};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 1000;

pub(crate) type SchedulerClient = SchedulerServiceClient<Upstream>;

/// Keeps users' work over time.
#[derive(Clone)]
pub struct SessionService {
    sessions: Sessions,
    scheduler: SchedulerClient,
}

impl SessionService {
    /// A service that keeps sessions in `store`, acquires sandboxes from `scheduler` in the caller's name, and freezes,
    /// thaws and releases them at their nodes, found in `directory` and called through `dial`.
    #[must_use]
    pub fn new(
        store: Arc<dyn SessionStore>,
        scheduler: Upstream,
        directory: Arc<dyn Directory>,
        dial: Arc<dyn Dial>,
    ) -> Self {
        let scheduler = SchedulerClient::new(scheduler)
            .max_decoding_message_size(MESSAGE_MAX)
            .max_encoding_message_size(MESSAGE_MAX);
        Self { sessions: Sessions { store, nodes: Nodes::new(directory, dial) }, scheduler }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> SessionServiceServer<Self> {
        SessionServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn create(&self, request: Request<CreateSessionRequest>) -> Result<SessionRecord> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let create = Create {
            sessions: &self.sessions,
            scheduler: self.scheduler.clone(),
            principal: &principal,
            context: &context,
        };
        create.run(request.into_inner()).await
    }

    async fn get(&self, request: Request<GetSessionRequest>) -> Result<SessionRecord> {
        let context = CallContext::of(&request);
        let record = self.sessions.find(Principal::of(&request)?, &request.get_ref().session_id).await?;
        self.refreshed(&context, record).await
    }

    /// The session, failed if its sandbox is gone. A scheduler or node that cannot be asked leaves it as it is.
    async fn refreshed(&self, context: &CallContext, record: SessionRecord) -> Result<SessionRecord> {
        let (SessionState::Running | SessionState::Paused, Some(sandbox)) = (record.state, record.sandbox) else {
            return Ok(record);
        };
        let mut scheduler = self.scheduler.clone();
        let request = context.outbound_as_caller(GetSandboxRequest { sandbox_id: sandbox.to_string() });
        match within(context, scheduler.get_sandbox(request)).await? {
            Err(status) if scheduler_failure(&status).kind() == ErrorKind::NotFound => {
                self.sessions.fail(record, SANDBOX_ENDED).await
            }
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
            idle_since: None,
            metadata: parse_labels("metadata", &wanted.metadata)?,
        };
        let mut found = self.sessions.store.list(&filter, after, size + 1).await?;
        let next_page_token = page::cut(&mut found, size, |record| record.id);
        Ok(ListSessionsResponse { sessions: found.into_iter().map(shown).collect(), next_page_token })
    }

    async fn pause(&self, request: Request<PauseSessionRequest>) -> Result<SessionRecord> {
        let context = CallContext::of(&request);
        let PauseSessionRequest { session_id, depth } = request.get_ref();
        PauseDepth::try_from(*depth).map_err(|_| Error::invalid("depth", "must be a known depth"))?;
        self.sessions.pause(Principal::of(&request)?, &context, session_id).await
    }

    async fn resume(&self, request: Request<ResumeSessionRequest>) -> Result<SessionRecord> {
        let context = CallContext::of(&request);
        self.sessions.resume(Principal::of(&request)?, &context, &request.get_ref().session_id).await
    }

    async fn delete(&self, request: Request<DeleteSessionRequest>) -> Result<DeleteSessionResponse> {
        let context = CallContext::of(&request);
        self.sessions.delete(Principal::of(&request)?, &context, &request.get_ref().session_id).await?;
        Ok(DeleteSessionResponse { session_id: request.into_inner().session_id, deleted: true })
    }
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
        answered(self.create(request).await, |session| CreateSessionResponse { session })
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

    async fn pause_session(
        &self,
        request: Request<PauseSessionRequest>,
    ) -> Result<Response<PauseSessionResponse>, Status> {
        answered(self.pause(request).await, |session| PauseSessionResponse { session })
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
        self.delete(request).await.map(Response::new).map_err(to_status)
    }

    async fn update_session(
        &self,
        _: Request<cloud_sandbox_proto::v1::UpdateSessionRequest>,
    ) -> Result<Response<cloud_sandbox_proto::v1::UpdateSessionResponse>, Status> {
        Err(Status::unimplemented("update_session"))
    }

    async fn create_checkpoint(
        &self,
        _: Request<cloud_sandbox_proto::v1::CreateCheckpointRequest>,
    ) -> Result<Response<cloud_sandbox_proto::v1::CreateCheckpointResponse>, Status> {
        Err(Status::unimplemented("create_checkpoint"))
    }

    async fn list_checkpoints(
        &self,
        _: Request<cloud_sandbox_proto::v1::ListCheckpointsRequest>,
    ) -> Result<Response<cloud_sandbox_proto::v1::ListCheckpointsResponse>, Status> {
        Err(Status::unimplemented("list_checkpoints"))
    }

    async fn fork_session(
        &self,
        _: Request<cloud_sandbox_proto::v1::ForkSessionRequest>,
    ) -> Result<Response<cloud_sandbox_proto::v1::ForkSessionResponse>, Status> {
        Err(Status::unimplemented("fork_session"))
    }

    async fn list_session_events(
        &self,
        _: Request<cloud_sandbox_proto::v1::ListSessionEventsRequest>,
    ) -> Result<Response<cloud_sandbox_proto::v1::ListSessionEventsResponse>, Status> {
        Err(Status::unimplemented("list_session_events"))
    }
}
