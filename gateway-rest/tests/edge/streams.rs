use std::time::Duration;

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Edge, assert_error};

async fn streamed(edge: &Edge, accept: &str, code: &str) -> reqwest::Response {
    let call = edge.call(Method::POST, "/api/v1/execute").header("accept", accept);
    let body = json!({"sandbox_id": "s", "code": code}).to_string();
    call.header("content-type", "application/json").body(body).send().await.unwrap()
}

#[tokio::test]
async fn event_stream_carries_one_document_an_event() {
    let edge = Edge::start().await;
    let answer = streamed(&edge, "text/event-stream", "").await;
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let text = answer.text().await.unwrap();
    let events: Vec<Value> = text
        .split_terminator("\n\n")
        .map(|event| serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap())
        .collect();
    assert_eq!(events[0], json!({"started": {"execution_id": "ex1", "pid": 7}}));
    assert_eq!(events[1], json!({"stdout": {"offset": 0, "text": "a\nb"}}));
    assert_eq!(events[2], json!({"stdout": {"offset": 0, "data": "/w=="}}));
    assert_eq!(events[3]["exited"]["exit_code"], 3);
}

#[tokio::test]
async fn json_lines_carry_one_document_a_line() {
    let edge = Edge::start().await;
    let answer = streamed(&edge, "application/x-ndjson", "").await;
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let text = answer.text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[1]["stdout"]["text"]), (4, &json!("a\nb")));
}

#[tokio::test]
async fn other_accept_gets_the_unary_answer() {
    let edge = Edge::start().await;
    for accept in ["*/*", "image/png", "application/json"] {
        let answer: Value = serde_json::from_str(&streamed(&edge, accept, "x").await.text().await.unwrap()).unwrap();
        assert_eq!(answer["stdout"], "x");
    }
}

#[tokio::test]
async fn stream_that_is_refused_at_once_is_a_plain_error() {
    let edge = Edge::start().await;
    let answer = streamed(&edge, "text/event-stream", "refused").await;
    let status = answer.status().as_u16();
    let body = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    assert_error(status, &body, 404, "NOT_FOUND", "SANDBOX_NOT_FOUND");
}

#[tokio::test]
async fn error_in_the_middle_is_the_last_element() {
    let edge = Edge::start().await;
    let lines = streamed(&edge, "application/x-ndjson", "broken").await.text().await.unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_error(503, &last, 503, "UNAVAILABLE", "SANDBOX_GONE");

    let events = streamed(&edge, "text/event-stream", "broken").await.text().await.unwrap();
    let last = events.split_terminator("\n\n").last().unwrap();
    let data = last.strip_prefix("event: error\ndata: ").unwrap();
    assert_error(503, &serde_json::from_str(data).unwrap(), 503, "UNAVAILABLE", "SANDBOX_GONE");
}

#[tokio::test]
async fn caller_that_hangs_up_drops_the_stream() {
    let edge = Edge::start().await;
    let mut pieces = streamed(&edge, "text/event-stream", "endless").await.bytes_stream();
    for _ in 0..3 {
        pieces.next().await.unwrap().unwrap();
    }
    drop(pieces);
    edge.seen.assert_dropped().await;
}

#[tokio::test]
async fn stream_ends_at_its_deadline_with_an_error() {
    let edge = Edge::start_with(|options| options.max_timeout = Duration::from_millis(300)).await;
    let lines = streamed(&edge, "application/x-ndjson", "endless").await.text().await.unwrap();
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_error(504, &last, 504, "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED");
    edge.seen.assert_dropped().await;
}

#[tokio::test]
async fn output_is_read_at_once_or_streamed_by_accept() {
    let edge = Edge::start().await;
    let path = "/api/v1/executions/ex1/output?sandbox_id=s";
    let read: Value = serde_json::from_str(&edge.get(path).await.text().await.unwrap()).unwrap();
    assert_eq!((&read["text"], &read["next_offset"]), (&json!("a"), &json!(1)));
    let streamed = edge.call(Method::GET, &format!("{path}&stdout_offset=5")).header("accept", "application/x-ndjson");
    let lines = streamed.send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[1], json!({"stdout": {"offset": 5, "text": "ä\n"}}));
    assert_eq!(lines.len(), 5);
}

#[tokio::test]
async fn event_stream_is_taken_up_after_the_last_event_seen() {
    let edge = Edge::start().await;
    let path = "/api/v1/executions/ex1/output?sandbox_id=s&stdout_offset=5&stderr_offset=2";
    let attached = || edge.call(Method::GET, path).header("accept", "text/event-stream");
    let ids = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| line.strip_prefix("id: ")).map(str::to_owned).collect()
    };
    let text = attached().send().await.unwrap().text().await.unwrap();
    assert_eq!(ids(&text), ["5-2", "8-2", "8-3", "108-3", "108-3"], "{text}");
    assert!(text.contains("id: 8-2\ndata: {\"stdout\""), "{text}");

    let text = attached().header("last-event-id", "8-3").send().await.unwrap().text().await.unwrap();
    assert_eq!(ids(&text)[0], "8-3");
    let request = edge.seen.request();
    assert!(request.contains("stdout_offset: 8") && request.contains("stderr_offset: 3"), "{request}");

    let answer = attached().header("last-event-id", "nonsense").send().await.unwrap();
    let status = answer.status().as_u16();
    assert_error(status, &answer.json().await.unwrap(), 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
}

#[tokio::test]
async fn line_of_output_gets_through_at_once() {
    let edge = Edge::start().await;
    let mut pieces = streamed(&edge, "text/event-stream", "endless").await.bytes_stream();
    let mut text = String::new();
    while !text.contains("tick") {
        text.push_str(std::str::from_utf8(&pieces.next().await.unwrap().unwrap()).unwrap());
    }
    // the stream never ends: a buffer would have held back the first line until many more had come
    assert!(text.len() < 2000, "{text}");
}

#[tokio::test]
async fn watch_streams_its_events() {
    let edge = Edge::start().await;
    for (accept, first) in [("text/event-stream", "data: {"), ("*/*", "{")] {
        let call = edge.call(Method::GET, "/api/v1/files/watch?sandbox_id=s&path=/a&recursive=true");
        let text = call.header("accept", accept).send().await.unwrap().text().await.unwrap();
        assert!(text.starts_with(first) && text.contains(r#""type":"started""#), "{text}");
    }
    assert!(edge.seen.request().contains("recursive: true"));
}
