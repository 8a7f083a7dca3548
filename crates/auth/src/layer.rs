//! The layer in front of every service: verifies the token, looks the method up in the table, and puts the
//! [`Principal`] into the request.

use std::task::{Context, Poll};

use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_rpc::to_status;
use futures::future::{Either, Ready, ready};
use http::{HeaderMap, Request, Response, header::AUTHORIZATION};
use tower::{Layer, Service};

use crate::{
    access::{self, Access},
    principal::Principal,
    token::Tokens,
};

/// Puts [`Authenticated`] in front of a service.
#[derive(Debug, Clone)]
pub struct AuthLayer {
    tokens: Tokens,
    authorize: Authorize,
}

/// How a call's headers become whoever makes it.
type Authorize = fn(&Tokens, &str, &HeaderMap) -> Result<Option<Principal>>;

impl AuthLayer {
    /// For a service of the API: who may call what is as the table says.
    #[must_use]
    pub fn new(tokens: Tokens) -> Self {
        Self { tokens, authorize }
    }

    /// For a node, which serves services alone: whatever is not public wants a service's token, also where the table
    /// lets users call the same method of the API.
    #[must_use]
    pub fn for_services(tokens: Tokens) -> Self {
        Self { tokens, authorize: authorize_service }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = Authenticated<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Authenticated { auth: self.clone(), inner }
    }
}

/// A service that only lets known callers through.
#[derive(Debug, Clone)]
pub struct Authenticated<S> {
    auth: AuthLayer,
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
        match (self.auth.authorize)(&self.auth.tokens, request.uri().path(), request.headers()) {
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

/// Who makes a call to the method at `path` of the API, if that is allowed. `None` is somebody without a token at a
/// public method.
pub fn authorize(tokens: &Tokens, path: &str, headers: &HeaderMap) -> Result<Option<Principal>> {
    admit(access_of(path)?, tokens, path, headers)
}

/// The same at a node.
fn authorize_service(tokens: &Tokens, path: &str, headers: &HeaderMap) -> Result<Option<Principal>> {
    admit(access_of(path)?.at_node(), tokens, path, headers)
}

fn access_of(path: &str) -> Result<Access> {
    access::of(path).ok_or_else(|| {
        Error::new(ErrorKind::Unimplemented, "METHOD_NOT_FOUND", format!("method {path} does not exist"))
    })
}

fn admit(access: Access, tokens: &Tokens, path: &str, headers: &HeaderMap) -> Result<Option<Principal>> {
    let token = bearer(headers)?;
    let principal = match token {
        Some(token) => tokens.verify(token).map(Some),
        None => Ok(None),
    };
    match (access, principal) {
        // an expired token must not bar the way to a new one, and one for a file speaks for nobody here
        (Access::Public, principal) => Ok(principal.unwrap_or_default().filter(|principal| principal.grant.is_none())),
        (_, Err(error)) => Err(error),
        (_, Ok(None)) => {
            Err(Error::new(ErrorKind::Unauthenticated, reason::TOKEN_MISSING, "a bearer token is required"))
        }
        (access, Ok(Some(principal))) => {
            let granted = principal.grant.as_ref().is_none_or(|grant| access::granted(path, grant.access));
            if !granted {
                return Err(denied("the token is for one file, and not for this method"));
            }
            if !access.allows(principal.role) {
                return Err(denied("the token's role may not call this method"));
            }
            Ok(Some(principal))
        }
    }
}

fn denied(message: &str) -> Error {
    Error::new(ErrorKind::PermissionDenied, reason::ROLE_DENIED, message)
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
    use crate::principal::{FileAccess, FileGrant, Role};

    const EXECUTE: &str = "/cloud_sandbox.v1.ExecService/Execute";
    const ISSUE: &str = "/cloud_sandbox.v1.AuthService/IssueToken";

    fn tokens() -> Tokens {
        Tokens::hs256(&[7; 32])
    }

    async fn call(path: &str, authorization: Option<String>) -> (Option<String>, Option<Principal>) {
        call_through(AuthLayer::new(tokens()), path, authorization).await
    }

    /// The status, if the layer gave one, and the principal that came through it.
    async fn call_through(
        layer: AuthLayer,
        path: &str,
        authorization: Option<String>,
    ) -> (Option<String>, Option<Principal>) {
        let (send, receive) = std::sync::mpsc::channel();
        let inner = tower::service_fn(move |request: Request<()>| {
            send.send(request.extensions().get::<Principal>().cloned()).unwrap();
            async { Ok::<_, Infallible>(Response::new(())) }
        });
        let mut request = Request::builder().uri(path);
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        let response = layer.layer(inner).oneshot(request.body(()).unwrap()).await.unwrap();
        let code = response.headers().get("grpc-status").map(|code| code.to_str().unwrap().to_owned());
        (code, receive.try_recv().ok().flatten())
    }

    fn token(role: Role) -> String {
        let who = Principal::new("default", "ada", role);
        format!("Bearer {}", tokens().mint(&who, Duration::from_secs(60)).unwrap())
    }

    fn file_token(role: Role, access: FileAccess) -> String {
        let grant = FileGrant { sandbox: "sb1".into(), path: "/a".into(), access };
        let who = Principal::new("default", "ada", role);
        format!("Bearer {}", tokens().mint_file_grant(&who, grant, Duration::from_secs(60)).unwrap())
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
        let node = "/cloud_sandbox.node.v1.NodeService/GetSandbox";
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
        assert_eq!(call(ISSUE, Some("Bearer expired".into())).await, (None, None));
    }

    #[tokio::test]
    async fn node_takes_calls_of_services_alone() {
        let at_node = |path: &'static str, token| call_through(AuthLayer::for_services(tokens()), path, token);
        for path in [EXECUTE, "/cloud_sandbox.node.v1.NodeService/GetSandbox"] {
            assert_eq!(at_node(path, None).await.0.as_deref(), Some("16"), "{path}");
            for role in [Role::User, Role::Admin] {
                assert_eq!(at_node(path, Some(token(role))).await.0.as_deref(), Some("7"), "{path}");
            }
            let (code, principal) = at_node(path, Some(token(Role::Service))).await;
            assert_eq!((code, principal.unwrap().role), (None, Role::Service), "{path}");
        }
        let download = "/cloud_sandbox.v1.FileService/DownloadFile";
        let granted = at_node(download, Some(file_token(Role::Admin, FileAccess::Read))).await;
        assert_eq!(granted.0.as_deref(), Some("7"), "a signed URL is for the API");
        assert_eq!(at_node("/grpc.health.v1.Health/Check", None).await.0, None);
        assert_eq!(at_node("/cloud_sandbox.v1.ExecService/New", Some(token(Role::Service))).await.0.unwrap(), "12");
    }

    #[tokio::test]
    async fn token_for_a_file_opens_its_methods_and_no_other() {
        let files = |method: &str| format!("/cloud_sandbox.v1.FileService/{method}");
        let cases = [
            (FileAccess::Read, ["ReadFile", "DownloadFile"], ["WriteFile", "UploadFile"]),
            (FileAccess::Write, ["WriteFile", "UploadFile"], ["ReadFile", "DownloadFile"]),
        ];
        for (access, opened, closed) in cases {
            let token = || Some(file_token(Role::User, access));
            for method in opened {
                let (code, principal) = call(&files(method), token()).await;
                assert_eq!((code, principal.unwrap().grant.unwrap().access), (None, access), "{method}");
            }
            let more = ["WriteFiles", "DeleteFile", "ListFiles", "DownloadArchive"];
            for method in closed.into_iter().chain(more) {
                assert_eq!(call(&files(method), token()).await.0.as_deref(), Some("7"), "{method}");
            }
            for path in [EXECUTE, "/cloud_sandbox.v1.AuthService/CreateFileUrl"] {
                assert_eq!(call(path, token()).await.0.as_deref(), Some("7"), "{path}");
            }
            assert_eq!(call(ISSUE, token()).await, (None, None), "it is nobody's there");
        }
    }
}
