//! The network, in mode `open`: an interface whose packets the node carries to every public place, and what is no public place.

use serde_json::json;

use crate::{
    attempt::{Need, attempts},
    host::{Bait, addresses},
    inside::{Tries, program},
    target::Target,
};

attempts![
    #[needs(Need::Interface)]
    connects_to_the_metadata_of_clouds,
    #[needs(Need::Interface)]
    connects_to_the_hosts_own_addresses,
    #[needs(Need::Interface)]
    connects_to_the_node_by_its_gateway,
    #[needs(Need::Interface)]
    connects_to_private_addresses,
    #[needs(Need::Interface)]
    changes_its_interface_and_its_routes,
    #[needs(Need::Interface)]
    floods_the_node_with_datagrams,
    #[needs(Need::Interface)]
    opens_connections_without_end,
];

const DIAL: &str = "
def dial(host, port):
    s = socket.create_connection((host, port), 10)
    s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
    return s.recv(65536) or failed(errno.ECONNRESET, host)
";

/// What an attack in a sandbox with an interface prints. That there is one is seen first.
fn connected(target: &Target, attack: &str) -> Tries {
    let walled = target.walled();
    let id = walled.acquire(json!({"network": {"mode": "open"}}));
    let interfaces = walled.wait(walled.api.shell(&id, "cat /proc/net/dev"));
    assert!(interfaces.contains("eth0"), "{interfaces}");
    let printed = walled.wait(walled.api.python(&id, &program(&format!("{DIAL}{attack}"))));
    target.told_nothing(&printed);
    walled.release(&id);
    Tries::of(printed)
}

fn connects_to_the_metadata_of_clouds(target: &Target) {
    let attack = "for host in ('169.254.169.254', '169.254.170.2', '100.100.100.200', '168.63.129.16', '192.0.0.192', '::ffff:169.254.169.254'):\n    \
                  attempt(host, dial, host, 80)";
    connected(target, attack).all_refused();
}

fn connects_to_the_hosts_own_addresses(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    let mut hosts = addresses();
    hosts.retain(|host| !host.contains(':'));
    hosts.push("127.0.1.1".into());
    connected(target, &format!("for host in {hosts:?}: attempt(host, dial, host, {port})")).all_refused();
}

fn connects_to_the_node_by_its_gateway(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    let server = &target.walled().server;
    let api = server.url.rsplit(':').next().unwrap();
    let attack = format!(
        "for port in ({port}, {api}, 22, 80, 443, 9093):\n    \
         for host in ('100.127.255.1', '100.127.255.3', '100.127.255.0'): attempt(f'{{host}}:{{port}}', dial, host, port)"
    );
    connected(target, &attack).all_refused();
}

fn connects_to_private_addresses(target: &Target) {
    let attack = "for host in ('10.0.0.1', '172.16.0.1', '172.31.255.254', '192.168.1.1', '100.64.0.1', '224.0.0.1', '255.255.255.255', '0.0.0.1', '240.0.0.1'):\n    \
                  attempt(host, dial, host, 80)";
    connected(target, attack).all_refused();
}

fn changes_its_interface_and_its_routes(target: &Target) {
    let attack = "import fcntl, struct\n\
                  s = socket.socket()\n\
                  name = b'eth0'.ljust(16, b'\\0')\n\
                  here = struct.pack('HH4s8x', socket.AF_INET, 0, socket.inet_aton('10.0.0.2'))\n\
                  for what, number in {'address': 0x8916, 'netmask': 0x891c, 'destination': 0x8918}.items():\n    \
                  attempt(what, fcntl.ioctl, s, number, name + here)\n\
                  attempt('down', fcntl.ioctl, s, 0x8914, name + struct.pack('H22x', 0))\n\
                  attempt('mtu', fcntl.ioctl, s, 0x8922, name + struct.pack('i20x', 65535))\n\
                  attempt('another', lambda: opened('/dev/net/tun', os.O_RDWR))\n\
                  attempt('packets', socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 3)\n\
                  attempt('raw', socket.socket, socket.AF_INET, socket.SOCK_RAW, 255)";
    connected(target, attack).all_refused();
}

fn floods_the_node_with_datagrams(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let attack = "import time\nend = time.monotonic() + 1\n\
                  s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nport = 1\n\
                  while time.monotonic() < end:\n    \
                  port = port % 65535 + 1\n    \
                  try: s.sendto(b'x' * 1400, ('10.0.0.1', port)); s.sendto(b'x', ('100.127.255.1', 53))\n    \
                  except OSError: pass\n\
                  attempt('the metadata after it', dial, '169.254.169.254', 80)";
    neighbour.answers_during(|| connected(target, attack).all_refused());
}

fn opens_connections_without_end(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let attack = "held = []\n\
                  for number in range(1000):\n    \
                  s = socket.socket(); s.setblocking(False); held.append(s)\n    \
                  s.connect_ex((f'10.{number % 250}.0.1', 80))\n\
                  attempt('the metadata after it', dial, '169.254.169.254', 80)";
    neighbour.answers_during(|| connected(target, attack).all_refused());
}
