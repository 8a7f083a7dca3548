//! FileService.

use bytes::Bytes;
use cloud_sandbox_proto::v1::{
    ChangeModeRequest, ChangeModeResponse, CopyFileRequest, CopyFileResponse, DeleteFileRequest, DeleteFileResponse,
    DownloadArchiveRequest, DownloadArchiveResponse, DownloadFileRequest, DownloadFileResponse, FileEvent,
    FileEventType, FileInfo, ListFilesRequest, ListFilesResponse, MakeFolderRequest, MakeFolderResponse,
    MoveFileRequest, MoveFileResponse, ReadFileRequest, ReadFileResponse, SearchFilesRequest, SearchFilesResponse,
    StatFileRequest, StatFileResponse, UploadArchiveRequest, UploadArchiveResponse, UploadFileRequest,
    UploadFileResponse, WatchFilesRequest, WatchFilesResponse, WriteFileRequest, WriteFileResponse, WriteFilesRequest,
    WriteFilesResponse, file_service_server::FileService, upload_archive_request, upload_file_request,
};
use tonic::{Request, Response, Status, Streaming};

use crate::node::{Events, SimNode, only, service, wanted};

/// How much of a download one message carries.
const PIECE: usize = 256 * 1024;

fn file(path: String) -> Option<FileInfo> {
    Some(FileInfo { path, ..FileInfo::default() })
}

impl SimNode {
    fn uploaded(&self, committed: bool, bytes: u64) -> Result<(), Status> {
        let how = if committed { "commit" } else { "end" };
        self.state().uploads.push(format!("{how} {bytes}"));
        if committed { Ok(()) } else { Err(Status::cancelled("the upload ended without commit")) }
    }
}

service! {
    FileService;
    usable "WriteFiles" write_files(WriteFilesRequest) -> WriteFilesResponse;
    usable "ListFiles" list_files(ListFilesRequest) -> ListFilesResponse;
    usable "StatFile" stat_file(StatFileRequest) -> StatFileResponse;
    usable "MakeFolder" make_folder(MakeFolderRequest) -> MakeFolderResponse;
    usable "ChangeMode" change_mode(ChangeModeRequest) -> ChangeModeResponse;
    usable "MoveFile" move_file(MoveFileRequest) -> MoveFileResponse;
    usable "CopyFile" copy_file(CopyFileRequest) -> CopyFileResponse;
    usable "SearchFiles" search_files(SearchFilesRequest) -> SearchFilesResponse;
    {
        async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
            let call = self.enter("ReadFile", &request).await?;
            let request = request.into_inner();
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            call.reply(ReadFileResponse { file: file(request.path), ..ReadFileResponse::default() })
        }

        async fn write_file(&self, request: Request<WriteFileRequest>) -> Result<Response<WriteFileResponse>, Status> {
            let call = self.enter("WriteFile", &request).await?;
            let request = request.into_inner();
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            call.reply(WriteFileResponse { file: file(request.path) })
        }

        async fn delete_file(
            &self,
            request: Request<DeleteFileRequest>,
        ) -> Result<Response<DeleteFileResponse>, Status> {
            let call = self.enter("DeleteFile", &request).await?;
            let request = request.into_inner();
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            call.reply(DeleteFileResponse { path: request.path, deleted: true })
        }

        type DownloadFileStream = Events<DownloadFileResponse>;

        async fn download_file(
            &self,
            request: Request<DownloadFileRequest>,
        ) -> Result<Response<Self::DownloadFileStream>, Status> {
            let call = self.enter("DownloadFile", &request).await?;
            let request = request.into_inner();
            self.usable(only(&request.sandbox_id, &request.session_id)?)?;
            let piece = Bytes::from(vec![b'x'; PIECE]);
            call.stream(async_stream::stream! {
                yield Ok(DownloadFileResponse { file: file(request.path), data: Bytes::new() });
                let mut left = usize::try_from(request.length).expect("a length fits into memory");
                while left > 0 {
                    let data = piece.slice(..left.min(PIECE));
                    left -= data.len();
                    yield Ok(DownloadFileResponse { file: None, data });
                }
            })
        }

        async fn upload_file(
            &self,
            request: Request<Streaming<UploadFileRequest>>,
        ) -> Result<Response<UploadFileResponse>, Status> {
            use upload_file_request::Part;
            let call = self.enter("UploadFile", &request).await?;
            let mut parts = request.into_inner();
            let Some(Part::Header(header)) = wanted(parts.message().await?)?.part else {
                return Err(Status::invalid_argument("no header"));
            };
            self.usable(only(&header.sandbox_id, &header.session_id)?)?;
            let (mut bytes, mut committed) = (0, false);
            while let Ok(Some(message)) = parts.message().await {
                match message.part {
                    Some(Part::Data(data)) => bytes += data.len() as u64,
                    part => committed = matches!(part, Some(Part::Commit(_))),
                }
                call.go_on()?;
            }
            self.uploaded(committed, bytes)?;
            call.reply(UploadFileResponse { file: file(header.path) })
        }

        type WatchFilesStream = Events<WatchFilesResponse>;

        async fn watch_files(
            &self,
            request: Request<WatchFilesRequest>,
        ) -> Result<Response<Self::WatchFilesStream>, Status> {
            let call = self.enter("WatchFiles", &request).await?;
            self.usable(only(&request.get_ref().sandbox_id, &request.get_ref().session_id)?)?;
            let started = FileEvent { r#type: FileEventType::Started.into(), ..FileEvent::default() };
            let first = futures::stream::iter([Ok(WatchFilesResponse { event: Some(started) })]);
            call.stream(futures::StreamExt::chain(first, futures::stream::pending()))
        }

        type DownloadArchiveStream = Events<DownloadArchiveResponse>;

        async fn download_archive(
            &self,
            request: Request<DownloadArchiveRequest>,
        ) -> Result<Response<Self::DownloadArchiveStream>, Status> {
            let call = self.enter("DownloadArchive", &request).await?;
            self.usable(only(&request.get_ref().sandbox_id, &request.get_ref().session_id)?)?;
            let piece = DownloadArchiveResponse { data: Bytes::from(vec![b'x'; PIECE]) };
            call.stream(futures::stream::iter([Ok(piece.clone()), Ok(piece)]))
        }

        async fn upload_archive(
            &self,
            request: Request<Streaming<UploadArchiveRequest>>,
        ) -> Result<Response<UploadArchiveResponse>, Status> {
            use upload_archive_request::Part;
            let call = self.enter("UploadArchive", &request).await?;
            let mut parts = request.into_inner();
            let Some(Part::Header(header)) = wanted(parts.message().await?)?.part else {
                return Err(Status::invalid_argument("no header"));
            };
            self.usable(only(&header.sandbox_id, &header.session_id)?)?;
            let (mut bytes, mut committed) = (0, false);
            while let Ok(Some(message)) = parts.message().await {
                match message.part {
                    Some(Part::Data(data)) => bytes += data.len() as u64,
                    part => committed = matches!(part, Some(Part::Commit(_))),
                }
            }
            self.uploaded(committed, bytes)?;
            call.reply(UploadArchiveResponse { entries: 1, bytes })
        }
    }
}
