//! Streamed answers over REST: server-sent events or a JSON document per line. A failure in the middle, when the status
//! is long out, is the last element.
//!
//! The upstream call lives in the response body: a client that hangs up drops both.

use std::{convert::Infallible, time::Duration};

use async_stream::stream;
use axum::body::Body;
use bytes::{BufMut, Bytes, BytesMut};
use cloud_sandbox_model::error::Error;
use http::{
    HeaderName, HeaderValue, Response,
    header::{CACHE_CONTROL, CONTENT_TYPE},
};
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Streaming;

use crate::{
    accept::Form,
    errors::{deadline_exceeded, envelope, from_upstream, http_status},
    rest::{print, read},
    resume::{self, Position},
    routes::Binding,
};

/// Proxies drop connections on which nothing happens, most of them after a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Asks nginx and its like not to hold events back.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The answer that carries `messages` in `form` until `deadline`.
///
/// A `position` goes along in the events' ids, where the form has ids.
pub fn response(
    binding: Binding,
    form: Form,
    mut messages: Streaming<Bytes>,
    deadline: Instant,
    mut position: Option<Position>,
) -> Response<Body> {
    let elements = stream! {
        loop {
            let next = timeout(KEEP_ALIVE, timeout_at(deadline, messages.message())).await;
            let element = match next {
                Err(_) if form == Form::EventStream => {
                    yield Ok::<_, Infallible>(Bytes::from_static(b": keep-alive\n\n"));
                    continue;
                }
                Err(_) => continue,
                Ok(Ok(Ok(None))) => break,
                Ok(Ok(Ok(Some(message)))) => element(&binding, message, position.as_mut()),
                Ok(Ok(Err(status))) => Err(from_upstream(&status)),
                Ok(Err(_)) => Err(deadline_exceeded()),
            };
            match element {
                Ok(json) => yield Ok(framed(form, position, &json)),
                Err(error) => {
                    yield Ok(failure(form, &error));
                    break;
                }
            }
        }
    };
    let mut response = Response::new(Body::from_stream(elements));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(form.media_type()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(UNBUFFERED, HeaderValue::from_static("no"));
    response
}

/// The JSON of one message, which `position` is moved past.
fn element(binding: &Binding, message: Bytes, position: Option<&mut Position>) -> Result<Vec<u8>, Error> {
    let message = read(binding, message)?;
    if let (Some(position), Some(event)) = (position, resume::event(binding, &message)) {
        position.pass(&event);
    }
    print(binding, &message)
}

/// One element. JSON text has no line breaks of its own, so neither form needs escaping.
fn framed(form: Form, position: Option<Position>, json: &[u8]) -> Bytes {
    let mut element = BytesMut::with_capacity(json.len() + 64);
    if form == Form::EventStream {
        if let Some(position) = position {
            element.put_slice(format!("id: {}\n", position.id()).as_bytes());
        }
        element.put_slice(b"data: ");
    }
    element.put_slice(json);
    element.put_slice(if form == Form::EventStream { b"\n\n" } else { b"\n" });
    element.freeze()
}

fn failure(form: Form, error: &Error) -> Bytes {
    let json = envelope(error, http_status(error.kind())).to_string();
    let data = framed(form, None, json.as_bytes());
    match form {
        Form::EventStream => [&b"event: error\n"[..], &data].concat().into(),
        _ => data,
    }
}
