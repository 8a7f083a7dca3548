//! What gVisor cannot do, each thing told and without harm to anybody else: the rows of the table in docs/runtimes.md.

use serde_json::json;

use crate::harness::{Api, Server, reason};

async fn acquired(settings: &[(&str, &str)]) -> (Server, Api, String) {
    let server = Server::with(settings).await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    (server, api, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn network_without_a_proxy_is_refused() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let wanted = json!({"network": {"mode": "open"}});
    let (status, answer) = api.post("/api/v1/sandbox/acquire", wanted).await;
    assert_eq!((status, reason(&answer)), (400, "UNSUPPORTED_BY_HOST"), "{answer}");
    assert_eq!(answer["error"]["status"], "FAILED_PRECONDITION", "{answer}");
    let (_, listed) = api.get("/api/v1/sandbox").await;
    assert_eq!(listed["sandboxes"], json!([]), "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sandbox_that_runs_out_of_memory_ends_and_no_other() {
    let (_server, api, hog) = acquired(&[("SANDBOX_MEMORY_BYTES", "134217728")]).await;
    let neighbour = api.acquire().await;
    let code = "a = []\nwhile True: a.append(bytearray(b'x' * (8 << 20)))";
    let wanted = json!({"sandbox_id": hog, "language": "python", "code": code, "timeout_ms": 60_000});
    let (status, answer) = api.post("/api/v1/execute", wanted).await;
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("out of memory"), "{answer}");
    assert_eq!(api.shell(&neighbour, "echo fine").await, "fine\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn count_of_processes_is_not_told() {
    let (_server, api, id) = acquired(&[]).await;
    let (status, sandbox) = api.get(&format!("/api/v1/sandbox/{id}")).await;
    assert_eq!(status, 200, "{sandbox}");
    assert!(sandbox["usage"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{sandbox}");
    assert!(sandbox["usage"].get("pids").is_none_or(serde_json::Value::is_null), "{sandbox}");
}
