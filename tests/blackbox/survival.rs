//! Sessions that outlive sandboxes and servers: what was saved is there again, and what was not is said.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::{Api, Server, eventually, left_of, reason},
    s3_server::{BUCKET, KEY, KEY_ID, S3Server},
};

/// Everything that a tree is: names, kinds, modes, times, content, links, attributes.
const DIGEST: &str = r#"
import hashlib, os, stat
total = hashlib.sha256()
for root in ("/workspace", "/home/user"):
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files + folders):
            path = os.path.join(folder, name)
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            parts = [path, oct(status.st_mode), status.st_mtime_ns, status.st_uid]
            if kind == stat.S_IFREG:
                parts += [status.st_size, status.st_nlink, hashlib.sha256(open(path, "rb").read()).digest()]
                parts += [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))]
            elif kind == stat.S_IFLNK:
                parts.append(os.readlink(path))
            total.update(repr(parts).encode())
print(total.hexdigest())
"#;

/// Some work on a tree, other work for each seed.
const WORK: &str = r#"
import os, random, sys
rng = random.Random(int(os.environ["SEED"]))
os.chdir("/workspace")
def some():
    return [os.path.join(f, n) for f, _, names in os.walk(".") for n in names if not os.path.islink(os.path.join(f, n))]
for _ in range(30):
    what, there = rng.random(), some()
    name = "d%d/f%d" % (rng.randrange(5), rng.randrange(40))
    os.makedirs(os.path.dirname(name), exist_ok=True)
    if what < 0.35 or not there:
        open(name, "wb").write(rng.randbytes(rng.choice([0, 10, 5000, 300000])))
    elif what < 0.5:
        with open(rng.choice(there), "r+b") as file:
            file.seek(rng.randrange(1 << 18)); file.write(rng.randbytes(1000))
    elif what < 0.6:
        os.unlink(rng.choice(there))
    elif what < 0.7:
        os.replace(rng.choice(there), name)
    elif what < 0.78:
        os.chmod(rng.choice(there), rng.choice([0o600, 0o644, 0o755, 0o400 | 0o200]))
    elif what < 0.84:
        target = name + ".link"
        if not os.path.lexists(target): os.symlink(rng.choice(there), target)
    elif what < 0.9:
        target = name + ".hard"
        if not os.path.lexists(target): os.link(rng.choice(there), target)
    elif what < 0.95:
        with open(name, "wb") as file:
            file.seek(1 << 20); file.write(b"end")
    else:
        try: os.setxattr(rng.choice(there), "user.note", rng.randbytes(8))
        except OSError: pass
"#;

/// Where checkpoints lie in a test.
pub enum Store {
    Local,
    S3(Box<S3Server>),
}

impl Store {
    fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Local => Vec::new(),
            Self::S3(server) => vec![
                ("S3_ENDPOINT", server.url()),
                ("S3_REGION", "us-east-1".into()),
                ("S3_BUCKET", BUCKET.into()),
                ("S3_ACCESS_KEY_ID", KEY_ID.into()),
                ("S3_SECRET_ACCESS_KEY", KEY.into()),
            ],
        }
    }

    /// The folders of checkpoints that are there.
    pub fn folder(&self, data: &Path) -> PathBuf {
        match self {
            Self::Local => data.join("workspaces"),
            Self::S3(server) => server.bucket(),
        }
    }
}

pub async fn start(folder: TempDir, store: &Store, more: &[(&str, &str)]) -> (Server, Api) {
    let settings = store.settings();
    let mut all: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    all.extend_from_slice(more);
    let server = Server::in_folder(folder, &all).await;
    let api = server.user("ada").await;
    (server, api)
}

async fn local() -> (Server, Api) {
    start(tempfile::tempdir().unwrap(), &Store::Local, &[]).await
}

pub async fn create(api: &Api, body: Value) -> String {
    let (status, session) = api.post("/api/v1/sessions", body).await;
    assert_eq!((status, &session["state"]), (200, &json!("running")), "{session}");
    session["session_id"].as_str().unwrap().to_owned()
}

async fn act(api: &Api, id: &str, what: &str, body: Value) -> Value {
    let (status, answer) = api.post(&format!("/api/v1/sessions/{id}/{what}"), body).await;
    assert_eq!(status, 200, "{what}: {answer}");
    answer
}

pub async fn get(api: &Api, id: &str) -> Value {
    api.get(&format!("/api/v1/sessions/{id}")).await.1
}

pub async fn pause(api: &Api, id: &str) -> Value {
    let paused = act(api, id, "pause", json!({"depth": "checkpointed"})).await;
    assert_eq!((&paused["state"], &paused["pause_depth"]), (&json!("paused"), &json!("checkpointed")), "{paused}");
    assert_eq!(paused["sandbox_id"], "");
    paused
}

pub async fn resume(api: &Api, id: &str) -> Value {
    let resumed = act(api, id, "resume", json!({})).await;
    assert_eq!(resumed["state"], "running", "{resumed}");
    resumed["resume_manifest"].clone()
}

/// Runs something in a session, and gives what it printed.
pub async fn run(api: &Api, id: &str, mut what: Value) -> String {
    what["session_id"] = json!(id);
    let (status, answer) = api.post("/api/v1/execute", what).await;
    assert_eq!((status, &answer["exit_code"]), (200, &json!(0)), "{answer}");
    answer["stdout"].as_str().unwrap().to_owned()
}

pub async fn digest(api: &Api, id: &str) -> String {
    run(api, id, json!({"code": DIGEST})).await
}

pub async fn work(api: &Api, id: &str, seed: u64) {
    run(api, id, json!({"code": WORK, "env": {"SEED": seed.to_string()}})).await;
}

async fn kinds(api: &Api, id: &str) -> Vec<String> {
    let events = api.get(&format!("/api/v1/sessions/{id}/events")).await.1;
    let events = events["events"].as_array().unwrap().clone();
    events.iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn checkpoint_brings_back_files_variables_and_what_ran() {
    let (_server, api) = local().await;
    let id = create(&api, json!({"env": {"COLOUR": "blue"}, "limits": {"memory_bytes": 536870912_u64}})).await;
    let sandbox = get(&api, &id).await["sandbox_id"].as_str().unwrap().to_owned();
    work(&api, &id, 1).await;
    let cell = |code: &str| json!({"code": code, "context_id": "default"});
    run(&api, &id, cell("import math\nnames = ['a', 'b']; same = names\ndef area(r): return math.pi * r * r")).await;
    run(&api, &id, cell("opened = open('/workspace/log', 'w')")).await;
    let request = json!({"request": {"session_id": id, "command": "echo ready; exec sleep 600", "tag": "watcher"}});
    let started = api.post("/api/v1/executions", request["request"].clone()).await;
    assert_eq!(started.0, 200, "{}", started.1);
    run(&api, &id, json!({"command": "setsid sleep 601 >/dev/null 2>&1 &"})).await;
    let once = json!({"session_id": id, "command": "echo once >> /workspace/once", "request_id": "only-once"});
    assert_eq!(api.post("/api/v1/execute", once.clone()).await.0, 200);
    let before = digest(&api, &id).await;

    pause(&api, &id).await;
    assert_eq!(left_of(&sandbox), Vec::<String>::new(), "its sandbox is freed");
    let refused = api.post("/api/v1/execute", json!({"session_id": id, "command": "true"})).await;
    assert_eq!((refused.0, reason(&refused.1)), (400, "SESSION_STATE"), "{}", refused.1);

    let resumed = act(&api, &id, "resume", json!({"restart_commands": true})).await;
    let manifest = &resumed["resume_manifest"];
    assert_ne!(resumed["sandbox_id"], json!(sandbox));
    assert_eq!(digest(&api, &id).await, before);
    assert_eq!(manifest["depth"], "checkpointed");
    assert_eq!(manifest["env"], json!(["COLOUR"]));
    assert_eq!(run(&api, &id, json!({"command": "echo $COLOUR"})).await, "blue\n");
    let told = run(&api, &id, cell("print(names is same, round(area(1), 2))")).await;
    assert_eq!(told, "True 3.14\n", "{manifest}");
    let context = &manifest["contexts"][0];
    assert_eq!(context["lost"][0]["what"], "opened", "{manifest}");
    let command = &manifest["commands"][0];
    assert_eq!((&command["tag"], command["restarted_as"] == ""), (&json!("watcher"), false), "{manifest}");
    assert!(manifest["lost"].to_string().contains("sleep 601"), "{manifest}");

    let again = api.post("/api/v1/execute", once).await;
    assert_eq!(reason(&again.1), "RESULT_EXPIRED", "{}", again.1);
    assert_eq!(run(&api, &id, json!({"command": "cat /workspace/once"})).await, "once\n", "it ran once");
    assert_eq!(kinds(&api, &id).await, ["created", "checkpointed", "paused", "resumed"]);
}

#[tokio::test]
async fn session_resumes_by_itself_when_asked_to() {
    let (_server, api) = local().await;
    let id = create(&api, json!({"auto_resume": true})).await;
    run(&api, &id, json!({"command": "echo here > kept"})).await;
    for depth in ["frozen", "checkpointed"] {
        act(&api, &id, "pause", json!({"depth": depth})).await;
        assert_eq!(run(&api, &id, json!({"command": "cat kept"})).await, "here\n", "{depth}");
    }
}

#[tokio::test]
async fn fork_and_older_checkpoint_are_what_they_were() {
    let (server, api) = local().await;
    let id = create(&api, json!({"metadata": {"of": "ada"}})).await;
    run(&api, &id, json!({"command": "echo one > note"})).await;
    let first = act(&api, &id, "checkpoints", json!({})).await["checkpoint_id"].clone();
    assert_eq!(run(&api, &id, json!({"command": "cat note; echo two > note"})).await, "one\n", "it goes on");
    let fork = act(&api, &id, "fork", json!({"metadata": {"of": "fork"}})).await;
    assert_eq!((&fork["state"], &fork["forked_from"]), (&json!("running"), &json!(id)), "{fork}");
    let fork = fork["session_id"].as_str().unwrap();
    run(&api, fork, json!({"command": "grep -q two note && echo three > note"})).await;
    assert_eq!(run(&api, &id, json!({"command": "cat note"})).await, "two\n");

    pause(&api, &id).await;
    let back = act(&api, &id, "resume", json!({"checkpoint_id": first})).await;
    assert_eq!(run(&api, &id, json!({"command": "cat note"})).await, "one\n");
    assert_eq!(back["resume_manifest"]["lost"][0]["kind"], "work", "{back}");

    // the fork keeps what it needs of a session that is gone
    assert_eq!(api.delete(&format!("/api/v1/sessions/{id}")).await.0, 200);
    pause(&api, fork).await;
    resume(&api, fork).await;
    assert_eq!(run(&api, fork, json!({"command": "cat note"})).await, "three\n");
    assert_eq!(api.delete(&format!("/api/v1/sessions/{fork}")).await.0, 200);
    let workspaces = server.data_dir.join("workspaces");
    eventually("nothing is left in the store", || async { folders(&workspaces).is_empty() }).await;
}

pub fn folders(store: &Path) -> Vec<String> {
    let entries = fs::read_dir(store).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.starts_with("cp")).collect()
}

#[tokio::test]
async fn timeouts_pause_or_delete_and_are_explained() {
    let (_server, api) = local().await;
    let expiring = create(&api, json!({})).await;
    let idle = create(&api, json!({"idle_timeout_seconds": 2})).await;
    let deleted = create(&api, json!({"timeout_seconds": 1, "on_timeout": "delete"})).await;
    run(&api, &expiring, json!({"command": "echo saved > note"})).await;
    let time_out_after = async |seconds: u32| {
        let update = api.request("PATCH", &format!("/api/v1/sessions/{expiring}"));
        let answer = update.json(&json!({"timeout_seconds": seconds})).send().await.unwrap();
        assert_eq!(answer.status(), 200);
    };
    time_out_after(2).await;
    eventually("the timeouts are kept", || async {
        let states = [get(&api, &expiring).await["state"].clone(), get(&api, &idle).await["state"].clone()];
        states == ["paused", "paused"] && get(&api, &deleted).await["error"]["code"] == 404
    })
    .await;
    assert!(kinds(&api, &expiring).await.contains(&"timeout".to_owned()));
    assert!(kinds(&api, &idle).await.contains(&"idle_timeout".to_owned()));
    time_out_after(900).await;
    resume(&api, &expiring).await;
    assert_eq!(run(&api, &expiring, json!({"command": "cat note"})).await, "saved\n");
}

#[tokio::test]
async fn server_that_stops_saves_its_sessions() {
    let (mut server, api) = local().await;
    let (running, frozen) = (create(&api, json!({})).await, create(&api, json!({})).await);
    for id in [&running, &frozen] {
        run(&api, id, json!({"command": "echo kept > note"})).await;
    }
    act(&api, &frozen, "pause", json!({"depth": "frozen"})).await;
    server.signal("TERM");
    assert!(server.wait().success(), "{}", server.log());
    let (_server, api) = start(server.kill(), &Store::Local, &[]).await;
    for (id, told) in [(&running, "paused"), (&frozen, "deepened")] {
        let session = get(&api, id).await;
        assert_eq!((&session["state"], &session["pause_depth"]), (&json!("paused"), &json!("checkpointed")));
        assert!(kinds(&api, id).await.contains(&told.to_owned()));
        resume(&api, id).await;
        assert_eq!(run(&api, id, json!({"command": "cat note"})).await, "kept\n");
    }
}

#[tokio::test]
async fn damaged_chunk_is_named_and_the_older_checkpoint_offered() {
    let (server, api) = local().await;
    let id = create(&api, json!({})).await;
    run(&api, &id, json!({"command": "echo one > note"})).await;
    let first = act(&api, &id, "checkpoints", json!({})).await["checkpoint_id"].clone();
    run(&api, &id, json!({"command": "head -c 300000 /dev/urandom > big"})).await;
    let last = pause(&api, &id).await["checkpoint_id"].as_str().unwrap().to_owned();
    let pack = server.data_dir.join("workspaces").join(&last).join("pack-00000");
    let mut bytes = fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).unwrap();

    let (status, refused) = api.post(&format!("/api/v1/sessions/{id}/resume"), json!({})).await;
    assert_eq!((status, reason(&refused)), (500, "CHECKPOINT_DAMAGED"), "{refused}");
    assert!(refused.to_string().contains("big"), "{refused}");
    assert_eq!(refused["error"]["details"][0]["metadata"]["older_checkpoint_id"], first, "{refused}");
    assert_eq!(get(&api, &id).await["state"], "paused");
    act(&api, &id, "resume", json!({"checkpoint_id": first})).await;
    assert_eq!(run(&api, &id, json!({"command": "cat note; test -e big || echo gone"})).await, "one\ngone\n");
}

#[tokio::test]
async fn pauses_and_resumes_at_once_agree() {
    let (_server, api) = local().await;
    let id = create(&api, json!({})).await;
    for round in 0..3 {
        run(&api, &id, json!({"command": format!("echo {round} > note")})).await;
        let (a, b, c) = tokio::join!(pause(&api, &id), pause(&api, &id), pause(&api, &id));
        assert_eq!((&a["checkpoint_id"], &b["checkpoint_id"]), (&c["checkpoint_id"], &c["checkpoint_id"]));
        let _ = tokio::join!(resume(&api, &id), resume(&api, &id), resume(&api, &id));
        assert_eq!(run(&api, &id, json!({"command": "cat note"})).await, format!("{round}\n"));
    }
    let deleting = format!("/api/v1/sessions/{id}");
    let pausing = format!("{deleting}/pause");
    let (_, deleted) = tokio::join!(api.post(&pausing, json!({})), api.delete(&deleting));
    assert_eq!(deleted.0, 200, "{}", deleted.1);
    assert_eq!(api.get(&deleting).await.0, 404);
}
