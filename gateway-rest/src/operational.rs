//! What orchestrators and operators ask: is it up, is it ready, how is it doing. Not limited, not authenticated.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::State,
    response::{IntoResponse, Redirect},
};
use cloud_sandbox_rpc::Upstream;
use futures::future::{BoxFuture, join_all};
use http::{HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::edge::Edge;

/// An orchestrator gives up on its probe soon after.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

type Probe = dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync;

/// One thing that must be well for the edge to be ready. What it says when it is not is shown to whoever asks.
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    probe: Arc<Probe>,
}

impl fmt::Debug for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Check").field(&self.name).finish()
    }
}

impl Check {
    /// A check called `name`.
    pub fn new(
        name: &'static str,
        probe: impl Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync + 'static,
    ) -> Self {
        Self { name, probe: Arc::new(probe) }
    }

    /// Whether the service behind `upstream` says over gRPC health that it serves.
    #[must_use]
    pub fn grpc_health(name: &'static str, upstream: Upstream) -> Self {
        Self::new(name, move || {
            let mut client = HealthClient::new(upstream.clone());
            Box::pin(async move {
                let answer = client.check(HealthCheckRequest::default()).await;
                match answer.map(|answer| answer.into_inner().status()) {
                    Ok(ServingStatus::Serving) => Ok(()),
                    Ok(_) => Err("not serving".to_owned()),
                    Err(status) => Err(format!("unreachable ({:?})", status.code())),
                }
            })
        })
    }

    async fn run(&self) -> Result<(), String> {
        tokio::time::timeout(CHECK_TIMEOUT, (self.probe)()).await.unwrap_or_else(|_| Err("no answer".to_owned()))
    }
}

pub async fn health() -> Response<Body> {
    // these two keys and no others: clients compare it as text
    body(StatusCode::OK, "application/json", r#"{"service":"gateway","status":"ok"}"#)
}

pub async fn live() -> Response<Body> {
    body(StatusCode::OK, "text/plain; charset=utf-8", "ok")
}

pub async fn ready(State(edge): State<Arc<Edge>>) -> Response<Body> {
    let results = join_all(edge.readiness.iter().map(Check::run)).await;
    let well = results.iter().all(Result::is_ok);
    let draining = *edge.draining.borrow();
    let checks: serde_json::Map<_, _> = edge
        .readiness
        .iter()
        .zip(results)
        .map(|(check, result)| (check.name.to_owned(), result.map_or_else(Into::into, |()| "ok".into())))
        .collect();
    let (code, status) = match (draining, well) {
        (true, _) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        (false, true) => (StatusCode::OK, "ready"),
    };
    body(code, "application/json", json!({"status": status, "checks": checks}).to_string())
}

pub async fn metrics(State(edge): State<Arc<Edge>>) -> Response<Body> {
    body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", (edge.metrics)())
}

pub async fn openapi(State(edge): State<Arc<Edge>>) -> Response<Body> {
    body(StatusCode::OK, "application/json", edge.openapi.clone())
}

pub async fn root() -> Response<Body> {
    Redirect::temporary("/docs/").into_response()
}

fn body(status: StatusCode, media_type: &'static str, text: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}
