//! Acquire, keep, list and release.

use std::time::Duration;

use serde_json::json;

use crate::harness::{SOON, Server, eventually, left_of, reason, template};

#[tokio::test]
async fn acquired_sandbox_is_described() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let (status, sandbox) = api
        .post(
            "/api/v1/sandbox/acquire",
            json!({"timeout_seconds": 60, "metadata": {"job": "7"}, "limits": {"pids": 32}}),
        )
        .await;
    assert_eq!(status, 200, "{sandbox}");
    assert_eq!((&sandbox["state"], &sandbox["runtime"]), (&json!("acquired"), &json!(crate::RUNTIME)));
    assert_eq!(sandbox["template"], template());
    assert_eq!((&sandbox["user_id"], &sandbox["metadata"]), (&json!("ada"), &json!({"job": "7"})));
    assert_eq!((&sandbox["limits"]["pids"], &sandbox["limits"]["cpu_millis"]), (&json!(32), &json!(1000)));
    assert!(sandbox["create_time"].as_str().unwrap() < sandbox["expire_time"].as_str().unwrap());
    let id = sandbox["sandbox_id"].as_str().unwrap();
    assert_eq!(api.get(&format!("/api/v1/sandbox/{id}")).await.1["sandbox_id"], sandbox["sandbox_id"]);
}

#[tokio::test]
async fn acquire_needs_no_body() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let answer = api.request("POST", "/api/v1/sandbox/acquire").send().await.unwrap();
    assert_eq!(answer.status(), 200);
}

#[tokio::test]
async fn list_filters_and_pages() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let mut ids = Vec::new();
    for team in ["red", "blue", "red"] {
        ids.push(api.acquire_with(json!({"metadata": {"team": team}})).await);
    }
    let listed = |answer: serde_json::Value| -> Vec<String> {
        let list = answer["sandboxes"].as_array().unwrap().clone();
        list.iter().map(|sandbox| sandbox["sandbox_id"].as_str().unwrap().to_owned()).collect()
    };
    let red = listed(api.get("/api/v1/sandbox?metadata=team%3Dred").await.1);
    assert_eq!(red.len(), 2);
    let first = api.get("/api/v1/sandbox?page_size=2").await.1;
    let token = first["next_page_token"].as_str().unwrap().to_owned();
    let second = api.get(&format!("/api/v1/sandbox?page_size=2&page_token={token}")).await.1;
    assert_eq!(second["next_page_token"], "");
    let mut all = listed(first);
    all.extend(listed(second));
    let mut wanted = ids.clone();
    wanted.sort();
    assert_eq!(all, wanted);
    for (query, field) in
        [("page_size=1001", "page_size"), ("page_token=%21", "page_token"), ("metadata=x", "metadata")]
    {
        let (status, answer) = api.get(&format!("/api/v1/sandbox?{query}")).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(field), "{answer}");
    }
}

#[tokio::test]
async fn repeated_request_id_gets_the_first_sandbox() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let wanted = json!({"request_id": "r-1", "metadata": {"a": "1"}});
    let (first, second) = tokio::join!(api.acquire_with(wanted.clone()), api.acquire_with(wanted));
    assert_eq!(first, second);
    let (status, answer) = api.post("/api/v1/sandbox/acquire", json!({"request_id": "r-1"})).await;
    assert_eq!((status, reason(&answer)), (409, "REQUEST_ID_REUSED"), "{answer}");
    assert_ne!(server.user("bob").await.acquire_with(json!({"request_id": "r-1"})).await, first);
}

#[tokio::test]
async fn pool_is_refilled_and_its_bound_holds() {
    let server = Server::with(&[("POOL_MIN_SIZE", "2"), ("POOL_MAX_SIZE", "3")]).await;
    let api = server.user("ada").await;
    let ready = || async { api.get("/api/v1/sandbox/stats").await.1["ready"].as_u64().unwrap_or(0) };
    eventually("the pool is full", || async { ready().await == 2 }).await;
    let ids = [api.acquire().await, api.acquire().await, api.acquire().await];
    let (status, answer) = api.post("/api/v1/sandbox/acquire", json!({})).await;
    assert_eq!((status, reason(&answer)), (429, "CAPACITY"), "{answer}");
    api.release(&ids[0]).await;
    eventually("what was released makes room", || async { ready().await == 1 }).await;
    let stats = api.get("/api/v1/sandbox/stats").await.1;
    assert_eq!((&stats["acquired"], &stats["capacity"]), (&json!(2), &json!(3)), "{stats}");
}

#[tokio::test]
async fn lease_ends_and_takes_the_sandbox_and_its_work_along() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let running = api.post("/api/v1/execute", json!({"sandbox_id": id, "command": "sleep 600"}));
    let ending = async {
        eventually("it runs", || async { !api.shell(&id, "pgrep -x sleep").await.is_empty() }).await;
        api.post("/api/v1/sandbox/keepalive", json!({"sandbox_id": id, "timeout_seconds": 1})).await
    };
    let ((status, answer), kept) =
        tokio::time::timeout(2 * SOON, async { tokio::join!(running, ending) }).await.unwrap();
    assert_eq!(kept.0, 200, "{}", kept.1);
    assert_eq!((status, reason(&answer)), (404, "LEASE_ENDED"), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("lease"), "{answer}");
    eventually("nothing is left", || async { left_of(&id).is_empty() }).await;
    assert_eq!(api.get(&format!("/api/v1/sandbox/{id}")).await.0, 404);
}

#[tokio::test]
async fn keep_alive_starts_the_lease_anew() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let (status, mut told) = api.post("/api/v1/sandbox/acquire", json!({"timeout_seconds": 60})).await;
    assert_eq!(status, 200, "{told}");
    let id = told["sandbox_id"].as_str().unwrap().to_owned();
    for _ in 0..2 {
        // so that the ends differ in their seconds: as texts, fractions need not compare
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let (status, kept) = api.post("/api/v1/sandbox/keepalive", json!({"sandbox_id": id})).await;
        assert_eq!(status, 200, "{kept}");
        assert!(kept["expire_time"].as_str().unwrap() > told["expire_time"].as_str().unwrap(), "{told} {kept}");
        told = kept;
    }
    assert_eq!(api.get(&format!("/api/v1/sandbox/{id}")).await.1["expire_time"], told["expire_time"]);
    assert_eq!(api.shell(&id, "echo alive").await, "alive\n");
}

#[tokio::test]
async fn release_destroys_what_runs_and_leaves_nothing() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let call = json!({"sandbox_id": id, "command": "sleep 30"});
    let running = tokio::spawn({
        let api = api.clone();
        async move { api.post("/api/v1/execute", call).await }
    });
    eventually("it runs", || async { !api.shell(&id, "pgrep -x sleep").await.is_empty() }).await;
    api.release(&id).await;
    assert_eq!(left_of(&id), Vec::<String>::new());
    let (status, answer) = running.await.unwrap();
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
    let (status, answer) = api.post("/api/v1/sandbox/release", json!({"sandbox_id": id})).await;
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_NOT_FOUND"), "{answer}");
}
