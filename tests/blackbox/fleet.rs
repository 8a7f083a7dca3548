//! Each role as a process of its own, with Redis between them.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use crate::harness::{Api, BINARY, Traces, command, eventually, free_port, left_of, reason};

const SECRET: &str = "one-secret-for-all-roles-of-this-fleet";

/// A process of a fleet, and what it takes to start it again.
struct Role {
    name: &'static str,
    settings: Vec<(&'static str, String)>,
    process: Child,
}

/// The processes of a fleet with one node. Dropped, all of them end.
pub struct Fleet {
    pub url: String,
    /// of a second gateway with a session manager of its own, where there is a database for two
    pub other_url: String,
    /// where the session manager is, and tells how it is
    pub session_url: String,
    redis: Child,
    roles: Vec<Role>,
    folder: TempDir,
}

impl Fleet {
    pub async fn start() -> Self {
        Self::with(None).await
    }

    /// Two session managers that share a database, each behind a gateway of its own.
    pub async fn on_database(url: String) -> Self {
        Self::with(Some(url)).await
    }

    async fn with(database: Option<String>) -> Self {
        let ports: Vec<u16> = (0..8).map(|_| free_port()).collect();
        let at = |number: usize| format!("127.0.0.1:{}", ports[number]);
        let url = |number: usize| format!("http://127.0.0.1:{}", ports[number]);
        let folder = tempfile::tempdir().unwrap();
        let redis = Command::new("redis-server")
            .args(["--port", &ports[0].to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        let (other_url, session_url) = (url(7), url(2));
        let mut fleet = Self { url: url(5), other_url, session_url, redis, roles: Vec::new(), folder };
        eventually("Redis listens", || async { TcpStream::connect(at(0)).is_ok() }).await;
        let redis_url = format!("redis://127.0.0.1:{}", ports[0]);
        let shared = |number: usize| vec![("GRPC_LISTEN", at(number)), ("REDIS_URL", redis_url.clone())];
        for (name, number) in [("scheduler", 1), ("node", 4)] {
            fleet.add(name, shared(number));
        }
        fleet.add("exec", shared(3).into_iter().chain([("SESSION_URL", url(2))]).collect());
        let gateways = [("session-manager", 2, "gateway", 5), ("session-manager-2", 6, "gateway-2", 7)];
        let wanted = if database.is_some() { 2 } else { 1 };
        for (sessions, sessions_at, gateway, gateway_at) in gateways.into_iter().take(wanted) {
            let database = database.clone().map(|url| ("DATABASE_URL", url));
            fleet.add(
                sessions,
                shared(sessions_at).into_iter().chain([("SCHEDULER_URL", url(1))]).chain(database).collect(),
            );
            let upstreams = [("SCHEDULER_URL", url(1)), ("SESSION_URL", url(sessions_at)), ("EXEC_URL", url(3))];
            fleet.add(gateway, [&upstreams[..], &[("LISTEN", at(gateway_at))]].concat());
        }
        fleet.wait_until_ready().await;
        fleet
    }

    pub async fn wait_until_ready(&self) {
        let second = self.roles.iter().any(|role| role.name == "gateway-2").then_some(&self.other_url);
        for gateway in [&self.url].into_iter().chain(second) {
            let ready = format!("{gateway}/readyz");
            eventually("the fleet is ready", || async {
                reqwest::get(&ready).await.is_ok_and(|answer| answer.status() == 200)
            })
            .await;
        }
    }

    fn add(&mut self, name: &'static str, settings: Vec<(&'static str, String)>) {
        let process = self.spawn(name, &settings);
        self.roles.push(Role { name, settings, process });
    }

    fn spawn(&self, name: &str, settings: &[(&'static str, String)]) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join(format!("{name}.log")));
        Command::new(BINARY)
            // a second one of a role is told apart by its number
            .arg(name.trim_end_matches("-2"))
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("JWT_SECRET", SECRET)
            .env("DATA_DIR", self.folder.path().join(name))
            .env("POOL_MIN_SIZE", "1")
            .env("SANDBOX_RUNTIMES", "linux")
            .env("RATE_LIMIT_PER_SECOND", "0")
            .envs(settings.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::null())
            .stderr(log.unwrap())
            .spawn()
            .unwrap()
    }

    fn role(&mut self, name: &str) -> &mut Role {
        self.roles.iter_mut().find(|role| role.name == name).unwrap()
    }

    /// The id of a role's process.
    pub fn pid(&mut self, name: &str) -> u32 {
        self.role(name).process.id()
    }

    /// Kills a role without warning.
    pub fn kill(&mut self, name: &str) {
        let process = &mut self.role(name).process;
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Starts a role again that was killed, with the same settings and folder.
    pub fn start_again(&mut self, name: &str) {
        let settings = self.role(name).settings.clone();
        let process = self.spawn(name, &settings);
        self.role(name).process = process;
    }

    /// Kills Redis without warning.
    pub fn kill_redis(&mut self) {
        self.redis.kill().unwrap();
        self.redis.wait().unwrap();
    }

    /// What all roles have logged.
    pub fn logs(&self) -> String {
        let log = |role: &Role| fs::read_to_string(self.folder.path().join(format!("{}.log", role.name))).unwrap();
        self.roles.iter().map(log).collect()
    }

    pub async fn user(&self, name: &str) -> Api {
        let anonymous = Api { http: reqwest::Client::new(), url: self.url.clone(), token: None };
        let (status, answer) = anonymous.post("/api/v1/auth/token", json!({"user_id": name})).await;
        assert_eq!(status, 200, "{answer}");
        Api { token: Some(answer["access_token"].as_str().unwrap().to_owned()), ..anonymous }
    }

    /// An admin, by a token that is signed with the fleet's secret.
    pub fn admin(&self) -> Api {
        let mint = command(&["token", "--user", "root", "--role", "admin"]).env("JWT_SECRET", SECRET).output().unwrap();
        let token = String::from_utf8(mint.stdout).unwrap().trim().to_owned();
        Api { http: reqwest::Client::new(), url: self.url.clone(), token: Some(token) }
    }

    /// Acquires as soon as the node has reported itself.
    pub async fn acquire(&self, api: &Api) -> String {
        eventually("a node is known", || async { api.get("/api/v1/sandbox/stats").await.1["ready"] == 1 }).await;
        api.acquire().await
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // all at once, as each may wait for a Redis that is not there; and that last
        for role in self.roles.iter_mut().rev() {
            tell_to_end(&mut role.process);
        }
        let roles = self.roles.iter_mut().rev().map(|role| (role.name, &mut role.process));
        for (name, process) in roles.chain([("redis", &mut self.redis)]) {
            if name == "redis" {
                tell_to_end(process);
            }
            let _ = process.wait();
            if std::thread::panicking() {
                let log = fs::read_to_string(self.folder.path().join(format!("{name}.log")));
                eprintln!("--- {name} ---\n{}", log.unwrap_or_default());
            }
        }
    }
}

fn tell_to_end(process: &mut Child) {
    if process.try_wait().is_ok_and(|ended| ended.is_none()) {
        let _ = Command::new("kill").arg(process.id().to_string()).status();
    }
}

/// Whether whoever runs the tests has asked to leave out what needs Redis.
pub fn left_out() -> bool {
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
    assert_eq!(left_of(&id), Vec::<String>::new());
}

#[tokio::test]
async fn fleet_without_its_redis_is_not_ready_and_says_so() {
    if left_out() {
        return;
    }
    let mut fleet = Fleet::start().await;
    fleet.kill_redis();
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
    let traces = Traces::of(fleet.pid("node"));
    fleet.kill("node");
    traces.assert_processes_gone();
    let asked = std::time::Instant::now();
    let (status, answer) = ada.post("/api/v1/execute", json!({"sandbox_id": id, "command": "true"})).await;
    assert_eq!((status, reason(&answer)), (503, "NODE_UNREACHABLE"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(5), "at once, not after a timeout");
    assert_eq!(ada.get("/api/v1/sandbox/stats").await.0, 200, "the control plane goes on");
}

#[tokio::test]
async fn node_that_comes_back_drops_what_was_deleted_while_it_was_away() {
    if left_out() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("usr")).unwrap();
    let admin = fleet.admin();
    for name in ["kept", "gone"] {
        let wanted = json!({"name": name, "source": {"folder": {"path": source.path()}}});
        assert_eq!(admin.post("/api/v1/templates", wanted).await.0, 200);
        let path = format!("/api/v1/templates/{name}");
        eventually("the template is ready", || async { admin.get(&path).await.1["state"] == "ready" }).await;
    }
    fleet.kill("node");
    assert_eq!(admin.delete("/api/v1/templates/gone").await.0, 200);
    let trees = fleet.folder.path().join("node/images/trees");
    let names = || fs::read_dir(&trees).unwrap().map(|tree| tree.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!(names().len(), 2, "{:?}", names());
    fleet.start_again("node");
    eventually("what was deleted is dropped", || async { names() == ["kept@1"] }).await;
}
