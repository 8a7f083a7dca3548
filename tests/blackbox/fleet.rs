//! Each role as a process of its own, with Redis between them.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Api, BINARY, Traces, cgroups_of, eventually, free_port, reason};

const SECRET: &str = "one-secret-for-all-roles-of-this-fleet";

/// The processes of a fleet with one node. Dropped, all of them end.
struct Fleet {
    url: String,
    processes: Vec<(&'static str, Child)>,
    folder: TempDir,
}

impl Fleet {
    async fn start() -> Self {
        let ports: Vec<u16> = (0..6).map(|_| free_port()).collect();
        let at = |number: usize| format!("127.0.0.1:{}", ports[number]);
        let url = |number: usize| format!("http://127.0.0.1:{}", ports[number]);
        let folder = tempfile::tempdir().unwrap();
        let mut fleet = Self { url: url(5), processes: Vec::new(), folder };
        let redis = Command::new("redis-server")
            .args(["--port", &ports[0].to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        fleet.processes.push(("redis", redis));
        eventually("Redis listens", || async { TcpStream::connect(at(0)).is_ok() }).await;
        let redis_url = format!("redis://127.0.0.1:{}", ports[0]);
        for (role, number) in [("scheduler", 1), ("session-manager", 2), ("exec", 3), ("node", 4)] {
            let mut settings = vec![("GRPC_LISTEN", at(number)), ("REDIS_URL", redis_url.clone())];
            if role == "session-manager" {
                settings.push(("SCHEDULER_URL", url(1)));
            }
            fleet.role(role, &settings);
        }
        let upstreams = [("SCHEDULER_URL", url(1)), ("SESSION_URL", url(2)), ("EXEC_URL", url(3))];
        let listen = [("LISTEN", at(5))];
        fleet.role("gateway", &[&upstreams[..], &listen[..]].concat());
        let ready = format!("{}/readyz", fleet.url);
        eventually("the fleet is ready", || async {
            reqwest::get(&ready).await.is_ok_and(|answer| answer.status() == 200)
        })
        .await;
        fleet
    }

    fn role(&mut self, role: &'static str, settings: &[(&str, String)]) {
        let log = fs::File::create(self.folder.path().join(format!("{role}.log"))).unwrap();
        let process = Command::new(BINARY)
            .arg(role)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("JWT_SECRET", SECRET)
            .env("DATA_DIR", self.folder.path().join(role))
            .env("POOL_MIN_SIZE", "1")
            .env("RATE_LIMIT_PER_SECOND", "0")
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes.push((role, process));
    }

    fn process(&mut self, role: &str) -> &mut Child {
        &mut self.processes.iter_mut().find(|(name, _)| *name == role).unwrap().1
    }

    async fn user(&self, name: &str) -> Api {
        let anonymous = Api { http: reqwest::Client::new(), url: self.url.clone(), token: None };
        let (status, answer) = anonymous.post("/api/v1/auth/token", json!({"user_id": name})).await;
        assert_eq!(status, 200, "{answer}");
        Api { token: Some(answer["access_token"].as_str().unwrap().to_owned()), ..anonymous }
    }

    /// Acquires as soon as the node has reported itself.
    async fn acquire(&self, api: &Api) -> String {
        eventually("a node is known", || async { api.get("/api/v1/sandbox/stats").await.1["ready"] == 1 }).await;
        api.acquire().await
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for (role, process) in self.processes.iter_mut().rev() {
            if process.try_wait().is_ok_and(|ended| ended.is_none()) {
                let _ = Command::new("kill").arg(process.id().to_string()).status();
                let _ = process.wait();
            }
            if std::thread::panicking() {
                let log = fs::read_to_string(self.folder.path().join(format!("{role}.log")));
                eprintln!("--- {role} ---\n{}", log.unwrap_or_default());
            }
        }
    }
}

/// Whether whoever runs the tests has asked to leave out what needs Redis.
fn left_out() -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    skipped.split(',').any(|name| name.trim() == "redis")
}

#[tokio::test]
async fn roles_on_their_own_serve_as_one() {
    if left_out() {
        return;
    }
    let fleet = Fleet::start().await;
    let (ada, bob) = (fleet.user("ada").await, fleet.user("bob").await);
    let id = fleet.acquire(&ada).await;
    assert_eq!(ada.python(&id, "print(6 * 7)").await, "42\n");
    let (status, answer) = bob.post("/api/v1/execute", json!({"sandbox_id": id, "command": "true"})).await;
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_NOT_FOUND"), "{answer}");
    let session = ada.post("/api/v1/sessions", json!({})).await.1;
    let path = format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap());
    assert_eq!(ada.post(&format!("{path}/pause"), json!({})).await.1["state"], "paused");
    assert_eq!(ada.post(&format!("{path}/resume"), json!({})).await.1["state"], "running");
    assert_eq!(ada.delete(&path).await.0, 200);
    ada.release(&id).await;
    assert_eq!(cgroups_of(&id), Vec::<String>::new());
}

#[tokio::test]
async fn fleet_without_its_redis_is_not_ready_and_says_so() {
    if left_out() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let redis = fleet.process("redis");
    redis.kill().unwrap();
    redis.wait().unwrap();
    let ready = format!("{}/readyz", fleet.url);
    eventually("the edge is not ready", || async { reqwest::get(&ready).await.unwrap().status() == 503 }).await;
    let told = reqwest::get(&ready).await.unwrap().text().await.unwrap();
    assert!(told.contains("scheduler"), "{told}");
    assert_eq!(reqwest::get(format!("{}/livez", fleet.url)).await.unwrap().status(), 200);
}

#[tokio::test]
async fn node_that_dies_takes_its_sandboxes_along_and_nothing_else() {
    if left_out() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let ada = fleet.user("ada").await;
    let id = fleet.acquire(&ada).await;
    let node = fleet.process("node");
    let traces = Traces::of(node.id());
    node.kill().unwrap();
    node.wait().unwrap();
    traces.assert_processes_gone();
    let asked = std::time::Instant::now();
    let (status, answer) = ada.post("/api/v1/execute", json!({"sandbox_id": id, "command": "true"})).await;
    assert_eq!((status, reason(&answer)), (503, "NODE_UNREACHABLE"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(5), "at once, not after a timeout");
    assert_eq!(ada.get("/api/v1/sandbox/stats").await.0, 200, "the control plane goes on");
}
