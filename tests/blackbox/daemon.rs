//! A Docker Engine of the test's own: one that is restarted in the middle, stopped as a service manager does it, and killed; and
//! one that gives containers ids that nobody has on the host.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::{
    docker::left_out,
    harness::{Api, Server, command, reason},
    own_engine::OwnEngine,
};

/// Warm sandboxes.
const WARM: usize = 2;
/// What an execution is that goes on for longer than any test.
const SLEEP: [&str; 3] = ["/busybox", "sleep", "1000"];

/// A server, and an engine of its own.
struct World {
    // goes first, as it needs the other for that
    server: Server,
    engine: OwnEngine,
    ada: Api,
}

impl World {
    async fn start(daemon: Value) -> Self {
        let engine = OwnEngine::start(&daemon);
        let settings = [
            ("DOCKER_HOST", engine.docker.url.as_str()),
            ("SANDBOX_RUNTIMES", "linux,docker"),
            ("SANDBOX_IMAGE", &engine.docker.image),
            ("DEFAULT_TEMPLATE", "docker"),
            ("POOL_MIN_SIZE", &WARM.to_string()),
        ];
        let server = Server::with(&settings).await;
        let ada = server.user("ada").await;
        let world = Self { server, engine, ada };
        world.until_full().await;
        world
    }

    /// Waits until there are as many warm sandboxes as there are to be.
    async fn until_full(&self) {
        patiently("the pool is full", || async { self.ready().await == WARM }).await;
    }

    async fn ready(&self) -> usize {
        let metrics = self.ada.get("/metrics").await.1;
        let text = metrics.as_str().unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("cloud_sandbox_pool_sandboxes{state=\"ready\"} "));
        line.and_then(|count| count.parse().ok()).unwrap_or_default()
    }

    /// Starts a program in a sandbox, and returns when it runs. What comes of the call is in the handle.
    async fn begin(&self, id: &str) -> JoinHandle<(u16, Value)> {
        let (ada, sandbox) = (self.ada.clone(), id.to_owned());
        let call = async move { ada.post("/api/v1/execute", json!({"sandbox_id": sandbox, "argv": SLEEP})).await };
        let running = tokio::spawn(call);
        patiently("it runs", || async { self.run(id, json!(["/busybox", "ps"])).await.contains("sleep 1000") }).await;
        running
    }

    async fn run(&self, id: &str, argv: Value) -> String {
        self.ada.execute(id, json!({"argv": argv})).await["stdout"].as_str().unwrap().to_owned()
    }

    /// A sandbox on gVisor.
    async fn acquire_gvisor(&self) -> String {
        self.gvisor().await;
        self.ada.acquire_with(json!({"template": "gvisor"})).await
    }

    /// Makes the template of such sandboxes.
    async fn gvisor(&self) {
        let image = json!({"image": self.engine.docker.image, "pull": "never"});
        let wanted = json!({"name": "gvisor", "runtimes": ["docker+runsc"], "source": {"docker_image": image}});
        let (status, answer) = self.server.admin().post("/api/v1/templates", wanted).await;
        assert_eq!(status, 200, "{answer}");
        patiently("the template is ready", || async {
            self.ada.get("/api/v1/templates/gvisor").await.1["state"] == "ready"
        })
        .await;
    }

    /// Acquires until there is no warm sandbox any more, and gives the refusal.
    async fn refusal(&self) -> Value {
        let start = Instant::now();
        loop {
            let (status, answer) = self.ada.post("/api/v1/sandbox/acquire", json!({})).await;
            if status != 200 {
                assert_eq!((status, reason(&answer)), (503, "RUNTIME_UNAVAILABLE"), "{answer}");
                return answer;
            }
            assert!(start.elapsed() < SOON, "{answer}");
        }
    }

    /// What is refused and what goes on while there is no daemon.
    async fn assert_away(&self) {
        let answer = self.refusal().await.to_string();
        assert!(answer.contains(self.engine.socket()), "{answer}");
        let native = self.ada.acquire_with(json!({"template": "host"})).await;
        assert_eq!(self.ada.shell(&native, "echo fine").await, "fine\n", "the other runtime works");
        self.ada.release(&native).await;
    }

    /// What goes by itself once there is a daemon again.
    async fn assert_back(&self) {
        patiently("sandboxes can be made again", || async {
            let (status, sandbox) = self.ada.post("/api/v1/sandbox/acquire", json!({})).await;
            if status != 200 {
                return false;
            }
            let id = sandbox["sandbox_id"].as_str().unwrap();
            assert_eq!(self.run(id, json!(["/busybox", "echo", "fine"])).await, "fine\n");
            let container = format!("/containers/cloud-sandbox-{id}");
            for (what, state) in [("pause", "paused"), ("unpause", "acquired")] {
                self.engine.docker.told("POST", &format!("{container}/{what}"));
                let path = format!("/api/v1/sandbox/{id}");
                patiently("events are followed", || async { self.ada.get(&path).await.1["state"] == state }).await;
            }
            self.ada.release(id).await;
            true
        })
        .await;
        self.until_full().await;
    }

    /// Stops the server, after which nothing is left of any sandbox on the host.
    async fn stop_leaving_nothing(mut self) {
        self.stop().await;
        patiently("no cgroup and no mount is left", || async { self.engine.left().is_empty() }).await;
    }

    /// Stops the server, after which no container is left.
    async fn stop(&mut self) {
        self.server.signal("TERM");
        assert!(self.server.wait().success(), "{}", self.server.log());
        assert_eq!(self.engine.docker.containers(), Vec::<String>::new());
        let sockets = fs::read_dir(self.server.data_dir.join("run/sockets")).unwrap();
        assert_eq!(sockets.count(), 0);
    }
}

/// How long anything may take on a busy machine.
const SOON: Duration = Duration::from_secs(60);

async fn patiently<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < SOON, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A call that was under way, and later ones, are told that the sandbox is gone with its daemon.
async fn assert_gone_with_daemon(world: &World, id: &str, running: JoinHandle<(u16, Value)>) {
    let (status, answer) = tokio::time::timeout(SOON, running).await.unwrap().unwrap();
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
    assert!(answer.to_string().contains("it ended while its Docker Engine was stopped or did not answer"), "{answer}");
    let (status, answer) = world.ada.post("/api/v1/execute", json!({"sandbox_id": id, "argv": SLEEP})).await;
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
}

/// A session of a checkpoint, and of work since.
async fn session(world: &World) -> String {
    let (status, session) = world.ada.post("/api/v1/sessions", json!({})).await;
    assert_eq!(status, 200, "{session}");
    let path = format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap());
    let put = json!({"session_id": session["session_id"], "path": "/workspace/note", "content": "kept\n"});
    let (status, answer) = world.ada.put("/api/v1/files", put).await;
    assert_eq!(status, 200, "{answer}");
    for (what, body) in [("pause", json!({"depth": "checkpointed"})), ("resume", json!({}))] {
        let (status, answer) = world.ada.post(&format!("{path}/{what}"), body).await;
        assert_eq!(status, 200, "{answer}");
    }
    path
}

#[tokio::test]
async fn daemon_that_is_stopped_takes_its_sandboxes_along_and_all_goes_on_with_the_next() {
    if left_out() {
        return;
    }
    let mut world = World::start(json!({})).await;
    assert!(world.engine.left().iter().any(|path| path.ends_with("/merged")), "what there is is seen");
    let (runc, gvisor) = (world.ada.acquire().await, world.acquire_gvisor().await);
    let running = [world.begin(&runc).await, world.begin(&gvisor).await];
    let session = session(&world).await;
    world.engine.tell("stop");
    for (id, running) in [&runc, &gvisor].into_iter().zip(running) {
        assert_gone_with_daemon(&world, id, running).await;
    }
    world.assert_away().await;
    world.engine.tell("start");
    world.assert_back().await;
    patiently("the session says so", || async { world.ada.get(&session).await.1["state"] == "failed" }).await;
    let (status, resumed) = world.ada.post(&format!("{session}/resume"), json!({})).await;
    assert_eq!((status, &resumed["state"]), (200, &json!("running")), "{resumed}");
    let id = resumed["sandbox_id"].as_str().unwrap();
    assert_eq!(world.run(id, json!(["/busybox", "cat", "/workspace/note"])).await, "kept\n");
    world.stop_leaving_nothing().await;
}

#[tokio::test]
async fn daemon_that_is_killed_takes_its_sandboxes_along_when_it_is_back() {
    if left_out() {
        return;
    }
    let mut world = World::start(json!({})).await;
    assert!(world.engine.left().iter().any(|path| path.ends_with("/merged")), "what there is is seen");
    let (runc, released) = (world.ada.acquire().await, world.ada.acquire().await);
    let gvisor = world.acquire_gvisor().await;
    let (lives, gone) = (world.begin(&runc).await, world.begin(&gvisor).await);
    world.begin(&released).await;
    let container =
        world.engine.docker.told("GET", &format!("/containers/cloud-sandbox-{released}/json"))["Id"].clone();
    assert!(world.engine.processes(&container) > 1);
    world.engine.tell("kill");
    // its streams were the daemon's
    assert_gone_with_daemon(&world, &gvisor, gone).await;
    assert_eq!(
        world.run(&runc, json!(["/busybox", "echo", "fine"])).await,
        "fine\n",
        "its agent is at its node's socket"
    );
    let ada = world.ada.clone();
    let releasing = tokio::spawn(async move { ada.release(&released).await });
    world.assert_away().await;
    patiently("what a released one runs ends at once", || async { world.engine.processes(&container) == 0 }).await;
    assert!(!releasing.is_finished(), "its container is there");
    world.engine.tell("start");
    assert_gone_with_daemon(&world, &runc, lives).await;
    releasing.await.unwrap();
    world.assert_back().await;
    world.stop_leaving_nothing().await;
}

#[tokio::test]
async fn daemon_that_maps_ids_has_sandboxes_whose_root_is_nobody() {
    if left_out() {
        return;
    }
    // the first of so many ids, see own_engine.py
    let (first, user) = (500_000, 501_000);
    let mut world = World::start(json!({"userns-remap": "65534:65534"})).await;
    let doctor = command(&["doctor"]).env("DOCKER_HOST", &world.engine.docker.url).output().unwrap();
    let rows = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(rows.contains("a user namespace: root inside is nobody outside"), "{rows}");
    world.gvisor().await;
    let gvisor = json!({"template": "gvisor"});
    let (status, answer) = world.ada.post("/api/v1/sandbox/acquire", gvisor.clone()).await;
    assert_eq!((status, reason(&answer)), (400, "UNSUPPORTED_BY_HOST"), "{answer}");
    assert!(answer.to_string().contains("must be let through to the data folder"), "{answer}");
    for closed in [world.server.data_dir.as_path(), world.server.data_dir.parent().unwrap()] {
        fs::set_permissions(closed, fs::Permissions::from_mode(0o711)).unwrap();
    }
    for id in [world.ada.acquire().await, world.ada.acquire_with(gvisor).await] {
        let put = json!({"sandbox_id": id, "path": "/workspace/note", "content": "kept\n"});
        assert_eq!(world.ada.put("/api/v1/files", put).await.0, 200);
        let stat = json!(["/busybox", "stat", "-c", "%u %a", "/workspace/note", "/workspace"]);
        assert_eq!(world.run(&id, stat).await, "1000 644\n1000 755\n");
        let running = world.begin(&id).await;
        let container = &world.engine.docker.told("GET", &format!("/containers/cloud-sandbox-{id}/json"));
        if container["HostConfig"]["Runtime"] == "runc" {
            let first_process = format!("/proc/{}", container["State"]["Pid"]);
            let mapped = fs::read_to_string(format!("{first_process}/uid_map")).unwrap();
            assert!(mapped.split_whitespace().nth(1) == Some(&first.to_string()), "{mapped}");
            assert_eq!(fs::metadata(&first_process).unwrap().uid(), user, "as the host sees it");
        }
        world.ada.release(&id).await;
        assert_eq!(running.await.unwrap().0, 404);
    }
    // the OCI runtime leaves a cgroup of what it could not start
    world.stop().await;
}
