//! `FileService` of a node's own sandboxes.

use std::sync::Arc;

use cloud_sandbox_proto::v1::{
    self,
    file_service_server::{self, FileServiceServer},
};
use cloud_sandbox_rpc::{to_status, upstream::MESSAGE_MAX};
use tonic::{Request, Response, Streaming};
use tracing::instrument;

use super::{Answer, Events, find};
use crate::{
    files::{self, FileRequest, Files},
    node::Shared,
};

/// The `FileService` of `cloud_sandbox.v1` for the sandboxes of one node, cheap to clone.
#[derive(Clone)]
pub struct FileService {
    node: Arc<Shared>,
}

impl FileService {
    pub(crate) fn server(node: &Arc<Shared>) -> FileServiceServer<Self> {
        let server = FileServiceServer::new(Self { node: Arc::clone(node) });
        server.max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }

    async fn call<Q, A, F>(&self, request: Request<Q>, send: F) -> Answer<A>
    where
        Q: FileRequest,
        F: AsyncFnOnce(Files, Request<Q>) -> Answer<A>,
    {
        let request = request.into_inner();
        let sandbox = find(&self.node, &request).map_err(to_status)?;
        files::call(&sandbox, request, send).await.map(Response::new).map_err(to_status)
    }

    async fn stream<Q, A, F>(&self, request: Request<Q>, send: F) -> Answer<Events<A>>
    where
        Q: FileRequest,
        A: Send + 'static,
        F: AsyncFnOnce(Files, Request<Q>) -> Answer<Streaming<A>>,
    {
        let request = request.into_inner();
        let sandbox = find(&self.node, &request).map_err(to_status)?;
        files::stream(sandbox, request, send).await.map(Response::new).map_err(to_status)
    }
}

#[tonic::async_trait]
impl file_service_server::FileService for FileService {
    type DownloadFileStream = Events<v1::DownloadFileResponse>;
    type WatchFilesStream = Events<v1::WatchFilesResponse>;
    type DownloadArchiveStream = Events<v1::DownloadArchiveResponse>;

    #[instrument(skip_all, fields(sandbox_id))]
    async fn read_file(&self, request: Request<v1::ReadFileRequest>) -> Answer<v1::ReadFileResponse> {
        self.call(request, async |mut agent, request| agent.read_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn download_file(&self, request: Request<v1::DownloadFileRequest>) -> Answer<Self::DownloadFileStream> {
        self.stream(request, async |mut agent, request| agent.download_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn write_file(&self, request: Request<v1::WriteFileRequest>) -> Answer<v1::WriteFileResponse> {
        self.call(request, async |mut agent, request| agent.write_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn upload_file(&self, request: Request<Streaming<v1::UploadFileRequest>>) -> Answer<v1::UploadFileResponse> {
        let send = async |mut agent: Files, request| agent.upload_file(request).await;
        files::upload(&self.node, request.into_inner(), send).await.map(Response::new).map_err(to_status)
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn write_files(&self, request: Request<v1::WriteFilesRequest>) -> Answer<v1::WriteFilesResponse> {
        self.call(request, async |mut agent, request| agent.write_files(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn delete_file(&self, request: Request<v1::DeleteFileRequest>) -> Answer<v1::DeleteFileResponse> {
        self.call(request, async |mut agent, request| agent.delete_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn list_files(&self, request: Request<v1::ListFilesRequest>) -> Answer<v1::ListFilesResponse> {
        self.call(request, async |mut agent, request| agent.list_files(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn stat_file(&self, request: Request<v1::StatFileRequest>) -> Answer<v1::StatFileResponse> {
        self.call(request, async |mut agent, request| agent.stat_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn make_folder(&self, request: Request<v1::MakeFolderRequest>) -> Answer<v1::MakeFolderResponse> {
        self.call(request, async |mut agent, request| agent.make_folder(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn change_mode(&self, request: Request<v1::ChangeModeRequest>) -> Answer<v1::ChangeModeResponse> {
        self.call(request, async |mut agent, request| agent.change_mode(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn move_file(&self, request: Request<v1::MoveFileRequest>) -> Answer<v1::MoveFileResponse> {
        self.call(request, async |mut agent, request| agent.move_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn copy_file(&self, request: Request<v1::CopyFileRequest>) -> Answer<v1::CopyFileResponse> {
        self.call(request, async |mut agent, request| agent.copy_file(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn search_files(&self, request: Request<v1::SearchFilesRequest>) -> Answer<v1::SearchFilesResponse> {
        self.call(request, async |mut agent, request| agent.search_files(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn watch_files(&self, request: Request<v1::WatchFilesRequest>) -> Answer<Self::WatchFilesStream> {
        self.stream(request, async |mut agent, request| agent.watch_files(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn download_archive(
        &self,
        request: Request<v1::DownloadArchiveRequest>,
    ) -> Answer<Self::DownloadArchiveStream> {
        self.stream(request, async |mut agent, request| agent.download_archive(request).await).await
    }

    #[instrument(skip_all, fields(sandbox_id))]
    async fn upload_archive(
        &self,
        request: Request<Streaming<v1::UploadArchiveRequest>>,
    ) -> Answer<v1::UploadArchiveResponse> {
        let send = async |mut agent: Files, request| agent.upload_archive(request).await;
        files::upload(&self.node, request.into_inner(), send).await.map(Response::new).map_err(to_status)
    }
}
