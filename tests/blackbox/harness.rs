//! Starts servers on free ports, talks to them, and looks at what they leave behind.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::docker::{self, Docker};

/// The program under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_cloud-sandbox");

const START_DEADLINE: Duration = Duration::from_secs(30);
const STOP_DEADLINE: Duration = Duration::from_secs(20);
const STEP: Duration = Duration::from_millis(20);
/// How long anything may take that is done soon. Generous: it tells a hang from a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// A running server.
pub struct Server {
    child: Child,
    /// `http://127.0.0.1:port`
    pub url: String,
    /// `http://127.0.0.1:port` of plain gRPC
    pub grpc_url: String,
    /// where it keeps everything
    pub data_dir: PathBuf,
    /// what its tokens are signed with, unless it made that itself
    secret: Option<String>,
    folder: TempDir,
}

/// Settings of a server, as environment variables.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

impl Server {
    /// A server with a small pool and no rate limit.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with settings of its own.
    pub async fn with(settings: Settings<'_>) -> Self {
        Self::in_folder(tempfile::tempdir().unwrap(), settings).await
    }

    /// A server that finds what an earlier one kept.
    pub async fn in_folder(folder: TempDir, settings: Settings<'_>) -> Self {
        Self::launched(Command::new(BINARY), folder, settings).await
    }

    /// A server that a command of the test's own starts, as another user for example.
    pub async fn launched(command: Command, folder: TempDir, settings: Settings<'_>) -> Self {
        Self::launched_on(crate::RUNTIME, command, folder, settings).await
    }

    /// The same, whose sandboxes are of this runtime where nobody asks for a template.
    pub async fn launched_on(runtime: &str, mut command: Command, folder: TempDir, settings: Settings<'_>) -> Self {
        let rooms = Rooms::of(runtime);
        let (port, grpc_port) = (free_port(), free_port());
        let data_dir = folder.path().join("data");
        let log = fs::File::create(folder.path().join("log")).unwrap();
        let child = command
            .arg("serve")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("LISTEN", format!("127.0.0.1:{port}"))
            .env("GRPC_LISTEN", format!("127.0.0.1:{grpc_port}"))
            .env("DATA_DIR", &data_dir)
            .env("POOL_MIN_SIZE", "1")
            .env("POOL_MAX_SIZE", "16")
            .env("RATE_LIMIT_PER_SECOND", "0")
            .env("HOST_SECRET", "must-not-leak")
            .envs(rooms.settings())
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let (url, grpc_url) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{grpc_port}"));
        let secret = settings.iter().find(|(name, _)| *name == "JWT_SECRET").map(|(_, secret)| (*secret).to_owned());
        let mut server = Self { child, url, grpc_url, data_dir, secret, folder };
        server.wait_until_ready().await;
        rooms.furnish(&server).await;
        server
    }

    async fn wait_until_ready(&mut self) {
        let start = Instant::now();
        while !reqwest::get(format!("{}/readyz", self.url)).await.is_ok_and(|answer| answer.status() == 200) {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the server ended with {status}:\n{}", self.log());
            }
            assert!(start.elapsed() < START_DEADLINE, "the server is not ready:\n{}", self.log());
            tokio::time::sleep(STEP).await;
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the server.
    pub fn signal(&self, signal: &str) {
        let pid = self.pid().to_string();
        assert!(Command::new("kill").args([&format!("-{signal}"), &pid]).status().unwrap().success());
    }

    /// Waits for the server's end.
    pub fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < STOP_DEADLINE, "the server does not end:\n{}", self.log());
            thread::sleep(STEP);
        }
    }

    /// Kills the server without warning and keeps its folder for the next one.
    pub fn kill(mut self) -> TempDir {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    /// A client with a token for a user.
    pub async fn user(&self, name: &str) -> Api {
        let anonymous = Api { http: reqwest::Client::new(), url: self.url.clone(), token: None };
        let (status, answer) = anonymous.post("/api/v1/auth/token", json!({"user_id": name, "role": "user"})).await;
        assert_eq!(status, 200, "{answer}");
        Api { token: Some(answer["access_token"].as_str().unwrap().to_owned()), ..anonymous }
    }

    /// A client with a token for an admin, which only whoever has the server's secret can make.
    pub fn admin(&self) -> Api {
        let mut mint = command(&["token", "--user", "root", "--role", "admin", "--data-dir"]);
        mint.arg(&self.data_dir).envs(self.secret.iter().map(|secret| ("JWT_SECRET", secret)));
        let minted = mint.output().unwrap();
        assert!(minted.status.success(), "{}", String::from_utf8_lossy(&minted.stderr));
        let token = String::from_utf8(minted.stdout).unwrap().trim().to_owned();
        Api { http: reqwest::Client::new(), url: self.url.clone(), token: Some(token) }
    }

    /// What the server has on the host now: its child processes with their cgroups.
    pub fn traces(&self) -> Traces {
        Traces::of(self.pid())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            self.signal("TERM");
            let start = Instant::now();
            while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && start.elapsed() < STOP_DEADLINE {
                thread::sleep(STEP);
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
    }
}

/// What the sandboxes of a server are made by and from, where nobody asks for a template.
enum Rooms {
    /// by the native runtime, from the host's own `/usr`
    Host,
    /// by a runtime of containers, from the image of the tests
    Containers { runtime: String, docker: Docker },
}

/// The template that says so.
const TEMPLATE: &str = "suite";

/// What sandboxes say they were made from, where nobody asked for a template.
pub fn template() -> String {
    if crate::RUNTIME == "linux" { "host".into() } else { format!("{TEMPLATE}@1") }
}

impl Rooms {
    fn of(runtime: &str) -> Self {
        if runtime == "linux" {
            return Self::Host;
        }
        if docker::left_out() {
            // a program of tests that need it all, or a process of this one test
            std::process::exit(0);
        }
        Self::Containers { runtime: runtime.to_owned(), docker: Docker::of_this_run() }
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Host => vec![("SANDBOX_RUNTIMES", "linux".into())],
            Self::Containers { docker, .. } => vec![
                ("SANDBOX_RUNTIMES", "docker".into()),
                ("DOCKER_HOST", docker.url.clone()),
                ("SANDBOX_IMAGE", docker.image.clone()),
                ("DEFAULT_TEMPLATE", TEMPLATE.into()),
                // they take their time, and most tests need one
                ("POOL_MIN_SIZE", "0".into()),
            ],
        }
    }

    /// Makes the template, unless an earlier server on the same data has, and waits until it can be used.
    async fn furnish(&self, server: &Server) {
        let Self::Containers { runtime, docker } = self else { return };
        let admin = server.admin();
        let path = format!("/api/v1/templates/{TEMPLATE}");
        if admin.get(&path).await.0 == 404 {
            let image = json!({"image": docker.image, "pull": "never"});
            let wanted = json!({"name": TEMPLATE, "source": {"docker_image": image}, "runtimes": [runtime]});
            let (status, answer) = admin.post("/api/v1/templates", wanted).await;
            assert_eq!(status, 200, "{answer}");
        }
        eventually("the template can be used", || async {
            let (_, template) = admin.get(&path).await;
            assert_ne!(template["state"], "failed", "{template}");
            template["state"] == "ready"
        })
        .await;
    }
}

/// A REST client.
#[derive(Clone)]
pub struct Api {
    pub http: reqwest::Client,
    pub url: String,
    pub token: Option<String>,
}

impl Api {
    pub fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(request: reqwest::RequestBuilder) -> (u16, Value) {
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub async fn get(&self, path: &str) -> (u16, Value) {
        Self::send(self.request("GET", path)).await
    }

    pub async fn delete(&self, path: &str) -> (u16, Value) {
        Self::send(self.request("DELETE", path)).await
    }

    pub async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        Self::send(self.request("POST", path).json(&body)).await
    }

    pub async fn put(&self, path: &str, body: Value) -> (u16, Value) {
        Self::send(self.request("PUT", path).json(&body)).await
    }

    /// Acquires a sandbox as described and gives its id.
    pub async fn acquire_with(&self, body: Value) -> String {
        let (status, sandbox) = self.post("/api/v1/sandbox/acquire", body).await;
        assert_eq!(status, 200, "{sandbox}");
        sandbox["sandbox_id"].as_str().unwrap().to_owned()
    }

    pub async fn acquire(&self) -> String {
        self.acquire_with(json!({})).await
    }

    pub async fn release(&self, id: &str) {
        let (status, answer) = self.post("/api/v1/sandbox/release", json!({"sandbox_id": id})).await;
        assert_eq!(status, 200, "{answer}");
    }

    /// Runs something and expects an answer, whatever its exit code.
    pub async fn execute(&self, id: &str, mut what: Value) -> Value {
        what["sandbox_id"] = id.into();
        let (status, answer) = self.post("/api/v1/execute", what).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Runs a shell line and gives what it printed, both streams together.
    pub async fn shell(&self, id: &str, line: &str) -> String {
        let answer = self.execute(id, json!({"command": line})).await;
        format!("{}{}", answer["stdout"].as_str().unwrap(), answer["stderr"].as_str().unwrap())
    }

    /// Runs Python and gives what it printed, both streams together.
    pub async fn python(&self, id: &str, code: &str) -> String {
        let answer = self.execute(id, json!({"code": code, "language": "python"})).await;
        format!("{}{}", answer["stdout"].as_str().unwrap(), answer["stderr"].as_str().unwrap())
    }
}

/// The reason in an error's details.
pub fn reason(answer: &Value) -> &str {
    answer["error"]["details"][0]["reason"].as_str().unwrap_or_default()
}

/// What a server has on the host.
#[derive(Debug, Default)]
pub struct Traces {
    processes: HashSet<(u32, Option<String>)>,
    cgroups: HashSet<PathBuf>,
}

impl Traces {
    /// The children of a process, with their cgroups.
    pub fn of(pid: u32) -> Self {
        let mut traces = Self::default();
        for pid in children(pid) {
            traces.cgroups.extend(cgroups(pid));
            traces.processes.insert((pid, started(pid)));
        }
        traces
    }

    /// The resident memory of each process, in KiB.
    pub fn resident_kib(&self) -> Vec<u64> {
        let status = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident = |text: String| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.split_whitespace().next()?.parse().ok()
        };
        self.processes.iter().filter_map(|(pid, _)| resident(status(pid))).collect()
    }

    pub fn is_empty(&self) -> bool {
        self.processes.is_empty()
    }

    /// Fails unless all of it is gone, soon.
    pub fn assert_gone(&self) {
        let start = Instant::now();
        loop {
            let processes: Vec<_> =
                self.processes.iter().filter(|(pid, begun)| begun.is_some() && started(*pid) == *begun).collect();
            let cgroups: Vec<_> = self.cgroups.iter().filter(|path| path.exists()).collect();
            if processes.is_empty() && cgroups.is_empty() {
                return;
            }
            assert!(start.elapsed() < SOON, "left behind: {processes:?} {cgroups:?}");
            thread::sleep(STEP);
        }
    }

    /// Fails unless all processes are gone, soon. (Their cgroups wait for the next server to reclaim them.)
    pub fn assert_processes_gone(&self) {
        Self { processes: self.processes.clone(), cgroups: HashSet::new() }.assert_gone();
    }
}

/// When a process was started, in the kernel's words; `None` when there is no such process, or only its zombie.
fn started(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = stat.rsplit_once(") ")?.1.split(' ').collect();
    (fields[0] != "Z").then(|| fields[19].to_owned())
}

/// The processes that a process has started and that still are.
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// The folders of the sandbox cgroups that a process is in.
fn cgroups(pid: u32) -> Vec<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let own = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        let mount = Path::new("/sys/fs/cgroup").join(controllers);
        path.contains("cloud-sandbox-").then(|| mount.join(path.trim_start_matches('/')))
    });
    own.collect()
}

/// Every cgroup of a sandbox, in any hierarchy.
pub fn cgroups_of(sandbox: &str) -> Vec<String> {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", sandbox]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}

/// Everything that the host has of a sandbox: cgroups, and containers in any state.
pub fn left_of(sandbox: &str) -> Vec<String> {
    let mut left = cgroups_of(sandbox);
    if let Some(docker) = Docker::if_there() {
        let containers = docker.containers();
        left.extend(
            containers.into_iter().filter(|name| name.contains(sandbox)).map(|name| format!("container {name}")),
        );
    }
    left
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    loop {
        // below those that the kernel gives by itself, so that no connection has it before it is used
        let port = 10_000 + rand::random::<u16>() % 20_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && GIVEN.lock().unwrap().insert(port) {
            return port;
        }
    }
}

/// Waits for something that takes its time, and fails when it does not come.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < SOON, "never happened: {what}");
        tokio::time::sleep(STEP).await;
    }
}

/// The program with arguments and without the surroundings' settings.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}
