//! The end of calls that outlast the time an edge has left: instead of being cut with their connections they are told so,
//! each with the status UNAVAILABLE, whatever it was that they waited for.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use cloud_sandbox_rpc::{Upstream, to_status, upstream::BoxError};
use http::Request;
use http_body::{Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};
use tower::{ServiceExt, service_fn};

use crate::grpc::trailers_of;

/// `upstream`, whose calls end when `closing` is cancelled.
pub fn until(upstream: Upstream, closing: CancellationToken) -> Upstream {
    Upstream::new(service_fn(move |request: Request<Body>| {
        let (upstream, closing) = (upstream.clone(), closing.clone());
        async move {
            let answer = tokio::select! {
                biased;
                () = closing.cancelled() => return Ok::<_, BoxError>(closed().into_http()),
                answer = upstream.oneshot(request) => answer?,
            };
            let closing = Box::pin(closing.cancelled_owned());
            Ok(answer.map(|body| Body::new(Closing { body: Some(body), closing })))
        }
    }))
}

fn closed() -> Status {
    let message = "the server is shutting down; what was started is not forgotten: ask again";
    to_status(Error::new(ErrorKind::Unavailable, reason::DRAINING, message))
}

/// An answer's body that ends with [`closed`] when its time is over.
struct Closing {
    /// gone once it was ended, and the upstream call with it
    body: Option<Body>,
    closing: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for Closing {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = self.body.as_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
            // also one that never stops must end
            let goes_on = matches!(&frame, Some(Ok(frame)) if frame.is_data());
            if !goes_on || self.closing.as_mut().poll(context).is_pending() {
                return Poll::Ready(frame);
            }
        } else if self.closing.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.body = None;
        Poll::Ready(Some(Ok(Frame::trailers(trailers_of(&closed())))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint)
    }
}
