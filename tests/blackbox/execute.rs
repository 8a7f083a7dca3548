//! Running code, shell lines and programs.

use serde_json::{Value, json};

use crate::harness::{Api, Server, eventually, reason};

/// Whether sandboxes have a program, by what they are made from.
fn installed(program: &str) -> bool {
    if crate::RUNTIME != "linux" {
        return ["python3", "node", "perl", "bash", "sh"].contains(&program);
    }
    // what the tests' set-up sees to, and what the host has beside it
    let always = ["python3", "node", "go", "bash", "sh", "perl"];
    let folders = ["/usr/local/bin", "/usr/bin", "/bin"];
    always.contains(&program) || folders.iter().any(|folder| std::path::Path::new(folder).join(program).exists())
}

#[tokio::test]
async fn each_language_that_is_there_runs() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let go = "package main\nimport \"fmt\"\nfunc main() { fmt.Println(6 * 7) }";
    let cases = [
        ("python", "python3", "print(6 * 7)"),
        ("py", "python3", "print(6 * 7)"),
        ("javascript", "node", "console.log(6 * 7)"),
        ("node", "node", "console.log(require('path').join('4', '2').replace('/', ''))"),
        ("bash", "bash", "echo $((6 * 7))"),
        ("sh", "sh", "echo $((6 * 7))"),
        ("perl", "perl", "print 6 * 7, \"\\n\""),
        ("ruby", "ruby", "puts 6 * 7"),
        ("go", "go", go),
        ("golang", "go", go),
        ("php", "php", "<?php echo 6 * 7, \"\\n\";"),
        ("lua", "lua", "print(6 * 7)"),
    ];
    for (language, program, code) in cases {
        let body = json!({"sandbox_id": id, "code": code, "language": language, "timeout_ms": 120_000});
        let (status, answer) = api.post("/api/v1/execute", body).await;
        if installed(program) {
            assert_eq!((status, &answer["stdout"]), (200, &json!("42\n")), "{language}: {answer}");
        } else {
            assert_eq!((status, reason(&answer)), (400, "LANGUAGE_UNAVAILABLE"), "{language}: {answer}");
        }
    }
}

#[tokio::test]
async fn answer_tells_all_about_the_run() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\nx = bytearray(64 << 20)\nsum(range(10**6))\nsys.exit(3)";
    let answer = api.execute(&id, json!({"code": code})).await;
    assert_eq!(answer["stdout"], "out\n");
    assert_eq!(answer["stderr"], "err\n");
    assert_eq!(answer["exit_code"], 3);
    assert_eq!(answer["signal"], "");
    for flag in ["timed_out", "oom_killed", "stdout_truncated", "stderr_truncated"] {
        assert_eq!(answer[flag], false, "{flag}");
    }
    assert!(answer["execution_id"].as_str().unwrap().starts_with("ex"));
    let (wall, cpu) = (answer["wall_time_ms"].as_f64().unwrap(), answer["cpu_time_ms"].as_f64().unwrap());
    assert!(wall > 0.0 && cpu > 1.0, "{wall} {cpu}");
    assert!(answer["peak_memory_bytes"].as_u64().unwrap() > 64 << 20);
    assert_eq!((&answer["stdout_bytes"], &answer["stderr_bytes"]), (&json!(4), &json!(4)));
}

#[tokio::test]
async fn environment_folder_and_input_are_the_callers() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire_with(json!({"env": {"A": "sandbox", "B": "sandbox"}})).await;
    let body = json!({
        "command": "echo $A $B; pwd; cat", "env": {"B": "call"}, "cwd": "/tmp", "stdin": "typed\n",
    });
    assert_eq!(api.execute(&id, body).await["stdout"], "sandbox call\n/tmp\ntyped\n");
    let missing = json!({"sandbox_id": id, "command": "true", "cwd": "/nowhere"});
    let (status, answer) = api.post("/api/v1/execute", missing).await;
    assert_eq!((status, answer["error"]["status"].as_str()), (400, Some("FAILED_PRECONDITION")), "{answer}");
    assert!(answer["error"]["message"].as_str().unwrap().contains("/nowhere"), "{answer}");
}

#[tokio::test]
async fn code_imports_what_lies_in_the_workspace() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    api.shell(&id, "echo 'x = 42' > mine.py; echo 'exports.x = 42' > mine.js").await;
    assert_eq!(api.python(&id, "import mine; print(mine.x)").await, "42\n");
    let node = json!({"code": "console.log(require('./mine').x)", "language": "node"});
    assert_eq!(api.execute(&id, node).await["stdout"], "42\n");
}

#[tokio::test]
async fn exact_program_gets_exact_arguments() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let answer = api.execute(&id, json!({"argv": ["printf", "%s|", "a b", "$HOME", "*"]})).await;
    assert_eq!(answer["stdout"], "a b|$HOME|*|");
    let missing = json!({"sandbox_id": id, "argv": ["no-such-program"]});
    let (status, answer) = api.post("/api/v1/execute", missing).await;
    assert_eq!((status, reason(&answer)), (400, "PROGRAM_NOT_FOUND"), "{answer}");
}

#[tokio::test]
async fn traceback_and_signal_are_told() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let failed = api.execute(&id, json!({"code": "def f():\n    return 1 / 0\nf()"})).await;
    assert_eq!(failed["exit_code"], 1);
    let trace = failed["stderr"].as_str().unwrap();
    assert!(
        trace.contains("line 2, in f") && trace.contains("return 1 / 0") && trace.contains("ZeroDivisionError"),
        "{trace}"
    );
    let killed = api.execute(&id, json!({"command": "kill -SEGV $$"})).await;
    assert_eq!((&killed["signal"], &killed["exit_code"]), (&json!("SIGSEGV"), &json!(139)));
}

#[tokio::test]
async fn output_that_is_not_text_arrives() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let answer = api.execute(&id, json!({"command": "printf 'a\\xff\\0b'"})).await;
    assert_eq!(answer["stdout"], "a\u{fffd}\u{0}b");
    assert_eq!(answer["stdout_bytes"], 4);
}

#[tokio::test]
async fn stream_is_events_as_they_happen() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let body = json!({"sandbox_id": id, "command": "rm -f go; echo one; until [ -e go ]; do sleep 0.05; done; echo two >&2; exit 5"});
    for (accept, prefix) in [("text/event-stream", "data: "), ("application/x-ndjson", "")] {
        let request = api.request("POST", "/api/v1/execute").header("accept", accept).json(&body);
        let mut answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with(accept));
        let (mut text, mut goes_on) = (String::new(), false);
        while let Some(chunk) = answer.chunk().await.unwrap() {
            text.push_str(std::str::from_utf8(&chunk).unwrap());
            if !goes_on && text.contains("one") {
                // it ends only when its first line has come
                api.shell(&id, "touch go").await;
                goes_on = true;
            }
        }
        let lines = text.lines().filter_map(|line| line.strip_prefix(prefix)).filter(|line| !line.is_empty());
        let events: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(events[0]["started"]["execution_id"].is_string(), "{text}");
        assert!(events.iter().any(|event| event["stdout"]["text"] == "one\n"), "{text}");
        assert!(events.iter().any(|event| event["stderr"]["text"] == "two\n"), "{text}");
        assert_eq!(events.last().unwrap()["exited"]["exit_code"], 5, "{text}");
    }
}

async fn runs(api: &Api, id: &str, marker: &str) -> bool {
    // the brackets keep the search from finding itself
    let pattern = format!("[{}]{}", &marker[..1], &marker[1..]);
    api.execute(id, json!({"command": format!("pgrep -f '{pattern}'")})).await["exit_code"] == 0
}

/// Starts an execution and hangs up once it runs.
async fn hang_up(api: &Api, id: &str, body: Value, marker: &str) {
    let call = tokio::spawn(api.request("POST", "/api/v1/execute").json(&body).send());
    eventually("the program runs", || runs(api, id, marker)).await;
    call.abort();
    let _ = call.await;
}

#[tokio::test]
async fn work_of_a_caller_that_hangs_up_is_ended() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let body = json!({"sandbox_id": id, "command": "sleep 987 & sleep 987"});
    hang_up(&api, &id, body, "sleep 987").await;
    eventually("the program is ended", || async { !runs(&api, &id, "sleep 987").await }).await;
}

#[tokio::test]
async fn work_with_a_request_id_runs_on_and_is_found_again() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let command = "echo run >> /workspace/count; sleep 2.25; cat /workspace/count";
    let body = json!({"sandbox_id": id, "command": command, "request_id": "once"});
    hang_up(&api, &id, body.clone(), "sleep 2.25").await;
    let (status, answer) = api.post("/api/v1/execute", body.clone()).await;
    assert_eq!((status, &answer["stdout"]), (200, &json!("run\n")), "{answer}");
    let again = api.post("/api/v1/execute", body).await.1;
    assert_eq!(again, answer, "a finished one answers the same");
    let other = json!({"sandbox_id": id, "command": "true", "request_id": "once"});
    let (status, answer) = api.post("/api/v1/execute", other).await;
    assert_eq!((status, reason(&answer)), (409, "REQUEST_ID_REUSED"), "{answer}");
}
