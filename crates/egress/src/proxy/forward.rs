//! One request, carried to its host, and its answer back.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header, uri::PathAndQuery};
use http_body::{Body, Frame, SizeHint};
use http_body_util::Either;
use hyper::{
    body::Incoming,
    client::conn::http1::{Builder, SendRequest},
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    Connection, HEAD_BYTES_MAX, HEADERS_MAX, IDLE_TIMEOUT,
    answer::{self, Answer},
    target::Target,
};
use crate::{flow::Flow, metered::Metered};

/// What is between two neighbours alone (RFC 9110, section 7.6.1), beside what `Connection` names.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Carries a request over a connection that was made for it.
pub(super) async fn forward(
    mut request: Request<Incoming>,
    target: &Target,
    flow: Flow,
    outside: Metered<TcpStream>,
    connection: &Connection,
) -> Response<Answer> {
    direct(&mut request, target);
    let handshake = Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .handshake(TokioIo::new(outside));
    let (mut sender, driver) = match handshake.await {
        Ok(made) => made,
        Err(error) => return answer::failed(target, &error),
    };
    // the driver ends with the answer, or with whoever waits for it
    let dropped = CancellationToken::new();
    let alive = dropped.clone().drop_guard();
    let stop = connection.stop.clone();
    connection.forwards.spawn(async move {
        let carry = async move {
            tokio::select! {
                () = dropped.cancelled() => {}
                _ = driver => {}
            }
        };
        flow.run(carry, IDLE_TIMEOUT, stop).await;
    });
    match sender.send_request(request).await {
        Err(error) => answer::failed(target, &error),
        Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => answer::switched(target),
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            head.version = Version::HTTP_11;
            drop_hop_by_hop(&mut head.headers);
            // it is the proxy's word, and not the host's
            head.headers.remove(answer::HEADER);
            Response::from_parts(head, Either::Right(Relayed { body, _sender: sender, _alive: alive }))
        }
    }
}

/// Makes a request to the proxy one to its target.
fn direct(request: &mut Request<Incoming>, target: &Target) {
    drop_hop_by_hop(request.headers_mut());
    // hyper answers it, when the body is asked for
    request.headers_mut().remove(header::EXPECT);
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    // whatever the request said: the host that was decided is the host that is asked (RFC 9112, section 3.2.2)
    if let Ok(host) = HeaderValue::from_str(&target.host_header()) {
        request.headers_mut().insert(header::HOST, host);
    }
    request.headers_mut().append(header::VIA, HeaderValue::from_static("1.1 cloud-sandbox"));
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_owned())
        .collect();
    for name in named.iter().map(String::as_str).chain(HOP_BY_HOP) {
        // what frames a message and says whose it is does not go because somebody lists it
        if !["content-length", "host"].iter().any(|kept| name.eq_ignore_ascii_case(kept)) {
            headers.remove(name);
        }
    }
}

/// The body of a host's answer, which keeps the connection that it comes over.
pub(super) struct Relayed {
    body: Incoming,
    _sender: SendRequest<Incoming>,
    _alive: DropGuard,
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_between_neighbours_goes_and_what_frames_the_message_stays() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Mine"),
            ("connection", "content-length, host"),
            ("x-mine", "1"),
            ("proxy-authorization", "Basic eDp5"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers"),
            ("upgrade", "websocket"),
            ("host", "a.example"),
            ("content-length", "3"),
            ("authorization", "Bearer x"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        drop_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(http::HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "content-length", "host"]);
    }
}
