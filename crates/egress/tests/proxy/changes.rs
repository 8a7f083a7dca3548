//! What ends connections that were allowed.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::world::*;

async fn opened(world: &World, target: &str) -> TcpStream {
    let (head, mut stream) = world.tunnel(target).await;
    assert_eq!(status(&head), 200);
    assert!(echoes(&mut stream).await);
    stream
}

/// Whether a tunnel to an echo still carries.
async fn echoes(stream: &mut TcpStream) -> bool {
    let mut echoed = [0; 4];
    stream.write_all(b"ping").await.is_ok() && soon(stream.read_exact(&mut echoed)).await.is_ok()
}

/// Waits for the end of a stream on which nothing comes any more.
async fn ended(stream: &mut TcpStream) {
    assert!(matches!(soon(stream.read(&mut [0; 16])).await, Ok(0) | Err(_)));
}

#[tokio::test]
async fn changed_policy_cuts_what_it_does_not_allow_and_nothing_else() {
    let world = World::with_echo(&["a.example", "b.example"], &[]).await;
    world.hosts.name("b.example", &[&["203.0.113.2"]]);
    world.hosts.place("203.0.113.2", echo_host().await);
    let mut cut = opened(&world, "a.example:443").await;
    let mut kept = opened(&world, "b.example:443").await;
    world.set_policy(&["b.example", "*.c.example"], &[]);
    ended(&mut cut).await;
    assert!(echoes(&mut kept).await);
    let (head, _) = world.tunnel("a.example:443").await;
    assert_eq!(status(&head), 403);
    world.set_policy(&["*"], &["203.0.113.2"]);
    ended(&mut kept).await;
    // and what it allows anew can be reached
    opened(&world, "a.example:443").await;
    world.end().await;
}

#[tokio::test]
async fn changed_policy_cuts_an_answer_that_is_being_carried() {
    let world = World::new(&["a.example"], &[]).await;
    world.hosts.name("a.example", &[&["203.0.113.1"]]);
    let endless = host(|mut stream| async move {
        read_head(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
        let _ = stream.read(&mut [0; 16]).await;
    });
    world.hosts.place("203.0.113.1", endless.await);
    let mut stream = world.connect().await;
    stream.write_all(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_head(&mut stream).await), 200);
    world.set_policy(&["b.example"], &[]);
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    // an answer that was cut does not look like one that is complete
    assert!(!String::from_utf8_lossy(&rest).contains("0\r\n\r\n"));
    world.end().await;
}

#[tokio::test]
async fn end_of_the_sandbox_cuts_everything_and_leaves_nothing() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let mut tunnel = opened(&world, "a.example:443").await;
    let mut idle = world.connect().await;
    let mut half = world.connect().await;
    half.write_all(b"GET http://a.example/ HT").await.unwrap();
    let mut waiting = world.connect().await;
    // the echo never answers in HTTP
    waiting
        .write_all(b"POST http://a.example/ HTTP/1.1\r\nHost: a.example\r\nContent-Length: 5\r\n\r\n")
        .await
        .unwrap();
    until(|| world.traffic().allowed == 2).await;
    let proxy = world.proxy;
    // returns when no task is left
    world.end().await;
    for stream in [&mut tunnel, &mut idle, &mut half, &mut waiting] {
        let mut rest = Vec::new();
        let _ = soon(stream.read_to_end(&mut rest)).await;
    }
    assert!(TcpStream::connect(proxy).await.is_err());
}

#[tokio::test]
async fn what_is_carried_is_cut_when_nobody_serves_any_more() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let mut tunnel = opened(&world, "a.example:443").await;
    world.abort().await;
    ended(&mut tunnel).await;
}

#[tokio::test]
async fn request_that_nobody_waits_for_any_more_ends_its_connection() {
    let (ended, end) = tokio::sync::oneshot::channel();
    let ended = std::sync::Arc::new(std::sync::Mutex::new(Some(ended)));
    let world = World::new(&["a.example"], &[]).await;
    world.hosts.name("a.example", &[&["203.0.113.1"]]);
    let silent = host(move |mut stream| {
        let ended = ended.lock().unwrap().take();
        async move {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all).await;
            ended.unwrap().send(()).unwrap();
        }
    });
    world.hosts.place("203.0.113.1", silent.await);
    let mut stream = world.connect().await;
    stream.write_all(b"GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    until(|| world.traffic().sent > 0).await;
    drop(stream);
    soon(end).await.unwrap();
    world.end().await;
}
