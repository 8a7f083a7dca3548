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
use cloud_sandbox_auth::AuthLayer;
use cloud_sandbox_gateway_rest::Check;
use cloud_sandbox_model::error::chain;
use cloud_sandbox_storage::{Directory, SessionStore, TemplateStore, WorkspaceStore};
use cloud_sandbox_telemetry::{CallLayer, Metrics, metrics::CONTENT_TYPE as METRICS_TYPE};
use futures::future::join_all;
use tokio::time::{sleep, timeout};
use tonic::service::Routes;
use tonic_health::{ServingStatus, server::HealthReporter};

/// An orchestrator gives up on its probe soon after.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How often what gRPC health says is looked at anew.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// What a role cannot do its work without.
#[derive(Clone)]
pub enum Store {
    Directory(Arc<dyn Directory>),
    Sessions(Arc<dyn SessionStore>),
    Templates(Arc<dyn TemplateStore>),
    Workspaces(Arc<dyn WorkspaceStore>),
}

impl Store {
    /// Why it cannot be used now, with its name.
    async fn why_not(&self) -> Option<String> {
        let (name, check) = match self {
            Self::Directory(directory) => ("directory", directory.check()),
            Self::Sessions(sessions) => ("sessions", sessions.check()),
            Self::Templates(templates) => ("templates", templates.check()),
            Self::Workspaces(workspaces) => ("workspaces", workspaces.check()),
        };
        match timeout(CHECK_TIMEOUT, check).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => {
                // the cause, with addresses, is for the operator
                tracing::debug!(error = chain(&error), "the store of {name} failed its check");
                Some(format!("{name}: {error}"))
            }
            Err(_) => Some(format!("{name}: no answer")),
        }
    }
}

/// Whether a role should get calls. Clones are one.
#[derive(Clone)]
pub struct Readiness {
    stores: Vec<Store>,
    reporter: HealthReporter,
    draining: Arc<AtomicBool>,
}

impl Readiness {
    /// Says to whoever asks that no new calls should come.
    pub async fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.reporter.set_service_status("", ServingStatus::NotServing).await;
    }

    /// Keeps what gRPC health says true, for callers that ask that way, until the end.
    pub async fn keep_reported(self) {
        let mut reported = true;
        while !self.draining.load(Ordering::Relaxed) {
            sleep(CHECK_EVERY).await;
            let why = self.why_not().await;
            if why.is_none() == reported {
                continue;
            }
            reported = why.is_none();
            let status = if reported { ServingStatus::Serving } else { ServingStatus::NotServing };
            match why {
                Some(why) => tracing::warn!("not ready: {why}"),
                None => tracing::info!("ready again"),
            }
            self.reporter.set_service_status("", status).await;
        }
        // said once more, should the two have crossed
        self.set_draining().await;
    }

    /// The same for the edge of this process, under the role's name: it tells which store is away, as health cannot.
    pub fn check(&self, name: &'static str) -> Check {
        let readiness = self.clone();
        Check::new(name, move || {
            let readiness = readiness.clone();
            Box::pin(async move { readiness.why_not().await.map_or(Ok(()), Err) })
        })
    }

    async fn answer(&self) -> Response {
        match self.why_not().await {
            None => "ready".into_response(),
            Some(why) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
        }
    }

    async fn why_not(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining".to_owned());
        }
        // at once: two that are silent take no longer than one
        let whys = join_all(self.stores.iter().map(Store::why_not)).await;
        let whys: Vec<_> = whys.into_iter().flatten().collect();
        (!whys.is_empty()).then(|| whys.join("; "))
    }
}

/// Services behind authentication and measurement, with gRPC health: what is called over the network or in the process.
pub struct Services {
    pub router: Router,
    pub readiness: Readiness,
}

impl Services {
    /// `auth` says who gets through; without one of `stores` it is not ready.
    pub fn new(routes: Routes, auth: AuthLayer, stores: Vec<Store>) -> Self {
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = routes.add_service(health).prepare().into_axum_router();
        let router = router.layer(auth).layer(CallLayer);
        Self { router, readiness: Readiness { stores, reporter, draining: Arc::default() } }
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
    use cloud_sandbox_auth::Tokens;
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
        let auth = AuthLayer::new(Tokens::hs256(&[1; 32]));
        let services = Services::new(Routes::default(), auth, vec![Store::Directory(Arc::new(MemoryDirectory::new()))]);
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
