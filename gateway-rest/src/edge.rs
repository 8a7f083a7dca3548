//! What all handlers share, and how the port's traffic is told apart: operational paths by name, gRPC by its content
//! type, the rest by the route table.

use std::{
    any::Any,
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Request, State},
    middleware::from_fn,
    response::IntoResponse,
    routing::get,
};
use cloud_sandbox_auth::{Principal, Tokens, authorize};
use cloud_sandbox_model::error::{Error as CallError, ErrorKind, reason};
use cloud_sandbox_rpc::{Upstream, in_process};
use http::{Extensions, HeaderMap, Method, Response, header::CONTENT_TYPE};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    Error, Options, RenderMetrics, auth_service, closing, cors, docs,
    errors::Rejection,
    grpc,
    health::EdgeHealth,
    limits::{Key, Limiter, Standing},
    observe::{self, Call},
    open_door, openapi, operational, reflection, rest,
    routes::{PACKAGE, RouteTable},
};

/// The service that gets to see API keys.
pub const ISSUER: &str = "cloud_sandbox.v1.AuthService";

/// What all handlers share.
pub struct Edge {
    pub routes: RouteTable,
    /// by full name, everything that a client can call
    pub services: HashMap<String, Upstream>,
    pub tokens: Tokens,
    /// tokens are handed out without a key
    open: bool,
    pub limiter: Option<Limiter>,
    pub max_body_bytes: usize,
    pub max_timeout: Duration,
    pub metrics: RenderMetrics,
    pub readiness: Vec<operational::Check>,
    pub draining: watch::Sender<bool>,
    /// cancelled when calls under way have no more time
    pub closing: CancellationToken,
    pub openapi: Bytes,
}

impl Edge {
    pub fn new(options: Options) -> Result<Self, Error> {
        let routes = RouteTable::from_contracts()?;
        let (draining, watching) = watch::channel(false);
        let upstreams = options.upstreams;
        let mut services = HashMap::new();
        let mut add = |name: &str, upstream: &Upstream| services.insert(format!("{PACKAGE}.{name}"), upstream.clone());
        let open = options.issuer.is_open();
        add("AuthService", &auth_service::upstream(options.tokens.clone(), options.issuer));
        add("SchedulerService", &upstreams.scheduler);
        add("TemplateService", &upstreams.scheduler);
        add("SessionService", &upstreams.session);
        add("ExecService", &upstreams.exec);
        add("ContextService", &upstreams.exec);
        add("FileService", &upstreams.exec);

        let health = EdgeHealth::server(services.keys().cloned().collect(), watching);
        services.insert("grpc.health.v1.Health".to_owned(), in_process(health));
        let files = reflection::public_files(routes.pool());
        let v1 = in_process(reflection::builder(&files).build_v1()?);
        services.insert("grpc.reflection.v1.ServerReflection".to_owned(), v1);
        let v1alpha = in_process(reflection::builder(&files).build_v1alpha()?);
        services.insert("grpc.reflection.v1alpha.ServerReflection".to_owned(), v1alpha);
        let closing = CancellationToken::new();
        for upstream in services.values_mut() {
            *upstream = closing::until(upstream.clone(), closing.clone());
        }

        let openapi = openapi::document(&routes).to_string().into();
        Ok(Self {
            routes,
            services,
            tokens: options.tokens,
            open,
            limiter: Limiter::new(options.rate_limit, options.shared_limits),
            max_body_bytes: options.max_body_bytes,
            max_timeout: options.max_timeout,
            metrics: options.metrics,
            readiness: options.readiness,
            draining,
            closing,
            openapi,
        })
    }

    /// Lets a call to the gRPC method at `path` in, or says why not, with what is left of the caller's rate.
    ///
    /// Callers who are refused are counted too, by address: guessing tokens is limited as well.
    pub async fn admit(
        &self,
        path: &str,
        headers: &HeaderMap,
        extensions: &Extensions,
    ) -> (Option<Standing>, Admitted) {
        let mut authorized = authorize(&self.tokens, path, headers);
        if self.open && matches!(authorized, Ok(None)) {
            authorized = open_door::check(path, headers).map(|()| None);
        }
        let Some(limiter) = &self.limiter else { return (None, authorized) };
        let address: Option<IpAddr> = extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
        let principal = authorized.as_ref().ok().and_then(Option::as_ref);
        match limiter.take(Key::of(principal, address)).await {
            Ok(standing) => (Some(standing), authorized),
            Err((standing, error)) => (Some(standing), Err(error)),
        }
    }
}

/// Who calls, or why they may not.
pub type Admitted = Result<Option<Principal>, CallError>;

/// The call that `request` belongs to.
pub fn call_of(extensions: &Extensions) -> Option<Arc<Call>> {
    extensions.get::<Arc<Call>>().cloned()
}

/// Everything that the port serves.
pub fn router(edge: Arc<Edge>) -> Router {
    Router::new()
        .route("/", get(operational::root))
        .route("/health", get(operational::health))
        .route("/livez", get(operational::live))
        .route("/readyz", get(operational::ready))
        .route("/metrics", get(operational::metrics))
        .route(docs::OPENAPI_PATH, get(operational::openapi))
        .route("/docs", get(docs::folder))
        .route("/docs/", get(docs::index))
        .route("/docs/{*path}", get(docs::asset))
        .method_not_allowed_fallback(only_get)
        .route_layer(from_fn(operational_call))
        .fallback(dispatch)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(cors::cors))
        .layer(from_fn(observe::observe))
        .with_state(edge)
}

/// Notes the route of a call that the router itself knows.
async fn operational_call(request: Request, next: axum::middleware::Next) -> Response<Body> {
    if let Some(call) = call_of(request.extensions()) {
        let path = request.uri().path();
        call.route(if path.starts_with("/docs/") { "/docs/" } else { path });
        call.quiet();
    }
    next.run(request).await
}

async fn only_get(method: Method) -> Response<Body> {
    match method {
        Method::OPTIONS => rest::options(&[Method::GET]),
        _ => Rejection::method(&[Method::GET]).into_response(),
    }
}

async fn dispatch(State(edge): State<Arc<Edge>>, request: Request) -> Response<Body> {
    let content_type = request.headers().get(CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    if content_type.starts_with(b"application/grpc") {
        return grpc::serve(edge, request).await;
    }
    rest::serve(edge, request).await
}

#[expect(clippy::needless_pass_by_value, reason = "the signature is tower-http's")]
fn panicked(panic: Box<dyn Any + Send>) -> Response<Body> {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    tracing::error!(panic = text, "handler panicked");
    let message = "the call failed by a fault of the server";
    Rejection::from(CallError::new(ErrorKind::Internal, reason::INTERNAL, message)).into_response()
}
