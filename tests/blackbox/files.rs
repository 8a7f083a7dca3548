//! Files over REST.

use serde_json::{Value, json};

use crate::harness::{Api, Server, reason};

const FILES: &str = "/api/v1/files";

async fn write(api: &Api, id: &str, path: &str, mut body: Value) -> (u16, Value) {
    body["sandbox_id"] = id.into();
    body["path"] = path.into();
    api.put(FILES, body).await
}

async fn with_query(api: &Api, method: &str, query: &[(&str, &str)]) -> (u16, Value) {
    let answer = api.request(method, FILES).query(query).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn read(api: &Api, id: &str, path: &str) -> (u16, Value) {
    with_query(api, "GET", &[("sandbox_id", id), ("path", path)]).await
}

async fn delete(api: &Api, id: &str, path: &str, recursive: &str) -> (u16, Value) {
    with_query(api, "DELETE", &[("sandbox_id", id), ("path", path), ("recursive", recursive)]).await
}

#[tokio::test]
async fn file_is_written_read_listed_and_deleted() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let (status, file) = write(&api, &id, "/workspace/a/b/t.py", json!({"content": "x = 42\n"})).await;
    assert_eq!((status, &file["size"], &file["mode"]), (200, &json!(7), &json!(0o644)), "{file}");
    assert_eq!(api.python(&id, "import sys; sys.path.insert(0, 'a/b'); import t; print(t.x)").await, "42\n");
    let (_, answer) = read(&api, &id, "/workspace/a/b/t.py").await;
    assert_eq!((&answer["content"], &answer["file"]["type"]), (&json!("x = 42\n"), &json!("file")), "{answer}");
    let (_, folder) = read(&api, &id, "/workspace").await;
    assert_eq!(
        (&folder["file"]["type"], &folder["entries"][0]["name"]),
        (&json!("directory"), &json!("a")),
        "{folder}"
    );
    let (status, answer) = delete(&api, &id, "/workspace/a", "false").await;
    assert_eq!((status, answer["error"]["status"].as_str()), (400, Some("FAILED_PRECONDITION")), "{answer}");
    assert_eq!(delete(&api, &id, "/workspace/a", "true").await.0, 200);
    let (status, answer) = read(&api, &id, "/workspace/a").await;
    assert_eq!((status, reason(&answer)), (404, "FILE_NOT_FOUND"), "{answer}");
}

#[tokio::test]
async fn bytes_that_are_not_text_survive() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    // ff 00 fe
    assert_eq!(write(&api, &id, "/workspace/b", json!({"data": "/wD+"})).await.0, 200);
    let (_, answer) = read(&api, &id, "/workspace/b").await;
    assert_eq!((&answer["data"], &answer["content"]), (&json!("/wD+"), &Value::Null), "{answer}");
    let (_, part) =
        with_query(&api, "GET", &[("sandbox_id", &id), ("path", "/workspace/b"), ("offset", "1"), ("limit", "1")])
            .await;
    assert_eq!(part["content"], "\u{0}", "{part}");
}

#[tokio::test]
async fn mode_is_kept_and_files_are_the_users() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    write(&api, &id, "/workspace/run.sh", json!({"content": "#!/bin/sh\necho ran\n", "mode": 0o755})).await;
    write(&api, &id, "/workspace/run.sh", json!({"content": "#!/bin/sh\necho again\n"})).await;
    assert_eq!(api.shell(&id, "./run.sh; find run.sh -printf '%m %U\\n'").await, "again\n755 1000\n");
}

#[tokio::test]
async fn what_cannot_be_written_or_read_is_refused_for_its_reason() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    api.shell(&id, "mkdir d; mkfifo pipe; ln -s /etc/shadow out; ln -s loop loop; head -c 9M /dev/zero > big").await;
    let content = json!({"content": "x"});
    for (path, status) in [("/workspace/d", 400), ("/usr/x", 400), ("/etc/passwd", 400), ("/workspace/loop", 400)] {
        let answer = write(&api, &id, path, content.clone()).await;
        assert_eq!(answer.0, status, "{path}: {}", answer.1);
    }
    for (path, status) in
        [("/workspace/pipe", 400), ("/workspace/big", 400), ("/workspace/none", 404), ("/proc/1/mem", 400)]
    {
        let answer = read(&api, &id, path).await;
        assert_eq!(answer.0, status, "{path}: {}", answer.1);
    }
    let (_, answer) = read(&api, &id, "/workspace/big").await;
    assert_eq!(reason(&answer), "FILE_TOO_LARGE", "{answer}");
    let (status, _) = read(&api, &id, "/workspace/out").await;
    assert!([400, 404].contains(&status), "a link out of the sandbox leads nowhere");
    let (status, answer) = write(&api, &id, "/workspace/x", json!({"content": "a", "data": "YQ=="})).await;
    assert_eq!(status, 400, "{answer}");
    assert_eq!(delete(&api, &id, "/workspace/loop", "false").await.0, 200, "a link itself is deleted");
}

#[tokio::test]
async fn big_folder_is_paged_in_order() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    api.python(&id, "import os\nos.mkdir('many')\nfor n in range(2500): open(f'many/{n:05}', 'w').close()").await;
    let (mut token, mut names) = (String::new(), Vec::new());
    loop {
        let query = [("sandbox_id", id.as_str()), ("path", "/workspace/many"), ("page_token", &token)];
        let (status, page) = with_query(&api, "GET", &query).await;
        assert_eq!(status, 200, "{page}");
        names.extend(page["entries"].as_array().unwrap().iter().map(|e| e["name"].as_str().unwrap().to_owned()));
        token = page["next_page_token"].as_str().unwrap().to_owned();
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(names, (0..2500).map(|n| format!("{n:05}")).collect::<Vec<_>>());
}
