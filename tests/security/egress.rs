//! The network, in mode `egress`: what a policy allows, through the node's proxy, and ways around it.

use std::time::Instant;

use serde_json::{Value, json};

use crate::{
    attempt::attempts,
    host::{Bait, addresses},
    inside::{GOT_THROUGH, Tries},
    target::{PROMPTLY, Target},
};

attempts![
    asks_for_the_metadata_of_clouds,
    writes_addresses_in_odd_notations,
    asks_for_the_hosts_own_addresses,
    asks_for_the_api_of_its_own_server,
    asks_for_private_addresses,
    connects_to_ports_that_are_not_allowed,
    names_hosts_that_are_not_on_the_list,
    names_a_host_that_is_denied,
    names_a_host_that_resolves_to_the_node,
    follows_a_redirect_to_the_metadata,
    smuggles_another_host_past_the_list,
    asks_for_another_host_on_a_kept_connection,
    goes_around_the_proxy,
    uses_a_proxy_without_a_network,
    takes_the_port_of_the_proxy_first,
    keeps_a_tunnel_beyond_its_policy,
    opens_tunnels_without_end,
    sends_heads_without_end,
];

/// What an attack has at hand beside the rest: requests to the proxy. What is not answered with the page is refused.
const PROXY: &str = r"
PROXY = ('127.0.0.1', int(os.environ['HTTP_PROXY'].strip('/').rsplit(':', 1)[1]))

def dial():
    return socket.create_connection(PROXY, 15)

def rest(s):
    got = b''
    try:
        while piece := s.recv(65536):
            got += piece
            if b'a page of the internet' in got: break
    except OSError:
        pass
    return got

def page(s):
    got = rest(s)
    return got if b'a page of the internet' in got else failed(errno.EACCES, repr(got[:300]))

def get(url, host=None):
    s = dial()
    host = host or url.split('/')[2]
    s.sendall(f'GET {url} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n'.encode())
    return page(s)

def tunnel(authority):
    s = dial()
    s.sendall(f'CONNECT {authority} HTTP/1.1\r\nhost: {authority}\r\n\r\n'.encode())
    head = s.recv(65536)
    if b' 200 ' not in head.split(b'\r\n')[0]:
        failed(errno.EACCES, repr(head[:300]))
    s.sendall(b'GET / HTTP/1.1\r\nhost: x\r\n\r\n')
    s.settimeout(15)
    return s.recv(65536) or failed(errno.ECONNRESET, authority)

def both(host, port=80):
    attempt(f'GET {host}:{port}', get, f'http://{host}:{port}/')
    attempt(f'CONNECT {host}:{port}', tunnel, f'{host}:{port}')
";

/// A sandbox with this policy, by which it has been seen to reach what is allowed.
struct Connected<'a> {
    target: &'a Target,
    id: String,
}

impl<'a> Connected<'a> {
    fn with(target: &'a Target, allow: &[&str], deny: &[&str]) -> Self {
        let network = json!({"mode": "egress", "allow": allow, "deny": deny});
        let connected = Self { target, id: target.walled().acquire(json!({"network": network})) };
        assert!(connected.reaches_what_is_allowed());
        connected
    }

    /// Whether it reaches a host that is on its list, by a request and by a tunnel.
    fn reaches_what_is_allowed(&self) -> bool {
        let printed = self.python("both('allowed.test')");
        printed.matches("THROUGH").count() == 2
    }

    /// One that may reach every public host, on every port.
    fn everywhere(target: &'a Target) -> Self {
        Self::with(target, &["*:*"], &[])
    }

    fn python(&self, attack: &str) -> String {
        let walled = self.target.walled();
        let program = crate::inside::program(&format!("{PROXY}{attack}"));
        let printed = walled.wait(walled.api.python(&self.id, &program));
        self.target.told_nothing(&printed);
        printed
    }

    fn refused(&self, attack: &str) {
        Tries::of(self.python(attack)).all_refused();
    }

    fn set_policy(&self, network: &Value) -> (u16, Value) {
        let walled = self.target.walled();
        let request = walled.api.request("PATCH", &format!("/api/v1/sandbox/{}", self.id));
        walled.send(request.json(&json!({"network": network})))
    }
}

/// Fails when a request came through to a host that it must not.
fn never_asked(target: &Target, host: &str) {
    let asked = target.host.internet.asked();
    assert!(!asked.iter().any(|head| head.contains(host)), "{GOT_THROUGH} to {host}: {asked:?}");
}

fn asks_for_the_metadata_of_clouds(target: &Target) {
    Connected::everywhere(target).refused(
        "for host in ('169.254.169.254', '169.254.170.2', '100.100.100.200', '168.63.129.16', '[fd00:ec2::254]', 'metadata.google.internal', 'METADATA.google.internal.', 'metadata', 'instance-data', '[::ffff:169.254.169.254]', '[64:ff9b::a9fe:a9fe]', '[2002:a9fe:a9fe::1]', '0xa9fea9fe', '2852039166', '0251.0376.0251.0376', '169.254.43518', '169.254.0.1', '[fe80::1]', '[fe80::1%25lo]'):\n    both(host)",
    );
}

fn writes_addresses_in_odd_notations(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    Connected::everywhere(target).refused(&format!(
        "for host in ('127.0.0.1', '127.1', '127.0.1', '0x7f.1', '0x7f000001', '2130706433', '0177.0.0.1', '017700000001', '127.0.0.1.', '127.255.255.254', '0', '0.0.0.0', '[::]', '[::1]', '[0:0:0:0:0:0:0:1]', '[::ffff:127.0.0.1]', '[::ffff:7f00:1]', '[::127.0.0.1]', '[64:ff9b::127.0.0.1]', '[64:ff9b:1::7f00:1]', '[2002:7f00:1::]', 'localhost', 'LocalHost.', 'x.localhost', 'localhost.localdomain', 'ip6-localhost', '255.255.255.255', '224.0.0.1', '%31%32%37.0.0.1', '\\u2460\\u2461\\u2466.0.0.1', '127\\u30020\\u30020\\u30021', '[127.0.0.1]', '127.0.0.1#', '127.0.0.1%00'):\n    both(host, {port})"
    ));
}

fn asks_for_the_hosts_own_addresses(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    let mut hosts = addresses();
    hosts.retain(|host| !host.contains(':'));
    hosts.push("127.0.1.1".into());
    Connected::everywhere(target).refused(&format!("for host in {hosts:?}: both(host, {port})"));
}

fn asks_for_the_api_of_its_own_server(target: &Target) {
    let server = &target.walled().server;
    let ports: Vec<_> =
        [&server.url, &server.grpc_url].iter().map(|url| url.rsplit(':').next().unwrap().to_owned()).collect();
    Connected::everywhere(target)
        .refused(&format!("for port in ({}): both('127.0.0.1', port); both('localhost', port)", ports.join(", ")));
}

fn asks_for_private_addresses(target: &Target) {
    Connected::everywhere(target).refused(
        "for host in ('10.0.0.1', '172.16.0.1', '172.31.255.254', '192.168.1.1', '100.64.0.1', '[fc00::1]', '[fdff::1]', '[::ffff:10.0.0.1]', '[64:ff9b::a00:1]', '0xa000001', '10.1'):\n    both(host)",
    );
}

fn connects_to_ports_that_are_not_allowed(target: &Target) {
    let connected = Connected::with(target, &["allowed.test", "203.0.113.77"], &[]);
    connected.refused(
        "for port in (22, 25, 53, 81, 443443, 8080, 6379, 0, 65536, -1, '+80', '0x50', '80:80', '', ' 80', '80\\t', '08080'):\n    \
         attempt(f'CONNECT {port}', tunnel, f'allowed.test:{port}')\n    attempt(f'address {port}', tunnel, f'203.0.113.77:{port}')\n\
         for port in (22, 8080): attempt(f'GET {port}', get, f'http://allowed.test:{port}/')\n\
         attempt('without a port', tunnel, 'allowed.test')",
    );
}

fn names_hosts_that_are_not_on_the_list(target: &Target) {
    let connected = Connected::with(target, &["allowed.test"], &[]);
    connected.refused(
        "for host in ('other.test', 'sub.allowed.test', 'allowed.test.other.test', 'notallowed.test', 'allowed.test@other.test', 'other.test#allowed.test', 'other.test?allowed.test', 'other.test%00.allowed.test', 'other.test\\\\@allowed.test', 'allowed.test:80@other.test', 'allowed.test;other.test', '203.0.113.77', '203.0.113.1', '*', 'allowed', 'allowed-test', 'allowed.test,other.test'):\n    both(host)",
    );
    never_asked(target, "other.test");
}

fn names_a_host_that_is_denied(target: &Target) {
    let connected = Connected::with(target, &["*:*"], &["other.test", "sub.allowed.test", "203.0.113.77"]);
    connected.refused(
        "for host in ('other.test', 'OTHER.test', 'other.test.', 'sub.allowed.test', '203.0.113.77', '0xcb.0x0.0x71.0x4d', '[::ffff:203.0.113.77]'):\n    both(host)",
    );
    never_asked(target, "other.test");
}

/// A name that is allowed, and has an address of the node: as after a second look at a name that was rebound.
fn names_a_host_that_resolves_to_the_node(target: &Target) {
    let Bait::Tcp(port) = target.host.tcp_bait() else { unreachable!() };
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim().to_owned();
    let connected = Connected::with(target, &["allowed.test", "*:*"], &[]);
    connected.refused(&format!("for name in ('{name}', '{name}.', '{name}.localdomain', 'host.docker.internal', '_gateway', 'kubernetes.default.svc'): both(name, {port})"));
}

fn follows_a_redirect_to_the_metadata(target: &Target) {
    let connected = Connected::with(target, &["allowed.test"], &[]);
    connected.refused(
        "import urllib.error, urllib.request\n\
         def follow(): return urllib.request.urlopen('http://allowed.test/redirect', timeout=15).read()\nattempt('redirect', follow)",
    );
    assert!(target.host.internet.asked().iter().any(|head| head.starts_with("GET /redirect")), "it was led there");
}

/// Two hosts in one request: it must go to the one that was decided on, and name no other there.
fn smuggles_another_host_past_the_list(target: &Target) {
    let connected = Connected::with(target, &["allowed.test"], &[]);
    connected.python(
        "from concurrent.futures import ThreadPoolExecutor\n\
         def raw(text):\n    s = dial()\n    s.settimeout(3)\n    s.sendall(text.encode('latin1').replace(b'\\n', b'\\r\\n'))\n    return rest(s)\n\
         head = 'GET http://allowed.test/ HTTP/1.1\\n'\n\
         texts = (\n    head + 'host: other.test\\n\\n', head + 'host: allowed.test\\nhost: other.test\\n\\n', head + 'host: other.test\\nhost: allowed.test\\n\\n',\n    \
         'GET / HTTP/1.1\\nhost: other.test\\n\\n', 'GET http://other.test/ HTTP/1.1\\nhost: allowed.test\\n\\n', 'GET http://other.test/ HTTP/1.0\\n\\n',\n    \
         'GET http://allowed.test@other.test/ HTTP/1.1\\nhost: allowed.test\\n\\n', 'GET http://allowed.test\\\\\\\\@other.test/ HTTP/1.1\\nhost: allowed.test\\n\\n',\n    \
         'CONNECT allowed.test:80 HTTP/1.1\\nhost: other.test:80\\n\\nGET / HTTP/1.1\\nhost: allowed.test\\n\\n', 'CONNECT other.test:80 HTTP/1.1\\nhost: allowed.test:80\\n\\n',\n    \
         'POST http://allowed.test/ HTTP/1.1\\nhost: allowed.test\\ncontent-length: 5\\ntransfer-encoding: chunked\\n\\n0\\n\\nGET http://other.test/ HTTP/1.1\\nhost: other.test\\n\\n',\n    \
         'POST http://allowed.test/ HTTP/1.1\\nhost: allowed.test\\ncontent-length: 0\\ncontent-length: 60\\n\\nGET http://other.test/ HTTP/1.1\\nhost: other.test\\n\\n',\n    \
         'POST http://allowed.test/ HTTP/1.1\\nhost: allowed.test\\ntransfer-encoding: xchunked\\n\\n0\\n\\nGET / HTTP/1.1\\nhost: other.test\\n\\n',\n    \
         'GET http://allowed.test/\\nhost: other.test\\n\\n', 'GET http://allowed.test/ HTTP/1.1\\nhost: allowed.test\\n host: other.test\\n\\n',\n    \
         'GET ftp://other.test/ HTTP/1.1\\nhost: other.test\\n\\n', 'OPTIONS * HTTP/1.1\\nhost: other.test\\n\\n', 'PRI * HTTP/2.0\\n\\nSM\\n\\n')\n\
         with ThreadPoolExecutor(32) as pool: print(len(list(pool.map(raw, texts))))",
    );
    never_asked(target, "other.test");
}

fn asks_for_another_host_on_a_kept_connection(target: &Target) {
    let connected = Connected::with(target, &["allowed.test"], &[]);
    connected.refused(
        "s = dial()\ndef ask(host):\n    close = 'connection: close\\r\\n' if host == 'other.test' else ''\n    s.sendall(f'GET http://{host}/ HTTP/1.1\\r\\nhost: {host}\\r\\n{close}\\r\\n'.encode())\n    return page(s)\n\
         s.settimeout(15)\nask('allowed.test')\nattempt('the second', ask, 'other.test')",
    );
    never_asked(target, "other.test");
}

fn goes_around_the_proxy(target: &Target) {
    let connected = Connected::everywhere(target);
    connected.refused(
        "for host in ('203.0.113.77', '1.1.1.1', '2606:4700::1111', '169.254.169.254'): attempt(host, socket.create_connection, (host, 80), 3)\n\
         def send(host):\n    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', (host, 53))\nattempt('UDP', send, '8.8.8.8')\n\
         attempt('name', socket.getaddrinfo, 'allowed.test', 80)\nprint([name for _, name in socket.if_nameindex()])",
    );
}

/// The first sandbox has no network; a proxy of another's is not on its loopback.
fn uses_a_proxy_without_a_network(target: &Target) {
    let _other = Connected::everywhere(target);
    target.refused(
        "print('HTTP_PROXY' in os.environ)\nfor port in range(3120, 3140): attempt(port, socket.create_connection, ('127.0.0.1', port), 3)",
    );
    assert!(target.python("print('proxy' in ' '.join(os.environ).lower())").starts_with("False\n"));
}

/// A program that listens where the proxy would does not become the proxy of others in the sandbox, and does not stop it.
fn takes_the_port_of_the_proxy_first(target: &Target) {
    let walled = target.walled();
    let id = walled.acquire(json!({}));
    let squat = "import os, socket\ns = socket.create_server(('127.0.0.1', 3128))\nif os.fork():\n    os._exit(0)\nos.setsid()\nfor fd in (0, 1, 2): os.close(fd)\nwhile True: s.accept()[0].close()";
    walled.wait(walled.api.python(&id, squat));
    let connected = Connected { target, id };
    let (status, answer) = connected.set_policy(&json!({"mode": "egress", "allow": ["allowed.test"]}));
    assert_eq!(status, 200, "{answer}");
    assert!(connected.python("print(PROXY[1] != 3128)").starts_with("True"));
    assert!(connected.reaches_what_is_allowed());
}

fn keeps_a_tunnel_beyond_its_policy(target: &Target) {
    let connected = Connected::with(target, &["allowed.test", "other.test"], &[]);
    let walled = target.walled();
    let hold = format!(
        "{PROXY}\ns = dial()\ns.sendall(b'CONNECT other.test:80 HTTP/1.1\\r\\nhost: other.test:80\\r\\n\\r\\n')\nassert b' 200 ' in s.recv(65536)\nopen('/tmp/open', 'w').close()\n\
         s.settimeout(30)\ntry: print('cut' if s.recv(10) == b'' else 'more')\nexcept ConnectionError: print('cut')\nexcept TimeoutError: print('never cut')"
    );
    let program = crate::inside::program(&hold);
    std::thread::scope(|scope| {
        let held = scope.spawn(|| walled.wait(walled.api.python(&connected.id, &program)));
        walled.wait(crate::harness::eventually("the tunnel is open", || async {
            walled.api.shell(&connected.id, "find /tmp/open 2>/dev/null").await.contains("open")
        }));
        assert_eq!(connected.set_policy(&json!({"mode": "egress", "allow": ["allowed.test"]})).0, 200);
        let printed = held.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(printed.starts_with("cut\n"), "{GOT_THROUGH}: {printed}");
    });
    connected.refused("both('other.test')");
    assert_eq!(connected.set_policy(&json!({"mode": "none"})).0, 200);
    let walled_in = connected.python("attempt('anything', get, 'http://allowed.test/')");
    assert!(!walled_in.contains("THROUGH"), "{GOT_THROUGH}: {walled_in}");
}

fn opens_tunnels_without_end(target: &Target) {
    let connected = Connected::with(target, &["allowed.test"], &[]);
    let neighbour = target.walled().neighbour();
    let printed = neighbour.answers_during(|| {
        connected.python(
            "kept, turned_away = [], 0\nfor n in range(400):\n    s = dial()\n    s.sendall(b'CONNECT allowed.test:80 HTTP/1.1\\r\\nhost: allowed.test:80\\r\\n\\r\\n')\n    \
             kept.append(s)\n    turned_away += b' 200 ' not in s.recv(4096)\nprint('turned away', turned_away)\n\
             for s in kept: s.close()",
        )
    });
    let turned_away: u32 =
        printed.strip_prefix("turned away ").and_then(|rest| rest.lines().next()?.parse().ok()).unwrap();
    assert!(turned_away >= 100, "{printed}");
    let begun = Instant::now();
    while !connected.reaches_what_is_allowed() {
        assert!(begun.elapsed() < PROMPTLY, "it is never served again");
    }
}

fn sends_heads_without_end(target: &Target) {
    let connected = Connected::with(target, &["allowed.test"], &[]);
    connected.refused(
        "def flood(text, more):\n    s = dial()\n    s.settimeout(10)\n    s.sendall(text)\n    for n in range(3000): s.sendall(more)\n    return page(s)\n\
         attempt('one long line', flood, b'GET http://allowed.test/', b'x' * 1000)\n\
         attempt('many lines', flood, b'GET http://allowed.test/ HTTP/1.1\\r\\nhost: allowed.test\\r\\n', b'a: b\\r\\n' * 100)\n\
         attempt('one long value', flood, b'GET http://allowed.test/ HTTP/1.1\\r\\nhost: allowed.test\\r\\na: ', b'x' * 1000)\n\
         attempt('a name of 70000 letters', get, 'http://' + 'x' * 70000 + '/')\nattempt('nothing like HTTP', flood, bytes(range(256)), bytes(1000))",
    );
    assert!(connected.reaches_what_is_allowed());
}
