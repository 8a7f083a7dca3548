//! Files of a sandbox: checks what is asked, has the agent do it, and says what its answers mean.
//!
//! The agent serves the same contract, so messages go through as they are. Streams go through message by message, each
//! when the other side takes it: nothing is kept here but the message on its way. Files have a connection of their own
//! to the agent, so that a download that nobody reads holds up no process.

mod rules;
mod upload;

use std::{borrow::Cow, sync::Arc};

use cloud_sandbox_model::{
    error::{Error, ErrorKind, Result, reason},
    input::Violations,
};
use cloud_sandbox_proto::v1::file_service_client::FileServiceClient;
use cloud_sandbox_rpc::to_status;
use futures::{Stream, StreamExt, stream::BoxStream};
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use crate::sandbox::{InUse, Sandbox};

pub(crate) use rules::FileRequest;
pub(crate) use upload::upload;

/// The agent's client of files.
pub(crate) type Files = FileServiceClient<Channel>;

/// Fields that only the agent can judge; its refusal begins with the name.
const JUDGED_BY_AGENT: [&str; 4] = ["glob", "pattern", "page_token", "if_etag"];

/// Has the agent answer a request.
pub(crate) async fn call<Q, A, F>(sandbox: &Sandbox, request: Q, send: F) -> Result<A>
where
    Q: FileRequest,
    F: AsyncFnOnce(Files, Request<Q>) -> Result<Response<A>, Status>,
{
    check(sandbox, &request)?;
    let _in_use = sandbox.activity().begin();
    let subject = request.subject().into_owned();
    answered(sandbox, &subject, send(sandbox.agent.files(), Request::new(request))).await
}

/// Has the agent answer a request with a stream. It ends with an error when the sandbox ends.
pub(crate) async fn stream<Q, A, F>(
    sandbox: Arc<Sandbox>,
    request: Q,
    send: F,
) -> Result<BoxStream<'static, Result<A, Status>>>
where
    Q: FileRequest,
    A: Send + 'static,
    F: AsyncFnOnce(Files, Request<Q>) -> Result<Response<Streaming<A>>, Status>,
{
    check(&sandbox, &request)?;
    let in_use = sandbox.activity().begin();
    let subject = request.subject().into_owned();
    let messages = answered(&sandbox, &subject, send(sandbox.agent.files(), Request::new(request))).await?;
    Ok(relay(sandbox, subject, messages, in_use).boxed())
}

fn relay<A: Send>(
    sandbox: Arc<Sandbox>,
    subject: String,
    mut messages: Streaming<A>,
    in_use: InUse,
) -> impl Stream<Item = Result<A, Status>> + Send {
    async_stream::stream! {
        let _in_use = in_use;
        loop {
            let message = tokio::select! {
                biased;
                () = sandbox.ended.cancelled() => {
                    yield Err(to_status(sandbox.ending_error()));
                    return;
                }
                message = messages.message() => message,
            };
            match message {
                Ok(Some(message)) => yield Ok(message),
                Ok(None) => return,
                Err(status) => {
                    yield Err(to_status(refusal(&sandbox, &subject, &status).await));
                    return;
                }
            }
        }
    }
}

fn check(sandbox: &Sandbox, request: &impl FileRequest) -> Result<()> {
    sandbox.usable()?;
    let mut violations = Violations::default();
    request.check(&mut violations);
    violations.finish()
}

async fn answered<T>(
    sandbox: &Sandbox,
    subject: &str,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T> {
    let answer = tokio::select! {
        biased;
        answer = answer => answer,
        () = sandbox.ended.cancelled() => return Err(sandbox.ending_error()),
    };
    match answer {
        Ok(answer) => Ok(answer.into_inner()),
        Err(status) => Err(refusal(sandbox, subject, &status).await),
    }
}

/// What the agent's refusal means to the caller.
async fn refusal(sandbox: &Sandbox, subject: &str, status: &Status) -> Error {
    let (kind, reason) = match status.code() {
        Code::NotFound => (ErrorKind::NotFound, reason::FILE_NOT_FOUND),
        Code::AlreadyExists => (ErrorKind::AlreadyExists, reason::FILE_EXISTS),
        Code::Aborted => (ErrorKind::Aborted, reason::FILE_CHANGED),
        // the sandbox refuses its own user, which is no matter of the caller's permissions here
        Code::PermissionDenied | Code::FailedPrecondition => (ErrorKind::FailedPrecondition, reason::FILE_REFUSED),
        Code::InvalidArgument => match judged(status.message()) {
            Some(error) => return error,
            None => (ErrorKind::InvalidArgument, reason::FILE_REFUSED),
        },
        Code::ResourceExhausted => (ErrorKind::ResourceExhausted, reason::FILE_REFUSED),
        Code::OutOfRange => (ErrorKind::OutOfRange, reason::FILE_TOO_LARGE),
        _ => return lost(sandbox, status).await,
    };
    let message = status.message();
    let named: Cow<'_, str> =
        if message.contains(subject) { message.into() } else { format!("{subject}: {message}").into() };
    Error::new(kind, reason, named)
}

/// The violation that a refusal is about, when it begins with a field's name.
fn judged(message: &str) -> Option<Error> {
    let (field, rule) = message.split_once(' ')?;
    JUDGED_BY_AGENT.contains(&field).then(|| Error::invalid(field, rule))
}

/// Why there is no answer.
async fn lost(sandbox: &Sandbox, status: &Status) -> Error {
    let ended = sandbox.ended_meanwhile().await;
    ended.unwrap_or_else(|| Error::internal("reach the sandbox's files", status.clone()))
}
