//! gRPC and gRPC-Web calls: passed through to the service by name, bodies untouched.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{extract::Request, response::IntoResponse};
use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use cloud_sandbox_rpc::to_status;
use http::{HeaderMap, HeaderValue, Response, Version, header::CONTENT_TYPE, uri::PathAndQuery};
use http_body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::{Status, body::Body};
use tonic_web::GrpcWebLayer;
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    edge::{Edge, ISSUER, call_of},
    errors::{Rejection, deadline_exceeded, edge_reason, unreachable},
    forward,
    observe::Call,
};

const STATUS: &str = "grpc-status";

/// Serves one gRPC or gRPC-Web call.
pub async fn serve(edge: Arc<Edge>, request: Request) -> Response<axum::body::Body> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    let web = content_type.starts_with(b"application/grpc-web");
    if !web && request.version() != Version::HTTP_2 {
        let message = "gRPC needs HTTP/2; over HTTP/1.1 there are gRPC-Web and REST";
        let error = Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message);
        return Rejection::from(error).into_response();
    }
    let inner = service_fn(move |request: http::Request<Body>| {
        let edge = Arc::clone(&edge);
        async move { Ok::<_, Infallible>(pass_through(&edge, request).await) }
    });
    let Ok(response) = GrpcWebLayer::new().layer(inner).oneshot(request).await;
    response.map(axum::body::Body::new)
}

async fn pass_through(edge: &Edge, request: http::Request<Body>) -> Response<Body> {
    let call = call_of(request.extensions());
    let result = forwarded(edge, request, call.as_deref()).await;
    let response = result.unwrap_or_else(|error| {
        let status = to_status(error);
        if let Some(call) = &call {
            call.grpc_code(status.code() as i32);
        }
        status.into_http()
    });
    if let (Some(call), Some(code)) = (&call, code(response.headers())) {
        call.grpc_code(code);
    }
    response
}

async fn forwarded(edge: &Edge, request: http::Request<Body>, call: Option<&Call>) -> Result<Response<Body>, Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path();
    let (service, method) = path.strip_prefix('/').and_then(|path| path.split_once('/')).unwrap_or_default();
    let Some(upstream) = edge.services.get(service) else {
        note(call, "unknown", "unknown");
        let message = format!("{path} is not served here");
        return Err(Error::new(ErrorKind::Unimplemented, edge_reason::METHOD_NOT_FOUND, message));
    };
    if cloud_sandbox_auth::access::of(path).is_some() {
        note(call, service, method);
    } else {
        note(call, service, "unknown");
    }
    let (_, admitted) = edge.admit(path, &parts.headers, &parts.extensions).await;
    let principal = admitted?;
    if let Some(call) = call {
        call.caller(principal.as_ref());
    }

    let allowed = forward::timeout(&parts.headers, edge.max_timeout);
    let mut request = http::Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = forward::passed_through(&parts.headers, allowed, service == ISSUER);
    let path = PathAndQuery::try_from(path).map_err(|error| Error::internal("read a gRPC path", error))?;
    *request.uri_mut() = path.into();
    let deadline = Instant::now() + allowed;
    let answer = timeout_at(deadline, upstream.clone().oneshot(request)).await;
    let answer = answer.map_err(|_| deadline_exceeded())?.map_err(unreachable)?;
    let call = call_of(&parts.extensions);
    Ok(answer.map(|body| Body::new(Watched { body: Some(body), call, deadline: Box::pin(sleep_until(deadline)) })))
}

fn note(call: Option<&Call>, service: &str, method: &str) {
    if let Some(call) = call {
        call.grpc(service, method);
    }
}

fn code(headers: &HeaderMap) -> Option<i32> {
    headers.get(STATUS)?.to_str().ok()?.parse().ok()
}

/// An answer's body: notes the status in its trailers, and ends the call at its deadline.
struct Watched {
    /// gone once the deadline has passed, and the upstream call with it
    body: Option<Body>,
    call: Option<Arc<Call>>,
    deadline: Pin<Box<Sleep>>,
}

impl http_body::Body for Watched {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        let frame = match Pin::new(body).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                if self.deadline.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.body = None;
                let trailers = trailers_of(&to_status(deadline_exceeded()));
                Some(Ok(Frame::trailers(trailers)))
            }
        };
        if let Some(Ok(frame)) = &frame
            && let (Some(call), Some(code)) = (&self.call, frame.trailers_ref().and_then(code))
        {
            call.grpc_code(code);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}

/// A status as the end of an answer that has begun.
pub fn trailers_of(status: &Status) -> HeaderMap {
    let mut headers = HeaderMap::new();
    // only a message that is no header value fails, and ours are plain text
    let _ = status.add_header(&mut headers);
    headers
}
