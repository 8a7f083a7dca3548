//! Downloads over REST: a service's `data` messages as the body of an answer, as they come and without a copy.
//!
//! A file's headers are only known from its stream's first message, so a call may be made twice: once to learn what the
//! file is, and again from where the range asked for turns out to begin. What is sent is always judged by the call that
//! it comes from.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::SystemTime,
};

use axum::body::Body;
use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use cloud_sandbox_proto::v1::FileInfo;
use cloud_sandbox_rpc::upstream::BoxError;
use futures::Stream;
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG,
        LAST_MODIFIED, VARY, X_CONTENT_TYPE_OPTIONS,
    },
    request::Parts as Head,
};
use http_body::{Frame, SizeHint};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message as _;
use prost_reflect::{DynamicMessage, FieldDescriptor, Value};
use tokio::time::{Sleep, sleep_until, timeout_at};
use tonic::Streaming;

use crate::{
    call::Call,
    conditions::{Validators, Verdict},
    errors::{Rejection, deadline_exceeded, from_upstream},
    range::{Part, Range},
    raw::{Download, FileFields},
};

/// How often a file that changes under the eyes is looked at anew.
const ATTEMPTS: usize = 3;
/// Enough of a file to learn what it is.
const GLANCE: Slice = Slice { offset: 0, length: 1 };
const WHOLE: Slice = Slice { offset: 0, length: 0 };
/// What a file name in a header may hold as it is (RFC 8187, `attr-char`).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What of a file a service is asked for; a length of 0 is all that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slice {
    offset: u64,
    length: u64,
}

/// Serves one download.
pub async fn serve(
    download: &Download,
    call: Call,
    message: DynamicMessage,
    head: &Head,
) -> Result<Response<Body>, Rejection> {
    match &download.file {
        Some(fields) => serve_file(download, fields, &call, message, head).await,
        None => serve_archive(download, &call, &message, head).await,
    }
}

async fn serve_archive(
    download: &Download,
    call: &Call,
    message: &DynamicMessage,
    head: &Head,
) -> Result<Response<Body>, Rejection> {
    let opened = Opened::open(download, call, message).await?;
    let path = message.get_field_by_name("path");
    let path = path.as_ref().and_then(|path| path.as_str()).unwrap_or_default();
    let name = path.rsplit('/').find(|part| !part.is_empty()).unwrap_or("archive");
    let mut response = opened.response(head, None);
    let headers = response.headers_mut();
    common(headers, download.media_type(), &format!("{name}.tar"));
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("none"));
    Ok(response)
}

async fn serve_file(
    download: &Download,
    fields: &FileFields,
    call: &Call,
    mut message: DynamicMessage,
    head: &Head,
) -> Result<Response<Body>, Rejection> {
    let given = Slice { offset: number(&message, &fields.offset), length: number(&message, &fields.length) };
    // a caller that slices by query has ranges enough
    let range = Range::of(&head.headers).filter(|_| head.method == Method::GET && given == WHOLE);
    let mut slice = match range {
        Some(Range::From { first, last }) => {
            Slice { offset: first, length: last.map_or(0, |last| (last - first).saturating_add(1)) }
        }
        Some(Range::Suffix(_)) => GLANCE,
        None if head.method == Method::HEAD && given == WHOLE => GLANCE,
        None => given,
    };
    let mut glanced = false;
    for _ in 0..ATTEMPTS {
        message.set_field(&fields.offset, Value::U64(slice.offset));
        message.set_field(&fields.length, Value::U64(slice.length));
        let opened = match Opened::open(download, call, &message).await {
            Ok(opened) => opened,
            // a range that begins beyond the end; how far the end is, a glance tells
            Err(error) if range.is_some() && !glanced && is_of_range(&error) => {
                (slice, glanced) = (GLANCE, true);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let plan = Plan::of(&opened.file, range, given, &head.headers)?;
        if plan.status == StatusCode::NOT_MODIFIED || head.method == Method::HEAD || plan.slice == slice {
            return Ok(plan.response(download, opened, head));
        }
        slice = plan.slice;
    }
    let message = "the file changes faster than it can be read";
    Err(Error::new(ErrorKind::Aborted, reason::FILE_CHANGED, message).into())
}

fn is_of_range(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::OutOfRange | ErrorKind::InvalidArgument)
}

fn number(message: &DynamicMessage, field: &FieldDescriptor) -> u64 {
    message.get_field(field).as_u64().unwrap_or_default()
}

/// What is answered, by what the file turned out to be.
struct Plan {
    status: StatusCode,
    /// what the body comes from
    slice: Slice,
    /// the body's first byte in the file, and how many there are
    start: u64,
    length: u64,
}

impl Plan {
    fn of(file: &FileInfo, range: Option<Range>, given: Slice, headers: &HeaderMap) -> Result<Self, Rejection> {
        let validators = Validators { etag: &file.etag, modified: modified(file) };
        let left = file.size.saturating_sub(given.offset);
        let length = if given.length == 0 { left } else { given.length.min(left) };
        let whole = Self { status: StatusCode::OK, slice: given, start: given.offset, length };
        match validators.judge(headers) {
            Verdict::Send => {}
            Verdict::NotModified => return Ok(Self { status: StatusCode::NOT_MODIFIED, ..whole }),
            Verdict::Failed => {
                return Err(Rejection::precondition("the file is not the one that the condition is about"));
            }
        }
        let Some(range) = range.filter(|_| validators.allow_range(headers)) else { return Ok(whole) };
        match range.within(file.size) {
            Part::Whole => Ok(whole),
            Part::Unsatisfiable => Err(Rejection::range(file.size)),
            Part::Slice { start, length } => {
                let asked = match range {
                    Range::From { last: None, .. } => 0,
                    Range::From { first, last: Some(last) } => (last - first).saturating_add(1),
                    Range::Suffix(_) => length,
                };
                let slice = Slice { offset: start, length: asked };
                Ok(Self { status: StatusCode::PARTIAL_CONTENT, slice, start, length })
            }
        }
    }

    fn response(self, download: &Download, opened: Opened, head: &Head) -> Response<Body> {
        let file = opened.file.clone();
        let mut response = match self.status {
            StatusCode::NOT_MODIFIED => Response::new(Body::empty()),
            // files that the kernel makes up say that they are empty, and are not
            _ if file.size == 0 && !opened.data.is_empty() => opened.response(head, None),
            _ => opened.response(head, Some(self.length)),
        };
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        common(headers, download.media_type(), &file.name);
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        if let Some(etag) = etag_value(&file) {
            headers.insert(ETAG, etag);
        }
        if let Some(Ok(date)) = modified(&file).map(|time| HeaderValue::try_from(httpdate::fmt_http_date(time))) {
            headers.insert(LAST_MODIFIED, date);
        }
        match self.status {
            StatusCode::PARTIAL_CONTENT => {
                let range = format!("bytes {}-{}/{}", self.start, self.start + self.length - 1, file.size);
                insert(headers, CONTENT_RANGE, range);
            }
            StatusCode::NOT_MODIFIED => {
                headers.remove(CONTENT_TYPE);
                headers.remove(CONTENT_DISPOSITION);
            }
            _ => {}
        }
        response
    }
}

fn common(headers: &mut HeaderMap, media_type: &'static str, name: &str) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    insert(
        headers,
        CONTENT_DISPOSITION,
        format!("attachment; filename*=UTF-8''{}", utf8_percent_encode(name, ENCODED)),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(VARY, HeaderValue::from_static("accept, authorization"));
}

fn insert(headers: &mut HeaderMap, name: http::HeaderName, value: String) {
    // what is written here is plain ASCII
    if let Ok(value) = HeaderValue::try_from(value) {
        headers.insert(name, value);
    }
}

/// A file's etag as a header has it.
pub fn etag_value(file: &FileInfo) -> Option<HeaderValue> {
    let etag = Some(&file.etag).filter(|etag| !etag.is_empty())?;
    HeaderValue::try_from(format!("\"{etag}\"")).ok()
}

/// The file that an answer describes.
pub fn info(message: &DynamicMessage) -> Option<FileInfo> {
    let file = message.get_field_by_name("file")?;
    file.as_message()?.transcode_to().ok()
}

fn modified(file: &FileInfo) -> Option<SystemTime> {
    // dates in headers begin with 1970
    file.modify_time.filter(|time| time.seconds >= 0).and_then(|time| SystemTime::try_from(time).ok())
}

/// A stream that has begun.
struct Opened {
    file: FileInfo,
    /// bytes that have come already
    data: Bytes,
    pieces: Pieces,
}

impl Opened {
    async fn open(download: &Download, call: &Call, message: &DynamicMessage) -> Result<Self, Error> {
        let messages = call.clone().stream(message.encode_to_vec().into()).await?;
        let deadline = Box::pin(sleep_until(call.deadline));
        let mut pieces = Pieces { messages, download: download.clone(), deadline };
        let Some(first) = timeout_at(call.deadline, pieces.message()).await.map_err(|_| deadline_exceeded())?? else {
            let file = FileInfo::default();
            return match &download.file {
                Some(_) => Err(Error::internal("read a file", "the service's answer is empty")),
                None => Ok(Self { file, data: Bytes::new(), pieces }),
            };
        };
        let file = match &download.file {
            Some(fields) => first.get_field(&fields.info).as_message().and_then(|file| file.transcode_to().ok()),
            None => Some(FileInfo::default()),
        };
        let file: FileInfo = file.ok_or_else(|| Error::internal("read a file", "the service does not say which"))?;
        let mut data = bytes_of(&first, &download.data);
        // whether a file that says it is empty is so, the next message tells
        while data.is_empty() && file.size == 0 {
            let next = timeout_at(call.deadline, pieces.message()).await.map_err(|_| deadline_exceeded())??;
            let Some(next) = next else { break };
            data = bytes_of(&next, &download.data);
        }
        Ok(Self { file, data, pieces })
    }

    /// The answer with these bytes, `length` of them where that is known.
    fn response(self, head: &Head, length: Option<u64>) -> Response<Body> {
        let body = match head.method {
            Method::HEAD => Body::empty(),
            _ => Body::new(Sent { ready: self.data, pieces: self.pieces, left: length }),
        };
        let mut response = Response::new(body);
        if let Some(length) = length {
            response.headers_mut().insert(CONTENT_LENGTH, length.into());
        }
        response
    }
}

fn bytes_of(message: &DynamicMessage, field: &FieldDescriptor) -> Bytes {
    message.get_field(field).as_bytes().cloned().unwrap_or_default()
}

/// What comes from the service.
struct Pieces {
    messages: Streaming<Bytes>,
    download: Download,
    deadline: Pin<Box<Sleep>>,
}

impl Pieces {
    async fn message(&mut self) -> Result<Option<DynamicMessage>, Error> {
        std::future::poll_fn(|context| self.poll_message(context)).await
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Option<DynamicMessage>, Error>> {
        let message = match Pin::new(&mut self.messages).poll_next(context) {
            Poll::Ready(message) => message,
            Poll::Pending => {
                ready!(self.deadline.as_mut().poll(context));
                return Poll::Ready(Err(deadline_exceeded()));
            }
        };
        let message = message.transpose().map_err(|status| from_upstream(&status))?;
        let output = self.download.binding.rpc.output();
        let decoded = message.map(|message| DynamicMessage::decode(output, message)).transpose();
        Poll::Ready(decoded.map_err(|error| Error::internal("read the service's answer", error)))
    }
}

/// An answer's body. It ends well only after every byte that was promised; anything else breaks the connection, since
/// the status is long out.
struct Sent {
    ready: Bytes,
    pieces: Pieces,
    left: Option<u64>,
}

impl Sent {
    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Error>>> {
        while self.ready.is_empty() {
            match ready!(self.pieces.poll_message(context)) {
                Ok(Some(message)) => self.ready = bytes_of(&message, &self.pieces.download.data),
                Ok(None) if self.left.is_some_and(|left| left > 0) => return Poll::Ready(Some(Err(changed()))),
                Ok(None) => return Poll::Ready(None),
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
        let data = std::mem::take(&mut self.ready);
        if let Some(left) = self.left {
            let Some(left) = left.checked_sub(data.len() as u64) else { return Poll::Ready(Some(Err(changed()))) };
            self.left = Some(left);
        }
        Poll::Ready(Some(Ok(data)))
    }
}

fn changed() -> Error {
    Error::new(ErrorKind::Aborted, reason::FILE_CHANGED, "the file changed while it was read")
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(ready!(self.next(context)).map(|data| match data {
            Ok(data) => Ok(Frame::data(data)),
            Err(error) => {
                tracing::warn!(error = cloud_sandbox_model::error::chain(&error), "a download broke off");
                Err(error.into())
            }
        }))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
