//! Sessions over REST.

use serde_json::json;

use crate::harness::{Server, left_of, reason};

#[tokio::test]
async fn session_lives_pauses_resumes_and_is_deleted() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let (status, session) = api.post("/api/v1/sessions", json!({"metadata": {"job": "1"}})).await;
    assert_eq!((status, &session["state"]), (200, &json!("running")), "{session}");
    let (id, sandbox) = (session["session_id"].as_str().unwrap(), session["sandbox_id"].as_str().unwrap());
    api.shell(
        sandbox,
        "echo kept > note; setsid sh -c 'while :; do echo x >> ticks; sleep 0.02; done' >/dev/null 2>&1 & \
         until test -s ticks; do sleep 0.02; done",
    )
    .await;

    let path = format!("/api/v1/sessions/{id}");
    for _ in 0..2 {
        let (status, paused) = api.post(&format!("{path}/pause"), json!({})).await;
        assert_eq!((status, &paused["state"]), (200, &json!("paused")), "{paused}");
    }
    let (status, answer) = api.post("/api/v1/execute", json!({"sandbox_id": sandbox, "command": "true"})).await;
    assert_eq!((status, reason(&answer)), (400, "SANDBOX_PAUSED"), "{answer}");
    for _ in 0..2 {
        let (status, resumed) = api.post(&format!("{path}/resume"), json!({})).await;
        assert_eq!((status, &resumed["state"]), (200, &json!("running")), "{resumed}");
    }
    assert_eq!(api.shell(sandbox, "cat note; test -s ticks && echo ran").await, "kept\nran\n");

    assert_eq!(api.get("/api/v1/sessions").await.1["sessions"][0]["session_id"], session["session_id"]);
    assert_eq!(server.user("bob").await.get(&path).await.0, 404);
    assert_eq!(api.delete(&path).await.0, 200);
    assert_eq!(left_of(sandbox), Vec::<String>::new());
    assert_eq!((api.get(&path).await.0, api.delete(&path).await.0), (404, 404));
}

#[tokio::test]
async fn session_whose_sandbox_did_not_outlive_the_server_says_so() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let session = api.post("/api/v1/sessions", json!({})).await.1;
    let path = format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap());
    let server = Server::in_folder(server.kill(), &[]).await;
    let api = server.user("ada").await;
    let (status, found) = api.get(&path).await;
    assert_eq!((status, &found["state"]), (200, &json!("failed")), "{found}");
    assert_ne!(found["failure"], "");
    assert_eq!(api.delete(&path).await.0, 200);
}

/// A v1 freezer may stay half-way while processes keep appearing.
#[tokio::test]
async fn session_that_forks_all_the_time_is_paused_every_time() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let session = api.post("/api/v1/sessions", json!({})).await.1;
    let (id, sandbox) = (session["session_id"].as_str().unwrap(), session["sandbox_id"].as_str().unwrap());
    let line = "for i in 1 2 3 4; do setsid sh -c 'while :; do /bin/true; done' >/dev/null 2>&1 & done";
    api.shell(sandbox, line).await;
    let path = format!("/api/v1/sessions/{id}");
    for round in 0..20 {
        let paused = api.post(&format!("{path}/pause"), json!({})).await;
        assert_eq!((paused.0, &paused.1["state"]), (200, &json!("paused")), "round {round}: {}", paused.1);
        let resumed = api.post(&format!("{path}/resume"), json!({})).await;
        assert_eq!((resumed.0, &resumed.1["state"]), (200, &json!("running")), "round {round}: {}", resumed.1);
    }
    assert_eq!(api.delete(&path).await.0, 200);
}
