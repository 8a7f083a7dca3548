//! The conformance suite on a private server, and what only a server can do: fail.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use super::*;
use crate::directory::conformance;

/// A server of this test alone, killed with it.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    fn start(port: u16) -> Self {
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .args(["--dir", "/"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server runs (CLOUD_SANDBOX_TEST_SKIP=redis skips these tests)");
        Self { child, port }
    }

    async fn connect(&mut self) -> RedisDirectory {
        let url = format!("redis://127.0.0.1:{}", self.port);
        for _ in 0..1500 {
            if let Ok(directory) = RedisDirectory::connect(&url).await {
                return directory;
            }
            let ended = self.child.try_wait().expect("the server can be waited for");
            assert!(ended.is_none(), "redis-server on port {} ended: {ended:?}", self.port);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("redis-server on port {} does not answer", self.port)
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("the loopback has free ports");
    listener.local_addr().expect("a bound listener has an address").port()
}

fn skipped() -> bool {
    std::env::var("CLOUD_SANDBOX_TEST_SKIP").is_ok_and(|list| list.split(',').any(|name| name.trim() == "redis"))
}

/// A directory on a server of its own; leaves the test when Redis is skipped on purpose.
macro_rules! directory {
    ($server:ident) => {{
        if skipped() {
            eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names redis");
            return;
        }
        $server = Server::start(free_port());
        $server.connect().await
    }};
}

mod suite {
    use super::*;

    conformance::directory_suite!({
        let mut server;
        let directory = directory!(server);
        (server, directory)
    });
}

#[tokio::test]
async fn list_spans_many_batches() {
    let mut server;
    let directory = directory!(server);
    let mut ids = Vec::new();
    for _ in 0..BATCH * 2 + 3 {
        let entry = conformance::entry("t", "u", Duration::from_secs(60));
        ids.push(entry.id);
        directory.put_sandbox(&entry).await.unwrap();
    }
    ids.sort();
    let filter = SandboxFilter { tenant: "t".into(), ..SandboxFilter::default() };
    let listed = directory.sandboxes(&filter, None, ids.len() + 1).await.unwrap();
    assert_eq!(listed.iter().map(|entry| entry.id).collect::<Vec<_>>(), ids);
}

#[tokio::test]
async fn ids_of_what_is_gone_leave_the_sets() {
    let mut server;
    let directory = directory!(server);
    let entry = conformance::entry("t", "u", Duration::from_secs(60));
    directory.put_sandbox(&entry).await.unwrap();
    let _: i64 = directory.client.del(sandbox_key(entry.id)).await.unwrap();
    let _: i64 = directory.client.zadd(NODES, None, None, false, false, (0.0, "nd1")).await.unwrap();
    let filter = SandboxFilter { tenant: "t".into(), ..SandboxFilter::default() };
    assert_eq!(directory.sandboxes(&filter, None, 9).await.unwrap(), []);
    assert_eq!(directory.nodes().await.unwrap(), []);
    let left: (i64, i64) =
        (directory.client.zcard(tenant_key("t")).await.unwrap(), directory.client.zcard(NODES).await.unwrap());
    assert_eq!(left, (0, 0));
}

#[tokio::test]
async fn entry_that_cannot_be_read_is_corrupt_and_does_not_hide_others() {
    let mut server;
    let directory = directory!(server);
    let (good, bad) =
        (conformance::entry("t", "u", Duration::from_secs(60)), conformance::entry("t", "u", Duration::from_secs(60)));
    directory.put_sandbox(&good).await.unwrap();
    directory.put_sandbox(&bad).await.unwrap();
    let () = directory.client.set(sandbox_key(bad.id), "{}", None, None, false).await.unwrap();
    assert!(matches!(directory.sandbox(bad.id).await, Err(StorageError::Corrupt { .. })));
    let filter = SandboxFilter { tenant: "t".into(), ..SandboxFilter::default() };
    assert_eq!(directory.sandboxes(&filter, None, 9).await.unwrap(), [good]);
}

#[tokio::test]
async fn server_that_is_away_is_unavailable_and_is_found_again() {
    let mut server;
    let directory = directory!(server);
    let port = server.port;
    drop(server);
    assert!(matches!(directory.check().await, Err(StorageError::Unavailable { .. })));
    let _server = Server::start(port);
    for _ in 0..20 {
        if directory.check().await.is_ok() {
            return;
        }
    }
    panic!("the server came back and was not found");
}

#[tokio::test]
async fn server_that_is_not_there_and_what_cannot_be_kept_secret_are_refused_at_once() {
    let nobody = format!("redis://127.0.0.1:{}", free_port());
    for url in [nobody.as_str(), "nonsense", "rediss://127.0.0.1:1"] {
        assert!(matches!(RedisDirectory::connect(url).await, Err(StorageError::Unavailable { .. })), "{url}");
    }
}
