//! How a service of ours makes itself known to a node: a short-lived token of its own on every call.

use std::{
    sync::{Arc, RwLock},
    time::{Duration, Instant},
};

use cloud_sandbox_model::error::Error;
use cloud_sandbox_rpc::Upstream;
use http::HeaderValue;

use crate::{
    principal::{DEFAULT_TENANT, Principal, Role},
    token::Tokens,
};

const TTL: Duration = Duration::from_secs(600);
const RENEWED_AFTER: Duration = Duration::from_secs(300);

/// Mints the service's tokens, a new one before the old one ends.
#[derive(Debug, Clone)]
pub struct ServiceIdentity {
    tokens: Tokens,
    name: &'static str,
    current: Arc<RwLock<Option<(Instant, HeaderValue)>>>,
}

impl ServiceIdentity {
    /// The identity of the service called `name`.
    #[must_use]
    pub fn new(tokens: Tokens, name: &'static str) -> Self {
        Self { tokens, name, current: Arc::default() }
    }

    /// The upstream with this identity on every call.
    #[must_use]
    pub fn attach(&self, upstream: Upstream) -> Upstream {
        let identity = self.clone();
        upstream.authorized(move || identity.header().map_err(Into::into))
    }

    fn header(&self) -> Result<HeaderValue, Error> {
        if let Ok(current) = self.current.read()
            && let Some((minted, value)) = current.as_ref()
            && minted.elapsed() < RENEWED_AFTER
        {
            return Ok(value.clone());
        }
        let who = Principal::new(DEFAULT_TENANT, self.name, Role::Service);
        let token = self.tokens.mint(&who, TTL)?;
        let value = HeaderValue::try_from(format!("Bearer {token}"))
            .map_err(|error| Error::internal("write a token into a header", error))?;
        if let Ok(mut current) = self.current.write() {
            *current = Some((Instant::now(), value.clone()));
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use tonic::body::Body;
    use tower::ServiceExt;

    use super::*;
    use crate::layer::authorize;

    #[tokio::test]
    async fn node_knows_the_service() {
        let tokens = Tokens::hs256(&[1; 32]);
        let verifier = tokens.clone();
        let node = tower::service_fn(move |request: Request<Body>| {
            let who = authorize(&verifier, request.uri().path(), request.headers());
            async move {
                assert_eq!(who.unwrap().unwrap().user, "exec");
                Ok::<_, Infallible>(Response::new(Body::empty()))
            }
        });
        let upstream = ServiceIdentity::new(tokens, "exec").attach(cloud_sandbox_rpc::in_process(node));
        for _ in 0..2 {
            let call =
                Request::builder().uri("/cloud_sandbox.node.v1.NodeService/GetSandbox").body(Body::empty()).unwrap();
            upstream.clone().oneshot(call).await.unwrap();
        }
    }
}
