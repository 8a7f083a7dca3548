//! Templates: created, shown, prepared and removed, by the command line and by REST. Those of the native runtime are made of
//! a folder that has nothing but a static program; those of containers have tests of their own.

use std::{
    fs,
    io::Write,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{
    fleet::{self, Fleet},
    harness::{Api, Server, command, eventually, free_port, reason},
};

/// A command about the templates of `server`, with the secret in its data folder.
fn template(server: &Server, arguments: &[&str]) -> Command {
    let mut command = command(&["template"]);
    command.args(arguments).args(["--server", &server.url, "--data-dir", server.data_dir.to_str().unwrap()]);
    command
}

fn run(mut command: Command) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// A port that takes connections and answers nothing.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let image = format!("{}/acme/tools:1", listener.local_addr().unwrap());
    (listener, image)
}

#[tokio::test]
async fn commands_create_list_show_and_remove() {
    let server = Server::start().await;
    let (_listener, image) = silent();
    let add = ["add", "tools", "--registry", &image, "--plain-http", "--memory", "64MiB", "--warm", "0", "--no-wait"];
    for version in ["tools@1\n", "tools@2\n"] {
        let mut add = template(&server, &add);
        add.args(["--username", "ada", "--password-stdin", "--env", "A=1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut adding = add.spawn().unwrap();
        adding.stdin.take().unwrap().write_all(b"hunter2\n").unwrap();
        let added = adding.wait_with_output().unwrap();
        assert_eq!((added.status.code(), String::from_utf8_lossy(&added.stdout).as_ref()), (Some(0), version));
    }
    let (code, listed, _) = run(template(&server, &["list"]));
    assert_eq!(code, Some(0));
    let rows: Vec<_> = listed.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(rows, ["TEMPLATE", "host", "tools@2"], "{listed}");
    let (_, versions, _) = run(template(&server, &["list", "tools"]));
    assert_eq!(versions.lines().count(), 3, "{versions}");

    let (code, shown, _) = run(template(&server, &["show", "tools@1"]));
    assert_eq!(code, Some(0));
    for part in ["tools@1", &image, "as ada", "A=1", "67108864"] {
        assert!(shown.contains(part), "{part} in\n{shown}");
    }
    assert!(!shown.contains("hunter2") && !server.log().contains("hunter2"));
    let (_, text, _) = run(template(&server, &["show", "tools", "--json"]));
    let whole: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&whole["version"], &whole["source"]["registry"]["username"]), (&json!(2), &json!("ada")), "{whole}");
    assert_eq!(server.admin().get("/api/v1/templates/tools").await.1["source"], whole["source"]);
    let (_, text, _) = run(template(&server, &["list", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["templates"].as_array().unwrap().len(), 2);

    assert_eq!(run(template(&server, &["remove", "tools@1"])), (Some(0), "tools@1\n".into(), String::new()));
    assert_eq!(run(template(&server, &["remove", "tools"])).1, "tools@2\n");
    let (code, _, stderr) = run(template(&server, &["remove", "tools"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("template 'tools' does not exist"), "{stderr}");
}

#[test]
fn interrupted_add_says_that_what_was_begun_goes_on() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let adding = command(&["template", "add", "slow", "--host", "--token", "t", "--server", &url])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _connection = silent.accept().unwrap();
    assert!(Command::new("kill").args(["-INT", &adding.id().to_string()]).status().unwrap().success());
    let ended = adding.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("goes on") && stderr.contains("cloud-sandbox template show slow"), "{stderr}");
}

#[tokio::test]
async fn add_that_no_node_can_prepare_fails_with_the_reason() {
    let server = Server::start().await;
    let (code, stdout, stderr) = run(template(&server, &["add", "none", "--folder", "/nonexistent/rootfs"]));
    assert_eq!((code, stdout.as_str()), (Some(1), "none@1\n"), "{stderr}");
    assert!(stderr.contains("none@1 failed on node "), "{stderr}");
    let api = server.user("ada").await;
    let (status, answer) = api.post("/api/v1/sandbox/acquire", json!({"template": "none"})).await;
    assert_eq!((status, reason(&answer)), (400, "TEMPLATE_FAILED"), "{answer}");
}

#[tokio::test]
async fn template_of_the_host_is_prepared_and_used_and_its_version_told() {
    let server = Server::start().await;
    let add = ["add", "shell", "--host", "--language", "bash", "--env", "FROM=template"];
    let (code, stdout, stderr) = run(template(&server, &add));
    assert_eq!((code, stdout.as_str()), (Some(0), "shell@1\n"), "{stderr}");
    assert!(stderr.contains("shell@1 is ready on 1 of 1 nodes"), "{stderr}");
    let api = server.user("ada").await;
    let (status, sandbox) = api.post("/api/v1/sandbox/acquire", json!({"template": "shell"})).await;
    assert_eq!(
        (status, &sandbox["template"], &sandbox["runtime"]),
        (200, &json!("shell@1"), &json!("linux")),
        "{sandbox}"
    );
    let id = sandbox["sandbox_id"].as_str().unwrap();
    assert_eq!(api.shell(id, "echo $FROM").await, "template\n");
    let session = api.post("/api/v1/sessions", json!({"template": "shell"})).await.1;
    assert_eq!(session["template"], "shell", "{session}");
    api.release(id).await;
}

#[tokio::test]
async fn users_read_templates_and_only_admins_change_them() {
    let server = Server::start().await;
    let (user, admin) = (server.user("ada").await, server.admin());
    let wanted = json!({"name": "a", "source": {"host": {}}});
    let (status, answer) = user.post("/api/v1/templates", wanted.clone()).await;
    assert_eq!((status, reason(&answer)), (403, "ROLE_DENIED"), "{answer}");
    let (status, created) = admin.post("/api/v1/templates", wanted).await;
    assert_eq!((status, &created["version"]), (200, &json!(1)), "{created}");
    assert_eq!(user.get("/api/v1/templates/a@1").await.1["create_time"], created["create_time"]);
    let (status, answer) = user.delete("/api/v1/templates/a").await;
    assert_eq!((status, reason(&answer)), (403, "ROLE_DENIED"), "{answer}");
    assert_eq!(admin.delete("/api/v1/templates/a").await, (200, json!({"deleted": ["a@1"]})));
    for (method, path) in [("GET", "/api/v1/templates/a"), ("DELETE", "/api/v1/templates/a")] {
        let answer = admin.request(method, path).send().await.unwrap();
        assert_eq!(answer.status(), 404, "{method}");
    }
    let (status, answer) = user.post("/api/v1/sandbox/acquire", json!({"template": "a"})).await;
    assert_eq!((status, reason(&answer)), (404, "TEMPLATE_NOT_FOUND"), "{answer}");
    let (status, answer) = user.post("/api/v1/sessions", json!({"template": "a"})).await;
    assert_eq!((status, reason(&answer)), (404, "TEMPLATE_NOT_FOUND"), "{answer}");
    assert_eq!(user.get("/api/v1/sessions").await.1["sessions"], json!([]), "a session that cannot be leaves nothing");

    let bad = json!({"name": "Bad", "source": {"folder": {"path": "a"}}, "runtimes": ["vm"], "warm_size": 1001});
    let (status, answer) = admin.post("/api/v1/templates", bad).await;
    let text = answer.to_string();
    assert_eq!(status, 400, "{text}");
    assert!(text.contains("runtimes[0]") && !text.contains("internal"), "{text}");
}

#[tokio::test]
async fn get_of_a_template_streams_what_changes_where_events_are_accepted() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let answer = api.request("GET", "/api/v1/templates/host").header("accept", "application/x-ndjson");
    let text = answer.send().await.unwrap().text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((lines.len(), &lines[0]["state"]), (1, &json!("ready")), "{text}");
    let answer = api.request("GET", "/api/v1/templates/nobody").header("accept", "text/event-stream");
    assert_eq!(answer.send().await.unwrap().status(), 404);
}

#[tokio::test]
async fn templates_outlive_their_server_and_lie_where_only_their_owner_reads() {
    let server = Server::start().await;
    let (_listener, image) = silent();
    let wanted =
        json!({"name": "kept", "source": {"registry": {"image": image, "username": "ada", "password": "hunter2"}}});
    assert_eq!(server.admin().post("/api/v1/templates", wanted).await.0, 200);
    let server = Server::in_folder(server.kill(), &[]).await;
    let (status, kept) = server.admin().get("/api/v1/templates/kept").await;
    assert_eq!((status, &kept["version"]), (200, &json!(1)), "{kept}");
    assert!(!kept.to_string().contains("hunter2"));
    let file = server.data_dir.join("sessions.db");
    assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600);
    eventually("the node has heard of it", || async {
        let api = server.user("ada").await;
        let node = &api.get("/api/v1/templates/kept").await.1["nodes"][0];
        node["detail"].as_str().is_some_and(|detail| !detail.is_empty())
    })
    .await;
}

#[tokio::test]
async fn token_is_needed_where_the_secret_is_not_and_errors_say_what_helps() {
    let server = Server::start().await;
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = |arguments: &[&str]| {
        let mut command = command(&["template"]);
        command.args(arguments).args(["--server", &server.url, "--data-dir", folder.path().to_str().unwrap()]);
        command
    };
    // a server on loopback hands out tokens of users
    assert_eq!(run(elsewhere(&["list"])).0, Some(0));
    let (code, _, stderr) = run(elsewhere(&["add", "a", "--host", "--no-wait"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("--role admin"), "{stderr}");
    assert!(!folder.path().join("jwt-secret").exists(), "nothing is made");
    let mut with_token = elsewhere(&["add", "a", "--host", "--no-wait"]);
    with_token.env("CLOUD_SANDBOX_TOKEN", server.admin().token.unwrap());
    assert_eq!(run(with_token).1, "a@1\n");
    let (code, _, stderr) = run(elsewhere(&["list", "--token", "nonsense"]));
    assert_eq!(code, Some(1));
    assert!(stderr.contains("CLOUD_SANDBOX_TOKEN"), "{stderr}");
    let by_variable = |url: &str| {
        let mut command = command(&["template", "list", "--token", &server.admin().token.unwrap()]);
        command.env("CLOUD_SANDBOX_URL", url);
        command
    };
    assert_eq!(run(by_variable(&server.url)).0, Some(0));
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let (code, _, stderr) = run(by_variable(&nobody));
    assert_eq!(code, Some(1));
    for told in [&nobody, "refused", "--server"] {
        assert!(stderr.contains(told), "{stderr}");
    }
    for (arguments, code, named) in [
        (&["show", "host@x"][..], 1, "name must be"),
        (&["add", "host", "--host"][..], 1, "name must not be that of a built-in template"),
        (&["add", "a"][..], 2, "--folder"),
        (&["fly"][..], 2, "fly"),
    ] {
        let mut command = elsewhere(arguments);
        command.env("CLOUD_SANDBOX_TOKEN", server.admin().token.unwrap());
        let (status, _, stderr) = run(command);
        assert_eq!(status, Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(named), "{arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn scheduler_on_its_own_keeps_templates_and_tells_the_node() {
    if fleet::left_out() {
        return;
    }
    let mut fleet = Fleet::start().await;
    let admin = fleet.admin();
    let wanted = json!({"name": "shell", "source": {"host": {}}});
    let (status, created) = admin.post("/api/v1/templates", wanted).await;
    assert_eq!((status, &created["version"]), (200, &json!(1)), "{created}");
    let ready = async |admin: &Api| admin.get("/api/v1/templates/shell").await.1["state"] == "ready";
    eventually("the node has it ready", || ready(&admin)).await;
    fleet.kill("scheduler");
    fleet.start_again("scheduler");
    fleet.wait_until_ready().await;
    eventually("it is still there", || ready(&admin)).await;
    let ada = fleet.user("ada").await;
    let (status, sandbox) = ada.post("/api/v1/sandbox/acquire", json!({"template": "shell"})).await;
    assert_eq!((status, &sandbox["template"]), (200, &json!("shell@1")), "{sandbox}");
}
