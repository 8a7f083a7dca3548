use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use http_body_util::BodyExt;
use reqwest::Method;
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::support::{self, Edge};

#[tokio::test]
async fn curl_walk_answers_in_its_documented_shapes() {
    let edge = Edge::start().await;
    let issue = edge.bare(Method::POST, "/api/v1/auth/token").header("content-type", "application/json");
    let (status, token) =
        support::json(issue.body(r#"{"user_id": "test", "role": "user"}"#).send().await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!((token["token_type"].as_str(), token["expires_in"].as_u64()), (Some("Bearer"), Some(3600)));
    let bearer = token["access_token"].as_str().unwrap();

    // curl -X POST without -d: no body and no content type
    let acquire = edge.bare(Method::POST, "/api/v1/sandbox/acquire").bearer_auth(bearer);
    let (status, sandbox) = support::json(acquire.send().await.unwrap()).await;
    assert_eq!((status, sandbox["sandbox_id"].as_str()), (200, Some("sb1")));

    let (status, result) = support::json(
        edge.post("/api/v1/execute", r#"{"sandbox_id":"sb1","code":"print('Hello!')","language":"python"}"#).await,
    )
    .await;
    assert_eq!(
        (status, result["stdout"].as_str(), result["exit_code"].as_i64()),
        (200, Some("print('Hello!')"), Some(0))
    );
    assert_eq!(result["timed_out"], false);

    let (status, gone) = support::json(edge.post("/api/v1/sandbox/release", r#"{"sandbox_id": "sb1"}"#).await).await;
    assert_eq!((status, gone), (200, json!({"sandbox_id": "sb1", "released": true})));
}

#[tokio::test]
async fn answer_has_words_numbers_times_and_no_unset_messages() {
    let edge = Edge::start().await;
    let (_, sandbox) = support::json(edge.post("/api/v1/sandbox/acquire", r#"{"metadata":{"k":"v"}}"#).await).await;
    assert_eq!(sandbox["state"], "acquired");
    assert_eq!(sandbox["limits"]["memory_bytes"], 9_007_199_254_740_993_u64);
    assert_eq!(sandbox["create_time"], "2023-11-14T22:13:20Z");
    assert_eq!(sandbox["metadata"], json!({"k": "v"}));
    assert_eq!((&sandbox["user_id"], sandbox.get("expire_time")), (&Value::from(""), None));
}

#[tokio::test]
async fn whole_session_surface_is_served() {
    let edge = Edge::start().await;
    for (method, path, shown) in [
        (Method::POST, "/api/v1/sessions", json!("running")),
        (Method::GET, "/api/v1/sessions/se9", json!("running")),
        (Method::POST, "/api/v1/sessions/se9/pause", json!("paused")),
        (Method::POST, "/api/v1/sessions/se9/resume", json!("running")),
    ] {
        let (status, session) = support::json(edge.call(method, path).send().await.unwrap()).await;
        assert_eq!((status, &session["state"]), (200, &shown), "{path}");
    }
    let (_, gone) = support::json(edge.call(Method::DELETE, "/api/v1/sessions/se9").send().await.unwrap()).await;
    assert_eq!(gone, json!({"session_id": "se9", "deleted": true}));
    let (_, list) = support::json(edge.get("/api/v1/sessions").await).await;
    assert_eq!(list, json!({"sessions": [], "next_page_token": ""}));
}

#[tokio::test]
async fn session_is_changed_by_patch_and_what_is_not_given_is_told_from_zero() {
    let edge = Edge::start().await;
    let patch = async |body: &'static str| {
        let call = edge.call(Method::PATCH, "/api/v1/sessions/se9").header("content-type", "application/json");
        support::json(call.body(body).send().await.unwrap()).await
    };
    let (status, session) = patch(r#"{"idle_timeout_seconds": 0, "auto_resume": false, "on_timeout": "delete"}"#).await;
    assert_eq!((status, &session["session_id"]), (200, &json!("se9")), "{session}");
    assert_eq!(session["resume_manifest"]["lost"][0]["kind"], "process", "{session}");
    assert_eq!(session.get("expire_time"), None, "an unset message is left out");
    let request = edge.seen.request();
    for part in [
        r#"session_id: "se9""#,
        "timeout_seconds: None",
        "idle_timeout_seconds: Some(0)",
        "auto_resume: Some(false)",
        "Delete",
    ] {
        assert!(request.contains(part), "{part} in {request}");
    }
    assert_eq!(patch(r#"{"timeout_seconds": 9, "remove_metadata": ["a"]}"#).await.0, 200);
    let request = edge.seen.request();
    for part in [" timeout_seconds: Some(9)", "idle_timeout_seconds: None", "auto_resume: None", r#"["a"]"#] {
        assert!(request.contains(part), "{part} in {request}");
    }
    let (status, refused) = patch(r#"{"timeout": 9}"#).await;
    assert_eq!((status, &refused["error"]["status"]), (400, &json!("INVALID_ARGUMENT")), "{refused}");
}

#[tokio::test]
async fn session_stands_in_for_a_sandbox_in_a_body_and_in_a_query() {
    let edge = Edge::start().await;
    edge.post("/api/v1/execute", r#"{"session_id":"se9","code":"1"}"#).await;
    let request = edge.seen.request();
    assert!(request.contains(r#"session_id: "se9""#) && request.contains(r#"sandbox_id: """#), "{request}");
    edge.get("/api/v1/files?session_id=se8&path=/a").await;
    assert!(edge.seen.request().contains(r#"session_id: "se8""#), "{}", edge.seen.request());
}

#[tokio::test]
async fn enums_are_read_as_words_and_by_full_name() {
    let edge = Edge::start().await;
    for role in ["\"user\"", "\"ROLE_USER\"", "1", "null"] {
        let body = format!(r#"{{"user_id":"ada","role":{role}}}"#);
        assert_eq!(edge.post("/api/v1/auth/token", &body).await.status(), 200, "{role}");
    }
    assert_eq!(edge.post("/api/v1/sessions/s/pause", r#"{"depth":"frozen"}"#).await.status(), 200);
    assert!(edge.seen.request().contains("Frozen"), "{}", edge.seen.request());
}

#[tokio::test]
async fn query_sets_scalars_enums_and_repeated_fields() {
    let edge = Edge::start().await;
    let path = "/api/v1/sandbox?page_size=5&state=paused&metadata=a%3D1&metadata=b%3D+2&pageToken=t";
    assert_eq!(edge.get(path).await.status(), 200);
    let request = edge.seen.request();
    for part in ["page_size: 5", "Paused", r#"["a=1", "b= 2"]"#, r#"page_token: "t""#] {
        assert!(request.contains(part), "{part} in {request}");
    }
    let delete = edge.call(Method::DELETE, "/api/v1/files?sandbox_id=s&path=/a&recursive=true").send().await.unwrap();
    assert_eq!(delete.status(), 200);
    assert!(edge.seen.request().contains("recursive: true"));
}

#[tokio::test]
async fn path_variable_is_decoded_and_wins_no_fight_with_body_or_query() {
    let edge = Edge::start().await;
    let (_, session) = support::json(edge.get("/api/v1/sessions/a%20b%2Fc").await).await;
    assert_eq!(session["session_id"], "a b/c");
    let (status, body) = support::json(edge.post("/api/v1/sessions/s/pause", r#"{"session_id":"t"}"#).await).await;
    assert_eq!((status, support::violated(&body)), (400, "session_id".to_owned()));
    let (status, body) = support::json(edge.get("/api/v1/sessions/s?session_id=t").await).await;
    assert_eq!((status, support::violated(&body)), (400, "session_id".to_owned()));
}

#[tokio::test]
async fn files_carry_bytes_in_base64_and_show_the_annotated_field() {
    let edge = Edge::start().await;
    let put = edge.call(Method::PUT, "/api/v1/files").header("content-type", "application/json; charset=utf-8");
    let put = put.body(r#"{"sandbox_id":"s","path":"/a","data":"AP8="}"#).send().await.unwrap();
    let (status, file) = support::json(put).await;
    assert_eq!((status, &file["size"], &file["type"]), (200, &json!(2), &json!("file")));
    let (_, read) = support::json(edge.get("/api/v1/files?sandbox_id=s&path=/a").await).await;
    assert_eq!((&read["data"], read.get("content")), (&json!("AP8="), None));
}

#[tokio::test]
async fn empty_body_is_an_empty_object_whatever_its_type() {
    let edge = Edge::start().await;
    for (content_type, body) in
        [(None, ""), (Some("application/x-www-form-urlencoded"), ""), (Some("text/plain"), "  "), (None, "{}")]
    {
        let mut call = edge.call(Method::POST, "/api/v1/sandbox/acquire").body(body);
        if let Some(content_type) = content_type {
            call = call.header("content-type", content_type);
        }
        assert_eq!(call.send().await.unwrap().status(), 200, "{content_type:?} {body:?}");
    }
}

#[tokio::test]
async fn head_is_get_without_its_body() {
    let edge = Edge::start().await;
    for path in ["/api/v1/sandbox/stats", "/health"] {
        let length = edge.get(path).await.content_length().unwrap();
        let head = edge.call(Method::HEAD, path).send().await.unwrap();
        assert_eq!(head.status(), 200);
        assert_eq!(head.headers()["content-length"], length.to_string());
        assert!(head.bytes().await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn request_id_is_kept_or_made_and_travels() {
    let edge = Edge::start().await;
    let call = edge.call(Method::GET, "/api/v1/sandbox/stats").header("x-request-id", "req-1");
    assert_eq!(call.send().await.unwrap().headers()["x-request-id"], "req-1");
    assert_eq!(edge.seen.header("x-request-id").unwrap(), "req-1");
    let made = edge.call(Method::GET, "/nothing").header("x-request-id", "a b").send().await.unwrap();
    assert_eq!(made.headers()["x-request-id"].len(), 26);
}

#[tokio::test]
async fn only_listed_headers_reach_a_service() {
    let edge = Edge::start().await;
    let call = edge.call(Method::GET, "/api/v1/sandbox/stats");
    let call = call.header("traceparent", "00-1-2-01").header("baggage", "a=b").header("cookie", "secret");
    call.header("x-api-key", "admin-key").header("x-forwarded-for", "9.9.9.9").send().await.unwrap();
    assert_eq!(edge.seen.header("traceparent").unwrap(), "00-1-2-01");
    assert_eq!(edge.seen.header("baggage").unwrap(), "a=b");
    assert!(edge.seen.header("authorization").is_some());
    for name in ["cookie", "x-api-key", "x-forwarded-for", "host"] {
        assert_eq!(edge.seen.header(name), None, "{name}");
    }
}

#[tokio::test]
async fn deadline_travels_as_the_shorter_of_the_callers_and_the_edges() {
    let edge = Edge::start().await;
    let micros = |edge: &Edge| -> u64 {
        let text = edge.seen.header("grpc-timeout").unwrap();
        let (digits, unit) = text.split_at(text.len() - 1);
        let factor = match unit {
            "n" => return digits.parse::<u64>().unwrap() / 1000,
            "u" => 1,
            "m" => 1000,
            "S" => 1_000_000,
            other => panic!("{other}"),
        };
        digits.parse::<u64>().unwrap() * factor
    };
    edge.get("/api/v1/sandbox/stats").await;
    assert_eq!(micros(&edge), 30_000_000);
    edge.call(Method::GET, "/api/v1/sandbox/stats").header("grpc-timeout", "5S").send().await.unwrap();
    assert!((4_000_000..=5_000_000).contains(&micros(&edge)));
    edge.call(Method::GET, "/api/v1/sandbox/stats").header("grpc-timeout", "9H").send().await.unwrap();
    assert_eq!(micros(&edge), 30_000_000);
}

#[tokio::test]
async fn rest_is_served_over_http2_without_tls_too() {
    let edge = Edge::start().await;
    let request = http::Request::get("/health").body(tonic::body::Body::empty()).unwrap();
    let answer = edge.channel().await.oneshot(request).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"service":"gateway","status":"ok"}"#);
}

#[tokio::test]
async fn caller_that_hangs_up_drops_the_call() {
    let edge = Edge::start().await;
    let call = tokio::spawn(edge.call(Method::GET, "/api/v1/sandbox/slow").send());
    edge.seen.assert_seen("slow").await;
    call.abort();
    edge.seen.assert_dropped().await;
}

#[tokio::test]
async fn log_names_the_call_and_its_caller_but_no_token_and_no_body() {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || sink.clone()).finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let edge = Edge::start().await;
    let call = edge.call(Method::POST, "/api/v1/execute").header("x-request-id", "req-7");
    let call = call.header("content-type", "application/json").body(r#"{"code":"print(hunter2)"}"#);
    call.send().await.unwrap().text().await.unwrap();
    let lines = log.0.lock().unwrap().clone();
    let text = String::from_utf8(lines).unwrap();
    for part in ["req-7", "/api/v1/execute", "POST", "user=\"ada\"", "status=200", "latency_ms="] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("hunter2") && !text.contains("eyJ"), "{text}");
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn executions_and_contexts_are_served_in_their_annotated_shapes() {
    let edge = Edge::start().await;
    let call = |method: &str, path: &str, body: Option<Value>| {
        let call = edge.call(method.parse().unwrap(), path);
        let call = match body {
            Some(body) => call.header("content-type", "application/json").body(body.to_string()),
            None => call,
        };
        async move { support::json(call.send().await.unwrap()).await }
    };
    let started = json!({"sandbox_id": "s", "command": "sleep 1", "terminal": {"rows": 2, "cols": 3}});
    for (method, path, body, sent, shown) in [
        ("POST", "/api/v1/executions", Some(started), "rows: 2", ("state", json!("running"))),
        ("GET", "/api/v1/executions?sandbox_id=s&state=exited&tag=t", None, "Exited", ("executions", json!([]))),
        ("GET", "/api/v1/executions/ex9?sandbox_id=s", None, "\"ex9\"", ("execution_id", json!("ex9"))),
        (
            "GET",
            "/api/v1/executions/ex9/output?sandbox_id=s&stream=stderr&limit=9",
            None,
            "Stderr",
            ("text", json!("a")),
        ),
        (
            "GET",
            "/api/v1/executions/ex9/output/grep?sandbox_id=s&pattern=a%2Bb&context_lines=2",
            None,
            "\"a+b\"",
            ("more", json!(false)),
        ),
        (
            "POST",
            "/api/v1/executions/ex9/stdin",
            Some(json!({"sandbox_id": "s", "data": "/w==", "offset": 0})),
            "offset: Some(0)",
            ("stdin_bytes", json!(1)),
        ),
        ("POST", "/api/v1/contexts", Some(json!({"sandbox_id": "s"})), "\"s\"", ("context_id", json!("cx1"))),
        ("GET", "/api/v1/contexts/cx9?sandbox_id=s", None, "\"cx9\"", ("state", json!("idle"))),
        (
            "POST",
            "/api/v1/contexts/cx9/restart",
            Some(json!({"sandbox_id": "s"})),
            "\"cx9\"",
            ("context_id", json!("cx9")),
        ),
        (
            "POST",
            "/api/v1/contexts/cx9/interrupt",
            Some(json!({"sandbox_id": "s"})),
            "\"cx9\"",
            ("running", json!(true)),
        ),
        ("DELETE", "/api/v1/contexts/cx9?sandbox_id=s", None, "\"cx9\"", ("deleted", json!(true))),
    ] {
        let (status, answer) = call(method, path, body).await;
        assert_eq!((status, &answer[shown.0]), (200, &shown.1), "{method} {path}: {answer}");
        assert!(edge.seen.request().contains(sent), "{method} {path}: {}", edge.seen.request());
    }
}

#[tokio::test]
async fn body_field_path_and_query_together_make_one_request() {
    let edge = Edge::start().await;
    let put = |query: &str, body: &'static str| {
        let call = edge.call(Method::PUT, &format!("/api/v1/executions/ex1/terminal{query}"));
        let call = call.header("content-type", "application/json").body(body);
        async move { support::json(call.send().await.unwrap()).await }
    };
    let (status, answer) = put("?sandbox_id=s", r#"{"rows": 24, "cols": 80}"#).await;
    assert_eq!((status, answer), (200, json!({})));
    let request = edge.seen.request();
    for part in ["\"s\"", "\"ex1\"", "rows: 24", "cols: 80"] {
        assert!(request.contains(part), "{part} in {request}");
    }
    for (query, field) in [("?terminal.rows=3", "terminal.rows"), ("?execution_id=x", "execution_id")] {
        let (status, answer) = put(query, "{}").await;
        assert_eq!((status, support::violated(&answer)), (400, field.to_owned()));
    }
}

#[tokio::test]
async fn file_operations_are_served_in_their_annotated_shapes() {
    let edge = Edge::start().await;
    let (_, file) = support::json(edge.get("/api/v1/files/stat?sandbox_id=s&raw_path=_w").await).await;
    assert_eq!((&file["size"], &file["etag"]), (&json!(10), &json!("e-10")));
    assert!(edge.seen.request().contains(r#"raw_path: b"\xff""#), "{}", edge.seen.request());
    let (_, list) = support::json(edge.get("/api/v1/files/list?sandbox_id=s&path=/&depth=3&glob=**/*.py").await).await;
    assert_eq!(list, json!({"files": [], "next_page_token": ""}));
    let body = r#"{"sandbox_id": "s", "source": "/a", "destination": "/b", "overwrite": true}"#;
    let (_, moved) = support::json(edge.post("/api/v1/files/move", body).await).await;
    assert_eq!(moved["path"], "/b");
    let body = r#"{"sandbox_id": "s", "files": [{"path": "/a", "content": "x"}, {"path": "/b", "data": "/w=="}]}"#;
    let (_, written) = support::json(edge.post("/api/v1/files/batch", body).await).await;
    assert_eq!(written["files"][1]["path"], "/b");
}
