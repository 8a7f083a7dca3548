//! node.v1: the lives of sandboxes.

use cloud_sandbox_model::{ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::{
    node::v1::{
        AcquireSandboxRequest, AcquireSandboxResponse, GetSandboxRequest, GetSandboxResponse, KeepAliveSandboxRequest,
        KeepAliveSandboxResponse, PauseSandboxRequest, PauseSandboxResponse, ReleaseSandboxRequest,
        ReleaseSandboxResponse, ResumeSandboxRequest, ResumeSandboxResponse, node_service_server::NodeService,
    },
    v1,
};
use tonic::{Request, Response, Status};

use crate::node::{SimNode, status, wanted};

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
        self.forget(id);
        self.0.directory.remove_sandbox(id).await.expect("the directory forgets sandboxes");
        call.reply(ReleaseSandboxResponse {})
    }

    async fn keep_alive_sandbox(
        &self,
        request: Request<KeepAliveSandboxRequest>,
    ) -> Result<Response<KeepAliveSandboxResponse>, Status> {
        let call = self.enter("KeepAliveSandbox", &request).await?;
        let sandbox = self.hosted(&request.get_ref().sandbox_id)?;
        call.reply(KeepAliveSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn get_sandbox(&self, request: Request<GetSandboxRequest>) -> Result<Response<GetSandboxResponse>, Status> {
        let call = self.enter("GetSandbox", &request).await?;
        let sandbox = self.hosted(&request.get_ref().sandbox_id)?;
        call.reply(GetSandboxResponse { sandbox: Some(sandbox), ..Default::default() })
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
        call.reply(ResumeSandboxResponse { sandbox: Some(sandbox) })
    }

    async fn checkpoint_sandbox(
        &self,
        _: Request<cloud_sandbox_proto::node::v1::CheckpointSandboxRequest>,
    ) -> Result<Response<cloud_sandbox_proto::node::v1::CheckpointSandboxResponse>, Status> {
        Err(Status::unimplemented("checkpoint_sandbox"))
    }

    async fn restore_sandbox(
        &self,
        _: Request<cloud_sandbox_proto::node::v1::RestoreSandboxRequest>,
    ) -> Result<Response<cloud_sandbox_proto::node::v1::RestoreSandboxResponse>, Status> {
        Err(Status::unimplemented("restore_sandbox"))
    }
}

impl SimNode {
    fn turn(&self, id: &str, state: v1::SandboxState) -> Result<v1::Sandbox, Status> {
        let mut sandbox = self.hosted(id)?;
        sandbox.state = state.into();
        let parsed: SandboxId = id.parse().map_err(cloud_sandbox_rpc::to_status)?;
        if let Some((_, hosted)) = self.state().sandboxes.get_mut(&parsed) {
            hosted.state = state.into();
        }
        Ok(sandbox)
    }
}
