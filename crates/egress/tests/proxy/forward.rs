//! Requests with absolute addresses.

use tokio::io::AsyncWriteExt as _;

use crate::world::*;

/// What the host was sent.
fn sent(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[tokio::test]
async fn request_is_carried_to_its_host_as_the_host_expects_it() {
    let world = World::with_host(&["a.example:*"], &[]).await;
    let request = "POST http://a.example:8080/path?q=1 HTTP/1.1\r\nHost: other.example\r\nProxy-Authorization: Basic eDp5\r\n\
                   Proxy-Connection: keep-alive\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nUpgrade: websocket\r\nX-Mine: 1\r\n\
                   Content-Length: 5\r\n\r\nhello";
    let answer = world.exchange(request).await;
    assert_eq!(status(&answer), 200);
    let sent = sent(&answer);
    assert!(sent.starts_with("POST /path?q=1 HTTP/1.1\r\n") && sent.ends_with("\r\n\r\nhello"), "{sent}");
    assert!(sent.contains("host: a.example:8080\r\n") && sent.contains("x-mine: 1\r\n"), "{sent}");
    for gone in ["other.example", "proxy-", "x-hop", "upgrade"] {
        assert!(!sent.contains(gone), "{gone}: {sent}");
    }
    // and the answer's own hop
    let head = answer.split_once("\r\n\r\n").unwrap().0;
    assert!(head.contains("x-kept: 1") && !head.contains("x-private"), "{head}");
    // what the proxy says of its own answers no host says
    assert!(!head.contains("x-sandbox-network"), "{head}");
    world.end().await;
}

#[tokio::test]
async fn each_request_of_a_kept_connection_is_decided_by_its_own_target() {
    let world = World::with_host(&["a.example", "b.example"], &[]).await;
    world.hosts.name("b.example", &[&["203.0.113.2"]]);
    world.hosts.place("203.0.113.2", http_host().await);
    let requests = "GET http://a.example/1 HTTP/1.1\r\nHost: a.example\r\n\r\n\
                    GET http://c.example/2 HTTP/1.1\r\nHost: a.example\r\n\r\n\
                    GET http://b.example/3 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    let answers = world.exchange(requests).await;
    let statuses: Vec<u16> =
        answers.split("HTTP/1.1 ").filter_map(|part| part.split(' ').next()?.parse().ok()).collect();
    // the host's answers hold the requests, whose lines have no status
    assert_eq!(statuses, [200, 403, 200], "{answers}");
    assert_eq!(world.hosts.connected(), ["203.0.113.1:80", "203.0.113.2:80"]);
    world.end().await;
}

#[tokio::test]
async fn bodies_stream_in_both_directions_and_are_counted() {
    let world = World::with_host(&["a.example"], &[]).await;
    let body = "Z".repeat(300_000);
    let head =
        "PUT http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n";
    let request = format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let answer = world.exchange(&request).await;
    assert_eq!(status(&answer), 200);
    let sent = sent(&answer);
    assert_eq!(sent.matches('Z').count(), body.len());
    // what the host was sent is all that was sent
    assert_eq!(world.traffic().sent, sent.len() as u64);
    // and its answer is its head and that again
    assert!((1..200).contains(&(world.traffic().received - sent.len() as u64)));
    world.end().await;
}

#[tokio::test]
async fn answer_to_head_and_answer_without_a_body_end() {
    let world = World::new(&["a.example"], &[]).await;
    world.hosts.name("a.example", &[&["203.0.113.1"]]);
    let answering = host(|mut stream| async move {
        let head = read_head(&mut stream).await;
        let answer = if head.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        } else {
            "HTTP/1.1 204 No Content\r\n\r\n"
        };
        let _ = stream.write_all(answer.as_bytes()).await;
    });
    world.hosts.place("203.0.113.1", answering.await);
    let request =
        |method| format!("{method} http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    let answer = world.exchange(&request("HEAD")).await;
    assert!(
        status(&answer) == 200 && answer.contains("content-length: 1000") && answer.ends_with("\r\n\r\n"),
        "{answer}"
    );
    assert_eq!(status(&world.exchange(&request("DELETE")).await), 204);
    world.end().await;
}

#[tokio::test]
async fn host_that_breaks_off_or_speaks_something_else_is_a_bad_gateway() {
    for speech in
        ["", "SSH-2.0-OpenSSH\r\n", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"]
    {
        let world = World::new(&["a.example"], &[]).await;
        world.hosts.name("a.example", &[&["203.0.113.1"]]);
        let speaking = host(move |mut stream| async move {
            read_head(&mut stream).await;
            let _ = stream.write_all(speech.as_bytes()).await;
        });
        world.hosts.place("203.0.113.1", speaking.await);
        let answer = world.get("http://a.example/").await;
        assert!(status(&answer) == 502 && answer.contains("reason=broken"), "{speech}: {answer}");
        world.end().await;
    }
}

#[tokio::test]
async fn client_of_http_1_0_is_served() {
    let world = World::with_host(&["a.example"], &[]).await;
    let answer = world.exchange("GET http://a.example/ HTTP/1.0\r\n\r\n").await;
    assert!(status(&answer) == 200 && sent(&answer).starts_with("GET / HTTP/1.1\r\n"), "{answer}");
    world.end().await;
}
