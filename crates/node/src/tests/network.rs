//! What of the network a sandbox sees, from its acquire to its end.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_agent::{Agent, Children, serve_agent};
use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    node::v1::UpdateSandboxRequest,
    v1::{AcquireSandboxRequest, ExecuteRequest, NetworkMode, NetworkPolicy, Sandbox},
};
use cloud_sandbox_runtime::FakeRuntime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::harness::*;

fn policy(mode: NetworkMode, allow: &[&str]) -> NetworkPolicy {
    let allow = allow.iter().map(ToString::to_string).collect();
    NetworkPolicy { mode: mode.into(), allow, deny: Vec::new() }
}

fn wanted(policy: NetworkPolicy) -> AcquireSandboxRequest {
    AcquireSandboxRequest { network: Some(policy), ..Default::default() }
}

impl World {
    async fn set_network(&self, id: SandboxId, policy: NetworkPolicy) -> Result<Sandbox, Failure> {
        let request = UpdateSandboxRequest { sandbox_id: id.to_string(), network: Some(policy) };
        let answer = self.client().update_sandbox(request).await.map_err(|status| Failure::of(&status))?;
        Ok(answer.into_inner().sandbox.unwrap())
    }

    /// The proxy that a process of the sandbox is told of.
    async fn proxy(&self, id: SandboxId) -> Option<String> {
        self.execute(argv(id, &["true"])).await.unwrap();
        self.script.last_start().env.get("https_proxy").cloned()
    }
}

/// The first line and the body of what the proxy says to a CONNECT; `None` when nobody listens there.
async fn connect(proxy: &str, host: &str) -> Option<String> {
    let mut stream = TcpStream::connect(proxy.trim_start_matches("http://")).await.ok()?;
    let request = format!("CONNECT {host} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.expect("the proxy answers").ok()?;
    Some(answer)
}

#[tokio::test]
async fn programs_are_told_of_the_proxy_and_the_proxy_of_the_policy() {
    let world = World::start(1, 3).await;
    let answer = world.try_acquire(wanted(policy(NetworkMode::Egress, &["example.org"]))).await.unwrap();
    assert!(answer.warm, "a policy needs no sandbox of its own");
    let id = id_of(&answer);
    assert_eq!(answer.sandbox.unwrap().network, Some(policy(NetworkMode::Egress, &["example.org"])));
    let proxy = world.proxy(id).await.unwrap();
    let denied = connect(&proxy, "other.example.net:443").await.unwrap();
    assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");

    // what a caller says of a proxy himself stands
    let mut own = argv(id, &["true"]);
    own.env.insert("https_proxy".into(), "http://own".into());
    world.execute(own).await.unwrap();
    assert_eq!(world.script.last_start().env["https_proxy"], "http://own");

    let none = world.set_network(id, policy(NetworkMode::None, &[])).await.unwrap();
    assert_eq!(none.network, Some(policy(NetworkMode::None, &[])));
    assert_eq!(world.proxy(id).await, None);
    let refused = connect(&proxy, "example.org:443").await.unwrap();
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("no network"), "{refused}");

    world.set_network(id, policy(NetworkMode::Egress, &["*"])).await.unwrap();
    assert_eq!(world.proxy(id).await, Some(proxy.clone()), "the way is the same");

    world.release(id).await.unwrap();
    for _ in 0..500 {
        if connect(&proxy, "example.org:443").await.is_none() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the proxy outlives its sandbox");
}

#[tokio::test]
async fn sandbox_without_a_policy_has_no_proxy() {
    let world = World::start(0, 3).await;
    let id = world.acquire().await;
    assert_eq!(world.proxy(id).await, None);
    assert_eq!(world.get(id).await.unwrap().network, Some(policy(NetworkMode::None, &[])));
}

#[tokio::test]
async fn what_breaks_a_rule_is_named_and_changes_nothing() {
    let world = World::start(0, 3).await;
    let bad = policy(NetworkMode::Egress, &["fine.example", "127.0.0.0/8"]);
    let refused = world.try_acquire(wanted(bad.clone())).await.unwrap_err();
    assert!(refused.message.contains("network.allow[1]"), "{}", refused.message);

    let id = world.acquire().await;
    let refused = world.set_network(id, bad).await.unwrap_err();
    assert!(refused.message.contains("network.allow[1]"), "{}", refused.message);
    assert_eq!(world.get(id).await.unwrap().network, Some(policy(NetworkMode::None, &[])));
    assert_eq!(
        world.set_network(SandboxId::generate(), policy(NetworkMode::None, &[])).await.unwrap_err().kind,
        "NOT_FOUND"
    );
}

#[tokio::test]
async fn way_that_cannot_be_made_fails_the_acquire_and_is_no_change() {
    let world = World::start(0, 3).await;
    let refused = world.try_acquire(wanted(policy(NetworkMode::Open, &[]))).await.unwrap_err();
    assert_eq!(refused.words(), ("FAILED_PRECONDITION", "UNSUPPORTED_BY_HOST"));

    let id = world.acquire().await;
    world.runtime.set_failing("listen", true);
    assert_eq!(world.set_network(id, policy(NetworkMode::Egress, &["*"])).await.unwrap_err().kind, "INTERNAL");
    assert_eq!(world.proxy(id).await, None);
    world.runtime.set_failing("listen", false);
    world.set_network(id, policy(NetworkMode::Egress, &["*"])).await.unwrap();
    assert!(world.proxy(id).await.is_some());
}

/// A node whose runtime cannot listen in a sandbox, with the real agent, which runs beside it.
async fn world_of_agents() -> (World, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    tokio::spawn(serve_agent(UnixListener::bind(&socket).unwrap(), Agent::new(Children::own()).unwrap()));
    let runtime = Arc::new(FakeRuntime::new(move |_, mut ours| {
        let socket = socket.clone();
        tokio::spawn(async move {
            let mut agents = UnixStream::connect(socket).await.unwrap();
            copy_bidirectional(&mut ours, &mut agents).await
        });
    }));
    runtime.set_unsupported("listen", true);
    (World::start_on(options(1, 2), runtime, Arc::default()).await, folder)
}

/// What a program of the sandbox is told of its proxy.
async fn proxy_of_program(world: &World, id: SandboxId) -> String {
    // the machine of the test need not have the folder that sandboxes have
    let request = ExecuteRequest { cwd: "/".into(), ..argv(id, &["sh", "-c", "echo -n $https_proxy"]) };
    world.execute(request).await.unwrap().stdout
}

#[tokio::test]
async fn where_the_runtime_cannot_listen_the_agent_does() {
    let (world, _folder) = world_of_agents().await;
    let id = id_of(&world.try_acquire(wanted(policy(NetworkMode::Egress, &["example.org"]))).await.unwrap());
    let proxy = proxy_of_program(&world, id).await;
    assert!(proxy.starts_with("http://127.0.0.1:"), "{proxy}");
    for _ in 0..20 {
        let denied = connect(&proxy, "other.example.net:443").await.unwrap();
        assert!(denied.starts_with("HTTP/1.1 403"), "{denied}");
    }
    world.set_network(id, policy(NetworkMode::None, &[])).await.unwrap();
    let refused = connect(&proxy, "example.org:443").await.unwrap();
    assert!(refused.contains("no network"), "{refused}");

    let other = id_of(&world.try_acquire(wanted(policy(NetworkMode::Egress, &["*"]))).await.unwrap());
    assert_ne!(proxy_of_program(&world, other).await, proxy, "the port was taken");

    world.release(id).await.unwrap();
    for _ in 0..500 {
        if connect(&proxy, "example.org:443").await.is_none() {
            return;
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the port outlives its sandbox");
}

#[tokio::test]
async fn a_tunnel_through_the_agent_carries_both_ways_and_ends_one_way_at_a_time() {
    let (world, _folder) = world_of_agents().await;
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        stream.write_all(&all).await.unwrap();
    });
    let agent = crate::agent::Agent::new(
        world.runtime.clone(),
        id_of(&world.try_acquire(wanted(policy(NetworkMode::None, &[]))).await.unwrap()),
    );
    let mut port = agent.listen(3128).await.unwrap();
    let number = port.number;
    let tunnel = tokio::spawn(async move {
        let mut accepted = port.listener.accept().await.unwrap();
        let mut server = TcpStream::connect(address).await.unwrap();
        let copied = copy_bidirectional(&mut accepted, &mut server).await;
        // with the port its connections are cut
        (copied, port)
    });
    let mut program = TcpStream::connect(("127.0.0.1", number)).await.unwrap();
    let sent: Vec<u8> = (0..4 * 1024 * 1024_u32).map(|byte| byte.to_le_bytes()[1]).collect();
    program.write_all(&sent).await.unwrap();
    program.shutdown().await.unwrap();
    let mut back = Vec::new();
    timeout(Duration::from_secs(30), program.read_to_end(&mut back)).await.unwrap().unwrap();
    assert!(back == sent, "{} bytes came back", back.len());
    let (copied, _port) = tunnel.await.unwrap();
    let (up, down) = copied.unwrap();
    assert_eq!((up, down), (sent.len() as u64, sent.len() as u64));
}
