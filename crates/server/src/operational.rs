//! What a role shows on its port besides its services: gRPC health and reflection, `/livez`, `/readyz` and `/metrics`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use cloud_sandbox_auth::{AuthLayer, Tokens};
use cloud_sandbox_model::error::chain;
use cloud_sandbox_storage::Directory;
use cloud_sandbox_telemetry::{CallLayer, Metrics, metrics::CONTENT_TYPE as METRICS_TYPE};
use tokio::time::timeout;
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

/// An orchestrator gives up on its probe soon after.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether a role should get calls. Clones are one.
#[derive(Clone)]
pub struct Readiness {
    directory: Arc<dyn Directory>,
    reporter: HealthReporter,
    draining: Arc<AtomicBool>,
}

impl Readiness {
    /// Says to whoever asks that no new calls should come.
    pub async fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.reporter.set_service_status("", ServingStatus::NotServing).await;
    }

    async fn answer(&self) -> Response {
        if self.draining.load(Ordering::Relaxed) {
            return (StatusCode::SERVICE_UNAVAILABLE, "draining").into_response();
        }
        match timeout(CHECK_TIMEOUT, self.directory.check()).await {
            Ok(Ok(())) => "ready".into_response(),
            Ok(Err(error)) => {
                tracing::warn!(error = chain(&error), "not ready");
                (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
            }
            Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the directory does not answer").into_response(),
        }
    }
}

/// Services behind authentication and measurement, with gRPC health: what is called over the network or in the process.
pub struct Services {
    pub router: Router,
    pub readiness: Readiness,
}

impl Services {
    pub fn new(routes: Routes, tokens: &Tokens, directory: Arc<dyn Directory>) -> Self {
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = routes.add_service(health).prepare().into_axum_router();
        let router = router.layer(AuthLayer::new(tokens.clone())).layer(CallLayer);
        Self { router, readiness: Readiness { directory, reporter, draining: Arc::default() } }
    }
}

/// gRPC reflection of all contracts.
pub fn with_reflection(routes: Routes) -> anyhow::Result<Routes> {
    let builder = tonic_reflection::server::Builder::configure();
    let reflection = builder.register_encoded_file_descriptor_set(cloud_sandbox_proto::DESCRIPTOR_SET).build_v1()?;
    Ok(routes.add_service(reflection))
}

/// The port of a role: its services, and what orchestrators and collectors ask.
pub fn port(services: &Services, metrics: Metrics) -> Router {
    let readiness = services.readiness.clone();
    let operational = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(move || async move { readiness.answer().await }))
        .route("/metrics", get(move || async move { ([(CONTENT_TYPE, METRICS_TYPE)], metrics.render()) }));
    operational.fallback_service(services.router.clone())
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use cloud_sandbox_rpc::in_process;
    use cloud_sandbox_storage::MemoryDirectory;
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
    use tower::ServiceExt;

    use super::*;

    async fn get(port: &Router, path: &str) -> Response {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        port.clone().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn role_tells_orchestrators_how_it_is_until_it_drains() {
        let tokens = Tokens::hs256(&[1; 32]);
        let services = Services::new(Routes::default(), &tokens, Arc::new(MemoryDirectory::new()));
        let port = port(&services, Metrics::install("test").unwrap());
        let mut health = HealthClient::new(in_process(services.router.clone()));
        let mut status = async || health.check(HealthCheckRequest::default()).await.unwrap().into_inner().status;

        assert_eq!(get(&port, "/readyz").await.status(), StatusCode::OK);
        assert_eq!(get(&port, "/metrics").await.headers()[CONTENT_TYPE], METRICS_TYPE);
        assert_eq!(status().await, ServingStatus::Serving as i32);

        services.readiness.set_draining().await;
        assert_eq!(get(&port, "/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get(&port, "/livez").await.status(), StatusCode::OK);
        assert_eq!(status().await, ServingStatus::NotServing as i32);

        let refused = get(&port, "/cloud_sandbox.v1.ExecService/Execute").await;
        assert_eq!(refused.headers()["grpc-status"], "16", "nobody gets past the operational paths without a token");
    }
}
