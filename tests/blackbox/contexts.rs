//! Code contexts, over REST and over gRPC.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::{
    harness::{SOON, Server, eventually},
    wire::{Wire, wires},
};

pub async fn run(wire: &Wire, sandbox: &str, context: &str, code: &str) -> Value {
    let request = json!({"sandbox_id": sandbox, "code": code, "context_id": context});
    wire.call("ExecService.Execute", request).await
}

async fn run_js(wire: &Wire, sandbox: &str, code: &str) -> Value {
    let request = json!({"sandbox_id": sandbox, "code": code, "context_id": "default", "language": "javascript"});
    wire.call("ExecService.Execute", request).await
}

async fn create(wire: &Wire, sandbox: &str, language: &str) -> Value {
    let request = json!({"sandbox_id": sandbox, "language": language});
    wire.call("ContextService.CreateContext", request).await["context"].take()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn variables_live_from_call_to_call_in_each_context_of_its_own() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let other = create(&wire, &sandbox, "python").await;
        assert_eq!((&other["state"], &other["is_default"]), (&json!("idle"), &json!(false)), "{other}");
        let other = other["context_id"].as_str().unwrap();
        run(&wire, &sandbox, "default", "x = 41\nprint('set')").await;
        run(&wire, &sandbox, other, "x = 1").await;
        let answer = run(&wire, &sandbox, "default", "import sys\nprint('err', file=sys.stderr)\nx + 1").await;
        assert_eq!(
            (&answer["results"][0]["text"], &answer["results"][0]["is_main"]),
            (&json!("42"), &json!(true)),
            "{answer}"
        );
        assert_eq!((&answer["stderr"], &answer["exit_code"]), (&json!("err\n"), &json!(0)));
        assert_eq!(run(&wire, &sandbox, other, "x").await["results"][0]["text"], "1");
        let awaited = run(&wire, &sandbox, "default", "import asyncio\nawait asyncio.sleep(0.01, 'awaited')").await;
        assert_eq!(awaited["results"][0]["text"], "'awaited'");

        run_js(&wire, &sandbox, "const y = 6; let z = 7; console.log('set')").await;
        let answer = run_js(&wire, &sandbox, "const y = 5; await Promise.resolve(y * z)").await;
        assert_eq!(answer["results"][0]["text"], "35", "{answer}");
        let listed = wire.call("ContextService.ListContexts", json!({"sandbox_id": sandbox})).await;
        let seen: Vec<_> =
            listed["contexts"].as_array().unwrap().iter().map(|one| (&one["language"], &one["is_default"])).collect();
        let expected =
            [(json!("python"), json!(false)), (json!("python"), json!(true)), (json!("javascript"), json!(true))];
        assert_eq!(seen, expected.each_ref().map(|(language, is_default)| (language, is_default)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn results_are_rich_and_errors_have_their_parts() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let code = r#"
class Rich:
    def __repr__(self): return 'plain'
    def _repr_html_(self): return '<b>bold</b>'
    def _repr_markdown_(self): return '**bold**'
    def _repr_svg_(self): return '<svg/>'
    def _repr_png_(self): return b'\x89PNG'
    def _repr_jpeg_(self): return b'\xff\xd8'
    def _repr_latex_(self): return '$x$'
    def _repr_json_(self): return {'a': [1]}
    def _repr_pdf_(self): return b'%PDF'
    def _repr_mimebundle_(self, include=None, exclude=None): return {'application/x-own': 'mine'}
display(Rich())
Rich()
"#;
        let answer = run(&wire, &sandbox, "default", code).await;
        let results = answer["results"].as_array().unwrap();
        assert_eq!(
            (results.len(), &results[0]["is_main"], &results[1]["is_main"]),
            (2, &json!(false), &json!(true)),
            "{answer}"
        );
        for (form, value) in [
            ("text", "plain"),
            ("html", "<b>bold</b>"),
            ("markdown", "**bold**"),
            ("svg", "<svg/>"),
            ("png", "iVBORw=="),
            ("jpeg", "/9g="),
            ("latex", "$x$"),
            ("pdf", "JVBERg=="),
        ] {
            assert_eq!(results[1][form], value, "{form}: {answer}");
        }
        assert_eq!(serde_json::from_str::<Value>(results[1]["json"].as_str().unwrap()).unwrap(), json!({"a": [1]}));
        assert!(results[1]["extra"]["application/x-own"].is_string(), "{answer}");

        let failed = run(&wire, &sandbox, "default", "def f():\n    return {}['missing']\nf()").await;
        assert_eq!(
            (&failed["error"]["name"], &failed["error"]["value"]),
            (&json!("KeyError"), &json!("'missing'")),
            "{failed}"
        );
        let trace = failed["error"]["traceback"].as_str().unwrap();
        assert!(trace.contains("return {}['missing']") && !trace.contains("/tmp/"), "{trace}");
        assert_eq!(failed["exit_code"], 1);
        assert_eq!(run(&wire, &sandbox, "default", "import sys; sys.exit(3)").await["exit_code"], 3);
        assert_eq!(run(&wire, &sandbox, "default", "f.__name__").await["results"][0]["text"], "'f'", "it lives on");
        let failed = run_js(&wire, &sandbox, "null.field").await;
        assert_eq!(failed["error"]["name"], "TypeError", "{failed}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn events_of_a_context_are_streamed_and_read_again() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let code = "import time\nprint('first')\ntime.sleep(0.05)\ndisplay('shown')\n1/0";
        let request = json!({"request": {"sandbox_id": sandbox, "code": code, "context_id": "default"}});
        let (events, failure) = wire.stream("ExecService.ExecuteStream", request).await.rest().await;
        assert_eq!(failure, None);
        let kinds = |events: &[Value]| -> Vec<String> {
            let key = |event: &Value| event["event"].as_object().unwrap().keys().next().unwrap().clone();
            events.iter().map(key).collect()
        };
        assert_eq!(kinds(&events), ["started", "stdout", "result", "error", "exited"], "{events:?}");
        assert_eq!(events[3]["event"]["error"]["name"], "ZeroDivisionError");
        let id = &events[0]["event"]["started"]["execution_id"];
        let attach = json!({"sandbox_id": sandbox, "execution_id": id});
        let (again, failure) = wire.stream("ExecService.AttachExecution", attach).await.rest().await;
        assert_eq!((kinds(&again), failure), (kinds(&events), None));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interrupt_ends_what_runs_and_keeps_what_is_known() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        for (language, before, busy, after) in [
            ("python", "x = 1", "import time\ntime.sleep(60)", "x"),
            ("python", "x = 1", "while True: pass", "x"),
            ("javascript", "var x = 1", "while (true) {}", "x"),
            ("javascript", "var x = 1", "await new Promise(() => {})", "x"),
        ] {
            let context = create(&wire, &sandbox, language).await["context_id"].as_str().unwrap().to_owned();
            run(&wire, &sandbox, &context, before).await;
            let (running, begun) = (run(&wire, &sandbox, &context, busy), Instant::now());
            let named = json!({"sandbox_id": sandbox, "context_id": context});
            let interrupting = async {
                eventually("it runs", || async {
                    wire.call("ContextService.GetContext", named.clone()).await["context"]["state"] == "busy"
                })
                .await;
                tokio::time::sleep(Duration::from_millis(100)).await;
                wire.call("ContextService.InterruptContext", named.clone()).await
            };
            let (ended, told) = tokio::join!(running, interrupting);
            assert_eq!(
                (&told["running"], &told["interrupted"]),
                (&json!(true), &json!(true)),
                "{language} {busy}: {told}"
            );
            assert!(begun.elapsed() < SOON && ended["error"]["name"].is_string(), "{busy}: {ended}");
            assert_eq!(run(&wire, &sandbox, &context, after).await["results"][0]["text"], "1", "{language} {busy}");
            let idle = wire.call("ContextService.InterruptContext", named).await;
            assert_eq!(idle["running"], false);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interpreter_that_dies_or_does_not_listen_is_started_anew_and_that_is_said() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        run(&wire, &sandbox, "default", "x = 1").await;
        let died = run(
            &wire,
            &sandbox,
            "default",
            "import os, sys\nprint('last words'); sys.stdout.flush()\nos.kill(os.getpid(), 9)",
        )
        .await;
        assert_eq!(
            (&died["error"]["name"], &died["signal"], &died["stdout"]),
            (&json!("InterpreterDied"), &json!("SIGKILL"), &json!("last words\n")),
            "{died}"
        );
        let anew = run(&wire, &sandbox, "default", "'x' in globals()").await;
        assert_eq!(
            (&anew["results"][0]["text"], &anew["context_restarted"]),
            (&json!("False"), &json!(true)),
            "{anew}"
        );
        assert_eq!(run(&wire, &sandbox, "default", "1").await["context_restarted"], false);

        // what an interrupt must not come before is done first, in as much time as it takes
        let deaf = "import signal\n_ = signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))";
        assert_eq!(run(&wire, &sandbox, "default", deaf).await["exit_code"], 0);
        let endless = |code: &str, timeout_ms: u32| json!({"sandbox_id": sandbox, "code": code, "context_id": "default", "timeout_ms": timeout_ms});
        let stubborn = endless("while True: pass", 2000);
        let begun = Instant::now();
        let killed = wire.call("ExecService.Execute", stubborn).await;
        assert!(begun.elapsed() < SOON);
        assert_eq!((&killed["timed_out"], &killed["exit_code"]), (&json!(true), &json!(137)), "{killed}");
        assert_eq!(run(&wire, &sandbox, "default", "1 + 1").await["results"][0]["text"], "2");

        run(&wire, &sandbox, "default", "keep = 5\nimport time").await;
        let polite = endless("time.sleep(60)", 300);
        assert_eq!(wire.call("ExecService.Execute", polite).await["timed_out"], true);
        let kept = run(&wire, &sandbox, "default", "keep").await;
        assert_eq!(
            (&kept["results"][0]["text"], &kept["context_restarted"]),
            (&json!("5"), &json!(false)),
            "an interrupt was enough"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn binary_output_and_odd_texts_do_not_break_an_interpreter() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let binary = run(
            &wire,
            &sandbox,
            "default",
            "import sys\n_n = sys.stdout.buffer.write(b'\\xff\\x00{\"type\":\"done\"}\\n')",
        )
        .await;
        assert_eq!((&binary["stdout_bytes"], &binary["exit_code"]), (&json!(18), &json!(0)), "{binary}");
        assert_eq!(run(&wire, &sandbox, "default", "'\\ud800'").await["exit_code"], 0);
        let broken =
            run(&wire, &sandbox, "default", "class B:\n    def __repr__(self): raise ValueError('no')\nB()").await;
        assert_eq!(broken["results"].as_array().unwrap().len(), 1, "{broken}");
        let large = run(&wire, &sandbox, "default", "print('x' * 3_000_000); 'y' * 10_000_000").await;
        assert_eq!(
            (&large["stdout_bytes"], &large["stdout_truncated"]),
            (&json!(3_000_001), &json!(true)),
            "{}",
            large["exit_code"]
        );
        assert_eq!(run(&wire, &sandbox, "default", "2 + 2").await["results"][0]["text"], "4");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn contexts_are_restarted_and_deleted() {
    let server = Server::start().await;
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let made = json!({"sandbox_id": sandbox, "request_id": "one", "env": {"A": "b"}, "cwd": "/tmp"});
        let context = wire.call("ContextService.CreateContext", made.clone()).await["context"].take();
        let again = wire.call("ContextService.CreateContext", made).await["context"].take();
        assert_eq!(again["context_id"], context["context_id"]);
        let id = context["context_id"].as_str().unwrap();
        let named = json!({"sandbox_id": sandbox, "context_id": id});
        let where_it_is = run(&wire, &sandbox, id, "import os\n(os.getcwd(), os.environ['A'])").await;
        assert_eq!(where_it_is["results"][0]["text"], "('/tmp', 'b')");
        let restarted = wire.call("ContextService.RestartContext", named.clone()).await;
        assert_eq!((&restarted["context"]["state"], &restarted["context"]["restarts"]), (&json!("idle"), &json!(1)));
        assert_eq!(run(&wire, &sandbox, id, "os").await["error"]["name"], "NameError");
        wire.call("ContextService.DeleteContext", named.clone()).await;
        for method in ["GetContext", "RestartContext", "InterruptContext", "DeleteContext"] {
            let gone = wire.refused(&format!("ContextService.{method}"), named.clone()).await;
            assert_eq!((gone.status.as_str(), gone.reason.as_str()), ("NOT_FOUND", "CONTEXT_NOT_FOUND"), "{method}");
        }
        let code = json!({"sandbox_id": sandbox, "code": "1", "context_id": id});
        assert_eq!(wire.refused("ExecService.Execute", code).await.reason, "CONTEXT_NOT_FOUND");
        let cobol =
            wire.refused("ContextService.CreateContext", json!({"sandbox_id": sandbox, "language": "cobol"})).await;
        assert_eq!(cobol.fields, ["language"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn executions_of_one_context_wait_for_one_another() {
    let server = Server::start().await;
    let [_, wire] = wires(&server, "ada").await;
    let sandbox = wire.acquire().await;
    run(&wire, &sandbox, "default", "n = 0").await;
    let code = "import time\nm = n\ntime.sleep(0.02)\nn = m + 1";
    let runs = (0..10).map(|_| {
        let (wire, sandbox) = (wire.clone(), sandbox.clone());
        tokio::spawn(async move { run(&wire, &sandbox, "default", code).await["exit_code"].clone() })
    });
    for one in runs.collect::<Vec<_>>() {
        assert_eq!(one.await.unwrap(), 0);
    }
    assert_eq!(run(&wire, &sandbox, "default", "n").await["results"][0]["text"], "10");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn warm_interpreters_know_the_environment_of_their_sandbox() {
    let server = Server::with(&[("WARM_CONTEXTS", "python,javascript"), ("POOL_MIN_SIZE", "1")]).await;
    let api = server.user("ada").await;
    eventually("a sandbox is warm", || async {
        api.get("/api/v1/sandbox/stats").await.1["ready"].as_u64().is_some_and(|ready| ready > 0)
    })
    .await;
    let [wire, _] = wires(&server, "ada").await;
    let answer = wire.call("SchedulerService.AcquireSandbox", json!({"env": {"MINE": "yes"}})).await;
    let sandbox = answer["sandbox"]["sandbox_id"].as_str().unwrap();
    let listed = wire.call("ContextService.ListContexts", json!({"sandbox_id": sandbox})).await;
    assert_eq!(listed["contexts"].as_array().unwrap().len(), 2, "{listed}");
    let told = run(&wire, sandbox, "default", "import os\nos.environ['MINE']").await;
    assert_eq!(told["results"][0]["text"], "'yes'", "{told}");
    assert_eq!(run_js(&wire, sandbox, "process.env.MINE").await["results"][0]["text"], "'yes'");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn typescript_runs_where_node_strips_types_and_is_refused_clearly_elsewhere() {
    let server = Server::start().await;
    let [wire, _] = wires(&server, "ada").await;
    let sandbox = wire.acquire().await;
    let code = "const n: number = 41; console.log(n + 1)";
    let plain = wire
        .try_call("ExecService.Execute", json!({"sandbox_id": sandbox, "code": code, "language": "typescript"}))
        .await;
    let cell = json!({"sandbox_id": sandbox, "code": code, "language": "typescript", "context_id": "default"});
    let in_context = wire.try_call("ExecService.Execute", cell).await;
    let version = wire.shell(&sandbox, "node --version").await["stdout"].as_str().unwrap().to_owned();
    let major: u32 = version.trim_start_matches('v').split('.').next().unwrap().parse().unwrap();
    for answer in [plain, in_context] {
        match answer {
            Ok(answer) => assert_eq!(answer["stdout"], "42\n", "{version}: {answer}"),
            Err(failure) => assert!(failure.reason == "LANGUAGE_UNAVAILABLE" && major < 23, "{version}: {failure:?}"),
        }
    }
}
