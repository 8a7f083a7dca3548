//! FileService.

use std::sync::Arc;

use cloud_sandbox_node_client::{Answer, FileClient};
use cloud_sandbox_proto::v1::{
    self, ChangeModeRequest, ChangeModeResponse, CopyFileRequest, CopyFileResponse, DeleteFileRequest,
    DeleteFileResponse, DownloadArchiveRequest, DownloadArchiveResponse, DownloadFileRequest, DownloadFileResponse,
    ListFilesRequest, ListFilesResponse, MakeFolderRequest, MakeFolderResponse, MoveFileRequest, MoveFileResponse,
    ReadFileRequest, ReadFileResponse, SearchFilesRequest, SearchFilesResponse, StatFileRequest, StatFileResponse,
    UploadArchiveRequest, UploadArchiveResponse, UploadFileRequest, UploadFileResponse, WatchFilesRequest,
    WatchFilesResponse, WriteFileRequest, WriteFileResponse, WriteFilesRequest, WriteFilesResponse,
    file_service_server::FileServiceServer,
};
use cloud_sandbox_rpc::{Dial, Upstream, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::Directory;
use tonic::{Request, Response, Status, Streaming};

use crate::{
    output::Events,
    relay::{Relay, relayed},
};

/// Works with the files of sandboxes, wherever they are.
#[derive(Clone)]
pub struct FileService {
    relay: Relay,
}

impl FileService {
    /// A service that finds sandboxes in `directory`, those of sessions by the session manager `session`, and calls their
    /// nodes through `dial`.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, session: Upstream) -> Self {
        Self { relay: Relay::new(directory, dial, session) }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> FileServiceServer<Self> {
        FileServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }
}

relayed! {
    v1::file_service_server::FileService, FileService, FileClient;
    unary {
        read_file(ReadFileRequest) -> ReadFileResponse;
        write_file(WriteFileRequest) -> WriteFileResponse;
        write_files(WriteFilesRequest) -> WriteFilesResponse;
        delete_file(DeleteFileRequest) -> DeleteFileResponse;
        list_files(ListFilesRequest) -> ListFilesResponse;
        stat_file(StatFileRequest) -> StatFileResponse;
        make_folder(MakeFolderRequest) -> MakeFolderResponse;
        change_mode(ChangeModeRequest) -> ChangeModeResponse;
        move_file(MoveFileRequest) -> MoveFileResponse;
        copy_file(CopyFileRequest) -> CopyFileResponse;
        search_files(SearchFilesRequest) -> SearchFilesResponse;
    }
    server_stream {
        download_file(DownloadFileRequest) -> DownloadFileResponse as DownloadFileStream;
        watch_files(WatchFilesRequest) -> WatchFilesResponse as WatchFilesStream;
        download_archive(DownloadArchiveRequest) -> DownloadArchiveResponse as DownloadArchiveStream;
    }
    client_stream {
        upload_file(UploadFileRequest) -> UploadFileResponse;
        upload_archive(UploadArchiveRequest) -> UploadArchiveResponse;
    }
    both_streams {}
}
