use std::sync::{Arc, atomic::Ordering};

use cloud_sandbox_gateway_rest::{Check, Gateway};
use cloud_sandbox_proto::v1::{GetSandboxRequest, scheduler_service_client::SchedulerServiceClient};
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Edge, authorized, json as answer};

async fn text(edge: &Edge, path: &str) -> (u16, String) {
    let answer = edge.bare(Method::GET, path).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn health_is_exactly_two_keys() {
    let edge = Edge::start().await;
    assert_eq!(text(&edge, "/health").await, (200, r#"{"service":"gateway","status":"ok"}"#.to_owned()));
    assert_eq!(text(&edge, "/livez").await, (200, "ok".to_owned()));
    assert_eq!(text(&edge, "/metrics").await, (200, "a_metric 1\n".to_owned()));
}

#[tokio::test]
async fn readiness_names_the_part_that_is_down() {
    let edge = Edge::start().await;
    let ready = || async { answer(edge.bare(Method::GET, "/readyz").send().await.unwrap()).await };
    assert_eq!(ready().await, (200, json!({"status": "ready", "checks": {"store": "ok"}})));
    edge.well.store(false, Ordering::SeqCst);
    assert_eq!(ready().await, (503, json!({"status": "not_ready", "checks": {"store": "cannot be written"}})));
    edge.well.store(true, Ordering::SeqCst);
    edge.gateway.set_draining();
    assert_eq!(ready().await, (503, json!({"status": "draining", "checks": {"store": "ok"}})));
    assert_eq!(edge.get("/api/v1/sandbox/stats").await.status(), 200, "calls are still answered");
}

#[tokio::test]
async fn check_over_grpc_health_follows_its_upstream() {
    let behind = Edge::start().await;
    let upstream = cloud_sandbox_rpc::connect(&format!("http://{}", behind.address)).unwrap();
    let nobody = cloud_sandbox_rpc::connect("http://127.0.0.1:1").unwrap();
    let edge = Edge::start_with(|options| {
        options.readiness = vec![Check::grpc_health("behind", upstream), Check::grpc_health("nobody", nobody)];
    })
    .await;
    let (status, body) = answer(edge.bare(Method::GET, "/readyz").send().await.unwrap()).await;
    assert_eq!((status, &body["checks"]["behind"]), (503, &json!("ok")));
    assert_ne!(body["checks"]["nobody"], "ok");
    behind.gateway.set_draining();
    let (_, body) = answer(edge.bare(Method::GET, "/readyz").send().await.unwrap()).await;
    assert_eq!(body["checks"]["behind"], "not serving");
}

#[tokio::test]
async fn document_is_the_one_that_the_routes_make() {
    let edge = Edge::start().await;
    let (status, body) = text(&edge, "/api/v1/openapi.json").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &document), (200, &Gateway::openapi().unwrap()));
    assert_eq!(document["openapi"], "3.1.0");
}

#[tokio::test]
async fn docs_page_is_served_whole_from_here() {
    let edge = Edge::start().await;
    for path in ["/", "/docs"] {
        let answer = edge.bare(Method::GET, path).send().await.unwrap();
        assert!(answer.status().is_redirection(), "{path}");
        assert_eq!(answer.headers()["location"], "/docs/");
    }
    let (status, page) = text(&edge, "/docs/").await;
    assert_eq!(status, 200);
    assert!(!page.contains("https://") && !page.contains("//cdn"), "{page}");
    let parts = page.split(['"', '\'']).filter(|part| part.ends_with(".js") || part.ends_with(".css"));
    let parts: Vec<_> = parts.map(|part| part.trim_start_matches("./").to_owned()).collect();
    assert!(parts.len() >= 3, "{parts:?}");
    for part in parts {
        assert_eq!(text(&edge, &format!("/docs/{part}")).await.0, 200, "{part}");
    }
    let (_, script) = text(&edge, "/docs/swagger-initializer.js").await;
    assert!(script.contains("/api/v1/openapi.json") && !script.contains("petstore"), "{script}");
    assert_eq!(text(&edge, "/docs/../secret").await.0, 404);
    assert_eq!(text(&edge, "/docs/nothing.js").await.0, 404);
}

#[tokio::test]
async fn calls_are_counted_by_route_and_code() {
    let recorder = PrometheusBuilder::new().install_recorder().unwrap();
    let edge = Edge::start_with(|options| options.metrics = Arc::new(move || recorder.render())).await;
    edge.get("/api/v1/sandbox/one").await.text().await.unwrap();
    edge.get("/api/v1/sandbox/missing").await.text().await.unwrap();
    edge.get("/made/up").await.text().await.unwrap();
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    client.get_sandbox(authorized(GetSandboxRequest { sandbox_id: "missing".into() })).await.unwrap_err();
    client.get_sandbox(authorized(GetSandboxRequest { sandbox_id: "one".into() })).await.unwrap();
    drop(client);

    let route = "/api/v1/sandbox/{sandbox_id}";
    let wanted = [
        format!(r#"cloud_sandbox_http_requests_total{{method="GET",route="{route}",status="200"}} "#),
        format!(r#"cloud_sandbox_http_requests_total{{method="GET",route="{route}",status="404"}} "#),
        r#"cloud_sandbox_http_requests_total{method="GET",route="unmatched",status="404"} "#.to_owned(),
        grpc_line("GetSandbox", "OK"),
        grpc_line("GetSandbox", "NOT_FOUND"),
        "cloud_sandbox_http_request_duration_seconds".to_owned(),
        "cloud_sandbox_grpc_request_duration_seconds".to_owned(),
        "cloud_sandbox_requests_in_flight".to_owned(),
    ];
    let mut text_now = String::new();
    for _ in 0..100 {
        text_now = text(&edge, "/metrics").await.1;
        if wanted.iter().all(|line| text_now.contains(line)) {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("{wanted:#?} are not all in\n{text_now}");
}

fn grpc_line(method: &str, code: &str) -> String {
    let service = "cloud_sandbox.v1.SchedulerService";
    format!(r#"cloud_sandbox_grpc_requests_total{{service="{service}",method="{method}",code="{code}"}} "#)
}
