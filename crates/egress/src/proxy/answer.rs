//! What the proxy itself answers: in words for whoever, or whatever, reads the error of a failed download.

use bytes::Bytes;
use cloud_sandbox_model::network::Decision;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::ext::ReasonPhrase;

use super::{forward::Relayed, target::Target};
use crate::gate::Refusal;

/// Says of an answer that it is the proxy's and not the host's, and why, for programs.
pub(super) const HEADER: &str = "x-sandbox-network";

/// The body of an answer: the proxy's own, or a host's.
pub(super) type Answer = Either<Full<Bytes>, Relayed>;

/// There is a tunnel from now on.
pub(super) fn tunnel() -> Response<Answer> {
    Response::new(Either::Left(Full::default()))
}

/// The request means nothing, or nothing certain.
pub(super) fn malformed(why: &str) -> Response<Answer> {
    own(StatusCode::BAD_REQUEST, "reason=malformed", None, format!("{why}\n"))
}

/// The connection that it needs was not made.
pub(super) fn refused(target: &Target, refusal: &Refusal) -> Response<Answer> {
    let status = match refusal {
        Refusal::Denied(_) => StatusCode::FORBIDDEN,
        Refusal::Unresolved(_) | Refusal::Unreachable(_) => StatusCode::BAD_GATEWAY,
        Refusal::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
    };
    let mut facts = format!("reason={}; host=\"{}\"; port={}", refusal.reason(), target.host, target.port);
    if let Refusal::Denied(Decision::DeniedByList(rule)) = refusal {
        facts += &format!("; rule=\"{rule}\"");
    }
    if !matches!(refusal, Refusal::Denied(_)) {
        return own(status, &facts, None, format!("{target} could not be reached: {refusal}\n"));
    }
    // programs that show nothing else of a refused CONNECT show this
    let phrase = format!("Forbidden by the network policy of this sandbox: {target}: {refusal}");
    let body =
        format!("{target} was refused by the network policy of this sandbox: {refusal} ({})\n", refusal.reason());
    own(status, &facts, Some(phrase), body)
}

/// The host does not speak HTTP, or its connection ended before it had answered.
pub(super) fn failed(target: &Target, error: &hyper::Error) -> Response<Answer> {
    let facts = format!("reason=broken; host=\"{}\"; port={}", target.host, target.port);
    own(StatusCode::BAD_GATEWAY, &facts, None, format!("{target} did not answer: {error}\n"))
}

/// The host changes to a protocol that nobody asked for.
pub(super) fn switched(target: &Target) -> Response<Answer> {
    let facts = format!("reason=broken; host=\"{}\"; port={}", target.host, target.port);
    own(StatusCode::BAD_GATEWAY, &facts, None, format!("{target} changed the protocol without being asked\n"))
}

/// A whole answer for a connection beyond the limit.
pub(super) fn too_many() -> String {
    let body = format!("this sandbox has {} connections to its proxy already\n", crate::CONNECTIONS_MAX);
    let length = body.len();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\n{HEADER}: reason=too_many_connections\r\ncontent-type: text/plain\r\n\
         content-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
}

fn own(status: StatusCode, facts: &str, phrase: Option<String>, body: String) -> Response<Answer> {
    let mut response = Response::new(Either::Left(Full::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    // hosts and rules are plain ASCII, so it always is a value
    if let Ok(value) = HeaderValue::from_str(facts) {
        headers.insert(HEADER, value);
    }
    if let Some(phrase) = phrase.and_then(|phrase| ReasonPhrase::try_from(phrase).ok()) {
        response.extensions_mut().insert(phrase);
    }
    response
}
