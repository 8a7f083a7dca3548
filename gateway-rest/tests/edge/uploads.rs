//! Raw uploads: a commit after every byte, and none after fewer.

use std::{sync::atomic::Ordering, time::Duration};

use futures::{StreamExt, stream};
use reqwest::{Body, Method, RequestBuilder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    fakes::files::sum_of,
    support::{BODY_MAX, Edge, assert_error, json, token, violated},
};

const FILES: &str = "/api/v1/files?sandbox_id=s&path=";

fn put(edge: &Edge, path: &str) -> RequestBuilder {
    edge.call(Method::PUT, &format!("{FILES}{path}")).header("content-type", "application/octet-stream")
}

fn noise(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

#[tokio::test]
async fn body_of_any_size_is_written_as_it_is() {
    let edge = Edge::start().await;
    let body = noise(BODY_MAX * 40 + 7);
    let answer = put(&edge, "/a%20b&mode=420").body(body.clone()).send().await.unwrap();
    assert_eq!(answer.headers()["etag"], format!("\"e-{}\"", body.len()));
    let (status, file) = json(answer).await;
    assert_eq!((status, file["path"].as_str(), file["size"].as_u64()), (200, Some("/a b"), Some(body.len() as u64)));
    let request = edge.seen.request();
    assert!(request.contains("mode: 420") && request.contains(r#"sandbox_id: "s""#), "{request}");
    let uploaded = edge.seen.uploaded.lock().unwrap().clone();
    assert_eq!((uploaded.bytes, uploaded.sum, uploaded.commits), (body.len() as u64, sum_of(&body), 1));
    assert!(uploaded.pieces.iter().all(|piece| *piece <= 1024 * 1024), "{:?}", uploaded.pieces);
}

/// An upload of `body` straight into the edge, with no socket between.
async fn send_frames(edge: &Edge, body: axum::body::Body) -> axum::response::Response {
    use tower::ServiceExt;
    let request = axum::extract::Request::put(format!("{FILES}/a"))
        .header("authorization", format!("Bearer {}", token("ada", cloud_sandbox_auth::Role::User)))
        .header("content-type", "application/octet-stream")
        .body(body);
    edge.gateway.router().oneshot(request.unwrap()).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn slow_body_may_take_its_time_and_one_that_stands_still_may_not() {
    use axum::body::Body;
    let edge = Edge::start_with(|options| options.max_timeout = Duration::from_secs(86_400)).await;
    let frame = |seconds| async move {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        Ok::<_, std::io::Error>(vec![1])
    };
    let slow = Body::from_stream(stream::iter([50; 20]).then(frame));
    assert_eq!(send_frames(&edge, slow).await.status(), 200);
    let still = Body::from_stream(stream::iter([1, 61]).then(frame));
    assert_eq!(send_frames(&edge, still).await.status(), 408);
    assert_eq!(edge.seen.uploaded.lock().unwrap().commits, 1, "only the first");
}

#[tokio::test]
async fn one_large_frame_is_cut_and_small_ones_that_are_there_are_joined() {
    use axum::body::Body;
    let edge = Edge::start().await;
    assert_eq!(send_frames(&edge, Body::from(noise(2_500_000))).await.status(), 200);
    assert_eq!(edge.seen.uploaded.lock().unwrap().pieces, [1 << 20, 1 << 20, 2_500_000 - (2 << 20)]);
    *edge.seen.uploaded.lock().unwrap() = Default::default();
    let frames = stream::iter((0..1000).map(|_| Ok::<_, std::io::Error>(vec![1; 1000])));
    assert_eq!(send_frames(&edge, Body::from_stream(frames)).await.status(), 200);
    let uploaded = edge.seen.uploaded.lock().unwrap().clone();
    assert_eq!(uploaded.bytes, 1_000_000);
    assert!(uploaded.pieces.len() <= 4, "{:?}", uploaded.pieces);
}

#[tokio::test]
async fn piece_is_sent_on_without_waiting_for_more() {
    let edge = Edge::start().await;
    let (send, receive) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
    let body = Body::wrap_stream(tokio_stream::wrappers::ReceiverStream::new(receive));
    let call = tokio::spawn(put(&edge, "/a").body(body).send());
    send.send(Ok(b"line\n".to_vec())).await.unwrap();
    for _ in 0..500 {
        if edge.seen.uploaded.lock().unwrap().bytes == 5 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(edge.seen.uploaded.lock().unwrap().bytes, 5);
    drop(send);
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn empty_body_is_an_empty_file() {
    let edge = Edge::start().await;
    let (status, file) = json(put(&edge, "/a").send().await.unwrap()).await;
    assert_eq!((status, file["size"].as_u64()), (200, Some(0)));
    assert_eq!(edge.seen.uploaded.lock().unwrap().commits, 1);
}

#[tokio::test]
async fn body_that_breaks_off_is_never_committed() {
    let edge = Edge::start().await;
    let bearer = token("ada", cloud_sandbox_auth::Role::User);
    for (framing, body) in [("content-length: 10", "0123"), ("transfer-encoding: chunked", "4\r\n0123\r\n")] {
        let dropped = edge.seen.dropped.load(Ordering::SeqCst);
        let mut connection = TcpStream::connect(edge.address).await.unwrap();
        let head = format!(
            "PUT {FILES}/a HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {bearer}\r\n\
             content-type: application/octet-stream\r\n{framing}\r\n\r\n{body}"
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        while edge.seen.uploaded.lock().unwrap().bytes < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        connection.shutdown().await.unwrap();
        let mut answer = String::new();
        let _ = connection.read_to_string(&mut answer).await;
        for _ in 0..500 {
            if edge.seen.dropped.load(Ordering::SeqCst) > dropped {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let uploaded = std::mem::take(&mut *edge.seen.uploaded.lock().unwrap());
        assert_eq!((uploaded.bytes, uploaded.commits, uploaded.ends), (4, 0, 0), "{framing}: {answer}");
        assert!(edge.seen.dropped.load(Ordering::SeqCst) > dropped, "the call goes on: {framing}");
    }
}

#[tokio::test]
async fn refusal_is_answered_before_the_body_has_ended() {
    let edge = Edge::start().await;
    for (path, code, name, reason) in
        [("/refused", 404, "NOT_FOUND", "SANDBOX_NOT_FOUND"), ("/full", 429, "RESOURCE_EXHAUSTED", "DISK_FULL")]
    {
        let endless = stream::iter(0..400).then(|_| async {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok::<_, std::io::Error>(vec![0; 100_000])
        });
        let answer = put(&edge, path).body(Body::wrap_stream(endless)).send().await.unwrap();
        let (status, body) = json(answer).await;
        assert_error(status, &body, code, name, reason);
    }
    assert_eq!(edge.seen.uploaded.lock().unwrap().commits, 0);
}

#[tokio::test]
async fn content_type_chooses_the_form() {
    let edge = Edge::start().await;
    for raw in
        ["application/octet-stream", "text/plain; charset=utf-8", "image/png", "application/x-www-form-urlencoded"]
    {
        *edge.seen.uploaded.lock().unwrap() = Default::default();
        let call = edge.call(Method::PUT, &format!("{FILES}/a")).header("content-type", raw).body("{}");
        assert_eq!(call.send().await.unwrap().status(), 200, "{raw}");
        assert_eq!(edge.seen.uploaded.lock().unwrap().bytes, 2, "{raw}");
    }
    let form = edge.call(Method::PUT, &format!("{FILES}/a")).header("content-type", "multipart/form-data; boundary=x");
    let (status, body) = json(form.body("--x--").send().await.unwrap()).await;
    assert_error(status, &body, 415, "INVALID_ARGUMENT", "MEDIA_TYPE");
    assert!(body["error"]["message"].as_str().unwrap().contains("application/octet-stream"));
    let archive = "/api/v1/files/archive?sandbox_id=s&path=/a";
    let (status, body) = json(
        edge.call(Method::PUT, archive).header("content-type", "application/json").body("{}").send().await.unwrap(),
    )
    .await;
    assert_error(status, &body, 415, "INVALID_ARGUMENT", "MEDIA_TYPE");
}

#[tokio::test]
async fn part_of_a_file_is_not_taken_for_the_whole() {
    let edge = Edge::start().await;
    let answer = put(&edge, "/a").header("content-range", "bytes 0-1/9").body("ab").send().await.unwrap();
    let (status, body) = json(answer).await;
    assert_error(status, &body, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
    assert_eq!(edge.seen.uploaded.lock().unwrap().commits, 0);
}

#[tokio::test]
async fn archive_is_unpacked_whatever_it_is_said_to_be() {
    let edge = Edge::start().await;
    for content_type in [Some("application/x-tar"), None] {
        *edge.seen.uploaded.lock().unwrap() = Default::default();
        let mut call = edge.call(Method::PUT, "/api/v1/files/archive?sandbox_id=s&path=/a").body("tarball");
        if let Some(content_type) = content_type {
            call = call.header("content-type", content_type);
        }
        let (status, body) = json(call.send().await.unwrap()).await;
        assert_eq!((status, body), (200, serde_json::json!({"entries": 1, "bytes": 7})));
    }
}

#[tokio::test]
async fn headers_set_the_condition() {
    let edge = Edge::start().await;
    for (name, value, if_etag) in [("if-match", "\"e-1\"", "e-1"), ("if-none-match", "*", "*none")] {
        assert_eq!(put(&edge, "/a").header(name, value).send().await.unwrap().status(), 200);
        assert!(edge.seen.request().contains(&format!("if_etag: {if_etag:?}")), "{}", edge.seen.request());
    }
    let (status, body) = json(put(&edge, "/a").header("if-match", "\"stale\"").send().await.unwrap()).await;
    assert_error(status, &body, 412, "ABORTED", "FILE_CHANGED");
    let (status, body) = json(put(&edge, "/a&if_etag=stale").send().await.unwrap()).await;
    assert_error(status, &body, 409, "ABORTED", "FILE_CHANGED");
    for (name, value) in
        [("if-match", "*"), ("if-match", "W/\"a\""), ("if-match", "\"a\", \"b\""), ("if-none-match", "\"a\"")]
    {
        let (status, body) = json(put(&edge, "/a").header(name, value).send().await.unwrap()).await;
        assert_eq!((status, violated(&body)), (400, "if_etag".to_owned()), "{name}: {value}");
    }
}

#[tokio::test]
async fn condition_holds_for_json_too() {
    let edge = Edge::start().await;
    let call = edge.call(Method::PUT, "/api/v1/files").header("content-type", "application/json");
    let call = call.header("if-match", "\"stale\"").body(r#"{"sandbox_id":"s","path":"/a","content":"x"}"#);
    let (status, body) = json(call.send().await.unwrap()).await;
    assert_error(status, &body, 412, "ABORTED", "FILE_CHANGED");
}

#[tokio::test]
async fn faulty_parameters_are_named() {
    let edge = Edge::start().await;
    for (query, field) in
        [("/a&mode=0644", "mode"), ("/a&mode=x", "mode"), ("/a&colour=1", "colour"), ("/a&data=AA", "data")]
    {
        let (status, body) = json(put(&edge, query).body("x").send().await.unwrap()).await;
        assert_eq!((status, violated(&body)), (400, field.to_owned()), "{query}");
    }
    assert_eq!(edge.seen.uploaded.lock().unwrap().bytes, 0);
    for raw_path in ["/w==", "_w", "_w==", "%2Fw%3D%3D"] {
        let call = edge.call(Method::PUT, &format!("/api/v1/files?sandbox_id=s&raw_path={raw_path}"));
        assert_eq!(call.header("content-type", "text/plain").send().await.unwrap().status(), 200, "{raw_path}");
        assert!(edge.seen.request().contains(r#"raw_path: b"\xff""#), "{}", edge.seen.request());
    }
}
