//! What each message of the three services is about, and what may be made of an answer that got lost.

use cloud_sandbox_auth::{FileAccess, FileGrant};
use cloud_sandbox_model::{Error, Result, SandboxId, SessionId, error::Violation};
use cloud_sandbox_proto::v1::{
    AttachExecutionRequest, ChangeModeRequest, CopyFileRequest, CreateContextRequest, DeleteContextRequest,
    DeleteFileRequest, DownloadArchiveRequest, DownloadFileRequest, ExecRequest, ExecStart, ExecuteRequest,
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

/// The two fields by one of which a message says what sandbox it is about.
pub(crate) struct Ids<'a> {
    pub(crate) sandbox: &'a mut String,
    pub(crate) session: &'a mut String,
}

/// What a message is about, as its caller says it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Sandbox(String),
    /// the sandbox that this session has now
    Session(SessionId),
}

impl Ids<'_> {
    /// What is meant, when exactly one of the two is given.
    pub(crate) fn subject(&self) -> Result<Subject> {
        match (self.sandbox.as_str(), self.session.as_str()) {
            ("", "") => Err(Error::invalid("sandbox_id", "must be given, or session_id in its place")),
            (sandbox, "") => Ok(Subject::Sandbox(sandbox.to_owned())),
            ("", session) => session.parse().map(Subject::Session),
            _ => {
                let violation = |field: &str, other: &str| Violation {
                    field: field.to_owned(),
                    rule: format!("must be empty when {other} is given"),
                };
                let both = [violation("sandbox_id", "session_id"), violation("session_id", "sandbox_id")];
                Err(Error::invalid_all(both.to_vec()))
            }
        }
    }

    /// Has the message be about `sandbox`, as nodes are told it: they know nothing of sessions.
    pub(crate) fn set(self, sandbox: SandboxId) {
        *self.sandbox = sandbox.to_string();
        self.session.clear();
    }
}

/// A message about a sandbox: a request, or the first of several.
pub(crate) trait About: Clone + Send + 'static {
    /// What the first of several messages carries.
    const FIRST: &'static str = "request";

    /// Where it says what sandbox it is about.
    fn ids(&mut self) -> Result<Ids<'_>>;

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

macro_rules! ids {
    ($message:expr) => {
        Ids { sandbox: &mut $message.sandbox_id, session: &mut $message.session_id }
    };
}

/// Messages whose ids are their own, with what may be done when an answer to one gets lost.
macro_rules! about {
    ($repeat:ident: $($message:ident,)*) => {$(
        impl About for $message {
            fn ids(&mut self) -> Result<Ids<'_>> {
                Ok(ids!(self))
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

fn nested<'a>(request: Option<&'a mut ExecuteRequest>, field: &str) -> Result<Ids<'a>> {
    request.map(|request| ids!(request)).ok_or_else(|| Error::invalid(field, "must be given"))
}

impl About for ExecuteRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        Ok(ids!(self))
    }

    fn repeat(&self) -> Repeat {
        run(self)
    }

    fn begins(&self) -> Option<&'static str> {
        Some("unary")
    }
}

impl About for ExecuteStreamRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        nested(self.request.as_mut(), "request")
    }

    fn repeat(&self) -> Repeat {
        self.request.as_ref().map_or(Repeat::ByCaller, run)
    }

    fn begins(&self) -> Option<&'static str> {
        Some("stream")
    }
}

impl About for StartExecutionRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        nested(self.request.as_mut(), "request")
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

    fn ids(&mut self) -> Result<Ids<'_>> {
        match &mut self.input {
            Some(Input::Start(start)) => nested(start.request.as_mut(), "start.request"),
            Some(Input::Attach(attach)) => Ok(ids!(attach)),
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
    fn ids(&mut self) -> Result<Ids<'_>> {
        Ok(ids!(self))
    }

    fn repeat(&self) -> Repeat {
        if self.offset.is_some() { Repeat::Safe } else { STDIN_UNKNOWN }
    }
}

impl About for CreateContextRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        Ok(ids!(self))
    }

    fn repeat(&self) -> Repeat {
        if self.request_id.is_empty() { Repeat::ByCaller } else { Repeat::Safe }
    }
}

impl About for ReadFileRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        Ok(ids!(self))
    }

    fn repeat(&self) -> Repeat {
        Repeat::Safe
    }

    fn is_granted(&self, grant: &FileGrant) -> bool {
        covers(grant, FileAccess::Read, &self.sandbox_id, &self.path, &self.raw_path)
    }
}

impl About for DownloadFileRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        Ok(ids!(self))
    }

    fn repeat(&self) -> Repeat {
        Repeat::Safe
    }

    fn is_granted(&self, grant: &FileGrant) -> bool {
        covers(grant, FileAccess::Read, &self.sandbox_id, &self.path, &self.raw_path)
    }
}

impl About for WriteFileRequest {
    fn ids(&mut self) -> Result<Ids<'_>> {
        Ok(ids!(self))
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

    fn ids(&mut self) -> Result<Ids<'_>> {
        match &mut self.part {
            Some(upload_file_request::Part::Header(header)) => Ok(ids!(header)),
            _ => Err(not_first::<Self>()),
        }
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

    fn ids(&mut self) -> Result<Ids<'_>> {
        match &mut self.part {
            Some(upload_archive_request::Part::Header(header)) => Ok(ids!(header)),
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
