//! A server whose engine is Podman's service: what a caller does is the same, and so is what others do to containers.

use serde_json::json;

use crate::{
    containers::{World, settings},
    docker::{Docker, podman_left_out},
    harness::{Server, eventually, reason},
};

/// A server with a template of the small image, in a container.
async fn furnished() -> World {
    let world = World::with(Docker::podman_of_this_run()).await;
    let bare = world.docker.bare_image.clone();
    let template = world.template("bare", &bare, &["docker"], json!({})).await;
    assert_eq!(
        (&template["state"], &template["nodes"][0]["runtime"]),
        (&json!("ready"), &json!("docker+runc")),
        "{template}"
    );
    world
}

fn is_there(docker: &Docker, sandbox: &str) -> bool {
    docker.containers().iter().any(|name| name.contains(sandbox))
}

#[tokio::test]
async fn podman_has_sandboxes_with_programs_and_files() {
    if podman_left_out() {
        return;
    }
    let world = furnished().await;
    let id = world.acquire("bare").await;
    let put = json!({"sandbox_id": id, "path": "/workspace/note", "content": "kept\n"});
    assert_eq!(world.ada.put("/api/v1/files", put).await.0, 200);
    let cat = world.ada.execute(&id, json!({"argv": ["/busybox", "cat", "/workspace/note"]})).await;
    assert_eq!((&cat["stdout"], &cat["exit_code"]), (&json!("kept\n"), &json!(0)), "{cat}");
    let who = world.ada.execute(&id, json!({"argv": ["/busybox", "id", "-u"]})).await;
    assert_eq!(who["stdout"], "1000\n", "{who}");
    let foreign = world.template("foreign", &world.docker.foreign_image, &["docker"], json!({})).await;
    assert_eq!(foreign["state"], "failed", "{foreign}");
    world.ada.release(&id).await;
    assert!(!is_there(&world.docker, &id));
}

#[tokio::test]
async fn container_that_others_pause_or_kill_with_podman_is_a_sandbox_that_says_so() {
    if podman_left_out() {
        return;
    }
    let world = furnished().await;
    let id = world.acquire("bare").await;
    let act = |what: &str| world.docker.told("POST", &format!("/containers/{}/{what}", world.container(&id)));
    let state = || async { world.ada.get(&format!("/api/v1/sandbox/{id}")).await.1["state"].clone() };
    act("pause");
    eventually("it is seen to be paused", || async { state().await == "paused" }).await;
    let run = json!({"sandbox_id": id, "argv": ["/busybox", "true"]});
    let (status, answer) = world.ada.post("/api/v1/execute", run.clone()).await;
    assert_eq!((status, reason(&answer)), (400, "SANDBOX_PAUSED"), "{answer}");
    act("unpause");
    eventually("it is seen to go on", || async { state().await == "acquired" }).await;
    assert_eq!(world.ada.execute(&id, run).await["exit_code"], 0);
    let running = tokio::spawn({
        let (ada, id) = (world.ada.clone(), id.clone());
        let line = "echo > /workspace/begun; exec /busybox sleep 60";
        let sleep = json!({"sandbox_id": id, "argv": ["/busybox", "sh", "-c", line]});
        async move { ada.post("/api/v1/execute", sleep).await }
    });
    let begun = json!({"argv": ["/busybox", "test", "-e", "/workspace/begun"]});
    eventually("it runs", || async { world.ada.execute(&id, begun.clone()).await["exit_code"] == 0 }).await;
    world.docker.kill(&world.container(&id));
    let (status, answer) = running.await.unwrap();
    assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
    assert!(answer.to_string().contains("outside"), "{answer}");
    eventually("nothing is left of it", || async { !is_there(&world.docker, &id) }).await;
}

#[tokio::test]
async fn server_that_is_killed_leaves_no_container_with_podman() {
    if podman_left_out() {
        return;
    }
    let world = furnished().await;
    let (running, paused) = (world.acquire("bare").await, world.acquire("bare").await);
    world.docker.told("POST", &format!("/containers/{}/pause", world.container(&paused)));
    let (docker, folder) = (world.docker, world.server.kill());
    eventually("the container ends with its server", || async { !is_there(&docker, &running) }).await;
    assert!(is_there(&docker, &paused), "what stands still cannot end");
    let _next = Server::in_folder(folder, &settings(&docker.url, "linux,docker", &docker.image)).await;
    eventually("it is reclaimed by the next server", || async { !is_there(&docker, &paused) }).await;
}

#[tokio::test]
async fn image_of_podman_is_a_template_of_the_native_runtime() {
    if podman_left_out() {
        return;
    }
    let world = World::with(Docker::podman_of_this_run()).await;
    let template = world.template("taken", &world.docker.bare_image, &["linux"], json!({})).await;
    assert_eq!(
        (&template["state"], &template["nodes"][0]["runtime"]),
        (&json!("ready"), &json!("linux")),
        "{template}"
    );
    let id = world.acquire("taken").await;
    let said = world.ada.execute(&id, json!({"argv": ["/busybox", "echo", "from the image"]})).await;
    assert_eq!(said["stdout"], "from the image\n", "{said}");
    // other tests may be importing, too
    eventually("no container of an import stays", || async {
        !world.docker.containers().iter().any(|name| name.starts_with("cloud-sandbox-import-"))
    })
    .await;
}
