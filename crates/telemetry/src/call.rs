//! The layer around a service's gRPC: each call gets a span with its request id, is counted by service, method and
//! code, and is timed until the last byte of its answer.
//!
//! Invariant: a call is counted exactly once, also when its caller hangs up half-way (then as `CANCELLED`).

mod measure;

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower::{Layer, Service};
use tracing::{Span, info_span};

use crate::request_id::{self, REQUEST_ID};
use measure::Measure;
pub use measure::MeasuredBody;

/// Puts [`Measured`] around a service.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallLayer;

impl<S> Layer<S> for CallLayer {
    type Service = Measured<S>;

    fn layer(&self, inner: S) -> Measured<S> {
        Measured { inner }
    }
}

/// A service whose calls are measured.
#[derive(Debug, Clone)]
pub struct Measured<S> {
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Measured<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = Response<MeasuredBody<R>>;
    type Error = S::Error;
    type Future = MeasuredFuture<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = request_id::ensure(request.headers_mut());
        let (service, method) = names(request.uri().path());
        let span = info_span!("call", service, method, request_id = id);
        let measure = Measure::begin(service, method, span.clone());
        let inner = span.in_scope(|| self.inner.call(request));
        MeasuredFuture { inner, call: Some((measure, id)), span }
    }
}

/// The last word of the service's name, and the method, of `/package.Service/Method`.
fn names(path: &str) -> (&str, &str) {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    (service.rsplit('.').next().unwrap_or(service), method)
}

pin_project! {
    /// A call until its answer begins.
    pub struct MeasuredFuture<F> {
        #[pin]
        inner: F,
        call: Option<(Measure, String)>,
        span: Span,
    }
}

impl<F, R, E> Future for MeasuredFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<MeasuredBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let entered = this.span.enter();
        let mut response = ready!(this.inner.poll(context))?;
        drop(entered);
        let (measure, id) = this.call.take().expect("a future is not polled after its end");
        if let Ok(value) = HeaderValue::try_from(id) {
            response.headers_mut().entry(REQUEST_ID).or_insert(value);
        }
        let (head, body) = response.into_parts();
        let body = MeasuredBody::new(body, measure, &head.headers);
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

#[cfg(test)]
mod tests;
