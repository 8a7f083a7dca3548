//! The layer in front of every service: verifies the token, looks the method up in the table, and puts the
//! [`Principal`] into the request.

use std::task::{Context, Poll};

use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_rpc::to_status;
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tower::{Layer, Service};

use crate::{access, principal::Principal, token::Tokens};

/// Puts [`Authenticated`] in front of a service.
#[derive(Debug, Clone)]
pub struct AuthLayer(Tokens);

impl AuthLayer {
    #[must_use]
    pub fn new(tokens: Tokens) -> Self {
        Self(tokens)
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authenticated { tokens: self.0.clone(), inner }
    }
}

/// A service that only lets known callers through.
#[derive(Debug, Clone)]
pub struct Authenticated<S> {
    tokens: Tokens,
    inner: S,
}

impl<S, B, R> Service<Request<B>> for Authenticated<S>
where
    S: Service<Request<B>, Response = Response<R>>,
    R: Default,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, Self::Error>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match authorize(&self.tokens, request.uri().path(), request.headers()) {
            Ok(principal) => {
                // a principal is only ever what this layer found
                request.extensions_mut().remove::<Principal>();
                if let Some(principal) = principal {
                    request.extensions_mut().insert(principal);
                }
                Either::Right(self.inner.call(request))
            }
            Err(error) => Either::Left(ready(Ok(to_status(error).into_http()))),
        }
    }
}

/// Who makes a call to the method at `path`, if that is allowed. `None` is somebody without a token at a public method.
pub fn authorize(tokens: &Tokens, path: &str, headers: &HeaderMap) -> Result<Option<Principal>> {
    let Some(access) = access::of(path) else {
        return Err(Error::new(ErrorKind::Unimplemented, "METHOD_NOT_FOUND", format!("method {path} does not exist")));
    };
    let token = bearer(headers)?;
    let principal = match token {
        Some(token) => tokens.verify(token).map(Some),
        None => Ok(None),
    };
    match (access, principal) {
        // an expired token must not bar the way to a new one
        (access::Access::Public, principal) => Ok(principal.unwrap_or_default()),
        (_, Err(error)) => Err(error),
        (_, Ok(None)) => {
            Err(Error::new(ErrorKind::Unauthenticated, reason::TOKEN_MISSING, "a bearer token is required"))
        }
        (access, Ok(Some(principal))) if access.allows(principal.role) => Ok(Some(principal)),
        (_, Ok(Some(_))) => Err(Error::new(
            ErrorKind::PermissionDenied,
            reason::ROLE_DENIED,
            "the token's role may not call this method",
        )),
    }
}

fn bearer(headers: &HeaderMap) -> Result<Option<&str>> {
    let Some(value) = headers.get(AUTHORIZATION) else { return Ok(None) };
    let token = value.to_str().ok().and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    token.map(Some).ok_or_else(|| {
        Error::new(ErrorKind::Unauthenticated, reason::TOKEN_INVALID, "authorization must be 'Bearer <token>'")
    })
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use tower::ServiceExt;

    use super::*;
    use crate::principal::Role;

    const EXECUTE: &str = "/cloud_sandbox.v1.ExecService/Execute";

    async fn call(path: &str, authorization: Option<String>) -> (Option<String>, Option<Principal>) {
        let tokens = Tokens::hs256(&[7; 32]);
        let (send, receive) = std::sync::mpsc::channel();
        let inner = tower::service_fn(move |request: Request<()>| {
            send.send(request.extensions().get::<Principal>().cloned()).unwrap();
            async { Ok::<_, Infallible>(Response::new(())) }
        });
        let mut request = Request::builder().uri(path);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let response = AuthLayer::new(tokens).layer(inner).oneshot(request.body(()).unwrap()).await.unwrap();
        let code = response.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
        (code, receive.try_recv().ok().flatten())
    }

    fn token(role: Role) -> String {
        let who = Principal { tenant: "default".into(), user: "ada".into(), role };
        format!("Bearer {}", Tokens::hs256(&[7; 32]).mint(&who, Duration::from_secs(60)).unwrap())
    }

    #[tokio::test]
    async fn known_caller_goes_through_with_its_principal() {
        let (code, principal) = call(EXECUTE, Some(token(Role::User))).await;
        assert_eq!((code, principal.unwrap().user), (None, "ada".to_owned()));
    }

    #[tokio::test]
    async fn caller_without_a_good_token_is_unauthenticated() {
        for authorization in [None, Some("Bearer x".into()), Some("Basic dTpw".into()), Some("Bearer".into())] {
            let (code, principal) = call(EXECUTE, authorization.clone()).await;
            assert_eq!((code.as_deref(), principal), (Some("16"), None), "{authorization:?}");
        }
    }

    #[tokio::test]
    async fn user_may_not_call_a_node_and_a_service_may_not_call_the_api() {
        let node = "/cloud_sandbox.node.v1.NodeService/Execute";
        assert_eq!(call(node, Some(token(Role::Admin))).await.0.as_deref(), Some("7"));
        assert_eq!(call(EXECUTE, Some(token(Role::Service))).await.0.as_deref(), Some("7"));
        assert_eq!(call(node, Some(token(Role::Service))).await.0, None);
    }

    #[tokio::test]
    async fn method_without_a_row_is_refused_to_everybody() {
        assert_eq!(call("/cloud_sandbox.v1.ExecService/New", Some(token(Role::Admin))).await.0.as_deref(), Some("12"));
    }

    #[tokio::test]
    async fn bad_token_does_not_bar_a_public_method() {
        let issue = "/cloud_sandbox.v1.AuthService/IssueToken";
        assert_eq!(call(issue, Some("Bearer expired".into())).await, (None, None));
    }
}
