//! Raw downloads: headers, ranges, conditions, and bodies that break off.

use std::sync::atomic::Ordering;

use futures::StreamExt;
use reqwest::{Method, Response};
use serde_json::Value;

use crate::{
    fakes::files::TEN,
    support::{Edge, assert_error, json, violated},
};

const RAW: &str = "application/octet-stream";

async fn raw(edge: &Edge, path: &str, headers: &[(&str, &str)]) -> Response {
    raw_by(edge, Method::GET, path, headers).await
}

async fn raw_by(edge: &Edge, method: Method, path: &str, headers: &[(&str, &str)]) -> Response {
    let mut call = edge.call(method, &format!("/api/v1/files?sandbox_id=s&path={path}")).header("accept", RAW);
    for (name, value) in headers {
        call = call.header(*name, *value);
    }
    call.send().await.unwrap()
}

#[tokio::test]
async fn file_comes_as_it_is_with_its_headers() {
    let edge = Edge::start().await;
    let answer = raw(&edge, "/a/%C3%A4%20b.txt", &[]).await;
    assert_eq!(answer.status(), 200);
    for (name, value) in [
        ("content-type", RAW),
        ("content-length", "10"),
        ("etag", "\"e-10\""),
        ("last-modified", "Tue, 14 Nov 2023 22:13:20 GMT"),
        ("accept-ranges", "bytes"),
        ("content-disposition", "attachment; filename*=UTF-8''%C3%A4%20b.txt"),
        ("x-content-type-options", "nosniff"),
        ("cache-control", "private, no-cache"),
    ] {
        assert_eq!(answer.headers()[name], value, "{name}");
    }
    assert_eq!(answer.bytes().await.unwrap(), TEN);
}

#[tokio::test]
async fn other_accept_gets_the_documented_json() {
    let edge = Edge::start().await;
    for accept in ["*/*", "application/json", "text/event-stream", "application/x-ndjson"] {
        let answer = edge.call(Method::GET, "/api/v1/files?sandbox_id=s&path=/ten").header("accept", accept);
        let (status, body) = json(answer.send().await.unwrap()).await;
        assert_eq!((status, &body["data"]), (200, &Value::from("AP8=")), "{accept}");
    }
}

#[tokio::test]
async fn ranges_are_partial_content() {
    let edge = Edge::start().await;
    for (range, content_range, body) in [
        ("bytes=2-4", "bytes 2-4/10", "234"),
        ("bytes=0-0", "bytes 0-0/10", "0"),
        ("bytes=7-", "bytes 7-9/10", "789"),
        ("bytes=7-99", "bytes 7-9/10", "789"),
        ("bytes=-3", "bytes 7-9/10", "789"),
        ("bytes=-99", "bytes 0-9/10", "0123456789"),
    ] {
        let answer = raw(&edge, "/ten", &[("range", range)]).await;
        assert_eq!(answer.status(), 206, "{range}");
        assert_eq!(answer.headers()["content-range"], content_range);
        assert_eq!(answer.headers()["content-length"], body.len().to_string());
        assert_eq!(answer.headers()["etag"], "\"e-10\"");
        assert_eq!(answer.text().await.unwrap(), body, "{range}");
    }
    // a range from the beginning is one call, one from the end two
    let asked = edge.seen.downloads.lock().unwrap().clone();
    assert_eq!(asked[0], (2, 3));
    assert_eq!(asked[4..6], [(0, 1), (7, 3)]);
}

#[tokio::test]
async fn range_beyond_the_end_tells_the_size() {
    let edge = Edge::start().await;
    for (path, range, size) in [
        ("/ten", "bytes=10-", 10),
        ("/ten", "bytes=11-12", 10),
        ("/ten", "bytes=-0", 10),
        ("/ten", "bytes=99999999999999999999-", 10),
        ("/empty", "bytes=0-", 0),
    ] {
        let answer = raw(&edge, path, &[("range", range)]).await;
        assert_eq!(answer.headers()["content-range"], format!("bytes */{size}"), "{range}");
        let (status, body) = json(answer).await;
        assert_error(status, &body, 416, "OUT_OF_RANGE", "RANGE");
    }
}

#[tokio::test]
async fn several_ranges_and_nonsense_get_the_whole() {
    let edge = Edge::start().await;
    for range in ["bytes=0-1,3-4", "bytes=4-2", "lines=1-2"] {
        let answer = raw(&edge, "/ten", &[("range", range)]).await;
        assert_eq!(answer.status(), 200, "{range}");
        assert_eq!(answer.bytes().await.unwrap(), TEN);
    }
    assert_eq!(raw(&edge, "/empty", &[("range", "bytes=-5")]).await.status(), 200);
}

#[tokio::test]
async fn range_is_heeded_only_of_the_file_that_the_caller_has() {
    let edge = Edge::start().await;
    let answer = raw(&edge, "/ten", &[("range", "bytes=2-4"), ("if-range", "\"e-10\"")]).await;
    assert_eq!((answer.status().as_u16(), answer.text().await.unwrap().as_str()), (206, "234"));
    let answer = raw(&edge, "/ten", &[("range", "bytes=2-4"), ("if-range", "\"old\"")]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.bytes().await.unwrap(), TEN);
}

#[tokio::test]
async fn conditions_spare_the_body_or_refuse() {
    let edge = Edge::start().await;
    for headers in [("if-none-match", "\"e-10\""), ("if-modified-since", "Tue, 14 Nov 2023 22:13:20 GMT")] {
        let answer = raw(&edge, "/ten", &[headers]).await;
        assert_eq!((answer.status().as_u16(), &answer.headers()["etag"]), (304, &"\"e-10\"".parse().unwrap()));
        assert!(answer.bytes().await.unwrap().is_empty());
    }
    assert_eq!(raw(&edge, "/ten", &[("if-none-match", "\"old\"")]).await.status(), 200);
    let (status, body) = json(raw(&edge, "/ten", &[("if-match", "\"old\"")]).await).await;
    assert_error(status, &body, 412, "ABORTED", "FILE_CHANGED");
}

#[tokio::test]
async fn head_tells_all_and_sends_nothing() {
    let edge = Edge::start().await;
    let answer = raw_by(&edge, Method::HEAD, "/ten", &[("range", "bytes=2-4")]).await;
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-length"], "10");
    assert_eq!(answer.headers()["etag"], "\"e-10\"");
    assert!(answer.bytes().await.unwrap().is_empty());
    assert_eq!(*edge.seen.downloads.lock().unwrap(), [(0, 1)], "a glance is enough");
}

#[tokio::test]
async fn slice_by_query_is_a_whole_answer() {
    let edge = Edge::start().await;
    let answer = raw(&edge, "/ten&offset=3&length=4", &[]).await;
    assert_eq!((answer.status().as_u16(), &answer.headers()["content-length"]), (200, &"4".parse().unwrap()));
    assert_eq!(answer.text().await.unwrap(), "3456");
    let (status, body) = json(raw(&edge, "/ten&limit=4", &[]).await).await;
    assert_eq!((status, violated(&body)), (400, "limit".to_owned()));
}

#[tokio::test]
async fn empty_file_and_file_that_only_says_so() {
    let edge = Edge::start().await;
    let answer = raw(&edge, "/empty", &[]).await;
    assert_eq!(answer.headers()["content-length"], "0");
    assert!(answer.bytes().await.unwrap().is_empty());
    let answer = raw(&edge, "/proc/made-up", &[]).await;
    assert_eq!(answer.headers().get("content-length"), None);
    assert_eq!(answer.text().await.unwrap(), "made up");
}

#[tokio::test]
async fn failure_before_the_first_byte_is_a_plain_error() {
    let edge = Edge::start().await;
    for path in ["/missing", "/missing&offset=1"] {
        let (status, body) = json(raw(&edge, path, &[]).await).await;
        assert_error(status, &body, 404, "NOT_FOUND", "FILE_NOT_FOUND");
    }
}

#[tokio::test]
async fn failure_in_the_middle_breaks_the_connection() {
    let edge = Edge::start().await;
    // how much arrives before is the transport's affair
    let whole = async |path: &str| {
        let call = edge.call(Method::GET, path).header("accept", RAW);
        match call.send().await {
            Ok(answer) => answer.bytes().await.is_ok(),
            Err(_) => false,
        }
    };
    for path in ["/broken", "/short", "/long"] {
        assert!(!whole(&format!("/api/v1/files?sandbox_id=s&path={path}")).await, "{path} must not look whole");
    }
    assert!(!whole("/api/v1/files/archive?sandbox_id=s&path=/broken").await);
    assert!(whole("/api/v1/files?sandbox_id=s&path=/ten").await);
}

#[tokio::test]
async fn archive_is_tar_whatever_is_accepted() {
    let edge = Edge::start().await;
    for accept in ["*/*", "application/x-tar", "application/json"] {
        let call = edge.call(Method::GET, "/api/v1/files/archive?sandbox_id=s&path=/work/my%20folder/");
        let answer = call.header("accept", accept).send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/x-tar");
        assert_eq!(answer.headers()["content-disposition"], "attachment; filename*=UTF-8''my%20folder.tar");
        assert_eq!(answer.text().await.unwrap(), "tarball");
    }
    let (status, body) = json(edge.get("/api/v1/files/archive?sandbox_id=s&path=/missing").await).await;
    assert_error(status, &body, 404, "NOT_FOUND", "FILE_NOT_FOUND");
}

#[tokio::test]
async fn caller_that_hangs_up_drops_the_download() {
    let edge = Edge::start().await;
    let mut pieces = raw(&edge, "/endless", &[]).await.bytes_stream();
    for _ in 0..3 {
        pieces.next().await.unwrap().unwrap();
    }
    assert_eq!(edge.seen.dropped.load(Ordering::SeqCst), 0);
    drop(pieces);
    edge.seen.assert_dropped().await;
}

#[tokio::test]
async fn large_file_arrives_whole() {
    let edge = Edge::start().await;
    let mut pieces = raw(&edge, "/zeros/100000001", &[]).await.bytes_stream();
    let mut length = 0;
    while let Some(piece) = pieces.next().await {
        length += piece.unwrap().len();
    }
    assert_eq!(length, 100_000_001);
}
