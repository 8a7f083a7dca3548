//! CONNECT.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::world::*;

#[tokio::test]
async fn tunnel_carries_bytes_as_they_are_and_counts_each() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let (head, stream) = world.tunnel("a.example:443").await;
    assert_eq!(status(&head), 200);
    let data: Vec<u8> = (0..1_000_003u32).map(|index| (index % 251) as u8).collect();
    let (mut from, mut to) = stream.into_split();
    let sending = tokio::spawn({
        let data = data.clone();
        async move {
            to.write_all(&data).await.unwrap();
            // the end of one direction is carried, too: the host ends only then
            to.shutdown().await.unwrap();
        }
    });
    let mut echoed = Vec::new();
    soon(from.read_to_end(&mut echoed)).await.unwrap();
    soon(sending).await.unwrap();
    assert!(echoed == data);
    let traffic = world.traffic();
    assert_eq!((traffic.allowed, traffic.sent, traffic.received), (1, 1_000_003, 1_000_003));
    world.end().await;
}

#[tokio::test]
async fn tunnel_goes_on_in_one_direction_when_the_other_has_ended() {
    let world = World::new(&["a.example"], &[]).await;
    world.hosts.name("a.example", &[&["203.0.113.1"]]);
    // ends its own direction first, and says at last what it has read since
    let (told, heard) = tokio::sync::oneshot::channel();
    let told = std::sync::Arc::new(std::sync::Mutex::new(Some(told)));
    let closing = host(move |mut stream| {
        let told = told.lock().unwrap().take();
        async move {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = String::new();
            stream.read_to_string(&mut rest).await.unwrap();
            told.unwrap().send(rest).unwrap();
        }
    });
    world.hosts.place("203.0.113.1", closing.await);
    let (head, mut stream) = world.tunnel("a.example:443").await;
    assert_eq!(status(&head), 200);
    let mut said = String::new();
    soon(stream.read_to_string(&mut said)).await.unwrap();
    assert_eq!(said, "bye");
    stream.write_all(b"still here").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(soon(heard).await.unwrap(), "still here");
    world.end().await;
}

#[tokio::test]
async fn what_is_sent_with_the_request_for_a_tunnel_goes_through_it() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let mut stream = world.connect().await;
    stream.write_all(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nearly").await.unwrap();
    assert_eq!(status(&read_head(&mut stream).await), 200);
    let mut echoed = [0; 5];
    soon(stream.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"early");
    world.end().await;
}

#[tokio::test]
async fn tunnel_follows_a_refused_request_on_the_same_connection() {
    let world = World::with_echo(&["a.example"], &[]).await;
    let mut stream = world.connect().await;
    stream.write_all(b"GET http://b.example/ HTTP/1.1\r\nHost: b.example\r\n\r\n").await.unwrap();
    let head = read_head(&mut stream).await;
    assert_eq!(status(&head), 403);
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap();
    soon(stream.read_exact(&mut vec![0; length])).await.unwrap();
    stream.write_all(b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nping").await.unwrap();
    assert_eq!(status(&read_head(&mut stream).await), 200);
    let mut echoed = [0; 4];
    soon(stream.read_exact(&mut echoed)).await.unwrap();
    assert_eq!(&echoed, b"ping");
    world.end().await;
}
