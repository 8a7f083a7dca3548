//! What takes too long. The clock of a test stands still from the moment when all that is left is to wait, and then goes at
//! once to whatever is waited for.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, pause},
};

use crate::world::*;

/// Reads to the end, however that comes; what was read, and how long it took.
async fn read_out(stream: &mut TcpStream) -> (String, Duration) {
    pause();
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    (String::from_utf8_lossy(&rest).into_owned(), began.elapsed())
}

#[tokio::test]
async fn idle_tunnel_is_cut_after_a_while() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let (head, mut stream) = world.tunnel("a.example:443").await;
    assert_eq!(status(&head), 200);
    let (_, waited) = read_out(&mut stream).await;
    assert!(waited >= Duration::from_secs(290), "{waited:?}");
    world.end().await;
}

#[tokio::test]
async fn head_that_is_never_complete_ends_its_connection() {
    let world = World::with_host(&["a.example"], &[]).await;
    let mut stream = world.connect().await;
    stream.write_all(b"GET http://a.example/ HTTP/1.1\r\nHost: a.exam").await.unwrap();
    let (answer, waited) = read_out(&mut stream).await;
    assert!(answer.is_empty() || status(&answer) == 408, "{answer}");
    assert!(waited >= Duration::from_secs(50), "{waited:?}");
    world.end().await;
}

#[tokio::test]
async fn name_and_address_that_never_answer_are_a_timeout() {
    let world = World::new(&["*"], &[]).await;
    world.hosts.name("silent.example", &[&[SILENT]]);
    let asked = || world.hosts.resolved().len() + world.hosts.connected().len();
    for (host, steps) in [(UNRESOLVED, 1), ("silent.example", 3)] {
        let mut stream = world.connect().await;
        let request = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        until(|| asked() == steps).await;
        let (answer, _) = read_out(&mut stream).await;
        assert!(status(&answer) == 504 && answer.contains("reason=timed_out"), "{answer}");
        tokio::time::resume();
    }
    world.end().await;
}

#[tokio::test]
async fn lookups_of_one_sandbox_that_hang_are_few() {
    let world = World::new(&["*"], &[]).await;
    let mut waiting = Vec::new();
    for _ in 0..20 {
        let mut stream = world.connect().await;
        let request = format!("CONNECT {UNRESOLVED}:443 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        waiting.push(stream);
    }
    until(|| world.hosts.resolved().len() == 8).await;
    pause();
    for stream in &mut waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(status(&answer), 504);
    }
    // each of them has a thread until its resolver gives up, whoever waits
    assert_eq!(world.hosts.resolved().len(), 8);
    world.end().await;
}
