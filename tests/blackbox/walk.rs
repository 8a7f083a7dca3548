//! The walk of the README, as it is written there.

use std::process::Command;

use crate::harness::Server;

/// The fenced block of README.md that follows `marker`.
fn readme_block(marker: &str) -> String {
    let readme = include_str!("../../README.md");
    let after = readme.split_once(marker).expect("the README has the walk").1;
    let block = after.split_once("```bash\n").expect("as a shell block").1;
    block.split_once("```").expect("that ends").0.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn readme_walk_works_as_written() {
    let server = Server::start().await;
    let script = readme_block("<!-- walk -->").replace("http://localhost:8080", &server.url);
    let walked = Command::new("bash").args(["-euo", "pipefail", "-c", &script]).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&walked.stdout), String::from_utf8_lossy(&walked.stderr));
    assert!(walked.status.success(), "{out}{err}");
    assert!(out.starts_with(r#"{"service":"gateway","status":"ok"}"#), "{out}");
    assert!(out.contains(r#""stdout":"Hello!\n""#), "{out}");
    assert!(out.contains(r#""exit_code":0"#), "{out}");
    assert!(out.contains(r#""released":true"#), "{out}");
}

#[tokio::test]
async fn operational_endpoints_answer_without_a_token() {
    let server = Server::start().await;
    for path in ["/health", "/livez", "/readyz", "/metrics", "/api/v1/openapi.json", "/docs/"] {
        let answer = reqwest::get(format!("{}{path}", server.url)).await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
    }
    let page = reqwest::get(format!("{}/docs/", server.url)).await.unwrap().text().await.unwrap();
    assert!(page.contains("<html"), "{page}");
}

#[tokio::test]
async fn metrics_count_what_was_done() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    api.shell(&id, "true").await;
    api.release(&id).await;
    let text = reqwest::get(format!("{}/metrics", server.url)).await.unwrap().text().await.unwrap();
    for metric in [
        "cloud_sandbox_http_requests_total",
        "cloud_sandbox_acquire_total",
        "cloud_sandbox_create_total",
        "cloud_sandbox_execute_total",
        "cloud_sandbox_pool_sandboxes",
        "cloud_sandbox_leases",
    ] {
        assert!(text.contains(metric), "{metric} in\n{text}");
    }
}
