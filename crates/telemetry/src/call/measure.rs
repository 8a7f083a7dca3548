//! What is known of one call, and the body that learns its code from the trailers.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use ::metrics::{counter, gauge, histogram};
use cloud_sandbox_model::ErrorKind;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tracing::{Span, debug};

const GRPC_STATUS: &str = "grpc-status";

/// A call that has begun; dropping it counts it.
#[derive(Debug)]
pub(super) struct Measure {
    service: String,
    method: String,
    begun: Instant,
    code: i32,
    span: Span,
}

impl Measure {
    pub(super) fn begin(service: &str, method: &str, span: Span) -> Self {
        gauge!("cloud_sandbox_grpc_server_active").increment(1.0);
        // until something else is known, whoever lets go of the call has cancelled it
        Self {
            service: service.to_owned(),
            method: method.to_owned(),
            begun: Instant::now(),
            code: ErrorKind::Cancelled.grpc_code(),
            span,
        }
    }

    fn learn(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get(GRPC_STATUS) {
            let number = status.to_str().ok().and_then(|text| text.parse().ok());
            self.code = number.unwrap_or_else(|| ErrorKind::Internal.grpc_code());
        }
    }
}

impl Drop for Measure {
    fn drop(&mut self) {
        gauge!("cloud_sandbox_grpc_server_active").decrement(1.0);
        let code = ErrorKind::grpc_code_name(self.code);
        let elapsed = self.begun.elapsed();
        let _entered = self.span.enter();
        debug!(code, elapsed_us = elapsed.as_micros() as u64, "call finished");
        // callers make up the names of methods that do not exist; each would be a time series of its own
        let unknown = self.code == ErrorKind::Unimplemented.grpc_code();
        let label = |text: &String| if unknown { "unknown".to_owned() } else { text.clone() };
        let (service, method) = (label(&self.service), label(&self.method));
        histogram!("cloud_sandbox_grpc_server_duration_seconds", "service" => service.clone(), "method" => method.clone())
            .record(elapsed.as_secs_f64());
        counter!("cloud_sandbox_grpc_server_requests_total", "service" => service, "method" => method, "code" => code)
            .increment(1);
    }
}

pin_project! {
    /// An answer whose end is measured. Its default, an empty answer, belongs to no call.
    #[derive(Debug, Default)]
    pub struct MeasuredBody<B> {
        #[pin]
        inner: B,
        measure: Option<Measure>,
    }
}

impl<B> MeasuredBody<B> {
    pub(super) fn new(inner: B, mut measure: Measure, headers: &HeaderMap) -> Self {
        // an answer without a body carries its status among the headers
        measure.learn(headers);
        Self { inner, measure: Some(measure) }
    }
}

impl<B: Body> Body for MeasuredBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let this = self.project();
        let frame = match this.measure.as_ref() {
            Some(measure) => measure.span.in_scope(|| this.inner.poll_frame(context)),
            None => this.inner.poll_frame(context),
        };
        match (&frame, this.measure.as_mut()) {
            (Poll::Ready(Some(Ok(frame))), Some(measure)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    measure.learn(trailers);
                    *this.measure = None;
                }
            }
            (Poll::Ready(Some(Err(_))), Some(measure)) => measure.code = ErrorKind::Internal.grpc_code(),
            (Poll::Ready(None), Some(_)) => *this.measure = None,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
