//! What is seen of every call: its id, one span, one log line, its metrics. Tokens and bodies are never among it.
//!
//! A [`Ticket`] lives from a call's first byte in to its last byte out, inside the response body; whichever way the call
//! ends (answered, broken off by the caller, panicked), dropping the ticket counts it.

use std::{
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI32, AtomicU16, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes},
    extract::Request,
    middleware::Next,
};
use cloud_sandbox_auth::Principal;
use cloud_sandbox_model::ErrorKind;
use cloud_sandbox_rpc::context::REQUEST_ID;
use http::{HeaderValue, Method, Response};
use http_body::{Frame, SizeHint};
use metrics::{counter, gauge, histogram};
use tracing::{Instrument, Span};

use crate::forward;

const HTTP_REQUESTS: &str = "cloud_sandbox_http_requests_total";
const HTTP_DURATION: &str = "cloud_sandbox_http_request_duration_seconds";
const GRPC_REQUESTS: &str = "cloud_sandbox_grpc_requests_total";
const GRPC_DURATION: &str = "cloud_sandbox_grpc_request_duration_seconds";
const IN_FLIGHT: &str = "cloud_sandbox_requests_in_flight";

/// The route of what has none.
const UNMATCHED: &str = "unmatched";
/// What a call is counted as when its caller was gone before the answer (nginx's code).
const HUNG_UP: u16 = 499;
const NO_CODE: i32 = -1;

/// Tells the recorder what the edge's metrics mean.
pub fn describe() {
    metrics::describe_counter!(HTTP_REQUESTS, "HTTP requests by method, route and status");
    metrics::describe_histogram!(HTTP_DURATION, metrics::Unit::Seconds, "time to a request's last byte out");
    metrics::describe_counter!(GRPC_REQUESTS, "gRPC calls through the edge by service, method and code");
    metrics::describe_histogram!(GRPC_DURATION, metrics::Unit::Seconds, "time to a gRPC call's status");
    let doc = "calls whose rate was counted by this edge alone, since what edges share it in was away";
    metrics::describe_counter!(crate::limits::UNSHARED, doc);
    metrics::describe_gauge!(IN_FLIGHT, "requests being served");
}

/// What handlers note about the call that they serve.
#[derive(Debug)]
pub struct Call {
    span: Span,
    route: OnceLock<String>,
    grpc: OnceLock<(String, String)>,
    grpc_code: AtomicI32,
    quiet: OnceLock<()>,
}

impl Call {
    /// The template of the route that serves the call.
    pub fn route(&self, template: &str) {
        if self.route.set(template.to_owned()).is_ok() {
            self.span.record("route", template);
        }
    }

    /// An operational call: no log line unless somebody looks closely.
    pub fn quiet(&self) {
        let _ = self.quiet.set(());
    }

    /// The method that a gRPC call goes to.
    pub fn grpc(&self, service: &str, method: &str) {
        if self.grpc.set((service.to_owned(), method.to_owned())).is_ok() {
            self.span.record("route", format!("/{service}/{method}"));
        }
    }

    pub fn grpc_code(&self, code: i32) {
        self.grpc_code.store(code, Ordering::Relaxed);
    }

    pub fn caller(&self, principal: Option<&Principal>) {
        if let Some(who) = principal {
            self.span.record("tenant", who.tenant.as_str());
            self.span.record("user", who.user.as_str());
        }
    }
}

/// The middleware around everything.
pub async fn observe(mut request: Request, next: Next) -> Response<Body> {
    let request_id = forward::request_id(request.headers());
    let header = HeaderValue::try_from(request_id.as_str()).unwrap_or_else(|_| HeaderValue::from_static("none"));
    request.headers_mut().insert(REQUEST_ID, header.clone());
    let method = name_of(request.method());
    let span = tracing::info_span!(
        "request",
        request_id,
        method,
        route = tracing::field::Empty,
        tenant = tracing::field::Empty,
        user = tracing::field::Empty
    );
    let call = Arc::new(Call {
        span: span.clone(),
        route: OnceLock::new(),
        grpc: OnceLock::new(),
        grpc_code: AtomicI32::new(NO_CODE),
        quiet: OnceLock::new(),
    });
    let ticket = Ticket::new(Arc::clone(&call), method);
    let head = request.method() == Method::HEAD;
    request.extensions_mut().insert(call);

    let mut response = next.run(request).instrument(span).await;
    ticket.status.store(response.status().as_u16(), Ordering::Relaxed);
    response.headers_mut().insert(REQUEST_ID, header);
    if head {
        response = without_body(response);
    }
    response.map(|body| Body::new(Observed { body, ticket }))
}

fn without_body(mut response: Response<Body>) -> Response<Body> {
    if let Some(length) = http_body::Body::size_hint(response.body()).exact() {
        response.headers_mut().entry(http::header::CONTENT_LENGTH).or_insert_with(|| length.into());
    }
    response.map(|_| Body::empty())
}

/// Callers may invent methods; metrics must not have a series for each.
fn name_of(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => "OTHER",
    }
}

struct Ticket {
    call: Arc<Call>,
    method: &'static str,
    status: AtomicU16,
    started: Instant,
}

impl Ticket {
    fn new(call: Arc<Call>, method: &'static str) -> Self {
        gauge!(IN_FLIGHT).increment(1);
        Self { call, method, status: AtomicU16::new(HUNG_UP), started: Instant::now() }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        gauge!(IN_FLIGHT).decrement(1);
        let elapsed = self.started.elapsed();
        let status = self.status.load(Ordering::Relaxed);
        let latency_ms = elapsed.as_secs_f64() * 1e3;
        if let Some((service, method)) = self.call.grpc.get() {
            let code = match self.call.grpc_code.load(Ordering::Relaxed) {
                NO_CODE => ErrorKind::Cancelled.name(),
                code => ErrorKind::grpc_code_name(code),
            };
            let labels = [("service", service.clone()), ("method", method.clone())];
            histogram!(GRPC_DURATION, &labels).record(elapsed.as_secs_f64());
            counter!(GRPC_REQUESTS, "service" => service.clone(), "method" => method.clone(), "code" => code)
                .increment(1);
            self.call.span.in_scope(|| tracing::info!(code, latency_ms, "call finished"));
            return;
        }
        let route = self.call.route.get().map_or(UNMATCHED, String::as_str).to_owned();
        histogram!(HTTP_DURATION, "method" => self.method, "route" => route.clone()).record(elapsed.as_secs_f64());
        counter!(HTTP_REQUESTS, "method" => self.method, "route" => route, "status" => status.to_string()).increment(1);
        self.call.span.in_scope(|| match self.call.quiet.get() {
            Some(()) => tracing::debug!(status, latency_ms, "request finished"),
            None => tracing::info!(status, latency_ms, "request finished"),
        });
    }
}

/// A response body that holds its call's ticket.
struct Observed {
    body: Body,
    ticket: Ticket,
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let span = self.ticket.call.span.clone();
        let _entered = span.enter();
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
