//! Uploads over REST: a request's body as `data` messages between `header` and `commit`.
//!
//! Invariant: `commit` is sent after the last byte of a body that arrived whole, and never otherwise. What is on its way
//! is bounded by a few pieces: the body is read no faster than the service takes it.

use std::{collections::VecDeque, future::pending, time::Duration};

use axum::{body::Body, response::IntoResponse};
use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use futures::{FutureExt, StreamExt, stream};
use http::{
    HeaderMap, Response, StatusCode, Version,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG},
    request::Parts as Head,
};
use http_body_util::BodyExt;
use prost::Message as _;
use prost_reflect::DynamicMessage;
use tokio::{
    pin,
    sync::mpsc::{self, Sender},
    time::timeout,
};

use crate::{
    call::Call,
    codec::Parts,
    conditions,
    download::{etag_value, info},
    edge::Edge,
    errors::Rejection,
    raw::Upload,
    request::{self, BODY_TIMEOUT, Content},
    rest::{json, render},
};

/// The most bytes of a message.
const PIECE_MAX: usize = 1024 * 1024;
/// Frames that are there already are joined up to about this size: each message costs the services behind the same.
const PIECE_ENOUGH: usize = 256 * 1024;
/// A refused sender that goes on sending is listened to for so long: closed at once, its connection would break before
/// the refusal is read.
const LINGER: Duration = Duration::from_secs(10);
/// One that has stopped sending is let go after so long.
const LINGER_IDLE: Duration = Duration::from_millis(500);

/// Serves one upload. `any_type` takes a body of any content type.
pub async fn serve(
    edge: &Edge,
    upload: &Upload,
    variables: &[(&str, String)],
    head: &Head,
    body: Body,
    any_type: bool,
) -> Result<Response<Body>, Rejection> {
    check_type(upload, &head.headers, any_type)?;
    if head.headers.contains_key(CONTENT_RANGE) {
        // RFC 9110, section 14.5: a part must not be taken for the whole
        let message = "content-range is not taken: the body is the whole file";
        return Err(Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message).into());
    }
    let mut header = request::header(upload, variables, head.uri.query())?;
    let conditional = conditions::demand(&mut header, &head.headers)?;
    let call = Call::new(edge, &upload.binding, &head.headers)?;
    let mut body = Incoming::new(body, &head.headers);
    match send(call, upload, &header, &mut body).await {
        Ok(answer) => respond(upload, answer),
        Err(rejection) => {
            let rejection = if conditional { rejection.of_condition() } else { rejection };
            let response = rejection.into_response();
            Ok(if head.version < Version::HTTP_2 { body.linger(response) } else { response })
        }
    }
}

fn check_type(upload: &Upload, headers: &HeaderMap, any_type: bool) -> Result<(), Rejection> {
    match Content::of(headers) {
        Content::Form => Err(Rejection::media_type(format!(
            "a form is not taken apart: send the bytes themselves, with content-type: {}",
            upload.media_type()
        ))),
        Content::Json if !any_type => {
            Err(Rejection::media_type(format!("the body is raw bytes, with content-type: {}", upload.media_type())))
        }
        _ => Ok(()),
    }
}

async fn send(call: Call, upload: &Upload, header: &DynamicMessage, body: &mut Incoming) -> Result<Bytes, Rejection> {
    let first = Parts::field(upload.header.number(), vec![header.encode_to_vec().into()]);
    // declared before the call, so that it outlives it: a call that is given up must not look like one that has ended
    let (pieces, receive) = mpsc::channel(1);
    let later = stream::unfold(receive, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    let call = call.upload(stream::iter([first]).chain(later));
    pin!(call);
    // the service first: what it refuses by the header alone need not be read
    tokio::select! {
        biased;
        answer = &mut call => return Ok(answer?),
        pumped = pump(body, &pieces, upload) => pumped?,
    }
    drop(pieces);
    Ok(call.await?)
}

/// Sends the body, then the commit.
async fn pump(body: &mut Incoming, pieces: &Sender<Parts>, upload: &Upload) -> Result<(), Rejection> {
    loop {
        let Ok(room) = pieces.reserve().await else {
            // nobody takes more: the answer is on its way
            return pending().await;
        };
        let piece = body.piece().await?;
        if piece.is_empty() {
            room.send(Parts::field(upload.commit.number(), Vec::new()));
            return Ok(());
        }
        room.send(Parts::field(upload.data.number(), piece));
    }
}

fn respond(upload: &Upload, answer: Bytes) -> Result<Response<Body>, Rejection> {
    let output = upload.binding.rpc.output();
    let file = DynamicMessage::decode(output, answer.clone()).ok().as_ref().and_then(info);
    let mut response = json(StatusCode::OK, render(&upload.binding, answer)?);
    if let Some(etag) = file.and_then(|file| etag_value(&file)) {
        response.headers_mut().insert(ETAG, etag);
    }
    Ok(response)
}

/// A request's body, read in pieces.
struct Incoming {
    body: Body,
    /// what the last frame had beyond a piece
    rest: Bytes,
    /// bytes that the sender still owes, where it said how many there are
    owed: Option<u64>,
    begun: bool,
    ended: bool,
}

impl Incoming {
    fn new(body: Body, headers: &HeaderMap) -> Self {
        let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        Self { body, rest: Bytes::new(), owed: length, begun: false, ended: false }
    }

    /// The next bytes: one frame, waited for, and what is there already besides. Empty at the end.
    async fn piece(&mut self) -> Result<Vec<Bytes>, Rejection> {
        let (mut piece, mut length) = (VecDeque::new(), 0);
        while length < PIECE_ENOUGH {
            let frame = if piece.is_empty() {
                timeout(BODY_TIMEOUT, self.frame()).await.map_err(|_| Rejection::body_timeout())??
            } else {
                match self.frame().now_or_never() {
                    Some(frame) => frame?,
                    None => break,
                }
            };
            let Some(mut frame) = frame else { break };
            if length + frame.len() > PIECE_MAX {
                self.rest = frame.split_off(PIECE_MAX - length);
            }
            length += frame.len();
            piece.push_back(frame);
        }
        Ok(piece.into())
    }

    async fn frame(&mut self) -> Result<Option<Bytes>, Error> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        while !self.ended {
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.begun = true;
                    // trailers have no meaning here
                    let Ok(data) = frame.into_data() else { continue };
                    if !data.is_empty() {
                        self.owed = self.owed.map(|owed| owed.saturating_sub(data.len() as u64));
                        return Ok(Some(data));
                    }
                }
                Some(Err(_)) => {
                    self.ended = true;
                    return Err(broke_off());
                }
                None => self.ended = true,
            }
        }
        if self.owed.is_some_and(|owed| owed > 0) { Err(broke_off()) } else { Ok(None) }
    }

    /// `response`, with an ear for a sender that has not finished.
    fn linger(mut self, response: Response<Body>) -> Response<Body> {
        if !self.begun || self.ended {
            return response;
        }
        let heard = async move {
            let all = async { while let Ok(Some(Ok(_))) = timeout(LINGER_IDLE, self.body.frame()).await {} };
            // over either way
            let _ = timeout(LINGER, all).await;
            Ok::<_, axum::Error>(Bytes::new())
        };
        response.map(|body| Body::from_stream(body.into_data_stream().chain(heard.into_stream())))
    }
}

fn broke_off() -> Error {
    Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, "the body broke off; nothing was written")
}

/// Whether a body is raw bytes where it could also be JSON.
pub fn is_raw(headers: &HeaderMap) -> bool {
    matches!(Content::of(headers), Content::Form | Content::Other)
}
