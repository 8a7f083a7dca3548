//! `FileService`: takes requests apart and hands them to what does them.

use cloud_sandbox_proto::v1::{
    ChangeModeRequest, ChangeModeResponse, CopyFileRequest, CopyFileResponse, DeleteFileRequest, DeleteFileResponse,
    DownloadArchiveRequest, DownloadArchiveResponse, DownloadFileRequest, DownloadFileResponse, ListFilesRequest,
    ListFilesResponse, MakeFolderRequest, MakeFolderResponse, MoveFileRequest, MoveFileResponse, ReadFileRequest,
    ReadFileResponse, SearchFilesRequest, SearchFilesResponse, StatFileRequest, StatFileResponse, UploadArchiveRequest,
    UploadArchiveResponse, UploadFileRequest, UploadFileResponse, WatchFilesRequest, WatchFilesResponse,
    WriteFileRequest, WriteFileResponse, WriteFilesRequest, WriteFilesResponse, file_service_server::FileService,
};
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming};

use super::{archive, copy, delete, folder, list, mode, read, search, watch, write};
use crate::worker::{self, Call};

type Answer<T> = Result<Response<T>, Status>;
type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// The service; it keeps nothing.
#[derive(Clone, Copy)]
pub(crate) struct Files;

#[tonic::async_trait]
impl FileService for Files {
    type DownloadFileStream = Answers<DownloadFileResponse>;
    type WatchFilesStream = Answers<WatchFilesResponse>;
    type DownloadArchiveStream = Answers<DownloadArchiveResponse>;

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Answer<ReadFileResponse> {
        read::read(&request.into_inner()).map(Response::new)
    }

    async fn download_file(&self, request: Request<DownloadFileRequest>) -> Answer<Self::DownloadFileStream> {
        read::download(&request.into_inner()).map(|pieces| Response::new(pieces.boxed()))
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Answer<WriteFileResponse> {
        let file = write::write(request.into_inner())?;
        Ok(Response::new(WriteFileResponse { file: Some(file) }))
    }

    async fn upload_file(&self, request: Request<Streaming<UploadFileRequest>>) -> Answer<UploadFileResponse> {
        let file = write::upload(request.into_inner()).await?;
        Ok(Response::new(UploadFileResponse { file: Some(file) }))
    }

    async fn write_files(&self, request: Request<WriteFilesRequest>) -> Answer<WriteFilesResponse> {
        let files = write::write_all(request.into_inner().files).await?;
        Ok(Response::new(WriteFilesResponse { files }))
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Answer<DeleteFileResponse> {
        let request = request.into_inner();
        let path = if request.recursive {
            worker::run(move |call| delete::delete(&request, call)).await?
        } else {
            delete::delete(&request, &Call::default())?
        };
        Ok(Response::new(DeleteFileResponse { path, deleted: true }))
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Answer<ListFilesResponse> {
        let request = request.into_inner();
        worker::run(move |call| list::list(&request, call)).await.map(Response::new)
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Answer<StatFileResponse> {
        let file = folder::stat(&request.into_inner())?;
        Ok(Response::new(StatFileResponse { file: Some(file) }))
    }

    async fn make_folder(&self, request: Request<MakeFolderRequest>) -> Answer<MakeFolderResponse> {
        let file = folder::make(&request.into_inner())?;
        Ok(Response::new(MakeFolderResponse { file: Some(file) }))
    }

    async fn change_mode(&self, request: Request<ChangeModeRequest>) -> Answer<ChangeModeResponse> {
        let request = request.into_inner();
        let file = worker::run(move |call| mode::change(&request, call)).await?;
        Ok(Response::new(ChangeModeResponse { file: Some(file) }))
    }

    async fn move_file(&self, request: Request<MoveFileRequest>) -> Answer<MoveFileResponse> {
        let request = request.into_inner();
        let file = worker::run(move |call| copy::r#move(&request, call)).await?;
        Ok(Response::new(MoveFileResponse { file: Some(file) }))
    }

    async fn copy_file(&self, request: Request<CopyFileRequest>) -> Answer<CopyFileResponse> {
        let request = request.into_inner();
        let file = worker::run(move |call| copy::copy(&request, call)).await?;
        Ok(Response::new(CopyFileResponse { file: Some(file) }))
    }

    async fn search_files(&self, request: Request<SearchFilesRequest>) -> Answer<SearchFilesResponse> {
        let request = request.into_inner();
        worker::run(move |call| search::search(&request, call)).await.map(Response::new)
    }

    async fn watch_files(&self, request: Request<WatchFilesRequest>) -> Answer<Self::WatchFilesStream> {
        let events = watch::watch(request.into_inner()).await?;
        Ok(Response::new(events.boxed()))
    }

    async fn download_archive(&self, request: Request<DownloadArchiveRequest>) -> Answer<Self::DownloadArchiveStream> {
        archive::download(&request.into_inner()).map(|pieces| Response::new(pieces.boxed()))
    }

    async fn upload_archive(&self, request: Request<Streaming<UploadArchiveRequest>>) -> Answer<UploadArchiveResponse> {
        archive::upload(request.into_inner()).await.map(Response::new)
    }
}
