//! node.v1: the lives of sandboxes.

use std::time::{Duration, SystemTime};

use cloud_sandbox_model::{ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::{
    node::v1::{
        AcquireSandboxRequest, AcquireSandboxResponse, Activity, CheckpointSandboxRequest, CheckpointSandboxResponse,
        GetSandboxRequest, GetSandboxResponse, KeepAliveSandboxRequest, KeepAliveSandboxResponse, PauseSandboxRequest,
        PauseSandboxResponse, ReleaseSandboxRequest, ReleaseSandboxResponse, RestoreSandboxRequest,
        RestoreSandboxResponse, ResumeSandboxRequest, ResumeSandboxResponse, SetTemplatesRequest, SetTemplatesResponse,
        UpdateSandboxRequest, UpdateSandboxResponse, node_service_server::NodeService,
    },
    v1,
};
use cloud_sandbox_storage::SandboxEntry;
use tonic::{Request, Response, Status};

use crate::node::{LEASE_DEFAULT, SimNode, status, wanted};

#[tonic::async_trait]
impl NodeService for SimNode {
    async fn acquire_sandbox(
        &self,
        request: Request<AcquireSandboxRequest>,
    ) -> Result<Response<AcquireSandboxResponse>, Status> {
        let call = self.enter("AcquireSandbox", &request).await?;
        let request = request.into_inner();
        let (owner, wanted) = (wanted(request.owner)?, wanted(request.request)?);
        let key = format!("{}/{}/{}", owner.tenant, owner.user_id, wanted.request_id);
        let answered = self.state().answers.get(&key).cloned();
        if let Some((first, sandbox)) = answered {
            if first != wanted {
                return Err(status(ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED, "other content"));
            }
            return call.reply(AcquireSandboxResponse { sandbox: Some(sandbox), warm: true });
        }
        self.state().acquired_templates.push(wanted.template.clone());
        let sandbox = self.make(&owner, &wanted).await?;
        if !wanted.request_id.is_empty() {
            self.state().answers.insert(key, (wanted, sandbox.clone()));
        }
        call.reply(AcquireSandboxResponse { sandbox: Some(sandbox), warm: true })
    }

    async fn release_sandbox(
        &self,
        request: Request<ReleaseSandboxRequest>,
    ) -> Result<Response<ReleaseSandboxResponse>, Status> {
        let call = self.enter("ReleaseSandbox", &request).await?;
        let id = &request.get_ref().sandbox_id;
        self.readable(id)?;
        let id: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        if request.get_ref().keep_journal {
            self.end(id).await;
        } else {
            self.forget(id);
            self.0.directory.remove_sandbox(id).await.expect("the directory forgets sandboxes");
        }
        call.reply(ReleaseSandboxResponse {})
    }

    async fn keep_alive_sandbox(
        &self,
        request: Request<KeepAliveSandboxRequest>,
    ) -> Result<Response<KeepAliveSandboxResponse>, Status> {
        let call = self.enter("KeepAliveSandbox", &request).await?;
        let sandbox = self.lend(&request.get_ref().sandbox_id, request.get_ref().timeout_seconds).await?;
        call.reply(KeepAliveSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn update_sandbox(
        &self,
        request: Request<UpdateSandboxRequest>,
    ) -> Result<Response<UpdateSandboxResponse>, Status> {
        let call = self.enter("UpdateSandbox", &request).await?;
        let request = request.into_inner();
        let mut sandbox = self.hosted(&request.sandbox_id)?;
        sandbox.network = request.network.clone();
        let id: SandboxId = request.sandbox_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        if let Some((_, kept)) = self.state().sandboxes.get_mut(&id) {
            kept.network = request.network;
        }
        call.reply(UpdateSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Result<Response<GetSandboxResponse>, Status> {
        let call = self.enter("GetSandbox", &request).await?;
        let sandbox = self.hosted(&request.get_ref().sandbox_id)?;
        let id: SandboxId = sandbox.sandbox_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let last_active = self.inside(id).last_active.unwrap_or_else(SystemTime::now);
        let activity = Some(Activity { last_active_time: Some(last_active.into()) });
        call.reply(GetSandboxResponse { sandbox: Some(sandbox), activity })
    }

    async fn pause_sandbox(
        &self,
        request: Request<PauseSandboxRequest>,
    ) -> Result<Response<PauseSandboxResponse>, Status> {
        let call = self.enter("PauseSandbox", &request).await?;
        let sandbox = self.turn(&request.get_ref().sandbox_id, v1::SandboxState::Paused)?;
        call.reply(PauseSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn resume_sandbox(
        &self,
        request: Request<ResumeSandboxRequest>,
    ) -> Result<Response<ResumeSandboxResponse>, Status> {
        let call = self.enter("ResumeSandbox", &request).await?;
        let sandbox = self.turn(&request.get_ref().sandbox_id, v1::SandboxState::Acquired)?;
        let id: SandboxId = sandbox.sandbox_id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        if let Some(inside) = self.state().inside.get_mut(&id) {
            inside.stopped = false;
        }
        call.reply(ResumeSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn checkpoint_sandbox(
        &self,
        request: Request<CheckpointSandboxRequest>,
    ) -> Result<Response<CheckpointSandboxResponse>, Status> {
        let call = self.enter("CheckpointSandbox", &request).await?;
        self.hosted(&request.get_ref().sandbox_id)?;
        call.reply(self.save(request.get_ref()).await?)
    }

    async fn restore_sandbox(
        &self,
        request: Request<RestoreSandboxRequest>,
    ) -> Result<Response<RestoreSandboxResponse>, Status> {
        let call = self.enter("RestoreSandbox", &request).await?;
        self.hosted(&request.get_ref().sandbox_id)?;
        let manifest = Some(self.restore(request.get_ref()).await?);
        call.reply(RestoreSandboxResponse { manifest })
    }

    async fn set_templates(
        &self,
        request: Request<SetTemplatesRequest>,
    ) -> Result<Response<SetTemplatesResponse>, Status> {
        let call = self.enter("SetTemplates", &request).await?;
        let SetTemplatesRequest { templates, revision } = request.into_inner();
        let is_newer = {
            let mut state = self.state();
            let is_newer = revision >= state.revision;
            if is_newer {
                (state.told, state.revision) = (templates, revision);
            }
            is_newer
        };
        if is_newer {
            self.report_again().await;
        }
        call.reply(SetTemplatesResponse {})
    }
}

impl SimNode {
    pub(crate) fn turn(&self, id: &str, state: v1::SandboxState) -> Result<v1::Sandbox, Status> {
        let mut sandbox = self.hosted(id)?;
        sandbox.state = state.into();
        let parsed: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        if let Some((_, hosted)) = self.state().sandboxes.get_mut(&parsed) {
            hosted.state = state.into();
        }
        Ok(sandbox)
    }

    /// Starts a lease anew, also in the directory.
    async fn lend(&self, id: &str, seconds: u32) -> Result<v1::Sandbox, Status> {
        let mut sandbox = self.hosted(id)?;
        let parsed: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        let seconds = if seconds == 0 { LEASE_DEFAULT } else { seconds };
        let expires_at = SystemTime::now() + Duration::from_secs(seconds.into());
        sandbox.expire_time = Some(expires_at.into());
        if let Some((_, hosted)) = self.state().sandboxes.get_mut(&parsed) {
            hosted.expire_time = sandbox.expire_time;
        }
        if let Some(entry) = self.0.directory.sandbox(parsed).await.expect("the directory answers") {
            let entry = SandboxEntry { expires_at, ..entry };
            self.0.directory.put_sandbox(&entry).await.expect("the directory takes sandboxes");
        }
        Ok(sandbox)
    }
}
