//! What gVisor cannot do, each thing told and without harm to anybody else: the rows of the table in docs/runtimes.md.

use serde_json::json;

use crate::{
    harness::{Api, Server, eventually, left_of, reason},
    hostile::resident_bytes,
    left_out::{LeftOut, OF_GVISOR},
    resources::met,
};

async fn acquired(settings: &[(&str, &str)]) -> (Server, Api, String) {
    let server = Server::with(settings).await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    (server, api, id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn network_without_a_proxy_is_refused() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let wanted = json!({"network": {"mode": "open"}});
    let (status, answer) = api.post("/api/v1/sandbox/acquire", wanted).await;
    assert_eq!((status, reason(&answer)), (400, "UNSUPPORTED_BY_HOST"), "{answer}");
    assert_eq!(answer["error"]["status"], "FAILED_PRECONDITION", "{answer}");
    let (_, listed) = api.get("/api/v1/sandbox").await;
    assert_eq!(listed["sandboxes"], json!([]), "nothing of it is left");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn sandbox_that_runs_out_of_memory_ends_or_its_program_and_no_other() {
    let (_server, api, hog) = acquired(&[("SANDBOX_MEMORY_BYTES", "134217728")]).await;
    let neighbour = api.acquire().await;
    let code = "a = []\nwhile True: a.append(bytearray(b'x' * (8 << 20)))";
    let wanted = json!({"sandbox_id": hog, "language": "python", "code": code, "timeout_ms": 60_000});
    let (status, answer) = api.post("/api/v1/execute", wanted).await;
    if status == 200 {
        // a newer gVisor refuses memory in time
        assert_eq!(answer["oom_killed"], true, "{answer}");
        assert_eq!(api.shell(&hog, "echo fine").await, "fine\n");
    } else {
        assert_eq!((status, reason(&answer)), (404, "SANDBOX_GONE"), "{answer}");
        assert_eq!(answer["error"]["details"][0]["metadata"]["cause"], "oom_killed", "{answer}");
    }
    assert_eq!(api.shell(&neighbour, "echo fine").await, "fine\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn count_of_processes_is_not_told() {
    let (_server, api, id) = acquired(&[]).await;
    let (status, sandbox) = api.get(&format!("/api/v1/sandbox/{id}")).await;
    assert_eq!(status, 200, "{sandbox}");
    assert!(sandbox["usage"]["memory_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{sandbox}");
    assert!(sandbox["usage"].get("pids").is_none_or(serde_json::Value::is_null), "{sandbox}");
}

#[test]
fn what_is_left_out_has_a_row_in_the_documentation_and_something_asserted_instead() {
    const DOCUMENTATION: &str = include_str!("../../docs/runtimes.md");
    const SUITES: [(&str, &str); 3] = [
        ("executions", include_str!("executions.rs")),
        ("hostile", include_str!("hostile.rs")),
        ("resources", include_str!("resources.rs")),
    ];
    for LeftOut { test, row, instead } in OF_GVISOR {
        assert!(DOCUMENTATION.contains(&format!("\n| {row} |")), "docs/runtimes.md has no row {row:?}");
        assert!(include_str!("lacks.rs").contains(&format!("fn {instead}()")), "{instead} is not here");
        let (suite, name) = test.split_once("::").unwrap();
        let source = SUITES.iter().find(|(name, _)| *name == suite).expect("the suite is one of these").1;
        let asks = source
            .split(&format!("fn {name}() {{\n"))
            .nth(1)
            .is_some_and(|body| body.starts_with("    if left_out() {"));
        assert!(asks, "{test} does not ask whether it is left out");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn terminal_that_is_resized_is_not_told() {
    let (_server, api, id) = acquired(&[]).await;
    let line = "trap 'echo told' WINCH; stty size; read line; stty size";
    let run = json!({"sandbox_id": id, "command": line, "terminal": {"rows": 30, "cols": 90}, "stdin_open": true});
    let (status, started) = api.post("/api/v1/executions", run).await;
    assert_eq!(status, 200, "{started}");
    let execution = started["execution_id"].as_str().unwrap();
    let path = |what: &str| format!("/api/v1/executions/{execution}/{what}");
    let printed = || async {
        let (_, output) = api.get(&format!("{}?sandbox_id={id}", path("output"))).await;
        output["text"].as_str().unwrap_or_default().to_owned()
    };
    eventually("the first size is printed", || async { printed().await.contains("30 90") }).await;
    let size = json!({"rows": 40, "cols": 100});
    let (status, answer) = api.put(&format!("{}?sandbox_id={id}", path("terminal")), size).await;
    assert_eq!(status, 200, "{answer}");
    let (status, answer) = api.post(&path("stdin"), json!({"sandbox_id": id, "text": "\n"})).await;
    assert_eq!(status, 200, "{answer}");
    eventually("the new size is printed", || async { printed().await.contains("40 100") }).await;
    assert!(!printed().await.contains("told"), "{}", printed().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn output_is_cut_and_counted_without_growing_the_server() {
    let (server, api, id) = acquired(&[]).await;
    let before = resident_bytes(server.pid());
    let answer = api.execute(&id, json!({"command": "head -c 16777216 /dev/zero | tr '\\0' x"})).await;
    assert_eq!(answer["exit_code"], 0, "{}", answer["stderr"]);
    assert_eq!(answer["stdout"].as_str().unwrap().len(), 1_048_576);
    assert_eq!((&answer["stdout_truncated"], &answer["stdout_bytes"]), (&json!(true), &json!(16_777_216)));
    let grown = resident_bytes(server.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "the server grew by {grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn limits_beside_memory_and_processes_are_told_as_themselves() {
    let (_server, api, id) = acquired(&[("SANDBOX_DISK_BYTES", "4194304")]).await;
    for (what, told) in [
        (json!({"command": "exit 1"}), vec![]),
        (json!({"command": "head -c 8M /dev/zero > big"}), vec!["disk_limit"]),
        (json!({"command": "rm big; exit 1"}), vec![]),
        (json!({"command": "head -c 2M /dev/zero", "max_output_bytes": 1000}), vec!["stdout_truncated"]),
        (json!({"command": "sleep 60", "timeout_ms": 100}), vec!["timed_out"]),
    ] {
        let answer = api.execute(&id, what.clone()).await;
        assert_eq!(met(&answer), told, "{what} gave {answer}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn processes_without_end_are_ended_with_or_without_their_sandbox() {
    let (_server, api, bombed) = acquired(&[("SANDBOX_PIDS", "64")]).await;
    let neighbour = api.acquire().await;
    let bomb = json!({"command": "b() { b | b & }; b; sleep 60", "timeout_ms": 1500, "sandbox_id": bombed});
    let (status, answer) = api.post("/api/v1/execute", bomb).await;
    let ended = (status, reason(&answer)) == (404, "SANDBOX_GONE");
    assert!(ended || status == 200 && answer["pids_limit"] == false, "{answer}");
    assert_eq!(api.shell(&neighbour, "echo calm").await, "calm\n");
    api.release(&bombed).await;
    assert_eq!(left_of(&bombed), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn priority_of_the_agent_can_be_changed_and_signals_cannot_be_sent_to_it() {
    let (_server, api, id) = acquired(&[]).await;
    let code = "import os, signal\n\
                os.setpriority(os.PRIO_PROCESS, 1, 19)\n\
                os.sched_setaffinity(1, {0})\n\
                def refused(call):\n    try: call(); print('allowed')\n    except PermissionError: print('refused')\n\
                refused(lambda: os.kill(1, signal.SIGKILL))\n\
                refused(lambda: os.kill(1, signal.SIGSTOP))";
    assert_eq!(api.python(&id, code).await, "refused\nrefused\n");
    assert_eq!(api.shell(&id, "echo fine").await, "fine\n", "it is not slower for that");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_of_the_agent_are_not_the_users_to_open() {
    let (_server, api, id) = acquired(&[]).await;
    // those that lead out of it: the others are pipes of its own, or lead nowhere
    let code = "import os\n\
                tried = 0\n\
                for fd in os.listdir('/proc/1/fd'):\n    \
                    path = f'/proc/1/fd/{fd}'\n    \
                    if not os.readlink(path).startswith('host:'): continue\n    \
                    for flags in (os.O_RDONLY, os.O_WRONLY):\n        \
                        tried += 1\n        \
                        try: os.open(path, flags | os.O_NONBLOCK); print('through', path)\n        \
                        except PermissionError: pass\n\
                print(tried)";
    assert_eq!(api.python(&id, code).await, "4\n", "its standard input and output are there, and closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn file_api_tells_of_files_also_where_programs_that_ask_for_statx_are_refused() {
    let (_server, api, id) = acquired(&[]).await;
    let told = api.shell(&id, "echo x > file; stat -c %a file; find file -printf '%m\\n'").await;
    // 2022's gVisor refuses the flags with which `stat` asks
    assert!(told == "644\n644\n" || told.starts_with("644\n") && told.contains("Invalid argument"), "{told}");
    let (status, answer) = api.get(&format!("/api/v1/files/stat?sandbox_id={id}&path=/workspace/file")).await;
    assert_eq!((status, &answer["mode"]), (200, &json!(0o644)), "{answer}");
}
