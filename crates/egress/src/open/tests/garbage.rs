use cloud_sandbox_runtime::INTERFACE;
use proptest::{prelude::*, strategy::ValueTree as _, test_runner::TestRunner};

use super::{
    super::packet::{self, Packet},
    flows::syn,
    world::*,
};

fn any_packet() -> impl Strategy<Value = Vec<u8>> {
    let to = || {
        prop::sample::select(vec![
            "203.0.113.1:443",
            "203.0.113.1:1",
            "127.0.0.1:80",
            "100.127.255.1:53",
            "255.255.255.255:9",
        ])
    };
    let tcp = (any::<u16>(), to()).prop_map(|(from, to)| syn(from, to.parse().unwrap()));
    let udp = (any::<u16>(), to(), prop::collection::vec(any::<u8>(), 0..80)).prop_map(|(from, to, payload)| {
        packet::datagram(std::net::SocketAddrV4::new(INTERFACE.address, from), to.parse().unwrap(), &payload)
    });
    // right but for some bytes, with the head's sum made right again or not
    let bent = (
        prop_oneof![tcp, udp],
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        any::<bool>(),
    );
    let bent = bent.prop_map(|(mut packet, bends, summed)| {
        for (place, byte) in bends {
            let place = place.index(packet.len());
            packet[place] = byte;
        }
        if summed {
            let mut head = smoltcp::wire::Ipv4Packet::new_unchecked(&mut packet);
            if head.header_len() >= 20 && usize::from(head.header_len()) <= head.as_ref().len() {
                head.fill_checksum();
            }
        }
        packet
    });
    prop_oneof![prop::collection::vec(any::<u8>(), 1..1600), bent]
}

proptest! {
    #[test]
    fn reading_a_packet_never_panics_and_finds_its_own_addresses_alone(bytes in any_packet()) {
        if let Some(Packet::Tcp { key, .. } | Packet::Udp { key, .. }) = packet::read(&bytes, INTERFACE.address) {
            prop_assert_eq!(&bytes[12..16], &INTERFACE.address.octets());
            prop_assert_eq!(&bytes[16..20], &key.to.ip().octets());
            prop_assert!(key.from != 0 && key.to.port() != 0);
        }
    }
}

#[test]
fn datagram_is_read_as_it_was_written() {
    let from = std::net::SocketAddrV4::new(INTERFACE.address, 5000);
    let bytes = packet::datagram(from, "203.0.113.1:53".parse().unwrap(), b"query");
    let Some(Packet::Udp { key, payload }) = packet::read(&bytes, INTERFACE.address) else { panic!("not read") };
    assert_eq!((key.from, key.to.to_string().as_str(), payload), (5000, "203.0.113.1:53", &b"query"[..]));
    // an address that is not the interface's, a fragment, a sum that is wrong
    assert_eq!(packet::read(&bytes, INTERFACE.gateway), None);
    for (place, byte) in [(6, 0x20), (7, 1), (10, 0xff), (27, 0xff), (30, b'Q')] {
        let mut bent = bytes.clone();
        bent[place] ^= byte;
        assert_eq!(packet::read(&bent, INTERFACE.address), None, "{place}");
    }
}

#[tokio::test]
async fn garbage_neither_stops_the_network_nor_reaches_anything() {
    let world = World::new(&[], &[]);
    let mut runner = TestRunner::deterministic();
    for _ in 0..5000 {
        let packet = any_packet().new_tree(&mut runner).unwrap().current();
        soon(world.raw.send(packet)).await.unwrap();
    }
    world.echo_at("203.0.113.1").await;
    // places that garbage has taken are free again when its connections have failed
    let mut stream = soon(async {
        loop {
            if let Some(stream) = world.connect("203.0.113.1:443").await {
                break stream;
            }
        }
    })
    .await;
    assert!(world.echoes(&mut stream).await);
    let own = ["127.", "10.", "192.168.", "169.254.", "100.127.", "255.", "0."];
    assert!(world.reached().iter().all(|to| !own.iter().any(|own| to.starts_with(own))), "{:?}", world.reached());
    world.end().await;
}
