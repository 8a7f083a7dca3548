//! Packets: what is in those of a sandbox, and datagrams for it.

use std::net::{Ipv4Addr, SocketAddrV4};

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{IpAddress, IpProtocol, Ipv4Packet, Ipv4Repr, TcpPacket, UdpPacket, UdpRepr},
};

/// The largest datagram that fits into a packet of the interface, less both headers.
pub(super) const HEADERS: usize = 28;

/// Which connection, or exchange of datagrams, of the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FlowKey {
    /// the sandbox's own port
    pub(super) from: u16,
    /// the other end
    pub(super) to: SocketAddrV4,
}

/// A packet that can be carried.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Packet<'a> {
    Tcp {
        key: FlowKey,
        /// asks for a connection
        begins: bool,
    },
    Udp {
        key: FlowKey,
        payload: &'a [u8],
    },
}

/// Reads a packet that was sent from `own`. What is not whole, or not right, is nothing.
pub(super) fn read(bytes: &[u8], own: Ipv4Addr) -> Option<Packet<'_>> {
    let ip = Ipv4Packet::new_checked(bytes).ok()?;
    let whole = !ip.more_frags() && ip.frag_offset() == 0;
    if ip.version() != 4 || !ip.verify_checksum() || !whole || ip.src_addr() != own {
        return None;
    }
    // not the packet's own `payload()`, which does not borrow from the bytes
    let payload = bytes.get(usize::from(ip.header_len())..usize::from(ip.total_len()))?;
    let key = |from, to| (from != 0 && to != 0).then(|| FlowKey { from, to: SocketAddrV4::new(ip.dst_addr(), to) });
    match ip.next_header() {
        IpProtocol::Tcp => {
            let tcp = TcpPacket::new_checked(payload).ok()?;
            let key = key(tcp.src_port(), tcp.dst_port())?;
            Some(Packet::Tcp { key, begins: tcp.syn() && !tcp.ack() && !tcp.rst() && !tcp.fin() })
        }
        IpProtocol::Udp => {
            let udp = UdpPacket::new_checked(payload).ok()?;
            let key = key(udp.src_port(), udp.dst_port())?;
            let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
            let right = udp.verify_checksum(&from, &to);
            let payload = payload.get(8..usize::from(udp.len()))?;
            right.then_some(Packet::Udp { key, payload })
        }
        _ => None,
    }
}

/// A packet with a datagram.
pub(super) fn datagram(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let sums = ChecksumCapabilities::default();
    let udp = UdpRepr { src_port: from.port(), dst_port: to.port() };
    let ip = Ipv4Repr {
        src_addr: *from.ip(),
        dst_addr: *to.ip(),
        next_header: IpProtocol::Udp,
        payload_len: udp.header_len() + payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; ip.buffer_len() + ip.payload_len];
    ip.emit(&mut Ipv4Packet::new_unchecked(&mut bytes), &sums);
    udp.emit(
        &mut UdpPacket::new_unchecked(&mut bytes[ip.buffer_len()..]),
        &IpAddress::Ipv4(*from.ip()),
        &IpAddress::Ipv4(*to.ip()),
        payload.len(),
        |buffer| buffer.copy_from_slice(payload),
        &sums,
    );
    bytes
}
