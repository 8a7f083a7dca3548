//! The network, in mode `none`: nothing but a loopback of its own.

use crate::{
    attempt::attempts,
    harness::left_of,
    host::{Bait, addresses},
    target::Target,
};

attempts![
    #[proved]
    connects_to_a_port_of_the_hosts_loopback,
    #[proved]
    connects_to_the_hosts_own_addresses,
    connects_to_the_api_of_its_own_server,
    #[proved]
    connects_to_an_abstract_socket_of_the_host,
    #[proved]
    connects_to_a_socket_by_its_path,
    reaches_the_metadata_of_clouds,
    reaches_public_addresses,
    resolves_names,
    shouts_at_everybody,
    finds_another_interface,
    #[proved]
    opens_raw_sockets,
    #[proved]
    opens_packet_sockets,
    makes_interfaces_and_routes,
    sets_addresses_by_ioctl,
    listens_to_the_kernel,
    opens_rare_families,
    #[proved]
    changes_the_firewall,
    takes_privileged_ports,
];

fn connects_to_a_port_of_the_hosts_loopback(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    target.refused(&format!(
        "for host in ('127.0.0.1', 'localhost', '127.0.0.2', '127.1', '0.0.0.0', '0', '2130706433', '0x7f.1', '::ffff:127.0.0.1', '::1', '::'):\n    \
         attempt(host, lambda: socket.create_connection((host, {port}), 2).recv(64))"
    ));
}

fn connects_to_the_hosts_own_addresses(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    let mut hosts = addresses();
    // one that every host has, in case that this one has no other
    hosts.push("127.0.1.1".into());
    target.refused(&format!(
        "for host in {hosts:?}: attempt(host, lambda: socket.create_connection((host, {port}), 2).recv(64))"
    ));
}

fn connects_to_the_api_of_its_own_server(target: &Target) {
    let server = &target.walled().server;
    let port = |url: &str| url.rsplit(':').next().unwrap().to_owned();
    target.refused(&format!(
        "for port in ({}, {}): attempt(port, socket.create_connection, ('127.0.0.1', port), 2)",
        port(&server.url),
        port(&server.grpc_url)
    ));
}

fn connects_to_an_abstract_socket_of_the_host(target: &Target) {
    let Bait::Abstract(name) = target.host.abstract_bait() else { unreachable!() };
    target.refused(&format!(
        "def knock(kind):\n    s = socket.socket(socket.AF_UNIX, kind)\n    s.connect('\\0{name}')\n    return s.recv(64)\n\
         for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM): attempt(kind, knock, kind)"
    ));
}

fn connects_to_a_socket_by_its_path(target: &Target) {
    let Bait::Path(path) = target.host.path_bait() else { unreachable!() };
    let path = path.display();
    target.refused(&format!(
        "def knock(path):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect(path)\n    return s.recv(64)\n\
         for path in ('{path}', '/proc/1/root{path}', '/run/docker.sock', '/var/run/docker.sock', '/run/containerd/containerd.sock', '/run/dbus/system_bus_socket', '/run/systemd/private'):\n    attempt(path, knock, path)"
    ));
}

fn reaches_the_metadata_of_clouds(target: &Target) {
    target
        .tries(
            "for host in ('169.254.169.254', '169.254.170.2', '100.100.100.200', 'fd00:ec2::254', '::ffff:169.254.169.254', '0xa9fea9fe', '2852039166'):\n    \
             attempt(host, socket.create_connection, (host, 80), 3)",
        )
        .all_refused_with(&["ENETUNREACH"]);
}

fn reaches_public_addresses(target: &Target) {
    let tries = target.tries(
        "for host in ('1.1.1.1', '192.0.2.1', '10.0.0.1', '192.168.0.1', '172.17.0.1', '2606:4700::1111', 'fe80::1%lo'):\n    \
         attempt(host, socket.create_connection, (host, 443), 3)\n\
         def send(host):\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (host, 53))\n\
         for host in ('1.1.1.1', '8.8.8.8', '224.0.0.1'): attempt(f'UDP {host}', send, host)",
    );
    tries.all_refused_with(&["ENETUNREACH", "EADDRNOTAVAIL", "EINVAL", "EHOSTUNREACH"]);
}

fn resolves_names(target: &Target) {
    target.refused("for name in ('example.com', 'metadata.google.internal', 'host.docker.internal', '_gateway'): attempt(name, socket.getaddrinfo, name, 80)");
}

fn shouts_at_everybody(target: &Target) {
    target.refused(
        "def shout(host):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n    s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n    s.sendto(b'x', (host, 9))\n\
         for host in ('255.255.255.255', '239.1.2.3', '10.255.255.255'): attempt(host, shout, host)",
    );
}

fn finds_another_interface(target: &Target) {
    let printed = target.shell("ls /sys/class/net; tail -n +3 /proc/net/dev | cut -d: -f1; tail -n +2 /proc/net/route; cat /proc/net/arp | tail -n +2");
    let names: Vec<_> = printed.lines().filter(|line| !line.contains("No such file")).map(str::trim).collect();
    assert_eq!(names, ["lo"], "{printed}");
    assert_eq!(left_of("lo"), Vec::<String>::new());
}

fn opens_raw_sockets(target: &Target) {
    target.refused(
        "for family in (socket.AF_INET, socket.AF_INET6):\n    for protocol in (1, 6, 17, 58, 255): attempt(f'{family} {protocol}', socket.socket, family, socket.SOCK_RAW, protocol)",
    );
}

fn opens_packet_sockets(target: &Target) {
    target.refused(
        "for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM): attempt(kind, socket.socket, socket.AF_PACKET, kind, socket.htons(3))\n\
         attempt('the old kind', socket.socket, socket.AF_INET, 10, socket.htons(3))",
    );
}

fn makes_interfaces_and_routes(target: &Target) {
    target.refused(
        "import struct\ndef ask(kind, body):\n    \
         s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)\n    s.settimeout(5)\n    s.bind((0, 0))\n    \
         s.send(struct.pack('IHHII', 16 + len(body), kind, 0x605, 1, 0) + body)\n    answer = s.recv(65536)\n    error = -struct.unpack_from('i', answer, 16)[0]\n    \
         if error: failed(error, 'netlink')\n\
         name = struct.pack('HH8s', 12, 3, b'attack0')\ninfo = struct.pack('HHHH8s', 16, 18, 12, 1, b'dummy')\n\
         attempt('a link', ask, 16, struct.pack('BxHiII', 0, 0, 0, 0, 0) + name + info)\n\
         attempt('an address', ask, 20, struct.pack('BBBBI', 2, 8, 0, 0, 1) + struct.pack('HH4s', 8, 2, bytes([10, 9, 9, 9])) + struct.pack('HH4s', 8, 1, bytes([10, 9, 9, 9])))\n\
         attempt('a route', ask, 24, struct.pack('BBBBBBBBI', 2, 0, 0, 0, 254, 3, 253, 1, 0) + struct.pack('HHI', 8, 4, 1))",
    );
}

fn sets_addresses_by_ioctl(target: &Target) {
    target.refused(
        "import fcntl, struct\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         address = struct.pack('16sHxx4s8x', b'lo', socket.AF_INET, bytes([10, 9, 9, 9]))\n\
         for name, number in (('address', 0x8916), ('flags', 0x8914), ('mtu', 0x8922), ('name', 0x8923), ('bridge', 0x89a0)): attempt(name, fcntl.ioctl, s, number, address)",
    );
}

fn listens_to_the_kernel(target: &Target) {
    target.refused(
        "for name, number in (('audit', 9), ('crypto', 21), ('scsi', 18)): attempt(name, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, number).bind((0, 1)))",
    );
}

fn opens_rare_families(target: &Target) {
    target.refused(
        "for name, family, kind in (('vsock', 40, 1), ('alg', 38, 5), ('key', 15, 3), ('can', 29, 3), ('rds', 21, 5), ('tipc', 30, 1), ('xdp', 44, 3), ('bluetooth', 31, 3), ('x25', 9, 5), ('ax25', 3, 2), ('nfc', 39, 3), ('smc', 43, 1), ('qipcrtr', 42, 2), ('phonet', 35, 2)):\n    \
         attempt(name, lambda: socket.socket(family, kind, 0).close())",
    );
}

fn changes_the_firewall(target: &Target) {
    target.refused(
        "def tables(family):\n    s = socket.socket(family, socket.SOCK_RAW, 255)\n    return s\nattempt('iptables', tables, socket.AF_INET)\n\
         attempt('forwarding', opened, '/proc/sys/net/ipv4/ip_forward')\nattempt('redirects', opened, '/proc/sys/net/ipv4/conf/all/accept_redirects')",
    );
}

/// Below 1024, where others expect what the system runs; in a network of its own it would fool nobody but itself.
fn takes_privileged_ports(target: &Target) {
    target
        .tries("for port in (22, 80, 443): attempt(port, lambda: socket.create_server(('127.0.0.1', port)).close())")
        .printed();
    let listening = std::fs::read_to_string("/proc/net/tcp").unwrap();
    target.python("s = socket.create_server(('0.0.0.0', 47651))\nprint('own')");
    assert!(!listening.contains(":BA23 "), "a port of the sandbox is one of the host");
}
