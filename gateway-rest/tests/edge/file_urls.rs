//! Signed URLs: made by whoever has a token, used by anybody, good for one file.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::Duration,
};

use cloud_sandbox_auth::{FileAccess, FileGrant, Principal, Role, Tokens};
use cloud_sandbox_gateway_rest::RateLimit;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Edge, SECRET, assert_error, json as answer, token, violated};

const SANDBOX: &str = "sb01jd8z4n00000000000000000a";

async fn made(edge: &Edge, body: Value) -> (u16, Value) {
    answer(edge.post("/api/v1/files/url", &body.to_string()).await).await
}

async fn url(edge: &Edge, path: &str, access: &str) -> String {
    let (status, made) = made(edge, json!({"sandbox_id": SANDBOX, "path": path, "access": access})).await;
    assert_eq!(status, 200, "{made}");
    made["url"].as_str().unwrap().to_owned()
}

fn grant_token(ttl: u64) -> String {
    let grant = FileGrant { sandbox: SANDBOX.into(), path: "/ten".into(), access: FileAccess::Read };
    let maker = Principal::new("default", "ada", Role::User);
    Tokens::hs256(&SECRET).mint_file_grant(&maker, grant, Duration::from_secs(ttl)).unwrap()
}

#[tokio::test]
async fn read_url_downloads_the_file_without_a_token() {
    let edge = Edge::start().await;
    let (status, made) = made(&edge, json!({"sandbox_id": SANDBOX, "path": "/a b/ä&c"})).await;
    assert_eq!((status, made["method"].as_str()), (200, Some("GET")));
    assert!(made["expire_time"].as_str().unwrap().ends_with('Z'));
    let url = made["url"].as_str().unwrap();
    assert!(
        url.starts_with(&format!("/api/v1/files?sandbox_id={SANDBOX}&path=/a%20b/%C3%A4%26c&access_token=")),
        "{url}"
    );
    for accept in ["*/*", "text/html,application/xhtml+xml,*/*;q=0.8"] {
        let file = edge.bare(Method::GET, url).header("accept", accept).send().await.unwrap();
        assert_eq!(
            (file.status().as_u16(), &file.headers()["content-type"]),
            (200, &"application/octet-stream".parse().unwrap())
        );
        assert_eq!(file.text().await.unwrap(), "0123456789");
    }
    assert!(edge.seen.request().contains(r#"path: "/a b/ä&c""#), "{}", edge.seen.request());
    let token = url.split_once("access_token=").unwrap().1;
    assert_eq!(edge.seen.header("authorization").unwrap(), format!("Bearer {token}"));

    let head = edge.bare(Method::HEAD, url).send().await.unwrap();
    assert_eq!((head.status().as_u16(), &head.headers()["content-length"]), (200, &"10".parse().unwrap()));
    let part = edge.bare(Method::GET, url).header("range", "bytes=-2").send().await.unwrap();
    assert_eq!((part.status().as_u16(), part.text().await.unwrap().as_str()), (206, "89"));
    let bytes = edge.bare(Method::GET, url).header("accept", "application/json").send().await.unwrap();
    assert_eq!(bytes.text().await.unwrap(), "0123456789", "bytes are all that was signed for");
}

#[tokio::test]
async fn write_url_takes_a_body_of_any_type() {
    let edge = Edge::start().await;
    let url = url(&edge, "/a", "write").await;
    for content_type in [None, Some("application/json"), Some("image/png")] {
        *edge.seen.uploaded.lock().unwrap() = Default::default();
        let mut call = edge.bare(Method::PUT, &url).body(r#"{"a":1}"#);
        if let Some(content_type) = content_type {
            call = call.header("content-type", content_type);
        }
        let (status, file) = answer(call.send().await.unwrap()).await;
        assert_eq!((status, file["size"].as_u64()), (200, Some(7)), "{content_type:?}");
    }
}

#[tokio::test]
async fn url_is_good_for_its_method_and_place_alone() {
    let edge = Edge::start().await;
    let (read, write) = (url(&edge, "/ten", "read").await, url(&edge, "/ten", "write").await);
    let refused = async |method: Method, url: &str| {
        let (status, body) = answer(edge.bare(method, url).body("x").send().await.unwrap()).await;
        (status, body["error"]["details"][0]["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(refused(Method::PUT, &read).await, (403, "ROLE_DENIED".to_owned()));
    assert_eq!(refused(Method::GET, &write).await, (403, "ROLE_DENIED".to_owned()));
    assert_eq!(refused(Method::DELETE, &read).await, (401, "TOKEN_MISSING".to_owned()));
    let elsewhere = read.replace("/api/v1/files?", "/api/v1/files/stat?");
    assert_eq!(refused(Method::GET, &elsewhere).await, (401, "TOKEN_MISSING".to_owned()));
    // the same token as a header opens nothing more
    let token = read.split_once("access_token=").unwrap().1;
    let body = json!({"sandbox_id": SANDBOX, "path": "/other"}).to_string();
    let call =
        edge.bare(Method::POST, "/api/v1/files/url").bearer_auth(token).header("content-type", "application/json");
    let (status, body) = answer(call.body(body).send().await.unwrap()).await;
    assert_error(status, &body, 403, "PERMISSION_DENIED", "ROLE_DENIED");
}

#[tokio::test]
async fn other_tokens_are_not_taken_from_a_url() {
    let edge = Edge::start().await;
    let at = |token: &str| format!("/api/v1/files?sandbox_id={SANDBOX}&path=/ten&access_token={token}");
    for (token, reason) in [
        (token("ada", Role::User), "TOKEN_INVALID"),
        (token("root", Role::Admin), "TOKEN_INVALID"),
        ("nonsense".to_owned(), "TOKEN_INVALID"),
        (String::new(), "TOKEN_INVALID"),
        (format!("{}x", grant_token(60)), "TOKEN_INVALID"),
    ] {
        let (status, body) = answer(edge.bare(Method::GET, &at(&token)).send().await.unwrap()).await;
        assert_error(status, &body, 401, "UNAUTHENTICATED", reason);
    }
    // one way of showing who calls is enough
    let (status, body) = answer(edge.get(&at(&grant_token(60))).await).await;
    assert_eq!((status, violated(&body)), (400, "access_token".to_owned()));
}

#[tokio::test]
async fn faulty_requests_for_a_url_name_their_fields() {
    let edge = Edge::start().await;
    for (body, field) in [
        (json!({"sandbox_id": "x", "path": "/a"}), "sandbox_id"),
        (json!({"sandbox_id": SANDBOX, "path": "a"}), "path"),
        (json!({"sandbox_id": SANDBOX, "path": "/a/../b"}), "path"),
        (json!({"sandbox_id": SANDBOX}), "path"),
        (json!({"sandbox_id": SANDBOX, "path": "/a", "expires_in": 604_801}), "expires_in"),
        (json!({"sandbox_id": SANDBOX, "path": "/a", "access": 7}), "access"),
    ] {
        let (status, answer) = made(&edge, body.clone()).await;
        assert_eq!((status, violated(&answer)), (400, field.to_owned()), "{body}");
    }
    let call = edge.bare(Method::POST, "/api/v1/files/url").header("content-type", "application/json");
    let body = json!({"sandbox_id": SANDBOX, "path": "/a"}).to_string();
    let (status, body) = answer(call.body(body).send().await.unwrap()).await;
    assert_error(status, &body, 401, "UNAUTHENTICATED", "TOKEN_MISSING");
}

#[tokio::test]
async fn calls_by_url_are_counted_as_their_makers() {
    let edge = Edge::start_with(|options| options.rate_limit = RateLimit { per_second: 1, burst: 3 }).await;
    let url = url(&edge, "/ten", "read").await;
    assert_eq!(edge.bare(Method::GET, &url).send().await.unwrap().headers()["ratelimit-remaining"], "1");
    assert_eq!(edge.get("/api/v1/sandbox/stats").await.headers()["ratelimit-remaining"], "0");
    assert_eq!(edge.bare(Method::GET, &url).send().await.unwrap().status(), 429);
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
async fn token_of_a_url_is_in_no_log_and_no_answer() {
    let log = Log::default();
    let sink = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || sink.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let edge = Edge::start().await;
    let token = grant_token(60);
    for query in ["path=/ten", "path=/broken", "path=/missing", "colour=1", "path=/ten&access_token=b"] {
        let url = format!("/api/v1/files?sandbox_id={SANDBOX}&{query}&access_token={token}");
        let reply = raw_reply(&edge, &url).await;
        assert!(!reply.contains(&token[..40]), "{reply}");
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(text.contains("request finished"), "{text}");
    for line in text.lines() {
        assert!(!line.contains(&token[token.len() - 40..]), "{line}");
    }
}

/// Over a plain socket: an HTTP client in this process would log what it sends.
async fn raw_reply(edge: &Edge, url: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut connection = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    let request = format!("GET {url} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut reply = Vec::new();
    let _ = connection.read_to_end(&mut reply).await;
    String::from_utf8_lossy(&reply).into_owned()
}
