//! Executions in depth, over REST and over gRPC: background, attach, input, signals, terminals, exactly once, output that
//! fits, what changed, and what is left to read after the end of a sandbox or a server.

use serde_json::{Value, json};

use crate::{
    harness::{Server, eventually},
    left_out::left_out,
    wire::{Wire, wires},
};

async fn start(wire: &Wire, sandbox: &str, mut request: Value) -> String {
    request["sandbox_id"] = sandbox.into();
    let answer = wire.call("ExecService.StartExecution", json!({"request": request})).await;
    answer["execution"]["execution_id"].as_str().unwrap().to_owned()
}

async fn get(wire: &Wire, sandbox: &str, execution: &str) -> Value {
    let request = json!({"sandbox_id": sandbox, "execution_id": execution});
    wire.call("ExecService.GetExecution", request).await["execution"].take()
}

/// Waits until an execution is over.
async fn ended(wire: &Wire, sandbox: &str, execution: &str) -> Value {
    eventually("the execution ends", || async { get(wire, sandbox, execution).await["state"] == "exited" }).await;
    get(wire, sandbox, execution).await
}

async fn output(wire: &Wire, sandbox: &str, execution: &str, more: Value) -> Value {
    let mut request = json!({"sandbox_id": sandbox, "execution_id": execution});
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    wire.call("ExecService.ReadExecutionOutput", request).await
}

fn text_of(events: &[Value], stream: &str) -> String {
    events.iter().filter_map(|event| event["event"][stream]["text"].as_str()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn background_execution_is_listed_found_by_its_tag_and_read_after_its_end() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let line = "echo begun; sleep 30 & wait; echo never";
        let id = start(&wire, &sandbox, json!({"command": line, "tag": "server", "cwd": "/tmp"})).await;
        let other = start(&wire, &sandbox, json!({"argv": ["true"]})).await;
        ended(&wire, &sandbox, &other).await;
        let list = json!({"sandbox_id": sandbox, "tag": "server", "state": "running"});
        let listed = wire.call("ExecService.ListExecutions", list).await;
        assert_eq!(listed["executions"].as_array().unwrap().len(), 1, "{listed}");
        let shown = &listed["executions"][0];
        assert_eq!(
            (&shown["execution_id"], &shown["cwd"], &shown["tag"]),
            (&json!(id), &json!("/tmp"), &json!("server"))
        );
        assert!(
            shown["summary"].as_str().unwrap().contains("echo begun") && shown["pid"].as_u64().unwrap() > 1,
            "{shown}"
        );

        eventually("it has printed what it does first", || async {
            output(&wire, &sandbox, &id, json!({})).await["text"] == "begun\n"
        })
        .await;
        let kill = json!({"sandbox_id": sandbox, "execution_id": id, "signal": "SIGKILL"});
        wire.call("ExecService.SignalExecution", kill.clone()).await;
        let over = ended(&wire, &sandbox, &id).await;
        assert_eq!((&over["exit"]["signal"], &over["exit"]["exit_code"]), (&json!("SIGKILL"), &json!(137)), "{over}");
        assert!(over["end_time"].is_string() && over["pid"] == 0, "{over}");
        assert_eq!(output(&wire, &sandbox, &id, json!({})).await["text"], "begun\n");
        assert!(wire.shell(&sandbox, "pgrep -x sleep").await["stdout"] == "", "its children are killed with it");
        let gone = wire.refused("ExecService.SignalExecution", kill).await;
        assert_eq!((gone.status.as_str(), gone.reason.as_str()), ("FAILED_PRECONDITION", "EXECUTION_ENDED"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn attaching_begins_where_it_is_asked_to_and_ends_with_the_exit() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let line = "for i in 0 1 2 3 4 5 6 7 8 9; do echo line $i; echo odd >&2; sleep 0.02; done; exit 4";
        let id = start(&wire, &sandbox, json!({"command": line})).await;
        let from = |stdout: u64| json!({"sandbox_id": sandbox, "execution_id": id, "stdout_offset": stdout});
        for _ in 0..2 {
            // the first while it runs, the second after its end
            for offset in [0, 3, 14] {
                let (events, failure) = wire.stream("ExecService.AttachExecution", from(offset)).await.rest().await;
                assert_eq!(failure, None);
                let all: String = (0..10).map(|i| format!("line {i}\n")).collect();
                assert_eq!(text_of(&events, "stdout"), all[offset as usize..]);
                assert_eq!(text_of(&events, "stderr"), "odd\n".repeat(10));
                assert_eq!(events[0]["event"]["started"]["execution_id"], json!(id));
                assert_eq!(events.last().unwrap()["event"]["exited"]["exit_code"], 4);
            }
        }
        let unknown = json!({"sandbox_id": sandbox, "execution_id": id.replace(&id[20..], "00000000")});
        let refused = wire.stream("ExecService.AttachExecution", unknown).await.rest().await.1.unwrap();
        assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("NOT_FOUND", "EXECUTION_NOT_FOUND"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn input_is_given_in_pieces_and_a_repeated_piece_once() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let id = start(&wire, &sandbox, json!({"command": "cat", "stdin": "0", "stdin_open": true})).await;
        let piece = |text: &str, offset: Option<u64>, close: bool| {
            let mut request = json!({"sandbox_id": sandbox, "execution_id": id, "text": text, "close": close});
            if let Some(offset) = offset {
                request["offset"] = offset.into();
            }
            request
        };
        let write = "ExecService.WriteExecutionStdin";
        assert_eq!(wire.call(write, piece("12", Some(1), false)).await["stdin_bytes"], 3);
        assert_eq!(wire.call(write, piece("12", Some(1), false)).await["stdin_bytes"], 3);
        assert_eq!(wire.call(write, piece("234", Some(2), false)).await["stdin_bytes"], 5);
        let beyond = wire.refused(write, piece("x", Some(9), false)).await;
        assert_eq!(beyond.status, "OUT_OF_RANGE");
        assert_eq!(wire.call(write, piece("5", None, true)).await["stdin_bytes"], 6);
        ended(&wire, &sandbox, &id).await;
        assert_eq!(output(&wire, &sandbox, &id, json!({})).await["text"], "012345");
        let late = wire.refused(write, piece("6", None, false)).await;
        assert_eq!((late.status.as_str(), late.reason.as_str()), ("FAILED_PRECONDITION", "EXECUTION_ENDED"));
        let closed = start(&wire, &sandbox, json!({"command": "sleep 20"})).await;
        let request = json!({"sandbox_id": sandbox, "execution_id": closed, "text": "x"});
        assert_eq!(wire.refused(write, request).await.reason, "STDIN_CLOSED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn terminal_is_resized_where_there_is_one() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let terminal = json!({"rows": 30, "cols": 90});
        let line = "trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.05; done";
        let id = start(&wire, &sandbox, json!({"command": line, "terminal": terminal})).await;
        eventually("the first size is printed", || async {
            output(&wire, &sandbox, &id, json!({})).await["text"].as_str().is_some_and(|text| text.contains("30 90"))
        })
        .await;
        let size = |id: &str, rows: u32| json!({"sandbox_id": sandbox, "execution_id": id, "terminal": {"rows": rows, "cols": 100}});
        wire.call("ExecService.ResizeExecutionTerminal", size(&id, 40)).await;
        ended(&wire, &sandbox, &id).await;
        let printed = output(&wire, &sandbox, &id, json!({})).await;
        assert!(printed["text"].as_str().unwrap().contains("40 100"), "{printed}");
        let plain = start(&wire, &sandbox, json!({"command": "sleep 20"})).await;
        let refused = wire.refused("ExecService.ResizeExecutionTerminal", size(&plain, 40)).await;
        assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("FAILED_PRECONDITION", "NO_TERMINAL"));
        let refused = wire.refused("ExecService.ResizeExecutionTerminal", size(&plain, 0)).await;
        assert_eq!(refused.fields, ["terminal.rows"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn repeated_request_attaches_and_never_runs_again() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let line = "echo x >> /workspace/ran; sleep 0.3; wc -l < /workspace/ran";
        let request = json!({"sandbox_id": sandbox, "command": line, "request_id": "once"});
        let id = start(&wire, &sandbox, request.clone()).await;
        let repeated = wire.call("ExecService.StartExecution", json!({"request": request})).await;
        assert_eq!(repeated["execution"]["execution_id"], json!(id));
        let same = json!({"sandbox_id": sandbox, "command": line, "request_id": "unary"});
        let (first, second) = tokio::join!(
            wire.call("ExecService.Execute", same.clone()),
            wire.call("ExecService.Execute", same.clone())
        );
        assert_eq!(first, second);
        assert_eq!(wire.call("ExecService.Execute", same).await, first);
        ended(&wire, &sandbox, &id).await;
        assert_eq!(wire.shell(&sandbox, "wc -l < /workspace/ran").await["stdout"], "2\n");
        let other = json!({"sandbox_id": sandbox, "command": "true", "request_id": "once"});
        let refused = wire.refused("ExecService.Execute", other).await;
        assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("ALREADY_EXISTS", "REQUEST_ID_REUSED"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn output_fits_its_budget_and_the_whole_can_be_read_and_searched() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let line =
            "for i in $(seq 1 5000); do echo \"line $i\"; [ $i -eq 2500 ] && echo 'error: it broke here'; done; true";
        let all: String = (1..=5000)
            .map(|i| if i == 2500 { "line 2500\nerror: it broke here\n".to_owned() } else { format!("line {i}\n") })
            .collect();
        let execute = |strategy: &str| json!({"sandbox_id": sandbox, "command": line, "max_output_bytes": 400, "output_strategy": strategy});
        let mut id = String::new();
        for (strategy, begins, ends, holds) in [
            ("head", true, false, "line 2\n"),
            ("tail", false, true, "line 4999\n"),
            ("head_tail", true, true, "bytes omitted ...]\n"),
            ("errors", false, true, "error: it broke here\n"),
        ] {
            let answer = wire.call("ExecService.Execute", execute(strategy)).await;
            let text = answer["stdout"].as_str().unwrap();
            assert!(text.len() <= 400 && text.contains(holds), "{strategy}: {text}");
            assert_eq!(
                (text.starts_with("line 1\n"), text.ends_with("line 5000\n")),
                (begins, ends),
                "{strategy}: {text}"
            );
            assert_eq!((&answer["stdout_bytes"], &answer["stdout_truncated"]), (&json!(all.len()), &json!(true)));
            let omitted = answer["stdout_omitted_bytes"].as_u64().unwrap() as usize;
            assert!(omitted >= all.len() - 400 && omitted < all.len(), "{strategy}: {omitted}");
            id = answer["execution_id"].as_str().unwrap().to_owned();
        }
        let range = output(&wire, &sandbox, &id, json!({"offset": 7, "limit": 14})).await;
        assert_eq!(range["text"], all[7..21]);
        assert_eq!(
            (&range["next_offset"], &range["total_bytes"], &range["end"]),
            (&json!(21), &json!(all.len()), &json!(false))
        );
        let grep = json!({"sandbox_id": sandbox, "execution_id": id, "pattern": "^ERROR", "ignore_case": true, "context_lines": 1});
        let found = wire.call("ExecService.GrepExecutionOutput", grep).await;
        let matched = &found["matches"][0];
        assert_eq!(
            (&matched["line"], &matched["line_number"]),
            (&json!("error: it broke here"), &json!(2501)),
            "{found}"
        );
        assert_eq!((&matched["before"], &matched["after"]), (&json!(["line 2500"]), &json!(["line 2501"])));
        let bad = json!({"sandbox_id": sandbox, "execution_id": id, "pattern": "("});
        assert_eq!(wire.refused("ExecService.GrepExecutionOutput", bad).await.fields, ["pattern"]);
        let streamed = json!({"request": execute("tail")});
        let failure = wire.stream("ExecService.ExecuteStream", streamed).await.rest().await.1.unwrap();
        assert_eq!(failure.status, "INVALID_ARGUMENT");
        assert!(failure.fields[0].ends_with("output_strategy"), "{failure:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn bytes_that_are_not_text_survive() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let id = start(&wire, &sandbox, json!({"command": "printf 'a\\377\\376b'"})).await;
        ended(&wire, &sandbox, &id).await;
        assert_eq!(output(&wire, &sandbox, &id, json!({})).await["data"], "Yf/+Yg==");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn changes_of_files_are_told_with_their_diffs() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        wire.shell(&sandbox, "printf 'one\\ntwo\\n' > kept; echo x > gone; mkdir d; head -c 100 /dev/zero > d/binary")
            .await;
        let line =
            "printf 'one\\nTWO\\n' > kept; rm gone; echo new > d/new; head -c 200 /dev/zero > d/binary; chmod 700 d";
        let request = json!({"sandbox_id": sandbox, "command": line, "changes": true});
        let answer = wire.call("ExecService.Execute", request).await;
        let files = answer["changes"]["files"].as_array().unwrap();
        let told: Vec<_> =
            files.iter().map(|file| (file["path"].as_str().unwrap(), file["type"].as_str().unwrap())).collect();
        let expected = [
            ("/workspace/d", "modified"),
            ("/workspace/d/binary", "modified"),
            ("/workspace/d/new", "created"),
            ("/workspace/gone", "deleted"),
            ("/workspace/kept", "modified"),
        ];
        assert_eq!(told, expected, "{answer}");
        assert_eq!(
            (&files[1]["old_size"], &files[1]["new_size"], &files[1]["diff"]),
            (&json!(100), &json!(200), &json!(""))
        );
        let diff = files[4]["diff"].as_str().unwrap();
        assert!(diff.contains("-two\n+TWO\n") && diff.contains("@@"), "{diff}");
        assert!(files[2]["diff"].as_str().unwrap().contains("+new"), "{answer}");
        let quiet =
            wire.call("ExecService.Execute", json!({"sandbox_id": sandbox, "command": "true", "changes": true})).await;
        assert_eq!(quiet["changes"]["files"], json!([]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stream_ends_with_why_when_its_sandbox_goes() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let request = json!({"request": {"sandbox_id": sandbox, "command": "echo here; sleep 60"}});
        let mut events = wire.stream("ExecService.ExecuteStream", request).await;
        while events.next().await.unwrap().unwrap()["event"]["stdout"].is_null() {}
        wire.call("SchedulerService.ReleaseSandbox", json!({"sandbox_id": sandbox})).await;
        let failure = events.rest().await.1.unwrap();
        assert_eq!((failure.status.as_str(), failure.reason.as_str()), ("NOT_FOUND", "SANDBOX_GONE"), "{failure:?}");

        let sandbox = wire.acquire().await;
        let sandbox = sandbox.as_str();
        let request = json!({"request": {"sandbox_id": sandbox, "command": "echo here; sleep 60", "request_id": "r"}});
        let mut stream = wire.stream("ExecService.ExecuteStream", request).await;
        let mut events = Vec::new();
        while text_of(&events, "stdout") != "here\n" {
            events.push(stream.next().await.unwrap().unwrap());
        }
        // it runs: now its time may end
        let short = json!({"sandbox_id": sandbox, "timeout_seconds": 1});
        wire.call("SchedulerService.KeepAliveSandbox", short).await;
        let (rest, failure) = stream.rest().await;
        assert_eq!(text_of(&rest, "stdout"), "");
        assert_eq!(failure.unwrap().reason, "LEASE_ENDED");
        // it is over, but not forgotten
        let id = events[0]["event"]["started"]["execution_id"].as_str().unwrap();
        assert_eq!(output(&wire, sandbox, id, json!({})).await["text"], "here\n");
        assert_eq!(get(&wire, sandbox, id).await["state"], "unknown");
        let repeated = json!({"sandbox_id": sandbox, "command": "echo here; sleep 60", "request_id": "r"});
        let unknown = wire.refused("ExecService.Execute", repeated).await;
        assert_eq!((unknown.status.as_str(), unknown.reason.as_str()), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
        let fresh = wire.refused("ExecService.Execute", json!({"sandbox_id": sandbox, "command": "true"})).await;
        assert_eq!(fresh.status, "NOT_FOUND");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn killed_server_still_knows_what_was_printed() {
    let server = Server::start().await;
    let [wire, _] = wires(&server, "ada").await;
    let sandbox = wire.acquire().await;
    let done = json!({"sandbox_id": sandbox, "command": "echo done", "request_id": "done"});
    let first = wire.call("ExecService.Execute", done.clone()).await;
    let request = json!({"request": {"sandbox_id": sandbox, "command": "echo half; sleep 60", "request_id": "half"}});
    let mut events = wire.stream("ExecService.ExecuteStream", request).await;
    let id = events.next().await.unwrap().unwrap()["event"]["started"]["execution_id"].as_str().unwrap().to_owned();
    while events.next().await.unwrap().unwrap()["event"]["stdout"].is_null() {}
    let folder = server.kill();

    let server = Server::in_folder(folder, &[]).await;
    for wire in wires(&server, "ada").await {
        let again = wire.call("ExecService.Execute", done.clone()).await;
        assert_eq!(again["stdout"], first["stdout"]);
        assert_eq!(again["execution_id"], first["execution_id"]);
        assert_eq!(output(&wire, &sandbox, &id, json!({})).await["text"], "half\n");
        let (events, failure) = wire
            .stream("ExecService.AttachExecution", json!({"sandbox_id": sandbox, "execution_id": id}))
            .await
            .rest()
            .await;
        assert_eq!(text_of(&events, "stdout"), "half\n");
        assert_eq!(failure.unwrap().reason, "OUTCOME_UNKNOWN");
        let repeated = json!({"sandbox_id": sandbox, "command": "echo half; sleep 60", "request_id": "half"});
        assert_eq!(wire.refused("ExecService.Execute", repeated).await.reason, "OUTCOME_UNKNOWN");
        let listed = wire.call("ExecService.ListExecutions", json!({"sandbox_id": sandbox})).await;
        let states: Vec<_> = listed["executions"].as_array().unwrap().iter().map(|one| one["state"].clone()).collect();
        assert_eq!(states, ["exited", "unknown"]);
        let listed = wire.call("SchedulerService.ListSandboxes", json!({})).await;
        assert_eq!(listed["sandboxes"], json!([]), "what has ended is not listed");
    }
    let [_, bob] = wires(&server, "bob").await;
    let theirs =
        bob.refused("ExecService.ReadExecutionOutput", json!({"sandbox_id": sandbox, "execution_id": id})).await;
    assert_eq!(theirs.reason, "SANDBOX_NOT_FOUND");
    let [ada, _] = wires(&server, "ada").await;
    ada.call("SchedulerService.ReleaseSandbox", json!({"sandbox_id": sandbox})).await;
    let gone = ada.refused("ExecService.GetExecution", json!({"sandbox_id": sandbox, "execution_id": id})).await;
    assert_eq!(gone.status, "NOT_FOUND");
    assert!(!server.data_dir.join("journal").join(&sandbox).exists(), "a release leaves nothing behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn two_hundred_at_once_lose_nothing_and_keep_their_order() {
    let server = Server::with(&[("SANDBOX_PIDS", "2048")]).await;
    let [_, wire] = wires(&server, "ada").await;
    let sandbox = wire.acquire().await;
    let runs = (0..200).map(|number| {
        let (wire, sandbox) = (wire.clone(), sandbox.clone());
        tokio::spawn(async move {
            let line = format!("for i in $(seq 1 300); do echo {number} $i; done");
            let request = json!({"request": {"sandbox_id": sandbox, "command": line}});
            let (events, failure) = wire.stream("ExecService.ExecuteStream", request).await.rest().await;
            assert_eq!(failure, None);
            let expected: String = (1..=300).map(|i| format!("{number} {i}\n")).collect();
            assert_eq!(text_of(&events, "stdout"), expected);
        })
    });
    for run in runs.collect::<Vec<_>>() {
        run.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn wrong_requests_name_the_field_and_the_rule() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let cases = [
            (json!({"command": "true", "tag": "no spaces"}), "tag"),
            (json!({"command": "true", "context_id": "default"}), "command"),
            (json!({"code": "1", "context_id": "nonsense"}), "context_id"),
            (json!({"command": "true", "user": "a b"}), "user"),
            (json!({"command": "true", "terminal": {"rows": 1001, "cols": 1}}), "terminal.rows"),
        ];
        for (mut request, field) in cases {
            request["sandbox_id"] = sandbox.clone().into();
            let refused = wire.refused("ExecService.Execute", request).await;
            assert!(refused.fields.iter().any(|named| named == field), "{field}: {refused:?}");
        }
        let nobody = json!({"sandbox_id": sandbox, "command": "true", "user": "nosuchuser"});
        assert_eq!(wire.refused("ExecService.Execute", nobody).await.status, "FAILED_PRECONDITION");
        let own = json!({"sandbox_id": sandbox, "command": "id -un", "user": "user"});
        assert_eq!(wire.call("ExecService.Execute", own).await["stdout"], "user\n");
        let kept = json!({"request": {"sandbox_id": sandbox, "command": "true", "changes": true}});
        let refused = wire.refused("ExecService.StartExecution", kept).await;
        assert!(refused.fields.iter().any(|field| field.ends_with("changes")), "{refused:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn input_that_nobody_reads_is_refused_in_the_end_and_what_was_accepted_is_told() {
    let server = Server::start().await;
    let [wire, _] = wires(&server, "ada").await;
    let sandbox = wire.acquire().await;
    let id = start(&wire, &sandbox, json!({"command": "sleep 60", "stdin_open": true})).await;
    let flood = json!({"sandbox_id": sandbox, "execution_id": id, "text": "x".repeat(1 << 20)});
    let mut refused = None;
    for _ in 0..8 {
        if let Err(failure) = wire.try_call("ExecService.WriteExecutionStdin", flood.clone()).await {
            refused = Some(failure);
            break;
        }
    }
    let refused = refused.expect("a process that does not read takes no more");
    assert_eq!((refused.status.as_str(), refused.reason.as_str()), ("RESOURCE_EXHAUSTED", "STDIN_FULL"), "{refused:?}");
    let kill = json!({"sandbox_id": sandbox, "execution_id": id, "signal": "SIGKILL"});
    wire.call("ExecService.SignalExecution", kill).await;
    ended(&wire, &sandbox, &id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn changes_of_a_folder_that_is_closed_are_refused_before_anything_runs() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        wire.shell(&sandbox, "chmod 0 /workspace").await;
        let request = json!({"sandbox_id": sandbox, "command": "touch /tmp/ran", "cwd": "/tmp", "changes": true});
        assert_eq!(wire.refused("ExecService.Execute", request).await.status, "FAILED_PRECONDITION");
        let look = json!({"sandbox_id": sandbox, "command": "find /tmp/ran 2>/dev/null", "cwd": "/tmp"});
        assert_eq!(wire.call("ExecService.Execute", look).await["stdout"], "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn execution_that_waited_in_vain_tells_why() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        // an interpreter that finds no program
        let named = json!({"sandbox_id": sandbox, "env": {"PATH": "/nowhere"}});
        let none = wire.refused("ContextService.CreateContext", named).await;
        assert_eq!((none.status.as_str(), none.reason.as_str()), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"));
        let code = json!({"code": "1", "context_id": "default", "env": {}});
        let id = start(&wire, &sandbox, code).await;
        assert_eq!(ended(&wire, &sandbox, &id).await["exit"]["exit_code"], 0);
        let waiting = json!({"code": "import time\ntime.sleep(60)", "context_id": "default"});
        let first = start(&wire, &sandbox, waiting.clone()).await;
        let second = start(&wire, &sandbox, waiting).await;
        let listed = wire.call("ContextService.ListContexts", json!({"sandbox_id": sandbox})).await;
        let context = listed["contexts"][0]["context_id"].clone();
        assert_eq!(get(&wire, &sandbox, &first).await["state"], "running");
        assert_eq!(get(&wire, &sandbox, &second).await["state"], "queued");
        wire.call("ContextService.DeleteContext", json!({"sandbox_id": sandbox, "context_id": context})).await;
        let over = ended(&wire, &sandbox, &second).await;
        assert_eq!(over["exit"]["exit_code"], 1, "{over}");
        let attach = json!({"sandbox_id": sandbox, "execution_id": second});
        let (events, failure) = wire.stream("ExecService.AttachExecution", attach).await.rest().await;
        assert_eq!(failure, None);
        assert!(events.iter().any(|event| event["event"]["error"]["name"] == "ContextDeleted"), "{events:?}");
    }
}
