//! FileService.

use std::sync::Arc;

use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::Result;
use cloud_sandbox_node_client::{Nodes, missing};
use cloud_sandbox_proto::{
    node,
    v1::{
        self, DeleteFileRequest, DeleteFileResponse, ReadFileRequest, ReadFileResponse, WriteFileRequest,
        WriteFileResponse, file_service_server::FileServiceServer,
    },
};
use cloud_sandbox_rpc::{CallContext, Dial, to_status, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::Directory;
use tonic::{Request, Response, Status};

/// Works with the files of sandboxes, wherever they are.
#[derive(Clone)]
pub struct FileService {
    nodes: Nodes,
}

impl FileService {
    /// A service that finds sandboxes in `directory` and calls their nodes through `dial`.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>) -> Self {
        Self { nodes: Nodes::new(directory, dial) }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> FileServiceServer<Self> {
        FileServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn read(&self, request: Request<ReadFileRequest>) -> Result<ReadFileResponse> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner();
        let id = wanted.sandbox_id.clone();
        let outbound = context.outbound(node::v1::ReadFileRequest { request: Some(wanted) });
        let call = self
            .nodes
            .call(&principal, &context, &id, |mut node| Box::pin(async move { node.read_file(outbound).await }));
        missing(call.await?.response, "response")
    }

    async fn write(&self, request: Request<WriteFileRequest>) -> Result<WriteFileResponse> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner();
        let id = wanted.sandbox_id.clone();
        let outbound = context.outbound(node::v1::WriteFileRequest { request: Some(wanted) });
        let call = self
            .nodes
            .call(&principal, &context, &id, |mut node| Box::pin(async move { node.write_file(outbound).await }));
        let file = missing(call.await?.file, "file")?;
        Ok(WriteFileResponse { file: Some(file) })
    }

    async fn delete(&self, request: Request<DeleteFileRequest>) -> Result<DeleteFileResponse> {
        let context = CallContext::of(&request);
        let principal = Principal::of(&request)?.clone();
        let wanted = request.into_inner();
        let (id, path) = (wanted.sandbox_id.clone(), wanted.path.clone());
        let outbound = context.outbound(node::v1::DeleteFileRequest { request: Some(wanted) });
        let call = self
            .nodes
            .call(&principal, &context, &id, |mut node| Box::pin(async move { node.delete_file(outbound).await }));
        call.await?;
        Ok(DeleteFileResponse { path, deleted: true })
    }
}

#[tonic::async_trait]
impl v1::file_service_server::FileService for FileService {
    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        self.read(request).await.map(Response::new).map_err(to_status)
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Result<Response<WriteFileResponse>, Status> {
        self.write(request).await.map(Response::new).map_err(to_status)
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Result<Response<DeleteFileResponse>, Status> {
        self.delete(request).await.map(Response::new).map_err(to_status)
    }
}
