//! Code contexts: what their callers see. What goes wrong in them is in `contexts_bad`.

use std::time::Duration;

use cloud_sandbox_proto::v1::{
    AcquireSandboxRequest, ContextState, CreateContextRequest, ExecuteRequest, ExecutionState, FileChangeType,
};
use futures::future::join_all;
use tokio::time::timeout;

use super::{
    contexts_bench::{Bench, error_of},
    harness::*,
};
use crate::Options;

#[tokio::test]
async fn variables_live_from_call_to_call() {
    let bench = Bench::start().await;
    let context = bench.create(bench.creating("")).await.unwrap();
    assert_eq!((context.language.as_str(), context.is_default, context.cwd.as_str()), ("python", false, "/workspace"));
    assert_eq!((context.state(), context.executions, context.restarts), (ContextState::Idle, 0, 0));
    assert!(context.pid > 0 && context.version.starts_with("3."), "{context:?}");
    let id = context.context_id.as_str();

    let answer = bench.run(id, "x = 20\nprint('set')\nx + 1").await;
    assert_eq!((answer.stdout.as_str(), answer.exit_code, answer.context_id.as_str()), ("set\n", 0, id));
    assert_eq!((answer.results.len(), answer.results[0].is_main, answer.results[0].text.as_str()), (1, true, "21"));
    assert!(!answer.context_restarted && answer.wall_time_ms > 0.0);
    assert_eq!(bench.value(id, "x * 2").await, "40");

    let other = bench.context("python").await;
    assert_eq!(error_of(&bench.run(&other, "x").await).0, "NameError");
}

#[tokio::test]
async fn error_is_told_with_name_value_and_traceback_and_the_context_goes_on() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let answer = bench.run(&id, "y = 1\nraise ValueError('bad')").await;
    assert_eq!((error_of(&answer), answer.exit_code), (("ValueError", "bad"), 1));
    assert!(answer.error.unwrap().traceback.contains("line 2"));
    let answer = bench.run(&id, "import sys\nsys.exit(7)").await;
    assert_eq!((answer.exit_code, answer.context_restarted), (7, false));
    assert_eq!(bench.value(&id, "y").await, "1");
}

#[tokio::test]
async fn results_arrive_in_every_form() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let text = "class Rich:
    def _repr_html_(self): return '<b>r</b>'
    def _repr_png_(self): return b'\\x89PNG'
    def _repr_mimebundle_(self, **_): return {'application/vnd.x': 'x'}
display(Rich())
1";
    let answer = bench.run(&id, text).await;
    assert_eq!(answer.results.len(), 2, "{answer:?}");
    let rich = &answer.results[0];
    assert_eq!((rich.is_main, rich.html.as_str(), &rich.png[..]), (false, "<b>r</b>", &b"\x89PNG"[..]));
    assert_eq!(&rich.extra["application/vnd.x"][..], b"x");
    assert!(answer.results[1].is_main);
}

#[tokio::test]
async fn javascript_keeps_its_variables_and_awaits() {
    let bench = Bench::start().await;
    let id = bench.context("js").await;
    bench.run(&id, "const x = await Promise.resolve(20); let y = 1").await;
    assert_eq!(bench.value(&id, "x + y").await, "21");
    let answer = bench.run(&id, "throw new TypeError('bad')").await;
    assert_eq!((error_of(&answer), answer.exit_code), (("TypeError", "bad"), 1));
    assert_eq!(bench.list().await[0].language, "javascript");
}

#[tokio::test]
async fn typescript_runs_or_is_refused_where_node_strips_no_types() {
    let bench = Bench::start().await;
    let fresh = code(bench.id, "typescript", "let x: number = 20; console.log(x + 1)");
    let fresh = bench.world.execute(fresh).await;
    let request = ExecuteRequest { language: "ts".into(), ..bench.cell("default", "let x: number = 20; x + 1") };
    match bench.world.execute(request.clone()).await {
        Ok(answer) => assert_eq!((answer.results[0].text.as_str(), fresh.unwrap().stdout.as_str()), ("21", "21\n")),
        Err(failure) => {
            let fresh = fresh.unwrap_err();
            assert_eq!(fresh.reason, "LANGUAGE_UNAVAILABLE");
            assert!(fresh.message.contains("strips types"), "{}", fresh.message);
            assert_eq!(failure.words(), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"));
            assert!(failure.metadata.contains(&("language".into(), "typescript".into())), "{failure:?}");
            assert!(bench.list().await.is_empty(), "one that cannot run is not kept");
            assert_eq!(bench.create(bench.creating("typescript")).await.unwrap_err().reason, "LANGUAGE_UNAVAILABLE");
            // asked of a context that is there, it is refused before it begins
            let id = bench.context("javascript").await;
            let request = ExecuteRequest { context_id: id.clone(), ..request };
            assert_eq!(bench.world.execute(request).await.unwrap_err().reason, "LANGUAGE_UNAVAILABLE");
            assert_eq!(bench.value(&id, "1").await, "1");
        }
    }
}

#[tokio::test]
async fn default_context_is_made_once_by_whoever_comes_first() {
    let bench = Bench::start().await;
    let cells = (0..8).map(|number| bench.cell("default", &format!("n = globals().get('n', 0) + 1; {number}")));
    for answer in join_all(cells.map(|cell| bench.world.execute(cell))).await {
        assert_eq!(answer.unwrap().exit_code, 0);
    }
    assert_eq!(bench.value("default", "n").await, "8");
    let javascript = ExecuteRequest { language: "node".into(), ..bench.cell("default", "1") };
    bench.world.execute(javascript).await.unwrap();
    let contexts = bench.list().await;
    let seen: Vec<_> = contexts.iter().map(|context| (context.language.as_str(), context.is_default)).collect();
    assert_eq!(seen, [("python", true), ("javascript", true)]);
    assert_eq!(bench.run(&contexts[0].context_id, "n").await.context_id, contexts[0].context_id);

    bench.delete(&contexts[0].context_id).await.unwrap();
    assert_eq!(error_of(&bench.run("default", "n").await).0, "NameError");
}

#[tokio::test]
async fn executions_of_a_context_run_one_after_the_other_in_their_order() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    bench.run(&id, "import os, time; seen = []").await;
    let mut begun = Vec::new();
    for number in 0..10 {
        // the first waits until the others are looked at
        let text = "while not os.path.exists('go'): time.sleep(0.01)";
        let cell = bench.cell(&id, &format!("{text}\nseen.append({number}); len(seen)"));
        begun.push(bench.world.begin(cell).await.unwrap());
    }
    let last = bench.world.execution(bench.id, &begun[9].execution_id).await.unwrap();
    assert_eq!(last.state(), ExecutionState::Queued);
    let busy = bench.get(&id).await.unwrap();
    assert_eq!(busy.state(), ContextState::Busy);
    assert_eq!(busy.executions, 10, "{busy:?}");
    std::fs::write(bench.path("go"), "").unwrap();
    assert_eq!(bench.value(&id, "seen").await, "[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]");
    let last = bench.world.execution(bench.id, &begun[9].execution_id).await.unwrap();
    assert_eq!((last.state(), last.exit.unwrap().context_id), (ExecutionState::Exited, id.clone()));
    let idle = bench.get(&id).await.unwrap();
    assert_eq!((idle.state(), idle.executions), (ContextState::Idle, 0));
}

#[tokio::test]
async fn contexts_are_created_once_per_request_id_and_bounded() {
    let bench = Bench::start().await;
    let request = CreateContextRequest { request_id: "r".into(), ..bench.creating("python") };
    let created = join_all((0..3).map(|_| bench.create(request.clone()))).await;
    let ids: Vec<_> = created.into_iter().map(|context| context.unwrap().context_id).collect();
    assert_eq!((&ids[0], &ids[0]), (&ids[1], &ids[2]));
    let other = CreateContextRequest { cwd: "/tmp".into(), ..request.clone() };
    assert_eq!(bench.create(other).await.unwrap_err().words(), ("ALREADY_EXISTS", "REQUEST_ID_REUSED"));
    bench.delete(&ids[0]).await.unwrap();
    assert_eq!(bench.create(request).await.unwrap_err().reason, "CONTEXT_NOT_FOUND");
    assert!(bench.list().await.is_empty());

    for answer in join_all((0..16).map(|_| bench.create(bench.creating("python")))).await {
        answer.unwrap();
    }
    let refused = bench.create(bench.creating("python")).await.unwrap_err();
    assert_eq!(refused.words(), ("RESOURCE_EXHAUSTED", "CONTEXT_LIMIT"));
    let refused = bench.world.execute(bench.cell("default", "1")).await.unwrap_err();
    assert_eq!(refused.words(), ("RESOURCE_EXHAUSTED", "CONTEXT_LIMIT"));
}

#[tokio::test]
async fn every_bad_field_is_named() {
    let bench = Bench::start().await;
    let request = CreateContextRequest {
        language: "cobol".into(),
        cwd: "here".into(),
        env: [("1".to_owned(), String::new())].into(),
        request_id: "?".into(),
        ..bench.creating("")
    };
    assert_eq!(bench.create(request).await.unwrap_err().fields, ["language", "cwd", "env", "request_id"]);
    assert_eq!(bench.create(bench.creating("bash")).await.unwrap_err().fields, ["language"]);
    assert_eq!(bench.get("nonsense").await.unwrap_err().reason, "INVALID_ID");
    let unknown = "cx01jd8z4n00000000000000000a";
    for failure in [
        bench.get(unknown).await.unwrap_err(),
        bench.restart(unknown).await.unwrap_err(),
        bench.interrupt(unknown).await.unwrap_err(),
        bench.delete(unknown).await.unwrap_err(),
        bench.world.execute(bench.cell(unknown, "1")).await.unwrap_err(),
    ] {
        assert_eq!(failure.words(), ("NOT_FOUND", "CONTEXT_NOT_FOUND"));
    }
    let id = bench.context("python").await;
    let other = ExecuteRequest { language: "js".into(), ..bench.cell(&id, "1") };
    assert_eq!(bench.world.execute(other).await.unwrap_err().fields, ["language"]);
}

#[tokio::test]
async fn environment_and_folder_are_the_contexts_and_then_the_calls() {
    let acquire = AcquireSandboxRequest { env: [("A".into(), "sandbox".into())].into(), ..Default::default() };
    let bench = Bench::start_with(options(1, 1), acquire).await;
    let env = [("B".to_owned(), "context".to_owned())].into();
    let id = bench.create(CreateContextRequest { env, cwd: "/tmp".into(), ..bench.creating("") }).await.unwrap();
    let id = id.context_id;
    let look = "import os; (os.environ['A'], os.environ['B'], os.environ['HOME'], os.getcwd(), os.environ.get('C'))";
    assert_eq!(bench.value(&id, look).await, "('sandbox', 'context', '/home/user', '/tmp', None)");
    let call = ExecuteRequest { env: [("C".into(), "call".into())].into(), cwd: "/".into(), ..bench.cell(&id, look) };
    let answer = bench.world.execute(call).await.unwrap();
    assert_eq!(answer.results[0].text, "('sandbox', 'context', '/home/user', '/', 'call')");
}

#[tokio::test]
async fn interrupt_ends_what_runs_and_keeps_the_variables() {
    let bench = Bench::start().await;
    for (language, set, spin, get) in [
        ("python", "x = 5", "open('THERE', 'w').close()\nwhile True: pass", "x"),
        ("javascript", "let x = 5", "require('fs').writeFileSync('THERE', ''); while (true) {}", "x"),
    ] {
        let id = bench.context(language).await;
        assert_eq!(bench.interrupt(&id).await.unwrap(), (false, false));
        bench.run(&id, set).await;
        let name = format!("{language}.txt");
        let spin = spin.replace("THERE", bench.path(&name).to_str().unwrap());
        let (answer, interrupted) = tokio::join!(bench.run(&id, &spin), async {
            bench.until_there(&name).await;
            bench.interrupt(&id).await.unwrap()
        });
        assert_eq!(interrupted, (true, true), "{language}");
        assert_eq!((answer.exit_code, answer.timed_out), (130, false), "{language}: {answer:?}");
        assert_eq!(bench.value(&id, get).await, "5", "{language}");
    }
}

#[tokio::test]
async fn interrupt_that_comes_as_soon_as_code_runs_is_not_lost() {
    let bench = Bench::start().await;
    for (language, spin) in [("python", "while True: pass"), ("javascript", "while (true) {}")] {
        let id = bench.context(language).await;
        for _ in 0..30 {
            let (answer, interrupted) = tokio::join!(bench.run(&id, spin), async {
                loop {
                    let told = bench.interrupt(&id).await.unwrap();
                    if told.0 {
                        break told;
                    }
                }
            });
            assert_eq!((interrupted, answer.exit_code), ((true, true), 130), "{language}");
        }
        assert_eq!(bench.value(&id, "1 + 1").await, "2");
    }
}

#[tokio::test]
async fn restart_forgets_everything_and_ends_what_runs_and_waits() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let spin = format!("x = 1; open({:?}, 'w').close()\nwhile True: pass", bench.path("runs"));
    let runs = bench.run(&id, &spin);
    let later = async {
        bench.until_there("runs").await;
        let waits = bench.run(&id, "open('never', 'w')");
        let restart = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            bench.restart(&id).await.unwrap()
        };
        tokio::join!(waits, restart)
    };
    let (ran, (waited, context)) = tokio::join!(runs, later);
    assert_eq!((error_of(&ran).0, ran.signal.as_str()), ("ContextRestarted", "SIGKILL"));
    assert_eq!((error_of(&waited).0, waited.exit_code), ("ContextRestarted", 1));
    assert_eq!((context.state(), context.restarts), (ContextState::Idle, 1));
    let answer = bench.run(&id, "x").await;
    assert_eq!((error_of(&answer).0, answer.context_restarted), ("NameError", false));
    assert!(!bench.path("never").exists());
}

#[tokio::test]
async fn delete_ends_what_runs_and_waits() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let spin = format!("open({:?}, 'w').close()\nwhile True: pass", bench.path("runs"));
    let later = async {
        bench.until_there("runs").await;
        let deleting = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            bench.delete(&id).await.unwrap();
        };
        tokio::join!(bench.run(&id, "1"), deleting).0
    };
    let (ran, waited) = tokio::join!(bench.run(&id, &spin), later);
    assert_eq!((error_of(&ran).0, error_of(&waited).0), ("ContextDeleted", "ContextDeleted"));
    assert_eq!(bench.get(&id).await.unwrap_err().reason, "CONTEXT_NOT_FOUND");
}

#[tokio::test]
async fn changes_of_files_are_told_of_code_in_a_context() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let request = ExecuteRequest { changes: true, ..bench.cell(&id, "open('new', 'w').write('x')") };
    let changes = bench.world.execute(request).await.unwrap().changes.unwrap();
    assert_eq!(changes.files.len(), 1, "{changes:?}");
    assert!(changes.files[0].path.ends_with("/new") && changes.files[0].r#type() == FileChangeType::Created);
}

#[tokio::test]
async fn repeated_request_id_finds_the_first_run() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let request = ExecuteRequest { request_id: "r".into(), ..bench.cell(&id, "n = globals().get('n', 0) + 1; n") };
    let answers = join_all((0..4).map(|_| bench.world.execute(request.clone()))).await;
    for answer in answers {
        assert_eq!(answer.unwrap().results[0].text, "1");
    }
    assert_eq!(bench.value(&id, "n").await, "1");
}

fn warm(languages: &[&str]) -> Options {
    Options { warm_contexts: languages.iter().map(|language| (*language).to_owned()).collect(), ..options(1, 1) }
}

#[tokio::test]
async fn warm_interpreter_is_there_from_the_beginning_and_is_told_whose_it_is() {
    let acquire = AcquireSandboxRequest { env: [("A".into(), "mine".into())].into(), ..Default::default() };
    // where Node strips no types, it goes on without
    let bench = Bench::start_with(warm(&["python", "typescript"]), acquire).await;
    let contexts = bench.list().await;
    assert!(contexts.iter().all(|context| context.is_default && context.state() == ContextState::Idle));
    assert_eq!(contexts[0].language, "python");
    let pid = contexts[0].pid;
    assert_eq!(bench.value("default", "import os; os.environ['A'], os.getpid()").await, format!("('mine', {pid})"));
}

#[tokio::test]
async fn language_without_contexts_is_not_kept_warm() {
    let directory = std::sync::Arc::new(TestDirectory::default());
    let folder = tempfile::tempdir().unwrap();
    let store = workspaces(&folder.path().join("journal")).await;
    let started =
        crate::Node::start(warm(&["python", "bash"]), runtimes(&[&runtime(&Default::default())]), directory, store);
    let started = started.await;
    assert_eq!(started.err().unwrap().violations()[0].field, "warm_contexts");
}

#[tokio::test]
async fn warm_interpreter_that_would_not_see_a_variable_is_replaced_unnoticed() {
    let acquire = AcquireSandboxRequest { env: [("PYTHONPATH".into(), "/mine".into())].into(), ..Default::default() };
    let bench = Bench::start_with(warm(&["python"]), acquire).await;
    let answer = bench.run("default", "import sys; '/mine' in sys.path").await;
    assert_eq!((answer.results[0].text.as_str(), answer.context_restarted), ("True", false));
    assert_eq!(bench.list().await[0].restarts, 0);
}

#[tokio::test]
async fn paused_sandbox_refuses_and_a_released_one_ends_everything() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    bench.world.pause(bench.id).await.unwrap();
    for failure in [
        bench.get(&id).await.unwrap_err(),
        bench.create(bench.creating("")).await.unwrap_err(),
        bench.restart(&id).await.unwrap_err(),
        bench.world.execute(bench.cell(&id, "1")).await.unwrap_err(),
    ] {
        assert_eq!(failure.reason, "SANDBOX_PAUSED");
    }
    bench.world.resume(bench.id).await.unwrap();

    let spin = format!("open({:?}, 'w').close()\nwhile True: pass", bench.path("runs"));
    let runs = bench.world.execute(bench.cell(&id, &spin));
    let later = async {
        bench.until_there("runs").await;
        let waits = bench.world.execute(bench.cell(&id, "1"));
        let release = async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            bench.world.release(bench.id).await.unwrap();
        };
        tokio::join!(waits, release).0
    };
    let (ran, waited) = timeout(Duration::from_secs(30), async { tokio::join!(runs, later) }).await.unwrap();
    assert_eq!((ran.unwrap_err().reason, waited.unwrap_err().reason), ("SANDBOX_GONE".into(), "SANDBOX_GONE".into()));
}
