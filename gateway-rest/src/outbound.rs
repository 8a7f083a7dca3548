//! Upstreams as generated clients want them: with an error type of its own, because the boxed one keeps the compiler
//! from seeing that the futures over it can be sent.

use std::task::{Context, Poll};

use cloud_sandbox_rpc::{Upstream, upstream::BoxError};
use futures::future::BoxFuture;
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

/// A transport failed.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(BoxError);

/// An upstream with [`TransportError`].
#[derive(Clone)]
pub struct Outbound(pub Upstream);

impl Service<Request<Body>> for Outbound {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = BoxFuture<'static, Result<Response<Body>, TransportError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.0.poll_ready(context).map_err(TransportError)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move { answer.await.map_err(TransportError) })
    }
}
