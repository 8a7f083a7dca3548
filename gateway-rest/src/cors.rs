//! Cross-origin calls from browsers: any origin, never with credentials, so a page can only do what a token that it
//! was given allows. Where tokens are handed out freely, it is given one.

use axum::{body::Body, extract::Request, middleware::Next};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode,
    header::{
        ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
        ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    },
};

const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";
/// `*` would leave `authorization` out.
const REQUEST_HEADERS: &str = "accept, authorization, content-type, x-grpc-web, x-user-agent, x-request-id, \
    x-api-key, grpc-timeout, traceparent, tracestate, baggage, range, if-range, if-match, if-none-match, \
    if-modified-since, if-unmodified-since, last-event-id, cache-control";
const RESPONSE_HEADERS: &str = "grpc-status, grpc-message, grpc-status-details-bin, x-request-id, retry-after, \
    ratelimit-limit, ratelimit-remaining, ratelimit-reset, www-authenticate, etag, last-modified, accept-ranges, \
    content-length, content-range, content-disposition";
/// The longest that browsers keep a preflight's answer (Chrome's bound), in seconds.
const MAX_AGE: &str = "7200";

/// The middleware: answers preflights, marks answers.
pub async fn cors(request: Request, next: Next) -> Response<Body> {
    if !request.headers().contains_key(ORIGIN) {
        return next.run(request).await;
    }
    let preflight =
        request.method() == Method::OPTIONS && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if !preflight {
        let mut response = next.run(request).await;
        set(response.headers_mut(), ACCESS_CONTROL_EXPOSE_HEADERS, RESPONSE_HEADERS);
        set(response.headers_mut(), ACCESS_CONTROL_ALLOW_ORIGIN, "*");
        return response;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    set(headers, ACCESS_CONTROL_ALLOW_ORIGIN, "*");
    set(headers, ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    set(headers, ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
    set(headers, ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    response
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: &'static str) {
    headers.insert(name, HeaderValue::from_static(value));
}
