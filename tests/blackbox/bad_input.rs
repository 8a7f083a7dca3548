//! Every input gets its effect or an error that names the field and the rule.

use serde_json::{Value, json};

use crate::harness::{Api, Server, reason};

const EXECUTE: &str = "/api/v1/execute";

async fn raw(api: &Api, content_type: Option<&str>, body: impl Into<reqwest::Body>) -> (u16, Value) {
    let mut request = api.request("POST", EXECUTE).body(body);
    if let Some(kind) = content_type {
        request = request.header("content-type", kind);
    }
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    (status, answer.json().await.unwrap_or_default())
}

#[tokio::test]
async fn body_that_is_not_the_message_is_refused_with_what_is_wrong() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let json_type = Some("application/json");
    for (body, named) in [
        (r#"{"sandbox_id": "#, ""),
        (r#"{"sandbox_id": 7}"#, "sandbox_id"),
        (r#"{"sandbox_id": "x", "timeout_ms": "soon"}"#, "timeout_ms"),
        (r#"{"sandbox_id": "x", "timeout_ms": -1}"#, "timeout_ms"),
        (r#"{"sandbox_id": "x", "cod": "1"}"#, "cod"),
        (r#"{"sandbox_id": "x"} trailing"#, ""),
        (r#"["sandbox_id"]"#, ""),
        ("\u{0}", ""),
    ] {
        let (status, answer) = raw(&api, json_type, body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert_eq!(answer["error"]["status"], "INVALID_ARGUMENT", "{body}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(named), "{body}: {answer}");
    }
    assert_eq!(raw(&api, Some("text/plain"), "{}").await.0, 415);
    let nested = "[".repeat(100_000);
    assert_eq!(raw(&api, json_type, nested).await.0, 400, "deep nesting");
    assert_eq!(api.get("/api/v1/nothing").await.0, 404);
    assert_eq!(api.get(EXECUTE).await.0, 405);
}

#[tokio::test]
async fn body_over_the_limit_is_refused() {
    let server = Server::with(&[("MAX_BODY_BYTES", "65536")]).await;
    let api = server.user("ada").await;
    let (status, answer) = raw(&api, Some("application/json"), "x".repeat(70_000)).await;
    assert_eq!(status, 413, "{answer}");
}

#[tokio::test]
async fn every_field_of_an_execution_has_its_rule() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let cases = [
        (json!({}), "code"),
        (json!({"code": "1", "command": "true"}), "code"),
        (json!({"code": "1", "language": "klingon"}), "language"),
        (json!({"command": "true", "language": "python"}), "language"),
        (json!({"command": "true", "cwd": "relative"}), "cwd"),
        (json!({"command": "true", "cwd": "/a/../b"}), "cwd"),
        (json!({"command": "true", "timeout_ms": 86_400_001}), "timeout_ms"),
        (json!({"command": "true", "max_output_bytes": 8_388_609}), "max_output_bytes"),
        (json!({"command": "true", "env": {"A B": "x"}}), "env"),
        (json!({"command": "true", "request_id": "no spaces"}), "request_id"),
        (json!({"command": "true", "request_id": "x".repeat(65)}), "request_id"),
        (json!({"argv": ["echo", "a\u{0}b"]}), "argv"),
        (json!({"command": "x".repeat(121 * 1024)}), "command"),
    ];
    for (mut body, field) in cases {
        body["sandbox_id"] = json!(id);
        let (status, answer) = api.post(EXECUTE, body).await;
        assert_eq!(status, 400, "{field}: {answer}");
        let fields = answer["error"]["details"].to_string();
        assert!(fields.contains(&format!("\"field\":\"{field}")), "{field}: {answer}");
    }
}

#[tokio::test]
async fn every_field_of_an_acquire_has_its_rule() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let cases = [
        (json!({"timeout_seconds": 86_401}), "timeout_seconds"),
        (json!({"env": {"1": "x"}}), "env"),
        (json!({"metadata": {"": "x"}}), "metadata"),
        (json!({"limits": {"pids": 1}}), "limits.pids"),
        (json!({"limits": {"memory_bytes": 1}}), "limits.memory_bytes"),
        (json!({"limits": {"memory_bytes": "18446744073709551615"}}), "limits.memory_bytes"),
        (json!({"limits": {"cpu_millis": 1_000_000}}), "limits.cpu_millis"),
        (json!({"limits": {"disk_bytes": 5}}), "limits.disk_bytes"),
    ];
    for (body, field) in cases {
        let (status, answer) = api.post("/api/v1/sandbox/acquire", body).await;
        assert_eq!(status, 400, "{answer}");
        assert!(
            answer["error"]["details"].to_string().contains(&format!("\"field\":\"{field}\"")),
            "{field}: {answer}"
        );
    }
    let (status, answer) = api.post("/api/v1/sandbox/acquire", json!({"template": "no-such"})).await;
    assert_eq!((status, reason(&answer)), (404, "TEMPLATE_NOT_FOUND"), "{answer}");
    let (_, stats) = api.get("/api/v1/sandbox/stats").await;
    assert_eq!(stats["acquired"], 0, "nothing was acquired on the way");
}

#[tokio::test]
async fn unknown_and_released_ids_are_not_found_and_malformed_ones_invalid() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let released = api.acquire().await;
    api.release(&released).await;
    for id in [released.as_str(), "sb01jd8z4n000000000000000000"] {
        for (path, body) in [
            (EXECUTE, json!({"sandbox_id": id, "command": "true"})),
            ("/api/v1/sandbox/release", json!({"sandbox_id": id})),
            ("/api/v1/sandbox/keepalive", json!({"sandbox_id": id})),
        ] {
            let (status, answer) = api.post(path, body).await;
            assert_eq!((status, reason(&answer)), (404, "SANDBOX_NOT_FOUND"), "{path} {answer}");
        }
    }
    for id in ["", "x", "../../etc/passwd", "sb01JD8Z4N00000000000000000"] {
        let (status, answer) = api.post(EXECUTE, json!({"sandbox_id": id, "command": "true"})).await;
        assert_eq!(status, 400, "{id}: {answer}");
        assert!(answer["error"]["details"].to_string().contains("sandbox_id"), "{answer}");
    }
}

#[tokio::test]
async fn paths_that_climb_or_do_not_fit_are_refused() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let long_name = format!("/workspace/{}", "n".repeat(256));
    let long_path = format!("/workspace{}", "/n".repeat(2100));
    for path in ["relative", "", "/workspace/../etc/passwd", "/a\u{0}b", &long_name, &long_path] {
        let (status, answer) = api.put("/api/v1/files", json!({"sandbox_id": id, "path": path, "content": "x"})).await;
        assert_eq!(status, 400, "{path:?}: {answer}");
        assert!(answer["error"]["details"].to_string().contains("\"field\":\"path\""), "{answer}");
    }
    let query = [("sandbox_id", id.as_str()), ("path", "/workspace/../etc/passwd")];
    let answer = api.request("GET", "/api/v1/files").query(&query).send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn language_that_the_template_lacks_is_named() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let lacking = ["lua", "php", "ruby", "go"].into_iter().find(|language| {
        let folders = ["/usr/local/bin", "/usr/bin", "/bin"];
        !folders.iter().any(|folder| std::path::Path::new(folder).join(language).exists())
    });
    // on a host that has every language there is none to be refused
    let Some(language) = lacking else { return };
    let (status, answer) = api.post(EXECUTE, json!({"sandbox_id": id, "code": "x", "language": language})).await;
    assert_eq!((status, reason(&answer)), (400, "LANGUAGE_UNAVAILABLE"), "{answer}");
    assert_eq!(answer["error"]["status"], "FAILED_PRECONDITION");
    assert!(answer["error"]["message"].as_str().unwrap().contains(language), "{answer}");
}
