//! Files of a sandbox: checks what is asked, has the agent do it, and says what its answers mean.

use std::sync::Arc;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use cloud_sandbox_model::{
    error::{Error, ErrorKind, Result, reason},
    input::{Violations, page_size},
};
use cloud_sandbox_proto::{
    agent::v1 as agent,
    v1::{self, FileInfo, FileType, read_file_response, write_file_request},
};
use tonic::{Code, Status};

use crate::{executions::lost, sandbox::Sandbox};

/// The most of a file in one call, in bytes.
const FILE_MAX: u32 = 8 * 1024 * 1024;
const PAGE_MAX: u32 = 1000;
/// The permission bits a caller may set: no set-user-id, set-group-id or sticky bit.
const MODE_MAX: u32 = 0o777;

/// Reads a file or lists a folder.
pub(crate) async fn read(sandbox: &Arc<Sandbox>, request: v1::ReadFileRequest) -> Result<v1::ReadFileResponse> {
    sandbox.usable()?;
    let mut violations = Violations::default();
    violations.path("path", &request.path);
    violations.range("limit", &request.limit, &0, &FILE_MAX);
    let page = violations.take(page_size(request.page_size, PAGE_MAX, PAGE_MAX));
    let after = violations.take(after_name(&request.page_token));
    violations.finish()?;

    // one more than fits, so that a file that does not can be told from one that just does
    let limit = if request.limit == 0 { FILE_MAX + 1 } else { request.limit };
    let asked = agent::ReadFileRequest {
        path: request.path.clone(),
        offset: request.offset,
        limit,
        page_size: page.map_or(PAGE_MAX, |page| u32::try_from(page).unwrap_or(PAGE_MAX)),
        after_name: after.unwrap_or_default(),
    };
    let answer = call(sandbox, &request.path, sandbox.agent.client().read_file(asked)).await?;
    if request.limit == 0 && answer.data.len() > FILE_MAX as usize {
        let size = answer.file.as_ref().map_or(0, |file| file.size);
        let message = format!(
            "{} is too large to be read whole: it has {size} bytes, {FILE_MAX} fit; give offset and limit",
            request.path
        );
        return Err(
            Error::new(ErrorKind::OutOfRange, reason::FILE_TOO_LARGE, message).with_metadata("size", size.to_string())
        );
    }
    let is_folder = answer.file.as_ref().is_some_and(|file| file.r#type == i32::from(FileType::Directory));
    Ok(v1::ReadFileResponse {
        file: answer.file,
        body: (!is_folder).then(|| body(answer.data)),
        entries: answer.entries,
        next_page_token: BASE64_URL_SAFE_NO_PAD.encode(&answer.next_after_name),
    })
}

/// Writes a whole file.
pub(crate) async fn write(sandbox: &Arc<Sandbox>, request: v1::WriteFileRequest) -> Result<FileInfo> {
    sandbox.usable()?;
    let data = match request.body {
        Some(write_file_request::Body::Content(text)) => text.into(),
        Some(write_file_request::Body::Data(data)) => data,
        None => Bytes::new(),
    };
    let mut violations = Violations::default();
    violations.path("path", &request.path);
    violations.check(data.len() <= FILE_MAX as usize, "content", format!("must be at most {FILE_MAX} bytes long"));
    violations.range("mode", &request.mode, &0, &MODE_MAX);
    violations.finish()?;

    let asked = agent::WriteFileRequest { path: request.path.clone(), data, mode: request.mode };
    let answer = call(sandbox, &request.path, sandbox.agent.client().write_file(asked)).await?;
    Ok(answer.file.unwrap_or_default())
}

/// Deletes a file, a link or a folder.
pub(crate) async fn delete(sandbox: &Arc<Sandbox>, request: v1::DeleteFileRequest) -> Result<()> {
    sandbox.usable()?;
    let mut violations = Violations::default();
    violations.path("path", &request.path);
    violations.finish()?;
    let asked = agent::DeleteFileRequest { path: request.path.clone(), recursive: request.recursive };
    call(sandbox, &request.path, sandbox.agent.client().delete_file(asked)).await?;
    Ok(())
}

async fn call<T>(
    sandbox: &Sandbox,
    path: &str,
    answer: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T> {
    let answer = tokio::select! {
        biased;
        answer = answer => answer,
        () = sandbox.ended.cancelled() => return Err(sandbox.gone_error()),
    };
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(refusal(sandbox, path, &status).await),
    }
}

async fn refusal(sandbox: &Sandbox, path: &str, status: &Status) -> Error {
    let (kind, reason) = match status.code() {
        Code::NotFound => (ErrorKind::NotFound, reason::FILE_NOT_FOUND),
        // the sandbox refuses its own user, which is no matter of the caller's permissions here
        Code::PermissionDenied | Code::FailedPrecondition => (ErrorKind::FailedPrecondition, reason::FILE_REFUSED),
        Code::InvalidArgument => (ErrorKind::InvalidArgument, reason::FILE_REFUSED),
        Code::ResourceExhausted => (ErrorKind::ResourceExhausted, reason::FILE_REFUSED),
        Code::OutOfRange => (ErrorKind::OutOfRange, reason::FILE_TOO_LARGE),
        _ => return lost(sandbox, status).await,
    };
    let message = status.message();
    let named = if message.contains(path) { message.to_owned() } else { format!("{path}: {message}") };
    Error::new(kind, reason, named)
}

fn after_name(token: &str) -> Result<Bytes> {
    let name = BASE64_URL_SAFE_NO_PAD.decode(token);
    name.map(Bytes::from).map_err(|_| Error::invalid("page_token", "must be the next_page_token of an earlier answer"))
}

fn body(data: Bytes) -> read_file_response::Body {
    match String::from_utf8(data.into()) {
        Ok(text) => read_file_response::Body::Content(text),
        Err(error) => read_file_response::Body::Data(error.into_bytes().into()),
    }
}
