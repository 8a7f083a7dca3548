use std::net::SocketAddrV4;

use cloud_sandbox_model::NetworkMode;
use cloud_sandbox_runtime::INTERFACE;
use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber},
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};

use super::world::*;
use crate::FLOWS_MAX;

/// The packet that asks for a connection.
pub fn syn(from: u16, to: SocketAddrV4) -> Vec<u8> {
    let sums = ChecksumCapabilities::default();
    let tcp = TcpRepr {
        src_port: from,
        dst_port: to.port(),
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(7),
        ack_number: None,
        window_len: 65_535,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None, None, None],
        timestamp: None,
        payload: &[],
    };
    let ip = Ipv4Repr {
        src_addr: INTERFACE.address,
        dst_addr: *to.ip(),
        next_header: IpProtocol::Tcp,
        payload_len: tcp.buffer_len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len() + ip.payload_len];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &sums);
    let (own, other) = (IpAddress::Ipv4(INTERFACE.address), IpAddress::Ipv4(*to.ip()));
    tcp.emit(&mut TcpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]), &own, &other, &sums);
    bytes
}

#[tokio::test]
async fn connection_carries_bytes_as_they_are_and_counts_each() {
    let world = World::new(&[], &[]);
    world.echo_at("203.0.113.1").await;
    let stream = world.connect("203.0.113.1:443").await.unwrap();
    let data: Vec<u8> = (0..1_000_003u32).map(|index| (index % 251) as u8).collect();
    let (mut from, mut to) = split(stream);
    let sending = tokio::spawn({
        let data = data.clone();
        async move {
            to.write_all(&data).await.unwrap();
            // the end of one direction is carried, too: the host ends only then
            to.shutdown().await.unwrap();
            to
        }
    });
    let mut echoed = Vec::new();
    soon(from.read_to_end(&mut echoed)).await.unwrap();
    soon(sending).await.unwrap();
    assert!(echoed == data);
    let traffic = world.traffic();
    assert_eq!((traffic.allowed, traffic.denied, traffic.sent, traffic.received), (1, 0, 1_000_003, 1_000_003));
    world.end().await;
}

#[tokio::test]
async fn what_is_refused_is_reset_and_reaches_nothing() {
    let world = World::new(&["10.1.0.0/16:5432"], &["198.51.100.0/24", "*:25"]);
    let refused = [
        "10.0.0.1:443",
        "10.1.0.1:443",
        "192.168.1.1:80",
        "127.0.0.1:80",
        "127.0.0.53:53",
        "169.254.169.254:80",
        "100.100.100.200:80",
        "203.0.113.200:22",
        "198.51.100.7:443",
        "203.0.113.1:25",
        "0.0.0.1:80",
        // the gateway, but for its resolver, of which there is none
        "100.127.255.1:80",
        "100.127.255.1:53",
    ];
    for to in refused {
        assert!(world.connect(to).await.is_none(), "{to}");
    }
    assert_eq!(world.traffic().denied, refused.len() as u64);
    // addresses that the sandbox's own kernel would not talk to
    let odd =
        ["100.127.255.2:80", "100.127.255.3:80", "224.0.0.1:80", "240.0.0.1:80", "255.255.255.255:80", "0.0.0.0:80"];
    for (to, from) in odd.iter().zip(50_000..) {
        world.raw.send(syn(from, to.parse().unwrap())).await.unwrap();
    }
    until(|| world.traffic().denied == (refused.len() + odd.len()) as u64).await;
    assert!(world.reached().is_empty());
    // and a private address that is allowed is reached
    world.echo_at("10.1.0.1").await;
    let mut stream = world.connect("10.1.0.1:5432").await.unwrap();
    assert!(world.echoes(&mut stream).await);
    assert_eq!(world.reached(), ["10.1.0.1:5432"]);
    world.end().await;
}

#[tokio::test]
async fn host_that_cannot_be_reached_is_a_reset_that_is_not_called_refused() {
    let world = World::new(&[], &[]);
    assert!(world.connect("203.0.113.9:443").await.is_none());
    assert_eq!(world.reached(), ["203.0.113.9:443"]);
    assert_eq!((world.traffic().allowed, world.traffic().denied), (0, 0));
    world.end().await;
}

#[tokio::test]
async fn datagrams_are_exchanged_with_what_is_allowed_alone() {
    let world = World::new(&[], &["198.51.100.0/24"]);
    world.echo_at("203.0.113.1").await;
    for to in [
        "198.51.100.1:123",
        "169.254.169.254:53",
        "127.0.0.1:53",
        "10.0.0.1:53",
        "100.127.255.1:123",
        "255.255.255.255:67",
    ] {
        world.send(5000, to, b"hello").await;
    }
    world.send(5001, "203.0.113.1:123", b"one").await;
    world.send(5001, "203.0.113.1:123", b"two").await;
    world.send(5002, "203.0.113.1:123", &[7; 1472]).await;
    until(|| world.received("203.0.113.1:123").len() == 3).await;
    let mut received = world.received("203.0.113.1:123");
    received.sort();
    assert_eq!(received, [(5001, b"one".to_vec()), (5001, b"two".to_vec()), (5002, vec![7; 1472])]);
    let traffic = world.traffic();
    assert_eq!((traffic.allowed, traffic.denied, traffic.sent, traffic.received), (2, 6, 1478, 1478));
    assert_eq!(world.reached(), ["203.0.113.1:123", "203.0.113.1:123"]);
    world.end().await;
}

#[tokio::test]
async fn gateway_resolves_what_the_host_resolves() {
    let world = World::with_resolver(&["*"]).await;
    world.send(5000, "100.127.255.1:53", b"query").await;
    until(|| world.received("100.127.255.1:53") == [(5000, b"query".to_vec())]).await;
    let mut stream = world.connect("100.127.255.1:53").await.unwrap();
    assert!(world.echoes(&mut stream).await);
    // the resolver's own address is out of reach all the same, and so is everything else of the gateway
    assert!(world.connect("127.0.0.1:53").await.is_none());
    assert!(world.connect("100.127.255.1:54").await.is_none());
    world.set_policy(policy(NetworkMode::None, &[], &[]));
    assert!(soon(stream.read(&mut [0; 16])).await.is_err());
    assert!(world.connect("100.127.255.1:53").await.is_none());
    world.end().await;
}

#[tokio::test]
async fn changed_policy_resets_what_it_does_not_allow_and_nothing_else() {
    let world = World::new(&[], &[]);
    world.echo_at("203.0.113.1").await;
    world.echo_at("203.0.113.2").await;
    let mut cut = world.connect("203.0.113.1:443").await.unwrap();
    let mut kept = world.connect("203.0.113.2:443").await.unwrap();
    assert!(world.echoes(&mut cut).await && world.echoes(&mut kept).await);
    world.set_policy(policy(NetworkMode::Open, &[], &["203.0.113.1"]));
    assert!(soon(cut.read(&mut [0; 16])).await.is_err());
    assert!(world.echoes(&mut kept).await);
    assert!(world.connect("203.0.113.1:443").await.is_none());
    // what the proxy may reach in another mode is not the interface's
    world.set_policy(policy(NetworkMode::Egress, &["*:*"], &[]));
    assert!(soon(kept.read(&mut [0; 16])).await.is_err());
    assert!(world.connect("203.0.113.2:443").await.is_none());
    world.end().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_reset() {
    let world = World::new(&[], &[]);
    let beyond = 44;
    for from in 1..=(FLOWS_MAX + beyond) as u16 {
        // it never answers
        world.raw.send(syn(from, "203.0.113.99:443".parse().unwrap())).await.unwrap();
    }
    until(|| world.resets() == beyond).await;
    // asking again is no other connection
    world.raw.send(syn(1, "203.0.113.99:443".parse().unwrap())).await.unwrap();
    world.echo_at("203.0.113.1").await;
    world.send(5000, "203.0.113.1:123", b"after").await;
    until(|| world.received("203.0.113.1:123").len() == 1).await;
    assert_eq!(world.resets(), beyond);
    // and all of them end with the sandbox
    world.end().await;
}

#[tokio::test]
async fn end_of_the_packets_ends_everything() {
    let world = World::new(&[], &[]);
    world.echo_at("203.0.113.1").await;
    let mut stream = world.connect("203.0.113.1:443").await.unwrap();
    assert!(world.echoes(&mut stream).await);
    world.send(5000, "203.0.113.1:123", b"x").await;
    until(|| world.received("203.0.113.1:123").len() == 1).await;
    world.end().await;
}

#[tokio::test]
async fn place_of_a_connection_that_is_over_is_free_again() {
    let world = World::new(&[], &[]);
    world.echo_at("203.0.113.1").await;
    for round in 0..FLOWS_MAX + 20 {
        let mut stream = world.connect("203.0.113.1:443").await.unwrap_or_else(|| panic!("round {round}"));
        stream.shutdown().await.unwrap();
        assert_eq!(soon(stream.read(&mut [0; 16])).await.unwrap(), 0);
        stream.finish();
    }
    world.end().await;
}
