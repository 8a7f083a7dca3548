//! What each message of the three services is about, and what may be made of an answer that got lost.

use cloud_sandbox_auth::{FileAccess, FileGrant};
use cloud_sandbox_model::{Error, Result};
use cloud_sandbox_proto::v1::{
    AttachExecutionRequest, ChangeModeRequest, CopyFileRequest, CreateContextRequest, DeleteContextRequest,
    DeleteFileRequest, DownloadArchiveRequest, DownloadFileRequest, ExecAttach, ExecRequest, ExecStart, ExecuteRequest,
    ExecuteStreamRequest, GetContextRequest, GetExecutionRequest, GrepExecutionOutputRequest, InterruptContextRequest,
    ListContextsRequest, ListExecutionsRequest, ListFilesRequest, MakeFolderRequest, MoveFileRequest,
    ReadExecutionOutputRequest, ReadFileRequest, ResizeExecutionTerminalRequest, RestartContextRequest,
    SearchFilesRequest, SignalExecutionRequest, StartExecutionRequest, StatFileRequest, UploadArchiveRequest,
    UploadFileHeader, UploadFileRequest, WatchFilesRequest, WriteExecutionStdinRequest, WriteFileRequest,
    WriteFilesRequest, exec_request::Input, upload_archive_request, upload_file_request,
};

/// What may be done when the connection breaks before the node answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Twice is the same as once: asked again here, and a caller may do so too.
    Safe,
    /// The caller may ask again; what it finds then tells whether the first was heard.
    ByCaller,
    /// It may have been done, and twice is not once. These words, after a semicolon, say so.
    Unknown(&'static str),
}

const RUN_UNKNOWN: Repeat = Repeat::Unknown("whether it ran is not known; give a request_id to be able to ask again");
const STDIN_UNKNOWN: Repeat =
    Repeat::Unknown("whether it was written is not known; give an offset to be able to ask again");
const APPEND_UNKNOWN: Repeat = Repeat::Unknown("whether it was appended is not known; the file's size tells");

/// A message about a sandbox: a request, or the first of several.
pub(crate) trait About: Send + 'static {
    /// What the first of several messages carries.
    const FIRST: &'static str = "request";

    /// The sandbox, as the caller wrote it.
    fn sandbox_id(&self) -> Result<&str>;

    /// What may be done when the answer gets lost.
    fn repeat(&self) -> Repeat {
        Repeat::ByCaller
    }

    /// The kind of execution that this begins, if it does, as metrics have it.
    fn begins(&self) -> Option<&'static str> {
        None
    }

    /// Whether whoever has a token with this grant alone may say this.
    fn is_granted(&self, _grant: &FileGrant) -> bool {
        false
    }
}

/// Messages whose `sandbox_id` is their own, with what may be done when an answer to one gets lost.
macro_rules! about {
    ($repeat:ident: $($message:ident,)*) => {$(
        impl About for $message {
            fn sandbox_id(&self) -> Result<&str> {
                Ok(&self.sandbox_id)
            }

            fn repeat(&self) -> Repeat {
                Repeat::$repeat
            }
        }
    )*};
}

about! { Safe:
    ListExecutionsRequest, GetExecutionRequest, AttachExecutionRequest, ReadExecutionOutputRequest,
    GrepExecutionOutputRequest, ResizeExecutionTerminalRequest, ListContextsRequest, GetContextRequest,
    ListFilesRequest, StatFileRequest, SearchFilesRequest, WatchFilesRequest, DownloadArchiveRequest,
}

about! { ByCaller:
    SignalExecutionRequest, RestartContextRequest, InterruptContextRequest, DeleteContextRequest, WriteFilesRequest,
    DeleteFileRequest, MakeFolderRequest, ChangeModeRequest, MoveFileRequest, CopyFileRequest,
}

fn run(request: &ExecuteRequest) -> Repeat {
    if request.request_id.is_empty() { RUN_UNKNOWN } else { Repeat::Safe }
}

fn nested<'a>(request: Option<&'a ExecuteRequest>, field: &str) -> Result<&'a str> {
    request.map(|request| request.sandbox_id.as_str()).ok_or_else(|| Error::invalid(field, "must be given"))
}

impl About for ExecuteRequest {
    fn sandbox_id(&self) -> Result<&str> {
        Ok(&self.sandbox_id)
    }

    fn repeat(&self) -> Repeat {
        run(self)
    }

    fn begins(&self) -> Option<&'static str> {
        Some("unary")
    }
}

impl About for ExecuteStreamRequest {
    fn sandbox_id(&self) -> Result<&str> {
        nested(self.request.as_ref(), "request")
    }

    fn repeat(&self) -> Repeat {
        self.request.as_ref().map_or(Repeat::ByCaller, run)
    }

    fn begins(&self) -> Option<&'static str> {
        Some("stream")
    }
}

impl About for StartExecutionRequest {
    fn sandbox_id(&self) -> Result<&str> {
        nested(self.request.as_ref(), "request")
    }

    fn repeat(&self) -> Repeat {
        self.request.as_ref().map_or(Repeat::ByCaller, run)
    }

    fn begins(&self) -> Option<&'static str> {
        Some("background")
    }
}

impl About for ExecRequest {
    const FIRST: &'static str = "start";

    fn sandbox_id(&self) -> Result<&str> {
        match &self.input {
            Some(Input::Start(ExecStart { request, .. })) => nested(request.as_ref(), "start.request"),
            Some(Input::Attach(ExecAttach { sandbox_id, .. })) => Ok(sandbox_id),
            _ => Err(not_first::<Self>()),
        }
    }

    fn repeat(&self) -> Repeat {
        match &self.input {
            Some(Input::Start(ExecStart { request: Some(request), .. })) => run(request),
            _ => Repeat::ByCaller,
        }
    }

    fn begins(&self) -> Option<&'static str> {
        matches!(self.input, Some(Input::Start(_))).then_some("interactive")
    }
}

impl About for WriteExecutionStdinRequest {
    fn sandbox_id(&self) -> Result<&str> {
        Ok(&self.sandbox_id)
    }

    fn repeat(&self) -> Repeat {
        if self.offset.is_some() { Repeat::Safe } else { STDIN_UNKNOWN }
    }
}

impl About for CreateContextRequest {
    fn sandbox_id(&self) -> Result<&str> {
        Ok(&self.sandbox_id)
    }

    fn repeat(&self) -> Repeat {
        if self.request_id.is_empty() { Repeat::ByCaller } else { Repeat::Safe }
    }
}

impl About for ReadFileRequest {
    fn sandbox_id(&self) -> Result<&str> {
        Ok(&self.sandbox_id)
    }

    fn repeat(&self) -> Repeat {
        Repeat::Safe
    }

    fn is_granted(&self, grant: &FileGrant) -> bool {
        covers(grant, FileAccess::Read, &self.sandbox_id, &self.path, &self.raw_path)
    }
}

impl About for DownloadFileRequest {
    fn sandbox_id(&self) -> Result<&str> {
        Ok(&self.sandbox_id)
    }

    fn repeat(&self) -> Repeat {
        Repeat::Safe
    }

    fn is_granted(&self, grant: &FileGrant) -> bool {
        covers(grant, FileAccess::Read, &self.sandbox_id, &self.path, &self.raw_path)
    }
}

impl About for WriteFileRequest {
    fn sandbox_id(&self) -> Result<&str> {
        Ok(&self.sandbox_id)
    }

    fn repeat(&self) -> Repeat {
        if self.append { APPEND_UNKNOWN } else { Repeat::ByCaller }
    }

    fn is_granted(&self, grant: &FileGrant) -> bool {
        covers(grant, FileAccess::Write, &self.sandbox_id, &self.path, &self.raw_path)
    }
}

impl About for UploadFileRequest {
    const FIRST: &'static str = "header";

    fn sandbox_id(&self) -> Result<&str> {
        upload_header(self).map(|header| header.sandbox_id.as_str()).ok_or_else(not_first::<Self>)
    }

    fn is_granted(&self, grant: &FileGrant) -> bool {
        upload_header(self)
            .is_some_and(|header| covers(grant, FileAccess::Write, &header.sandbox_id, &header.path, &header.raw_path))
    }
}

fn upload_header(message: &UploadFileRequest) -> Option<&UploadFileHeader> {
    match &message.part {
        Some(upload_file_request::Part::Header(header)) => Some(header),
        _ => None,
    }
}

impl About for UploadArchiveRequest {
    const FIRST: &'static str = "header";

    fn sandbox_id(&self) -> Result<&str> {
        match &self.part {
            Some(upload_archive_request::Part::Header(header)) => Ok(&header.sandbox_id),
            _ => Err(not_first::<Self>()),
        }
    }
}

/// Whether `grant` is for exactly this: another spelling of the same path is another path.
fn covers(grant: &FileGrant, access: FileAccess, sandbox_id: &str, path: &str, raw_path: &[u8]) -> bool {
    grant.access == access && grant.sandbox == sandbox_id && grant.path == path && raw_path.is_empty()
}

/// A stream that does not begin as it must.
pub(crate) fn not_first<Q: About>() -> Error {
    Error::invalid(Q::FIRST, "must be the first message")
}
