//! Rates that two gateways count together, and what they do when they cannot.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Instant,
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    fleet::left_out,
    harness::{BINARY, eventually, free_port},
};

/// Processes that end with the test.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn redis(port: u16) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", "/"])
        .stdout(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

/// A gateway in front of nothing: tokens it hands out by itself.
fn gateway(folder: &TempDir, port: u16, redis: u16) -> Child {
    let log = fs::File::create(folder.path().join(format!("{port}.log"))).unwrap();
    Command::new(BINARY)
        .arg("gateway")
        .env_clear()
        .env("LISTEN", format!("127.0.0.1:{port}"))
        .env("DATA_DIR", folder.path())
        .env("REDIS_URL", format!("redis://127.0.0.1:{redis}"))
        .env("RATE_LIMIT_PER_SECOND", "1")
        .env("RATE_LIMIT_BURST", "6")
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// How many of `calls` calls are let through, by turns at each of `urls`.
async fn granted(urls: &[String], calls: usize) -> u64 {
    let client = reqwest::Client::new();
    let mut granted = 0;
    for url in urls.iter().cycle().take(calls) {
        let answer = client.post(format!("{url}/api/v1/auth/token")).json(&json!({"user_id": "ada"})).send().await;
        let status = answer.unwrap().status();
        assert!(status == 200 || status == 429, "{status}");
        granted += u64::from(status == 200);
    }
    granted
}

#[tokio::test]
async fn gateways_count_together_and_each_for_itself_when_redis_is_gone() {
    if left_out() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [redis_port, one, other] = [free_port(), free_port(), free_port()];
    let mut processes = Processes(vec![redis(redis_port)]);
    eventually("Redis listens", || async { TcpStream::connect(("127.0.0.1", redis_port)).is_ok() }).await;
    processes.0.extend([one, other].map(|port| gateway(&folder, port, redis_port)));
    let urls = [one, other].map(|port| format!("http://127.0.0.1:{port}"));
    for url in &urls {
        eventually("it is up", || async { reqwest::get(format!("{url}/livez")).await.is_ok() }).await;
    }

    let begun = Instant::now();
    let together = granted(&urls, 20).await;
    assert!((6..=6 + begun.elapsed().as_secs()).contains(&together), "{together} in {:?}", begun.elapsed());

    processes.0[0].kill().unwrap();
    processes.0[0].wait().unwrap();
    let begun = Instant::now();
    let apart = granted(&urls[..1], 20).await;
    assert!((6..=6 + begun.elapsed().as_secs()).contains(&apart), "{apart} in {:?}", begun.elapsed());
    let log = fs::read_to_string(folder.path().join(format!("{one}.log"))).unwrap();
    assert_eq!(log.matches("rates are counted by this edge alone").count(), 1, "{log}");
    let metrics = reqwest::get(format!("{}/metrics", urls[0])).await.unwrap().text().await.unwrap();
    assert!(metrics.contains("cloud_sandbox_rate_limit_unshared_total"), "{metrics}");

    processes.0[0] = redis(redis_port);
    eventually("they count together again", || async {
        granted(&urls[..1], 1).await;
        let log = fs::read_to_string(folder.path().join(format!("{one}.log"))).unwrap();
        log.contains("counted together with the other edges again")
    })
    .await;
}
