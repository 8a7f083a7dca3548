//! What sandbox a request is about. Which sandbox a session has is the control plane's to know: by the time that a request
//! comes to a node, it names the sandbox.

use cloud_sandbox_model::{
    SandboxId,
    error::{Error, Result},
};
use cloud_sandbox_proto::v1;

use super::sandbox_id;

/// A request about one sandbox.
pub(crate) trait Addressed {
    /// The fields `sandbox_id` and `session_id`.
    fn ids(&self) -> (&str, &str);
}

/// The sandbox that a request is about, for the log line of the call too.
pub(crate) fn addressed(request: &impl Addressed) -> Result<SandboxId> {
    let (sandbox, session) = request.ids();
    if !session.is_empty() {
        return Err(Error::invalid("session_id", "must be empty: a node knows sandboxes alone"));
    }
    sandbox_id(sandbox)
}

macro_rules! addressed {
    ($($request:ident)*) => {$(
        impl Addressed for v1::$request {
            fn ids(&self) -> (&str, &str) {
                (&self.sandbox_id, &self.session_id)
            }
        }
    )*};
}

addressed! {
    ExecuteRequest ExecAttach ListExecutionsRequest GetExecutionRequest AttachExecutionRequest
    ReadExecutionOutputRequest GrepExecutionOutputRequest WriteExecutionStdinRequest SignalExecutionRequest
    ResizeExecutionTerminalRequest

    CreateContextRequest ListContextsRequest GetContextRequest RestartContextRequest InterruptContextRequest
    DeleteContextRequest

    ReadFileRequest DownloadFileRequest WriteFileRequest WriteFilesRequest DeleteFileRequest ListFilesRequest
    StatFileRequest MakeFolderRequest ChangeModeRequest MoveFileRequest CopyFileRequest SearchFilesRequest
    WatchFilesRequest DownloadArchiveRequest UploadFileHeader UploadArchiveHeader
}
