//! The network of a sandbox, with the programs that people use: what the policy allows works, and all else says why not.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{Api, Server, eventually};

/// Hosts of the test, all of which are one web server on the loopback.
const HOSTS: [&str; 5] =
    ["pypi.example.org", "npm.example.org", "git.example.org", "web.example.org", "other.example.net"];
/// Where the test's authority lies in a sandbox, and the variables by which programs find it.
const AUTHORITY: &str = "/workspace/authority.pem";
const TRUST: [&str; 6] =
    ["CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS", "PIP_CERT", "SSL_CERT_FILE", "npm_config_cafile"];

/// A web server with TLS for [`HOSTS`], and a server that takes it for the internet.
struct World {
    server: Server,
    api: Api,
    authority: String,
    web: Child,
    _folder: TempDir,
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.web.kill();
        let _ = self.web.wait();
    }
}

impl World {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let authority = certificate(folder.path());
        let site = folder.path().join("site");
        let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/blackbox/egress");
        let made = Command::new("/usr/bin/python3").arg(scripts.join("site.py")).arg(&site).status().unwrap();
        assert!(made.success());
        let mut web = Command::new("/usr/bin/python3")
            .arg(scripts.join("web.py"))
            .args([&site, &folder.path().join("cert.pem"), &folder.path().join("key.pem")])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut port = String::new();
        BufReader::new(web.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let hosts: Vec<_> = HOSTS.iter().map(|host| format!("{host}=127.0.0.1:{}", port.trim())).collect();
        let server = Server::with(&[("CLOUD_SANDBOX_TEST_UPSTREAM", &hosts.join(","))]).await;
        let api = server.user("ada").await;
        Self { server, api, authority, web, _folder: folder }
    }

    /// A sandbox that sees `network` and trusts the test's authority.
    async fn sandbox(&self, network: Value) -> String {
        let env: Value = TRUST.iter().map(|name| ((*name).to_owned(), json!(AUTHORITY))).collect();
        let id = self.api.acquire_with(json!({"network": network, "env": env})).await;
        let file = json!({"sandbox_id": id, "path": AUTHORITY, "content": self.authority});
        assert_eq!(self.api.put("/api/v1/files", file).await.0, 200);
        id
    }

    /// What a shell line printed to both streams, and its exit code.
    async fn shell(&self, id: &str, line: &str) -> (i64, String) {
        let ran = self.api.execute(id, json!({"command": format!("{{ {line}; }} 2>&1")})).await;
        (ran["exit_code"].as_i64().unwrap(), ran["stdout"].as_str().unwrap().to_owned())
    }

    async fn usage(&self, id: &str) -> Value {
        self.api.get(&format!("/api/v1/sandbox/{id}")).await.1["usage"].clone()
    }
}

/// Makes an authority and a certificate of it for [`HOSTS`] in `folder`.
fn certificate(folder: &Path) -> String {
    let openssl = |arguments: &str| {
        let mut command = Command::new("openssl");
        command.args(arguments.split(' ')).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        assert!(command.status().unwrap().success(), "openssl {arguments}");
    };
    let names: Vec<_> = HOSTS.iter().map(|host| format!("DNS:{host}")).collect();
    fs::write(folder.join("names"), format!("subjectAltName={}\n", names.join(","))).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    openssl(&format!("req {key} -keyout key.pem -out request.pem -subj /CN=example.org"));
    openssl("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -out cert.pem -days 2 -extfile names");
    fs::read_to_string(folder.join("ca.pem")).unwrap()
}

fn egress(allow: &[&str]) -> Value {
    json!({"mode": "egress", "allow": allow})
}

#[tokio::test]
async fn pip_npm_git_and_curl_work_with_what_is_allowed_and_nothing_else() {
    let world = World::start().await;
    let id = world.sandbox(egress(&["pypi.example.org", "npm.example.org:443", "*.example.org"])).await;
    let pip = "python3 -m venv /tmp/v && /tmp/v/bin/pip install --quiet --disable-pip-version-check \
               --index-url https://pypi.example.org/simple greeter && /tmp/v/bin/python -c 'import greeter'";
    let npm = "cd /tmp && npm install --silent --no-audit --no-fund --no-update-notifier \
               --registry https://npm.example.org greeter && node -e 'require(\"greeter\")'";
    let git = "git clone --quiet https://git.example.org/greeter.git /tmp/g && cat /tmp/g/greeting";
    let curl = "curl --silent --show-error https://web.example.org/";
    for (line, said) in
        [(pip, "hello from pip"), (npm, "hello from npm"), (git, "hello from git"), (curl, "hello from the web")]
    {
        let (code, printed) = world.shell(&id, line).await;
        assert!(code == 0 && printed.contains(said), "{line}\n{code}: {printed}");
    }
    // and nothing else is there
    let (code, printed) = world.shell(&id, "curl --silent --show-error https://other.example.net/").await;
    assert!(code != 0 && printed.contains("403"), "{printed}");
    for direct in ["curl --noproxy '*' -sS https://web.example.org/", "curl --noproxy '*' -sS http://169.254.169.254/"]
    {
        let (code, printed) = world.shell(&id, direct).await;
        assert_ne!(code, 0, "{direct}: {printed}");
    }
    let usage = world.usage(&id).await;
    assert!(usage["connections_allowed"].as_u64().unwrap() >= 4, "{usage}");
    assert!(usage["network_received_bytes"].as_u64().unwrap() > 1000, "{usage}");
    assert_eq!(usage["connections_denied"], 1, "{usage}");
    let log = world.server.log();
    assert!(log.lines().any(|line| line.contains(&id) && line.contains("other.example.net")), "{log}");
}

#[tokio::test]
async fn denied_program_is_told_why() {
    let world = World::start().await;
    let id = world.sandbox(json!({"mode": "egress", "allow": ["*.example.org"], "deny": ["git.example.org"]})).await;
    let ask = |url: &str| format!("curl --silent --include --proxytunnel {url}");
    for (url, why) in [
        ("http://other.example.net/", "not in the list"),
        ("http://git.example.org/", "git.example.org"),
        ("http://web.example.org:8080/", "port"),
        ("http://169.254.169.254/latest/meta-data/", "metadata"),
        ("http://127.0.0.1:9090/", "loopback"),
    ] {
        // curl does not ask a proxy for what no_proxy names
        let line = format!("no_proxy= NO_PROXY= {}", ask(url));
        let (_, printed) = world.shell(&id, &line).await;
        assert!(printed.contains("403") && printed.to_lowercase().contains(why), "{url}: {printed}");
    }
    let redirected = "curl --silent --location --include https://web.example.org/to/http://169.254.169.254/latest/";
    let (_, printed) = world.shell(&id, redirected).await;
    assert!(printed.contains("302") && printed.contains("403"), "{printed}");
}

#[tokio::test]
async fn policy_changes_while_the_sandbox_lives() {
    let world = World::start().await;
    let id = world.sandbox(json!({"mode": "none"})).await;
    let fetch = "curl --silent --show-error --max-time 20 https://web.example.org/";
    assert_ne!(world.shell(&id, fetch).await.0, 0);
    let set = |network: Value| {
        let (api, path) = (world.api.clone(), format!("/api/v1/sandbox/{id}"));
        async move { api.request("PATCH", &path).json(&json!({"network": network})).send().await.unwrap() }
    };
    let changed: Value = set(egress(&["web.example.org"])).await.json().await.unwrap();
    assert_eq!(changed["network"]["allow"], json!(["web.example.org"]));
    assert_eq!(world.shell(&id, fetch).await, (0, "hello from the web\n".to_owned()));

    // a tunnel that is open when its host is not allowed any more is cut
    let hold = "import os, socket, sys\n\
                s = socket.create_connection(('127.0.0.1', 3128))\n\
                s.sendall(b'CONNECT web.example.org:443 HTTP/1.1\\r\\nHost: web.example.org:443\\r\\n\\r\\n')\n\
                assert b' 200 ' in s.recv(1000)\n\
                open('/workspace/open', 'w').close()\n\
                print(repr(s.recv(1)))";
    let holding = {
        let (api, id) = (world.api.clone(), id.clone());
        tokio::spawn(async move { api.python(&id, hold).await })
    };
    eventually("the tunnel is open", || async { world.shell(&id, "test -e /workspace/open").await.0 == 0 }).await;
    assert_eq!(set(egress(&["pypi.example.org"])).await.status(), 200);
    assert_eq!(holding.await.unwrap().trim(), "b''");
    let (code, printed) = world.shell(&id, fetch).await;
    assert!(code != 0 && printed.contains("403"), "{printed}");

    assert_eq!(set(json!({"mode": "none"})).await.status(), 200);
    let (code, printed) = world.shell(&id, &format!("https_proxy=http://127.0.0.1:3128 {fetch}")).await;
    assert!(code != 0 && printed.contains("403"), "{printed}");
    let (_, printed) = world.shell(&id, "env | grep -ci proxy").await;
    assert_eq!(printed.trim(), "0", "the variables are gone with the way");

    let refused = set(egress(&["169.254.0.0/16"])).await;
    assert_eq!(refused.status(), 400);
    let refused: Value = refused.json().await.unwrap();
    assert!(refused["error"]["message"].as_str().unwrap().contains("network.allow[0]"), "{refused}");
}

#[tokio::test]
async fn interpreters_that_run_already_are_told_of_the_way() {
    let world = World::start().await;
    let id = world.sandbox(json!({"mode": "none"})).await;
    let code = "import os; print(os.environ.get('https_proxy'))";
    let run = || world.api.execute(&id, json!({"code": code, "language": "python", "context_id": "default"}));
    assert_eq!(run().await["stdout"], "None\n");
    let path = format!("/api/v1/sandbox/{id}");
    for (network, seen) in [(egress(&["*"]), "http://127.0.0.1:3128\n"), (json!({"mode": "none"}), "None\n")] {
        let changed = world.api.request("PATCH", &path).json(&json!({"network": network})).send().await.unwrap();
        assert_eq!(changed.status(), 200);
        assert_eq!(run().await["stdout"], seen);
    }
}

#[tokio::test]
async fn open_network_needs_no_proxy_and_reaches_no_private_place() {
    let world = World::start().await;
    let id = world.sandbox(json!({"mode": "open"})).await;
    let (_, resolver) = world.shell(&id, "cat /etc/resolv.conf").await;
    assert_eq!(resolver, "nameserver 100.127.255.1\n", "the node answers for names");
    let (_, printed) = world.shell(&id, "ip -brief address 2>/dev/null || cat /proc/net/dev").await;
    assert!(printed.contains("eth0"), "{printed}");
    for address in ["127.0.0.2:9090", "169.254.169.254:80", "10.0.0.1:80", "192.168.0.1:22"] {
        let (host, port) = address.split_once(':').unwrap();
        let code = format!(
            "import socket\ntry:\n    socket.create_connection(('{host}', {port}), 5); print('reached')\n\
             except OSError as error: print(type(error).__name__)"
        );
        assert_eq!(world.api.python(&id, &code).await.trim(), "ConnectionRefusedError", "{address}");
    }
    let path = format!("/api/v1/sandbox/{id}");
    let closed = world.api.request("PATCH", &path).json(&json!({"network": {"mode": "none"}})).send().await.unwrap();
    assert_eq!(closed.status(), 200);
    eventually("the interface is gone", || async { !world.shell(&id, "cat /proc/net/dev").await.1.contains("eth0") })
        .await;
}
