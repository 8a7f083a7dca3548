//! How much one sandbox may take.

use cloud_sandbox_egress::CONNECTIONS_MAX;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::*;

#[tokio::test]
async fn head_that_is_too_large_is_refused() {
    let world = World::with_host(&["a.example"], &[]).await;
    let head = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n";
    let fits = format!("{head}X-Large: {}\r\n\r\n", "x".repeat(16_000));
    assert_eq!(status(&world.exchange(&fits).await), 200);
    let large = format!("{head}X-Large: {}\r\n\r\n", "x".repeat(100_000));
    assert_eq!(status(&world.exchange(&large).await), 431);
    let many: String = (0..200).map(|number| format!("X-{number}: 1\r\n")).collect();
    assert_eq!(status(&world.exchange(&format!("{head}{many}\r\n")).await), 431);
    world.end().await;
}

#[tokio::test]
async fn connection_beyond_the_limit_is_told_so_until_another_ends() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let mut held = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let (head, stream) = world.tunnel("a.example:443").await;
        assert_eq!(status(&head), 200);
        held.push(stream);
    }
    let (head, mut stream) = world.tunnel("a.example:443").await;
    assert!(status(&head) == 503 && head.contains("reason=too_many_connections"), "{head}");
    let mut body = String::new();
    soon(stream.read_to_string(&mut body)).await.unwrap();
    assert_eq!(body, "this sandbox has 256 connections to its proxy already\n");
    assert_eq!(world.traffic().allowed, CONNECTIONS_MAX as u64);
    held.pop();
    // the end of that has to be noticed
    soon(async { while status(&world.tunnel("a.example:443").await.0) != 200 {} }).await;
    world.end().await;
}

#[tokio::test]
async fn who_does_not_read_holds_nobody_up() {
    let world = World::new(&["*"], &[]).await;
    world.hosts.name("flood.example", &[&["203.0.113.1"]]);
    world.hosts.name("echo.example", &[&["203.0.113.2"]]);
    let flooding = host(|mut stream| async move { while stream.write_all(&[7; 65_536]).await.is_ok() {} });
    world.hosts.place("203.0.113.1", flooding.await);
    world.hosts.place("203.0.113.2", echo_host().await);
    let mut deaf = Vec::new();
    for _ in 0..8 {
        deaf.push(world.tunnel("flood.example:443").await.1);
    }
    // all buffers on the way are full when nothing more comes
    let mut before = 0;
    soon(async {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let now = world.traffic().received;
            if now == before && now > 0 {
                break;
            }
            before = now;
        }
    })
    .await;
    let (_, mut stream) = world.tunnel("echo.example:443").await;
    stream.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    soon(stream.read_exact(&mut echoed)).await.unwrap();
    world.end().await;
}
