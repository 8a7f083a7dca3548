//! Requests that are meant to be misunderstood.

use crate::world::*;

#[tokio::test]
async fn request_that_could_be_understood_in_two_ways_is_refused() {
    let world = World::with_host(&["*:*"], &[]).await;
    for request in [
        // two hosts
        "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        // lengths that differ, or are none
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 4\r\n\r\nabcd",
        // codings
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
        "POST http://a.example/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST http://a.example/ HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        // names of headers
        "GET http://a.example/ HTTP/1.1\r\nHost : a.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHost: a\r\n folded.example\r\n\r\n",
        "GET http://a.example/ HTTP/1.1\r\nHo\0st: a\r\n\r\n",
        // users
        "GET http://a.example@b.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a.example:443@b.example:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        // lines within lines
        "CONNECT a.example\r\n.b.example:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a.example\r/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a.exam ple/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a.example%0d%0a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
        // targets
        "CONNECT a.example HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT http://a.example:443/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT /etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a.example:99999 HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a.example:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nabcd",
        "GET / HTTP/1.1\r\nHost: a.example\r\n\r\n",
        "GET https://a.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET file:///etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        // other protocols
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\x03\x03\r\n\r\n",
        "\x05\x01\0\r\n\r\n",
        "EHLO a\r\n\r\n",
    ] {
        // whoever does not close by himself has nothing more to say
        let request_and_end =
            format!("{request}GET http://a.example/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = world.exchange(&request_and_end).await;
        // the answer is to what was sent, not to what it hides; HTTP/2 gets none
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{request:?}: {answer}");
        assert!(!answer.is_empty() || request.starts_with("PRI"), "{request:?}");
    }
    world.end().await;
}

#[tokio::test]
async fn length_beside_a_coding_is_not_passed_on() {
    for headers in
        ["Content-Length: 4\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\r\nContent-Length: 4"]
    {
        let world = World::with_host(&["a.example"], &[]).await;
        // by its length the body would end within the first chunk, and the rest be a request of its own
        let smuggled = "GET http://a.example/hidden HTTP/1.1\r\n\r\n";
        let body = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
        let request =
            format!("POST http://a.example/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n\r\n{body}");
        let answer = world.exchange(&request).await;
        assert_eq!(status(&answer), 200);
        let sent = answer.split_once("\r\n\r\n").unwrap().1;
        assert!(sent.contains("transfer-encoding: chunked") && !sent.contains("content-length"), "{sent}");
        assert_eq!(world.traffic().allowed, 1);
        world.end().await;
    }
}

#[tokio::test]
async fn host_header_never_says_another_host_than_the_one_that_was_decided() {
    let world = World::with_host(&["a.example"], &[]).await;
    let answer = world
        .exchange("GET http://a.example/ HTTP/1.1\r\nHost: metadata.google.internal\r\nX-Forwarded-Host: b\r\nConnection: close, host\r\n\r\n")
        .await;
    assert_eq!(status(&answer), 200);
    assert!(answer.contains("host: a.example\r\n") && !answer.contains("metadata"), "{answer}");
    world.end().await;
}
