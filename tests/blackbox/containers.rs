//! Containers when something is wrong: no daemon, images that do not fit, somebody at the daemon who ends or stops what
//! is not theirs, a server that is killed. And a session that moves from one runtime to another.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        process::CommandExt,
    },
    process::Command,
};

use serde_json::{Value, json};

use crate::{
    docker::{Docker, left_out},
    harness::{Api, BINARY, Server, eventually, left_of, reason},
};

const RUNTIMES: [&str; 2] = ["docker+runc", "docker+runsc"];

/// A server of both runtimes with the engine of the tests.
pub struct World {
    pub server: Server,
    pub docker: Docker,
    pub admin: Api,
    pub ada: Api,
}

impl World {
    async fn start() -> Self {
        Self::with(Docker::of_this_run()).await
    }

    /// The same with another engine.
    pub async fn with(docker: Docker) -> Self {
        let server = Server::with(&settings(&docker.url, "linux,docker", &docker.image)).await;
        let (admin, ada) = (server.admin(), server.user("ada").await);
        Self { server, docker, admin, ada }
    }

    /// Makes a template of an image for a runtime, and waits until it is ready or has failed.
    pub async fn template(&self, name: &str, image: &str, runtimes: &[&str], more: Value) -> Value {
        let mut wanted = json!({"name": name, "runtimes": runtimes});
        wanted["source"] = json!({"docker_image": {"image": image, "pull": "never"}});
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, answer) = self.admin.post("/api/v1/templates", wanted).await;
        assert_eq!(status, 200, "{answer}");
        settled(&self.admin, name).await
    }

    pub async fn acquire(&self, template: &str) -> String {
        self.ada.acquire_with(json!({"template": template})).await
    }

    /// The container of a sandbox.
    pub fn container(&self, sandbox: &str) -> String {
        let mut names = self.docker.containers().into_iter().filter(|name| name.contains(sandbox));
        names.next().expect("a sandbox in a container has one")
    }
}

pub fn settings<'a>(host: &'a str, runtimes: &'a str, image: &'a str) -> [(&'a str, &'a str); 4] {
    [("DOCKER_HOST", host), ("SANDBOX_RUNTIMES", runtimes), ("SANDBOX_IMAGE", image), ("POOL_MIN_SIZE", "0")]
}

/// A template once its node is done with it.
async fn settled(api: &Api, name: &str) -> Value {
    let path = format!("/api/v1/templates/{name}");
    let get = || async { api.get(&path).await.1 };
    eventually("the template is ready or has failed", || async {
        matches!(get().await["state"].as_str(), Some("ready" | "failed"))
    })
    .await;
    get().await
}

async fn refused(api: &Api, template: &str) -> (u16, Value) {
    api.post("/api/v1/sandbox/acquire", json!({"template": template})).await
}

#[tokio::test]
async fn server_without_a_daemon_starts_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("none.sock");
    let url = format!("unix://{}", socket.display());
    let server = Server::with(&settings(&url, "linux,docker", "nothing")).await;
    let ada = server.user("ada").await;
    let id = ada.acquire().await;
    assert_eq!(ada.shell(&id, "echo fine").await, "fine\n", "the other runtime works");
    let (status, answer) = refused(&ada, "docker").await;
    assert_eq!((status, reason(&answer)), (503, "RUNTIME_UNAVAILABLE"), "{answer}");
    assert!(answer.to_string().contains(socket.to_str().unwrap()), "{answer}");
    eventually("the operator is told", || async { server.log().contains(socket.to_str().unwrap()) }).await;

    let server = Server::with(&settings(&url, "docker", "nothing")).await;
    let ada = server.user("ada").await;
    let (status, answer) = ada.post("/api/v1/sandbox/acquire", json!({})).await;
    assert_eq!((status, reason(&answer)), (503, "RUNTIME_UNAVAILABLE"), "{answer}");
}

#[tokio::test]
async fn user_who_may_not_use_the_socket_is_told_which() {
    if left_out() {
        return;
    }
    let docker = Docker::of_this_run();
    // of this test run alone
    let somebody = 400_000 + std::process::id() % 100_000;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = folder.path().join("cloud-sandbox");
    fs::copy(BINARY, &binary).unwrap();
    let data = tempfile::tempdir_in(folder.path()).unwrap();
    chown(data.path(), Some(somebody), Some(somebody)).expect("these tests run as root, to run this as another user");
    let mut command = Command::new(binary);
    command.current_dir("/").uid(somebody).gid(somebody);
    let server = Server::launched(command, data, &settings(&docker.url, "linux,docker", &docker.image)).await;
    let (status, answer) = refused(&server.user("ada").await, "docker").await;
    assert_eq!((status, reason(&answer)), (503, "RUNTIME_UNAVAILABLE"), "{answer}");
    let text = answer.to_string();
    assert!(text.contains("docker.sock") && text.to_lowercase().contains("permission"), "{text}");
}

#[tokio::test]
async fn image_that_cannot_be_used_fails_its_template_with_the_reason() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    let other = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    for (name, image, told) in [
        ("missing", "cloud-sandbox-test:no-such-image", "no-such-image"),
        ("foreign", world.docker.foreign_image.as_str(), other),
    ] {
        let template = world.template(name, image, &["docker"], json!({})).await;
        assert_eq!(template["state"], "failed", "{template}");
        assert!(template["nodes"][0]["detail"].as_str().unwrap().contains(told), "{template}");
        let (status, answer) = refused(&world.ada, name).await;
        assert_eq!((status, reason(&answer)), (400, "TEMPLATE_FAILED"), "{answer}");
        assert!(answer.to_string().contains(told), "{answer}");
    }
}

#[tokio::test]
async fn image_without_a_shell_runs_programs_and_has_files() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    for runtime in RUNTIMES {
        let name = format!("bare-{}", runtime.rsplit('+').next().unwrap());
        let template = world.template(&name, &world.docker.bare_image, &[runtime], json!({})).await;
        assert_eq!((&template["state"], &template["nodes"][0]["runtime"]), (&json!("ready"), &json!(runtime)));
        let id = world.acquire(&name).await;
        let put = json!({"sandbox_id": id, "path": "/workspace/note", "content": "kept\n"});
        assert_eq!(world.ada.put("/api/v1/files", put).await.0, 200);
        let cat = world.ada.execute(&id, json!({"argv": ["/busybox", "cat", "/workspace/note"]})).await;
        assert_eq!((&cat["stdout"], &cat["exit_code"]), (&json!("kept\n"), &json!(0)), "{cat}");
        let line = json!({"sandbox_id": id, "command": "echo hello"});
        let (status, answer) = world.ada.post("/api/v1/execute", line).await;
        assert_eq!((status, reason(&answer)), (400, "PROGRAM_NOT_FOUND"), "{answer}");
    }
}

#[tokio::test]
async fn start_command_is_waited_for_and_one_that_is_never_ready_leaves_no_container() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    let image = world.docker.image.clone();
    let start = json!({"command": "sleep 0.2; echo up > up; exec sleep 1000", "ready_command": "test -e up"});
    world.template("soon", &image, &["docker"], json!({"start": start})).await;
    let id = world.acquire("soon").await;
    assert_eq!(world.ada.shell(&id, "cat up").await, "up\n");

    let start = json!({"command": "echo not today; exec sleep 1000", "ready_command": "false", "ready_seconds": 5});
    world.template("never", &image, &["docker"], json!({"start": start})).await;
    let (status, answer) = refused(&world.ada, "never").await;
    assert_eq!((status, reason(&answer)), (400, "TEMPLATE_FAILED"), "{answer}");
    assert!(answer.to_string().contains("not today"), "{answer}");

    let start = json!({"command": "echo broken >&2; exit 3", "ready_command": "false", "ready_seconds": 30});
    world.template("broken", &image, &["docker"], json!({"start": start})).await;
    let (status, answer) = refused(&world.ada, "broken").await;
    assert_eq!((status, reason(&answer)), (400, "TEMPLATE_FAILED"), "{answer}");
    assert!(answer.to_string().contains("broken") && answer.to_string().contains('3'), "{answer}");

    let own = world.container(&id);
    let instance =
        &world.docker.told("GET", &format!("/containers/{own}/json"))["Config"]["Labels"]["cloud-sandbox.instance"];
    let filter = format!("%7B%22label%22%3A%5B%22cloud-sandbox.instance%3D{}%22%5D%7D", instance.as_str().unwrap());
    eventually("what was not ready is gone", || async {
        let all = world.docker.told("GET", &format!("/containers/json?all=true&filters={filter}"));
        all.as_array().unwrap().len() == 1
    })
    .await;
}

/// A sandbox for each runtime of containers.
async fn one_of_each(world: &World) -> Vec<String> {
    let mut ids = Vec::new();
    for runtime in RUNTIMES {
        let name = runtime.rsplit('+').next().unwrap();
        world.template(name, &world.docker.image, &[runtime], json!({})).await;
        ids.push(world.acquire(name).await);
    }
    ids
}

#[tokio::test]
async fn container_that_is_killed_or_removed_by_others_ends_its_sandbox_and_says_so() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    let killed = one_of_each(&world).await;
    let removed = one_of_each(&world).await;
    for (ids, method, end) in [(killed, "POST", "/kill"), (removed, "DELETE", "?force=true")] {
        for id in ids {
            let running = tokio::spawn({
                let (ada, id) = (world.ada.clone(), id.clone());
                async move { ada.post("/api/v1/execute", json!({"sandbox_id": id, "command": "sleep 60"})).await }
            });
            eventually("it runs", || async { !world.ada.shell(&id, "pgrep -x sleep").await.is_empty() }).await;
            world.docker.told(method, &format!("/containers/{}{end}", world.container(&id)));
            let (status, answer) = running.await.unwrap();
            assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
            assert!(answer.to_string().contains("outside"), "{answer}");
            eventually("nothing is left of it", || async { left_of(&id).is_empty() }).await;
            let (status, answer) =
                world.ada.post("/api/v1/execute", json!({"sandbox_id": id, "command": "true"})).await;
            assert_eq!(status, 404, "{answer}");
        }
    }
}

#[tokio::test]
async fn container_that_is_paused_by_others_is_a_paused_sandbox() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    for id in one_of_each(&world).await {
        let container = world.container(&id);
        let state = || async { world.ada.get(&format!("/api/v1/sandbox/{id}")).await.1["state"].clone() };
        world.docker.told("POST", &format!("/containers/{container}/pause"));
        eventually("it is seen", || async { state().await == "paused" }).await;
        let (status, answer) = world.ada.post("/api/v1/execute", json!({"sandbox_id": id, "command": "true"})).await;
        assert_eq!((status, reason(&answer)), (400, "SANDBOX_PAUSED"), "{answer}");
        assert!(answer.to_string().contains("outside"), "{answer}");
        world.docker.told("POST", &format!("/containers/{container}/unpause"));
        eventually("it is seen", || async { state().await == "acquired" }).await;
        assert_eq!(world.ada.shell(&id, "echo fine").await, "fine\n");
        world.docker.told("POST", &format!("/containers/{container}/pause"));
        world.ada.release(&id).await;
        assert_eq!(left_of(&id), Vec::<String>::new(), "also one that stands still");
    }
}

#[tokio::test]
async fn server_that_is_killed_leaves_no_container() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    let ids = one_of_each(&world).await;
    for id in &ids {
        world.ada.shell(id, "setsid sleep 1000 >/dev/null 2>&1 &").await;
    }
    let paused = one_of_each(&world).await;
    for id in &paused {
        world.docker.told("POST", &format!("/containers/{}/pause", world.container(id)));
    }
    let folder = world.server.kill();
    for id in &ids {
        eventually("the container ends with its server", || async { left_of(id).is_empty() }).await;
    }
    // what stood still could not end: the next server does it
    let (docker, image) = (&world.docker.url, &world.docker.image);
    let _next = Server::in_folder(folder, &settings(docker, "linux,docker", image)).await;
    for id in &paused {
        eventually("what was paused is reclaimed", || async { left_of(id).is_empty() }).await;
    }
}

#[tokio::test]
async fn archive_of_the_same_system_is_a_template_of_the_native_runtime() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    let source = json!({"tarball": {"path": world.docker.rootfs}});
    let wanted = json!({"name": "archive", "source": source, "runtimes": ["linux"]});
    let (status, answer) = world.admin.post("/api/v1/templates", wanted).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(settled(&world.admin, "archive").await["state"], "ready");
    let id = world.acquire("archive").await;
    assert_eq!(world.ada.python(&id, "print(6 * 7)").await, "42\n");
    let program = json!({"code": "console.log(6 * 7)", "language": "javascript"});
    assert_eq!(world.ada.execute(&id, program).await["stdout"], "42\n", "from the archive, whatever the host has");
}

#[tokio::test]
async fn session_moves_from_a_container_to_the_native_runtime_and_back() {
    if left_out() {
        return;
    }
    let world = World::start().await;
    let (url, image) = (world.docker.url.clone(), world.docker.image.clone());
    world.template("both", &image, &["docker+runc", "linux"], json!({})).await;
    let (status, session) = world.ada.post("/api/v1/sessions", json!({"template": "both"})).await;
    assert_eq!(status, 200, "{session}");
    let path = format!("/api/v1/sessions/{}", session["session_id"].as_str().unwrap());
    let id = session["session_id"].clone();
    let (mut server, mut ada) = (world.server, world.ada);
    let run = async |ada: &Api, what: Value| {
        let mut what = what;
        what["session_id"] = id.clone();
        let (status, answer) = ada.post("/api/v1/execute", what).await;
        assert_eq!((status, &answer["exit_code"]), (200, &json!(0)), "{answer}");
        answer["stdout"].as_str().unwrap().to_owned()
    };
    let kept =
        json!({"command": "mkdir -p d; echo kept > d/note; chmod 640 d/note; ln -s d/note link; ln d/note hard"});
    run(&ada, kept).await;
    run(&ada, json!({"code": "known = {'a': 1}", "context_id": "default"})).await;
    let look = json!({"command": "cat link; stat -c '%a %h %u' d/note; readlink link"});
    let before = run(&ada, look.clone()).await;

    for (runtimes, runtime) in [("linux", "linux"), ("docker", "docker+runc")] {
        let (status, paused) = ada.post(&format!("{path}/pause"), json!({"depth": "checkpointed"})).await;
        assert_eq!((status, &paused["state"]), (200, &json!("paused")), "{paused}");
        server.signal("TERM");
        assert!(server.wait().success(), "{}", server.log());
        server = Server::in_folder(server.kill(), &settings(&url, runtimes, &image)).await;
        ada = server.user("ada").await;
        assert_eq!(settled(&ada, "both").await["nodes"][0]["runtime"], runtime);
        let (status, resumed) = ada.post(&format!("{path}/resume"), json!({})).await;
        assert_eq!((status, &resumed["state"]), (200, &json!("running")), "{resumed}");
        let sandbox = resumed["sandbox_id"].as_str().unwrap();
        assert_eq!(ada.get(&format!("/api/v1/sandbox/{sandbox}")).await.1["runtime"], runtime);
        assert_eq!(run(&ada, look.clone()).await, before, "on {runtime}");
        let value = run(&ada, json!({"code": "print(known)", "context_id": "default"})).await;
        assert_eq!(value, "{'a': 1}\n", "on {runtime}");
    }
    assert_eq!(ada.delete(&path).await.0, 200);
}
