//! Uploads: a header, pieces, and a commit, relayed to the agent as it takes them.
//!
//! Invariant: the agent is told `commit` only when the caller has said it, after nothing but pieces. In every other case
//! its stream ends without, and it leaves everything as it was.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, Result};
use cloud_sandbox_proto::v1::{self, upload_archive_request, upload_file_request};
use cloud_sandbox_rpc::from_status;
use futures::{Stream, StreamExt};
use tokio::sync::oneshot;
use tonic::{Request, Response, Status, Streaming};

use super::{FileRequest, Files, answered, check, rules::PIECE_MAX};
use crate::{node::Shared, service::find};

/// What a message of an upload is.
pub(crate) enum Piece<'a, H> {
    Header(&'a H),
    Data(&'a Bytes),
    Commit,
}

/// A message of an upload.
pub(crate) trait Upload: Send + Unpin + 'static {
    type Header: FileRequest + Sync;

    /// What it is; nothing when it is of a newer caller.
    fn piece(&self) -> Option<Piece<'_, Self::Header>>;
}

macro_rules! uploads {
    ($($request:ident, $part:ident, $header:ident;)*) => {$(
        impl Upload for v1::$request {
            type Header = v1::$header;

            fn piece(&self) -> Option<Piece<'_, v1::$header>> {
                match self.part.as_ref()? {
                    $part::Part::Header(header) => Some(Piece::Header(header)),
                    $part::Part::Data(data) => Some(Piece::Data(data)),
                    $part::Part::Commit(_) => Some(Piece::Commit),
                }
            }
        }
    )*};
}

uploads! {
    UploadFileRequest, upload_file_request, UploadFileHeader;
    UploadArchiveRequest, upload_archive_request, UploadArchiveHeader;
}

/// Relays an upload. A fault of the caller's ends it before the agent is told more.
pub(crate) async fn upload<U, F, A>(node: &Shared, mut messages: Streaming<U>, send: F) -> Result<A>
where
    U: Upload,
    F: AsyncFnOnce(Files, Request<Relayed<U>>) -> Result<Response<A>, Status>,
{
    let no_header = || Error::invalid("header", "must be the first message");
    let first = messages.next().await.ok_or_else(no_header)?.map_err(|status| from_status(&status))?;
    let Some(Piece::Header(header)) = first.piece() else { return Err(no_header()) };
    let sandbox = find(node, header)?;
    check(&sandbox, header)?;
    let _in_use = sandbox.activity().begin();
    let subject = header.subject().into_owned();

    let (fault, faulted) = oneshot::channel();
    let relayed = Relayed { first: Some(first), rest: Some((messages, fault)) };
    let answer = answered(&sandbox, &subject, send(sandbox.agent.files(), Request::new(relayed)));
    tokio::select! {
        biased;
        Ok(error) = faulted => Err(error),
        answer = answer => answer,
    }
}

/// The messages on their way to the agent: from the header to the commit, or to a fault.
pub(crate) struct Relayed<U> {
    first: Option<U>,
    /// none after the last
    rest: Option<(Streaming<U>, oneshot::Sender<Error>)>,
}

impl<U: Upload> Stream for Relayed<U> {
    type Item = U;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<U>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some((messages, _)) = &mut self.rest else { return Poll::Ready(None) };
        let next = ready!(messages.poll_next_unpin(context)).transpose();
        let checked = next.map_err(|status| from_status(&status)).and_then(check_next);
        if matches!(&checked, Ok(message) if !matches!(message.piece(), Some(Piece::Commit))) {
            return Poll::Ready(checked.ok());
        }
        let rest = self.rest.take();
        Poll::Ready(match (checked, rest) {
            (Ok(commit), _) => Some(commit),
            (Err(error), rest) => {
                // nobody waits for it when the agent has answered already
                let _ = rest.map(|(_, fault)| fault.send(error));
                None
            }
        })
    }
}

/// A message after the header that the agent may be told.
fn check_next<U: Upload>(message: Option<U>) -> Result<U> {
    let message = message.ok_or_else(|| Error::invalid("commit", "must be the last message"))?;
    match message.piece() {
        Some(Piece::Header(_)) => Err(Error::invalid("header", "must be the first message only")),
        Some(Piece::Data(data)) if data.len() > PIECE_MAX => {
            Err(Error::invalid("data", format!("must be at most {PIECE_MAX} bytes long")))
        }
        _ => Ok(message),
    }
}
