use futures::stream;
use reqwest::{Body, Method, header::HeaderValue};
use serde_json::Value;

use crate::support::{BODY_MAX, Edge, assert_error, json, violated};

#[tokio::test]
async fn field_at_fault_is_named() {
    let edge = Edge::start().await;
    for (body, field) in [
        (r#"{"sandbox_id":"s","colour":"red"}"#, "colour"),
        (r#"{"code":5}"#, "code"),
        (r#"{"env":{"A":1}}"#, "env.A"),
        (r#"{"timeout_ms":4294967296}"#, "timeout_ms"),
        (r#"{"argv":"ls"}"#, "argv"),
        (r#"{"code":"a","code":"b"}"#, "code"),
    ] {
        let (status, answer) = json(edge.post("/api/v1/execute", body).await).await;
        assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
        assert_eq!(violated(&answer), field, "{body}");
    }
    for (query, field) in [
        ("colour=red", "colour"),
        ("page_size=x", "page_size"),
        ("page_size=1&page_size=2", "page_size"),
        ("state=happy", "state"),
        ("limits.pids=1", "limits.pids"),
    ] {
        let (status, answer) = json(edge.get(&format!("/api/v1/sandbox?{query}")).await).await;
        assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
        assert_eq!(violated(&answer), field, "{query}");
    }
    let (status, answer) = json(edge.post("/api/v1/execute?language=go", "{}").await).await;
    assert_eq!((status, violated(&answer)), (400, "language".to_owned()), "what is in the body is not in the query");
}

#[tokio::test]
async fn both_members_of_a_oneof_are_refused() {
    let edge = Edge::start().await;
    let put = edge.call(Method::PUT, "/api/v1/files").header("content-type", "application/json");
    let put = put.body(r#"{"sandbox_id":"s","path":"/a","content":"a","data":"YQ=="}"#).send().await.unwrap();
    let (status, answer) = json(put).await;
    assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
    assert_eq!(violated(&answer), "data");
}

#[tokio::test]
async fn body_that_is_no_json_object_is_refused() {
    let edge = Edge::start().await;
    let bomb = format!("{{\"env\":{}", "{\"a\":".repeat(10_000));
    for body in ["{", "[]", "7", "{} {}", r#"{"code":"a"}x"#, "\u{feff}{}", &"[".repeat(60_000), &bomb] {
        let (status, answer) = json(edge.post("/api/v1/execute", body).await).await;
        assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
    }
    let call = edge.call(Method::POST, "/api/v1/execute").header("content-type", "application/json");
    let (status, answer) = json(call.body(&b"{\"code\":\"\xff\"}"[..]).send().await.unwrap()).await;
    assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
}

#[tokio::test]
async fn body_of_another_type_is_415() {
    let edge = Edge::start().await;
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json"] {
        let call = edge.call(Method::POST, "/api/v1/sandbox/release").header("content-type", content_type);
        let (status, answer) = json(call.body(r#"{"sandbox_id":"s"}"#).send().await.unwrap()).await;
        assert_error(status, &answer, 415, "INVALID_ARGUMENT", "MEDIA_TYPE");
        assert!(answer["error"]["message"].as_str().unwrap().contains("application/json"));
    }
}

#[tokio::test]
async fn body_over_the_limit_is_413_also_when_its_length_is_not_told() {
    let edge = Edge::start().await;
    let large = format!(r#"{{"code":"{}"}}"#, "a".repeat(BODY_MAX));
    let (status, answer) = json(edge.post("/api/v1/execute", &large).await).await;
    assert_error(status, &answer, 413, "INVALID_ARGUMENT", "BODY_TOO_LARGE");

    let spaces = [b' '; BODY_MAX + 1];
    let pieces = spaces.chunks(1000).map(|piece| Ok::<_, std::io::Error>(piece.to_vec()));
    let chunked = Body::wrap_stream(stream::iter(pieces.collect::<Vec<_>>()));
    let call = edge.call(Method::POST, "/api/v1/execute").header("content-type", "application/json").body(chunked);
    let (status, answer) = json(call.send().await.unwrap()).await;
    assert_error(status, &answer, 413, "INVALID_ARGUMENT", "BODY_TOO_LARGE");

    let fits = format!(r#"{{"code":"{}"}}"#, "a".repeat(BODY_MAX - 20));
    assert_eq!(edge.post("/api/v1/execute", &fits).await.status(), 200);
}

#[tokio::test]
async fn call_without_a_body_takes_none() {
    let edge = Edge::start().await;
    let delete = |body: &'static str| edge.call(Method::DELETE, "/api/v1/sessions/s").body(body).send();
    assert_eq!(delete("{}").await.unwrap().status(), 200);
    let (status, answer) = json(delete(r#"{"session_id":"t"}"#).await.unwrap()).await;
    assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
}

#[tokio::test]
async fn unknown_path_is_404_and_wrong_method_405_with_allow() {
    let edge = Edge::start().await;
    for path in ["/nothing", "/api/v1/sessions/", "/api/v1", "/api/v2/sessions", "//", "/API/V1/sessions"] {
        let (status, answer) = json(edge.get(path).await).await;
        assert_error(status, &answer, 404, "NOT_FOUND", "ROUTE_NOT_FOUND");
    }
    for (method, path, allow) in [
        (Method::PATCH, "/api/v1/sessions", "GET, POST, HEAD, OPTIONS"),
        (Method::GET, "/api/v1/execute", "POST, OPTIONS"),
        (Method::HEAD, "/api/v1/execute", "POST, OPTIONS"),
    ] {
        let answer = edge.call(method.clone(), path).send().await.unwrap();
        assert_eq!(answer.status(), 405, "{method} {path}");
        let mut given: Vec<_> = answer.headers()["allow"].to_str().unwrap().split(", ").collect();
        let mut wanted: Vec<_> = allow.split(", ").collect();
        given.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(given, wanted, "{method} {path}");
    }
    let (status, answer) = json(edge.call(Method::POST, "/health").send().await.unwrap()).await;
    assert_error(status, &answer, 405, "UNIMPLEMENTED", "HTTP_METHOD");
    let options = edge.call(Method::OPTIONS, "/health").send().await.unwrap();
    let allow: Vec<_> = options.headers().get_all("allow").iter().collect();
    assert_eq!((options.status().as_u16(), allow), (204, vec![&HeaderValue::from_static("GET, HEAD, OPTIONS")]));
    let options = edge.call(Method::OPTIONS, "/api/v1/execute").send().await.unwrap();
    assert_eq!((options.status().as_u16(), &options.headers()["allow"]), (204, &"POST, OPTIONS".parse().unwrap()));
}

#[tokio::test]
async fn path_that_is_not_utf8_is_refused() {
    let edge = Edge::start().await;
    let (status, answer) = json(edge.get("/api/v1/sandbox/%ff").await).await;
    assert_error(status, &answer, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
}

#[tokio::test]
async fn service_error_keeps_its_reason_and_gets_its_http_status() {
    let edge = Edge::start().await;
    let (status, answer) = json(edge.get("/api/v1/sandbox/missing").await).await;
    assert_error(status, &answer, 404, "NOT_FOUND", "SANDBOX_NOT_FOUND");
    let (status, answer) = json(edge.get("/api/v1/sandbox/expired").await).await;
    assert_error(status, &answer, 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED");

    let full = edge.get("/api/v1/sandbox/full").await;
    assert_eq!(full.headers()["retry-after"], "3");
    let (status, answer) = json(full).await;
    assert_error(status, &answer, 429, "RESOURCE_EXHAUSTED", "CAPACITY");
    let retry = &answer["error"]["details"][1];
    assert_eq!(
        (retry["@type"].as_str().unwrap(), &retry["retry_delay"]),
        ("type.googleapis.com/google.rpc.RetryInfo", &Value::from("2.500s"))
    );
}

#[tokio::test]
async fn fault_of_a_service_says_nothing_of_its_cause() {
    let edge = Edge::start().await;
    for id in ["faulty", "panicking"] {
        let (status, answer) = json(edge.get(&format!("/api/v1/sandbox/{id}")).await).await;
        assert_error(status, &answer, 500, "INTERNAL", "INTERNAL");
        assert!(!answer.to_string().contains("secret"));
    }
}

#[tokio::test]
async fn unreachable_service_is_503_with_retry_after() {
    let edge = Edge::start_with(|options| {
        options.upstreams.session = cloud_sandbox_rpc::connect("http://127.0.0.1:1").unwrap();
    })
    .await;
    let answer = edge.get("/api/v1/sessions").await;
    assert_eq!(answer.headers()["retry-after"], "1");
    let (status, answer) = json(answer).await;
    assert_error(status, &answer, 503, "UNAVAILABLE", "UPSTREAM_UNREACHABLE");
    assert!(!answer.to_string().contains("127.0.0.1"));
}

#[tokio::test]
async fn call_over_its_deadline_is_504_and_dropped() {
    let edge = Edge::start().await;
    let call = edge.call(Method::GET, "/api/v1/sandbox/slow").header("grpc-timeout", "50m");
    let (status, answer) = json(call.send().await.unwrap()).await;
    assert_error(status, &answer, 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED");
    edge.seen.assert_dropped().await;
}
