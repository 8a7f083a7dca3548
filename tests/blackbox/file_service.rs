//! Files in depth, over REST and over gRPC.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};

use crate::{
    harness::{Server, eventually},
    wire::{Events, Wire, wires},
};

/// A request about a sandbox.
fn of(sandbox: &str, mut fields: Value) -> Value {
    fields["sandbox_id"] = sandbox.into();
    fields
}

async fn write(wire: &Wire, sandbox: &str, path: &str, content: &str) -> Value {
    wire.call("FileService.WriteFile", of(sandbox, json!({"path": path, "content": content}))).await["file"].take()
}

fn names(list: &Value) -> Vec<&str> {
    list["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_are_moved_copied_described_and_changed() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        write(&wire, &sandbox, "/workspace/a/one", "1").await;
        let call =
            async |method: &str, fields: Value| wire.call(&format!("FileService.{method}"), of(&sandbox, fields)).await;
        let refused = async |method: &str, fields: Value| {
            wire.refused(&format!("FileService.{method}"), of(&sandbox, fields)).await
        };

        let two = json!({"source": "/workspace/a/one", "destination": "/workspace/b/c/two"});
        assert_eq!(call("CopyFile", two.clone()).await["file"]["path"], "/workspace/b/c/two");
        let exists = refused("CopyFile", two.clone()).await;
        assert_eq!((exists.status.as_str(), exists.reason.as_str()), ("ALREADY_EXISTS", "FILE_EXISTS"));
        let over = json!({"source": "/workspace/a/one", "destination": "/workspace/b/c/two", "overwrite": true});
        call("MoveFile", over).await;
        assert_eq!(refused("StatFile", json!({"path": "/workspace/a/one"})).await.reason, "FILE_NOT_FOUND");
        let folder = json!({"source": "/workspace/b", "destination": "/workspace/copy"});
        assert_eq!(refused("CopyFile", folder).await.status, "FAILED_PRECONDITION");
        call("CopyFile", json!({"source": "/workspace/b", "destination": "/workspace/copy", "recursive": true})).await;
        let inside = json!({"source": "/workspace/b", "destination": "/workspace/b/c/b", "recursive": true});
        assert_eq!(refused("CopyFile", inside).await.status, "FAILED_PRECONDITION");
        // from one writable folder to another
        call("MoveFile", json!({"source": "/workspace/copy", "destination": "/tmp/moved"})).await;
        assert_eq!(wire.shell(&sandbox, "cat /tmp/moved/c/two; ls").await["stdout"], "1a\nb\n");

        call("ChangeMode", json!({"path": "/tmp/moved", "mode": 0o700, "recursive": true})).await;
        assert_eq!(call("StatFile", json!({"path": "/tmp/moved/c/two"})).await["file"]["mode"], 0o700);
        let made = call("MakeFolder", json!({"path": "/workspace/x/y", "mode": 0o711})).await;
        assert_eq!((&made["file"]["type"], &made["file"]["mode"]), (&json!("directory"), &json!(0o711)));
        call("MakeFolder", json!({"path": "/workspace/x/y"})).await;
        assert_eq!(refused("MakeFolder", json!({"path": "/workspace/b/c/two"})).await.status, "ALREADY_EXISTS");

        wire.shell(&sandbox, "ln -s b/c/two /workspace/link").await;
        let link = call("StatFile", json!({"path": "/workspace/link", "no_follow": true})).await;
        assert_eq!((&link["file"]["type"], &link["file"]["target"]), (&json!("symlink"), &json!("b/c/two")));
        assert_eq!(call("StatFile", json!({"path": "/workspace/link"})).await["file"]["type"], "file");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn appended_and_conditional_writes_do_what_they_say() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let first = write(&wire, &sandbox, "/workspace/log", "one\n").await;
        let append = json!({"path": "/workspace/log", "content": "two\n", "append": true});
        let second = wire.call("FileService.WriteFile", of(&sandbox, append)).await;
        assert_eq!(second["file"]["size"], 8);
        assert_ne!(second["file"]["etag"], first["etag"]);
        let stale = json!({"path": "/workspace/log", "content": "x", "if_etag": first["etag"]});
        let refused = wire.refused("FileService.WriteFile", of(&sandbox, stale)).await;
        assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("ABORTED", "FILE_CHANGED"));
        let good = json!({"path": "/workspace/log", "content": "x", "if_etag": second["file"]["etag"]});
        wire.call("FileService.WriteFile", of(&sandbox, good)).await;
        let only_new = json!({"path": "/workspace/log", "content": "y", "if_etag": "*none"});
        assert_eq!(wire.refused("FileService.WriteFile", of(&sandbox, only_new)).await.status, "ABORTED");
        assert_eq!(wire.shell(&sandbox, "cat log").await["stdout"], "x");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn batch_is_written_in_order_up_to_the_first_that_fails() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let files = json!([
            {"path": "/workspace/d/a", "content": "A"},
            {"path": "/workspace/d/b", "data": "/w==", "mode": 0o600},
        ]);
        let written = wire.call("FileService.WriteFiles", of(&sandbox, json!({"files": files}))).await;
        assert_eq!(names(&written), ["/workspace/d/a", "/workspace/d/b"]);
        assert_eq!(written["files"][1]["mode"], 0o600);
        let bad = json!([{"path": "/workspace/e", "content": ""}, {"path": "not/absolute", "content": ""}]);
        let refused = wire.refused("FileService.WriteFiles", of(&sandbox, json!({"files": bad}))).await;
        assert_eq!(refused.fields, ["files[1].path"], "{refused:?}");
        let folder = json!([{"path": "/workspace/e", "content": ""}, {"path": "/workspace/d", "content": ""}, {"path": "/workspace/f", "content": ""}]);
        let refused = wire.refused("FileService.WriteFiles", of(&sandbox, json!({"files": folder}))).await;
        assert!(refused.message.contains("/workspace/d"), "{refused:?}");
        assert_eq!(
            wire.shell(&sandbox, "ls").await["stdout"],
            "d\ne\n",
            "what is malformed is refused before anything is written"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn ten_thousand_files_are_listed_in_pages_by_depth_and_pattern() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        wire.shell(&sandbox, "mkdir -p many deep/er/est; cd many; seq -f 'f%05g.txt' 10000 | xargs touch; cd ..; touch deep/er/est/x.py deep/y.py z.py").await;
        let list = async |fields: Value| wire.call("FileService.ListFiles", of(&sandbox, fields)).await;
        let (mut seen, mut token) = (Vec::new(), String::new());
        loop {
            let page = list(json!({"path": "/workspace/many", "page_size": 999, "page_token": token})).await;
            seen.extend(names(&page).into_iter().map(str::to_owned));
            token = page["next_page_token"].as_str().unwrap().to_owned();
            if token.is_empty() {
                break;
            }
        }
        let expected: Vec<_> = (1..=10_000).map(|i| format!("/workspace/many/f{i:05}.txt")).collect();
        assert_eq!(seen, expected);
        let python = list(json!({"path": "/workspace", "depth": 64, "glob": "*.py"})).await;
        assert_eq!(names(&python), ["/workspace/deep/er/est/x.py", "/workspace/deep/y.py", "/workspace/z.py"]);
        let by_path = list(json!({"path": "/workspace", "depth": 64, "glob": "deep/**/*.{py,txt}"})).await;
        assert_eq!(names(&by_path), ["/workspace/deep/er/est/x.py", "/workspace/deep/y.py"]);
        let flat = list(json!({"path": "/workspace"})).await;
        assert_eq!(names(&flat), ["/workspace/deep", "/workspace/many", "/workspace/z.py"]);
        let bad = wire
            .refused("FileService.ListFiles", of(&sandbox, json!({"path": "/workspace", "glob": "[", "depth": 65})))
            .await;
        assert!(bad.fields.contains(&"depth".to_owned()), "{bad:?}");
        let nowhere = wire.refused("FileService.ListFiles", of(&sandbox, json!({"path": "/workspace/nowhere"}))).await;
        assert_eq!(nowhere.reason, "FILE_NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn files_are_found_by_name_and_by_content() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        wire.shell(&sandbox, "mkdir d; printf 'a\\nneedle here\\nb\\n' > d/one.txt; printf 'Needle\\n' > two.md; printf 'needle\\0' > bin").await;
        let search = async |fields: Value| wire.call("FileService.SearchFiles", of(&sandbox, fields)).await;
        let found = search(json!({"path": "/workspace", "pattern": "needle", "ignore_case": true})).await;
        let places: Vec<_> = found["matches"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| {
                (one["path"].as_str().unwrap(), one["line_number"].as_u64().unwrap(), one["offset"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(places, [("/workspace/d/one.txt", 2, 2), ("/workspace/two.md", 1, 0)], "{found}");
        let one = search(json!({"path": "/workspace", "pattern": "needle", "glob": "*.txt"})).await;
        assert_eq!(one["matches"][0]["line"], "needle here");
        let by_name = search(json!({"path": "/workspace", "glob": "*.md"})).await;
        assert_eq!(
            (&by_name["matches"][0]["path"], by_name["matches"].as_array().unwrap().len()),
            (&json!("/workspace/two.md"), 1)
        );
        let bad =
            wire.refused("FileService.SearchFiles", of(&sandbox, json!({"path": "/workspace", "pattern": "("}))).await;
        assert_eq!(bad.fields, ["pattern"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn names_that_are_not_text_survive() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let path = BASE64_STANDARD.encode(b"/workspace/n\xff\xfe");
        let written =
            wire.call("FileService.WriteFile", of(&sandbox, json!({"raw_path": path, "content": "odd"}))).await;
        assert_eq!(
            (&written["file"]["raw_path"], &written["file"]["path"]),
            (&json!(path), &json!("/workspace/n\u{fffd}\u{fffd}"))
        );
        let listed = wire.call("FileService.ListFiles", of(&sandbox, json!({"path": "/workspace"}))).await;
        assert_eq!(listed["files"][0]["raw_path"], json!(path));
        let read = wire.call("FileService.ReadFile", of(&sandbox, json!({"raw_path": path}))).await;
        assert_eq!(read["content"], "odd");
        wire.call("FileService.DeleteFile", of(&sandbox, json!({"raw_path": path}))).await;
        assert_eq!(wire.shell(&sandbox, "ls -a | wc -l").await["stdout"], "2\n");
        let both = json!({"raw_path": path, "path": "/workspace/other"});
        assert_eq!(wire.refused("FileService.StatFile", of(&sandbox, both)).await.status, "INVALID_ARGUMENT");
    }
}

/// Takes the events of a watch up to this one.
async fn hear(events: &mut Events, told: &mut Vec<Value>, kind: &str, path: &str) {
    loop {
        let answer = events.next().await.unwrap().unwrap();
        let heard = answer["event"]["type"] == kind && answer["event"]["path"] == path;
        told.push(answer);
        if heard {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn watch_tells_what_happens_until_its_folder_is_gone() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        wire.shell(&sandbox, "mkdir w").await;
        let request = of(&sandbox, json!({"path": "/workspace/w", "recursive": true}));
        let mut events = wire.stream("FileService.WatchFiles", request.clone()).await;
        assert_eq!(events.next().await.unwrap().unwrap()["event"]["type"], "started");
        wire.shell(&sandbox, "cd w; echo x > a; mkdir -p d/e").await;
        let mut told = Vec::new();
        hear(&mut events, &mut told, "created", "/workspace/w/d/e").await;
        // a folder is watched from when it is told of, and what is written is told of while it is there
        wire.shell(&sandbox, "echo y > w/d/e/b").await;
        hear(&mut events, &mut told, "written", "/workspace/w/d/e/b").await;
        wire.shell(&sandbox, "cd w; mv a c; rm c; rm -r d; cd ..; rmdir w").await;
        let (rest, failure) = events.rest().await;
        told.extend(rest);
        assert_eq!(failure.unwrap().status, "NOT_FOUND");
        let has = |kind: &str, path: &str| {
            told.iter()
                .any(|event| event["event"]["type"] == kind && event["event"]["path"] == format!("/workspace/w{path}"))
        };
        for (kind, path) in [
            ("created", "/a"),
            ("written", "/a"),
            ("created", "/d"),
            ("created", "/d/e"),
            ("created", "/d/e/b"),
            ("written", "/d/e/b"),
            ("renamed", "/c"),
            ("removed", "/c"),
            ("removed", "/d"),
            ("removed", ""),
        ] {
            assert!(has(kind, path), "{kind} {path}: {told:?}");
        }
        assert!(told.iter().any(|event| event["event"]["old_path"] == "/workspace/w/a"), "{told:?}");
        let vanished = wire.stream("FileService.WatchFiles", request).await.rest().await.1.unwrap();
        assert_eq!((vanished.status.as_str(), vanished.reason.as_str()), ("NOT_FOUND", "FILE_NOT_FOUND"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let server = Server::with(&[("SANDBOX_DISK_BYTES", "4MiB")]).await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let write = async |path: &str, content: &str| {
            wire.refused("FileService.WriteFile", of(&sandbox, json!({"path": path, "content": content}))).await
        };
        let full = write("/workspace/large", &"x".repeat(5 << 20)).await;
        assert_eq!(full.status, "RESOURCE_EXHAUSTED", "{full:?}");
        wire.shell(&sandbox, "mkdir folder; ln -s /usr/bin/new out; ln -s /etc/passwd passwd; ln -s loop loop").await;
        assert_eq!(write("/workspace/folder", "x").await.status, "FAILED_PRECONDITION");
        assert_eq!(write("/usr/bin/new", "x").await.status, "FAILED_PRECONDITION");
        assert_eq!(write("/workspace/folder/../../etc/x", "x").await.fields, ["path"]);
        for link in ["/workspace/out", "/workspace/passwd"] {
            assert_eq!(write(link, "x").await.status, "FAILED_PRECONDITION", "{link} leads to what is read-only");
        }
        let through = write("/workspace/loop/x", "x").await;
        assert_eq!(through.status, "FAILED_PRECONDITION", "{through:?}");
        assert_eq!(wire.shell(&sandbox, "ls -A").await["stdout"], "folder\nloop\nout\npasswd\n");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn deep_folders_are_deleted() {
    let server = Server::start().await;
    let [wire, _] = wires(&server, "ada").await;
    let sandbox = wire.acquire().await;
    let deep = "import os\nfor _ in range(3000):\n    os.mkdir('d' * 20); os.chdir('d' * 20)";
    let made = wire.call("ExecService.Execute", of(&sandbox, json!({"code": deep}))).await;
    assert_eq!(made["exit_code"], 0, "{made}");
    let path = format!("/workspace/{}", "d".repeat(20));
    wire.call("FileService.DeleteFile", of(&sandbox, json!({"path": path, "recursive": true}))).await;
    assert_eq!(wire.shell(&sandbox, "ls -A").await["stdout"], "");
}

/// What a raw answer was.
struct Raw {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: Vec<u8>,
}

async fn sent(request: reqwest::RequestBuilder) -> Raw {
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    Raw { status, headers, body: answer.bytes().await.unwrap().to_vec() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn raw_bytes_have_entity_tags_and_ranges() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let sandbox = api.acquire().await;
    let path = format!("/api/v1/files?sandbox_id={sandbox}&path=/workspace/raw.bin");
    let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let octets = |method: &str| api.request(method, &path).header("accept", "application/octet-stream");
    let put = octets("PUT").header("content-type", "application/octet-stream").body(content.clone());
    assert_eq!(sent(put).await.status, 200);

    let whole = sent(octets("GET")).await;
    assert_eq!((whole.status, whole.body == content), (200, true));
    let etag = whole.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(whole.headers["accept-ranges"], "bytes");
    assert!(etag.starts_with('"') && whole.headers["content-disposition"].to_str().unwrap().starts_with("attachment"));
    for (range, part, shown) in [
        ("bytes=0-9", &content[..10], "bytes 0-9/3000000"),
        ("bytes=2999990-", &content[2_999_990..], "bytes 2999990-2999999/3000000"),
        ("bytes=-5", &content[2_999_995..], "bytes 2999995-2999999/3000000"),
    ] {
        let answer = sent(octets("GET").header("range", range)).await;
        assert_eq!((answer.status, answer.body.as_slice()), (206, part), "{range}");
        assert_eq!(answer.headers["content-range"], shown);
    }
    let beyond = sent(octets("GET").header("range", "bytes=3000000-")).await;
    assert_eq!((beyond.status, beyond.headers["content-range"].to_str().unwrap()), (416, "bytes */3000000"));
    assert_eq!(sent(octets("GET").header("if-none-match", &etag)).await.status, 304);
    let head = sent(octets("HEAD")).await;
    assert_eq!((head.status, head.headers["content-length"].to_str().unwrap(), head.body.len()), (200, "3000000", 0));
    let stale =
        octets("PUT").header("content-type", "application/octet-stream").header("if-match", "\"old\"").body("x");
    assert_eq!(sent(stale).await.status, 412);
    let fresh = octets("PUT").header("content-type", "application/octet-stream").header("if-match", &etag).body("x");
    assert_eq!(sent(fresh).await.status, 200);
    assert_eq!(sent(octets("GET")).await.body, b"x");
    assert_eq!(sent(octets("GET").header("if-match", &etag)).await.status, 412);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn half_an_upload_changes_nothing() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let sandbox = api.acquire().await;
    let address = server.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "PUT /api/v1/files?sandbox_id={sandbox}&path=/workspace/half HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\n\
         content-type: application/octet-stream\r\ncontent-length: 1000000\r\n\r\n",
        api.token.as_ref().unwrap()
    );
    tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, &vec![b'x'; 500_000]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    drop(stream);
    eventually("nothing is left of it", || async { api.shell(&sandbox, "ls -A").await.is_empty() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn folder_goes_out_and_comes_in_as_an_archive() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let (from, to) = (api.acquire().await, api.acquire().await);
    api.shell(
        &from,
        "mkdir -p t/d; echo one > t/d/a; chmod 750 t/d/a; ln -s d/a t/link; ln t/d/a t/hard; mkdir t/empty",
    )
    .await;
    let archive = |sandbox: &str, path: &str| format!("/api/v1/files/archive?sandbox_id={sandbox}&path={path}");
    let down = sent(api.request("GET", &archive(&from, "/workspace/t"))).await;
    assert_eq!((down.status, down.headers["content-type"].to_str().unwrap()), (200, "application/x-tar"));
    let put = |body: Vec<u8>| {
        api.request("PUT", &archive(&to, "/workspace/new")).header("content-type", "application/x-tar").body(body)
    };
    let up = sent(put(down.body.clone())).await;
    assert_eq!(up.status, 200, "{}", String::from_utf8_lossy(&up.body));
    let tree = "cd /workspace/NAME && find . | sort && find d/a -printf '%m\\n' && cat link hard && readlink link";
    let (before, after) =
        (api.shell(&from, &tree.replace("NAME", "t")).await, api.shell(&to, &tree.replace("NAME", "new")).await);
    assert_eq!(before, after);
    let cut = sent(put(down.body[..down.body.len() / 2].to_vec())).await;
    assert_eq!(cut.status, 400, "{}", String::from_utf8_lossy(&cut.body));

    let escape = "import io, sys, tarfile\nout = io.BytesIO()\nt = tarfile.open(fileobj=out, mode='w')\nfor name, link in [('link', '/tmp'), ('link/evil', None)]:\n    i = tarfile.TarInfo(name)\n    if link: i.type, i.linkname = tarfile.SYMTYPE, link\n    t.addfile(i)\nt.close()\nsys.stdout.buffer.write(out.getvalue())";
    let tar = api.execute(&from, json!({"code": escape})).await["stdout"].as_str().unwrap().as_bytes().to_vec();
    let evil = sent(put(tar)).await;
    assert_eq!(evil.status, 400, "{}", String::from_utf8_lossy(&evil.body));
    assert_eq!(api.shell(&to, "find /tmp/evil 2>/dev/null").await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn signed_address_opens_one_file_to_anybody_for_a_while() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        write(&wire, &sandbox, "/workspace/a b", "shared").await;
        let sign = async |fields: Value| wire.call("AuthService.CreateFileUrl", of(&sandbox, fields)).await;
        let http = reqwest::Client::new();
        let at = |url: &Value| format!("{}{}", server.url, url.as_str().unwrap());
        let read = sign(json!({"path": "/workspace/a b"})).await;
        assert_eq!(read["method"], "GET");
        assert_eq!(sent(http.get(at(&read["url"]))).await.body, b"shared");
        assert_eq!(sent(http.put(at(&read["url"])).body("x")).await.status, 403);
        let elsewhere = at(&read["url"]).replace("a%20b", "c").replace("a+b", "c");
        assert_eq!(sent(http.get(elsewhere)).await.status, 403);
        let upload = sign(json!({"path": "/workspace/up", "access": "write", "expires_in": 60})).await;
        assert_eq!(sent(http.put(at(&upload["url"])).body("sent")).await.status, 200);
        assert_eq!(wire.shell(&sandbox, "cat up").await["stdout"], "sent");
        let token = at(&read["url"]).split("access_token=").nth(1).unwrap().to_owned();
        let elsewhere = http.get(format!("{}/api/v1/sandbox", server.url)).bearer_auth(token);
        assert_eq!(sent(elsewhere).await.status, 403);
        // it may be over as soon as it is made: ends are whole seconds
        let short = at(&sign(json!({"path": "/workspace/up", "access": "write", "expires_in": 1})).await["url"]);
        eventually("its time is over", || async { sent(http.put(&short).body("late")).await.status == 401 }).await;
        let bad =
            wire.refused("AuthService.CreateFileUrl", of(&sandbox, json!({"path": "x", "expires_in": 604_801}))).await;
        assert_eq!(bad.fields, ["path", "expires_in"]);
    }
    let Wire::Rest(api) = &wires(&server, "ada").await[0] else { unreachable!() };
    let sandbox = api.acquire().await;
    let own = format!(
        "{}/api/v1/files?sandbox_id={sandbox}&path=/workspace&access_token={}",
        server.url,
        api.token.as_ref().unwrap()
    );
    assert_eq!(
        sent(reqwest::Client::new().get(own)).await.status,
        401,
        "a token of the API is not taken from an address"
    );
    assert!(!server.log().contains("access_token"), "no address with a token is logged");
}
