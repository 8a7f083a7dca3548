//! What can never be reached, and what only by name of its address.
//!
//! Sources: the IANA registries of special-purpose addresses (RFC 6890 and what updates it), RFC 6052 (NAT64), RFC 7526 (the
//! end of 6to4), and the clouds' documentation for their metadata services. Ranges for documentation are public here: nothing
//! answers in them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Range;

const LOOPBACK: &str = "loopback";
const LINK_LOCAL: &str = "a link-local address";
const METADATA: &str = "a metadata service of a cloud";
const MULTICAST: &str = "multicast";
const RESERVED: &str = "a reserved range";
const EMBEDDING: &str = "IPv4 within IPv6";

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Range {
    Range::new(IpAddr::V4(Ipv4Addr::new(a, b, c, d)), prefix)
}

const fn v6(segments: [u16; 8], prefix: u8) -> Range {
    let [a, b, c, d, e, f, g, h] = segments;
    Range::new(IpAddr::V6(Ipv6Addr::new(a, b, c, d, e, f, g, h)), prefix)
}

/// What can never be reached; an address has the word of the first that contains it.
const NEVER: &[(Range, &str)] = &[
    // AWS, Azure, Google, and most others; ECS has 169.254.170.2
    (v4(169, 254, 169, 254, 32), METADATA),
    (v4(169, 254, 170, 2, 32), METADATA),
    // Alibaba
    (v4(100, 100, 100, 200, 32), METADATA),
    // Azure's agent of the host, on a public address
    (v4(168, 63, 129, 16, 32), METADATA),
    // Oracle, older machines
    (v4(192, 0, 0, 192, 32), METADATA),
    (v4(0, 0, 0, 0, 8), "this network"),
    (v4(127, 0, 0, 0, 8), LOOPBACK),
    (v4(169, 254, 0, 0, 16), LINK_LOCAL),
    (v4(192, 0, 0, 0, 24), RESERVED),
    // relays of 6to4
    (v4(192, 88, 99, 0, 24), RESERVED),
    // tests of devices
    (v4(198, 18, 0, 0, 15), RESERVED),
    (v4(224, 0, 0, 0, 4), MULTICAST),
    (v4(240, 0, 0, 0, 4), RESERVED),
    // AWS, Google, Scaleway, Oracle
    (v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254], 128), METADATA),
    (v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128), METADATA),
    (v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128), METADATA),
    (v6([0xfd00, 0xc1, 0, 0, 0, 0, 0xa9fe, 0xa9fe], 128), METADATA),
    (v6([0, 0, 0, 0, 0, 0, 0, 1], 128), LOOPBACK),
    (v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), LINK_LOCAL),
    (v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8), MULTICAST),
    // forms that hide an IPv4 address in a way that nobody needs: 6to4, and Teredo among the protocol assignments
    (v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), EMBEDDING),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32), EMBEDDING),
    (v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), RESERVED),
    // all that is neither global unicast (2000::/3) nor private (fc00::/7): unspecified, IPv4-compatible, local NAT64 and what
    // has no use yet
    (v6([0, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0x4000, 0, 0, 0, 0, 0, 0, 0], 2), RESERVED),
    (v6([0x8000, 0, 0, 0, 0, 0, 0, 0], 2), RESERVED),
    (v6([0xc000, 0, 0, 0, 0, 0, 0, 0], 3), RESERVED),
    (v6([0xe000, 0, 0, 0, 0, 0, 0, 0], 4), RESERVED),
    (v6([0xf000, 0, 0, 0, 0, 0, 0, 0], 5), RESERVED),
    (v6([0xf800, 0, 0, 0, 0, 0, 0, 0], 6), RESERVED),
    (v6([0xfe00, 0, 0, 0, 0, 0, 0, 0], 7), RESERVED),
];

const PRIVATE: &[(Range, &str)] = &[
    (v4(10, 0, 0, 0, 8), "10.0.0.0/8"),
    (v4(172, 16, 0, 0, 12), "172.16.0.0/12"),
    (v4(192, 168, 0, 0, 16), "192.168.0.0/16"),
    (v4(100, 64, 0, 0, 10), "100.64.0.0/10"),
    (v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), "fc00::/7"),
];

/// Forms of IPv6 that mean an IPv4 address in the last 32 bits.
const MAPPED: Range = v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96);
const NAT64: Range = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

/// Names that mean a metadata service or the host itself, wherever they resolve to. All below them count, too.
const NEVER_NAMES: &[(&str, &str)] = &[
    ("localhost", LOOPBACK),
    ("localhost.localdomain", LOOPBACK),
    ("localhost6", LOOPBACK),
    ("ip6-localhost", LOOPBACK),
    ("ip6-loopback", LOOPBACK),
    ("metadata", METADATA),
    ("metadata.google.internal", METADATA),
    ("metadata.goog", METADATA),
    ("metadata.azure.internal", METADATA),
    ("metadata.azure.com", METADATA),
    ("metadata.tencentyun.com", METADATA),
    ("metadata.packet.net", METADATA),
    ("metadata.platformequinix.com", METADATA),
    ("instance-data", METADATA),
    ("instance-data.ec2.internal", METADATA),
];

/// The address that is connected in the end: IPv4 where IPv6 only wraps it (mapped, or NAT64 with the well-known prefix).
#[must_use]
pub fn canonical(address: IpAddr) -> IpAddr {
    let IpAddr::V6(long) = address else { return address };
    if !MAPPED.contains(address) && !NAT64.contains(address) {
        return address;
    }
    let [.., a, b, c, d] = long.octets();
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

/// What an address is that can never be reached.
#[must_use]
pub fn never_reachable(address: IpAddr) -> Option<&'static str> {
    let address = canonical(address);
    NEVER.iter().find(|(range, _)| range.contains(address)).map(|(_, what)| *what)
}

/// What a name, in lower case and without the dot of the root, means that can never be reached.
#[must_use]
pub fn never_reachable_name(name: &str) -> Option<&'static str> {
    let is = |own: &str| name.strip_suffix(own).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    NEVER_NAMES.iter().find(|(own, _)| is(own)).map(|(_, what)| *what)
}

/// The private range of an address.
#[must_use]
pub fn private(address: IpAddr) -> Option<&'static str> {
    let address = canonical(address);
    PRIVATE.iter().find(|(range, _)| range.contains(address)).map(|(_, text)| *text)
}

/// Whether all of a range is private.
pub(super) fn all_private(range: Range) -> bool {
    PRIVATE.iter().any(|(own, _)| own.covers(&range))
}

/// What of a range can never be reached, and what it is. A single address that a private range has in its middle does not
/// count: such a range would have to be written as dozens of others, and the address is refused when it is connected.
pub(super) fn never_reachable_within(range: Range) -> Option<(Range, &'static str)> {
    let hole = |never: &Range| all_private(*never) && range.covers(never) && range != *never;
    let overlaps = |never: &Range| never.covers(&range) || (range.covers(never) && !hole(never));
    NEVER.iter().find(|(never, _)| overlaps(never)).copied()
}

/// The form of IPv6 that a range lies in, where that means IPv4.
pub(super) fn embedding(range: Range) -> Option<&'static str> {
    [(MAPPED, "IPv4-mapped IPv6"), (NAT64, "NAT64")]
        .into_iter()
        .find(|(form, _)| form.covers(&range))
        .map(|(_, text)| text)
}
