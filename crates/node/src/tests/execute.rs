use std::{sync::atomic::Ordering, time::Duration};

use cloud_sandbox_proto::v1::{AcquireSandboxRequest, ExecuteRequest};
use tokio::time::{Instant, sleep, timeout};

use super::harness::*;

async fn world() -> (World, cloud_sandbox_model::SandboxId) {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    (world, id)
}

#[tokio::test(start_paused = true)]
async fn answer_tells_output_exit_and_use() {
    let (world, id) = world().await;
    let answer = world.execute(argv(id, &["both", "out", "err"])).await.unwrap();
    assert_eq!((answer.stdout.as_str(), answer.stderr.as_str(), answer.exit_code), ("out", "err", 0));
    assert_eq!((answer.stdout_bytes, answer.stderr_bytes), (3, 3));
    assert_eq!((answer.cpu_time_ms, answer.wall_time_ms, answer.peak_memory_bytes), (1.5, 2.5, 4096));
    assert!(answer.execution_id.starts_with("ex"));
    assert!(!answer.timed_out && !answer.oom_killed && !answer.stdout_truncated && answer.signal.is_empty());
}

#[tokio::test(start_paused = true)]
async fn exit_codes_and_signals_are_told_apart() {
    let (world, id) = world().await;
    assert_eq!(world.execute(argv(id, &["fail", "3"])).await.unwrap().exit_code, 3);
    let answer = world.execute(argv(id, &["signal", "15"])).await.unwrap();
    assert_eq!((answer.exit_code, answer.signal.as_str()), (143, "SIGTERM"));
}

#[tokio::test(start_paused = true)]
async fn code_is_staged_and_run_by_its_language() {
    let (world, id) = world().await;
    let answer = world.execute(code(id, "", "print(1)")).await.unwrap();
    assert_eq!(answer.stdout, "print(1)");
    let start = world.script.last_start();
    let path = format!("/tmp/.run-{}/main.py", answer.execution_id);
    assert_eq!(start.argv, ["python3", &path]);
    assert_eq!(start.staged.unwrap().path, path);
    assert_eq!((start.cwd.as_str(), start.env["PYTHONPATH"].as_str()), ("/workspace", "/workspace"));

    world.execute(code(id, "node", "1")).await.unwrap();
    let start = world.script.last_start();
    assert_eq!(start.argv[..2], ["node", "-e"]);
    assert!(start.argv[3].ends_with("/main.js"));
    for (language, program) in [("rb", "ruby"), ("bash", "bash"), ("sh", "sh"), ("perl", "perl"), ("lua", "lua")] {
        world.execute(code(id, language, "1")).await.unwrap();
        assert_eq!(world.script.last_start().argv[0], program);
    }
}

#[tokio::test(start_paused = true)]
async fn go_is_looked_for_before_it_is_run() {
    let (world, id) = world().await;
    world.execute(code(id, "go", "package main")).await.unwrap();
    assert_eq!(world.script.last_start().argv[0], "sh");
    world.script.missing.lock().unwrap().insert("go");
    let failure = world.execute(code(id, "golang", "package main")).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"));
}

#[tokio::test(start_paused = true)]
async fn language_that_the_template_lacks_is_named() {
    let (world, id) = world().await;
    world.script.missing.lock().unwrap().insert("ruby");
    let failure = world.execute(code(id, "ruby", "puts 1")).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"));
    assert_eq!(failure.message, "language ruby is not available: template host has no ruby");
}

#[tokio::test(start_paused = true)]
async fn missing_program_and_folder_are_preconditions() {
    let (world, id) = world().await;
    world.script.missing.lock().unwrap().insert("nope");
    let failure = world.execute(argv(id, &["nope"])).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "PROGRAM_NOT_FOUND"));
    assert!(failure.message.contains("nope"));
    let request = ExecuteRequest { cwd: "/missing".into(), ..argv(id, &["echo", "a"]) };
    let failure = world.execute(request).await.unwrap_err();
    assert_eq!(failure.kind, "FAILED_PRECONDITION");
    assert!(failure.message.contains("cwd /missing"));
}

#[tokio::test(start_paused = true)]
async fn command_runs_in_bash_or_else_in_sh() {
    let (world, id) = world().await;
    let request = ExecuteRequest { sandbox_id: id.to_string(), command: Some("ls | wc".into()), ..Default::default() };
    assert_eq!(world.execute(request.clone()).await.unwrap().stdout, "ls | wc");
    assert_eq!(world.script.last_start().argv, ["bash", "-c", "ls | wc"]);
    world.script.missing.lock().unwrap().insert("bash");
    world.execute(request.clone()).await.unwrap();
    assert_eq!(world.script.last_start().argv, ["sh", "-c", "ls | wc"]);
    world.script.missing.lock().unwrap().insert("sh");
    assert_eq!(world.execute(request).await.unwrap_err().reason, "PROGRAM_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn environment_is_the_base_then_the_sandbox_then_the_call() {
    let world = World::start(1, 5).await;
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let env = pairs(&[("A", "sandbox"), ("B", "sandbox"), ("HOME", "/sandbox")]);
    let id = id_of(&world.try_acquire(AcquireSandboxRequest { env, ..Default::default() }).await.unwrap());
    let request = ExecuteRequest { env: pairs(&[("B", "call")]), ..argv(id, &["echo", "a"]) };
    world.execute(request).await.unwrap();
    let env = world.script.last_start().env;
    assert_eq!((env["A"].as_str(), env["B"].as_str(), env["HOME"].as_str()), ("sandbox", "call", "/sandbox"));
    assert_eq!((env["USER"].as_str(), env["LANG"].as_str(), env["TMPDIR"].as_str()), ("user", "C.UTF-8", "/tmp"));
    assert!(env["PATH"].contains("/usr/bin"));
}

#[tokio::test(start_paused = true)]
async fn stdin_is_given_and_ends() {
    let (world, id) = world().await;
    let request = ExecuteRequest { stdin: "hello".into(), ..argv(id, &["cat"]) };
    assert_eq!(world.execute(request).await.unwrap().stdout, "hello");
    assert_eq!(world.execute(argv(id, &["cat"])).await.unwrap().stdout, "");
}

#[tokio::test(start_paused = true)]
async fn output_beyond_the_bound_is_dropped_and_counted() {
    let (world, id) = world().await;
    let request = ExecuteRequest { max_output_bytes: 100, ..argv(id, &["flood", "3000000"]) };
    let answer = world.execute(request).await.unwrap();
    assert_eq!((answer.stdout.len(), answer.stdout_bytes), (100, 3_000_000));
    assert!(answer.stdout_truncated && !answer.stderr_truncated);
    let answer = world.execute(argv(id, &["flood", "1048576"])).await.unwrap();
    assert!(!answer.stdout_truncated && answer.stdout.len() == 1_048_576);
    let answer = world.execute(argv(id, &["flood", "1048577"])).await.unwrap();
    assert!(answer.stdout_truncated && answer.stdout.len() == 1_048_576);
}

#[tokio::test(start_paused = true)]
async fn execution_is_killed_at_its_timeout() {
    let (world, id) = world().await;
    let began = Instant::now();
    let request = ExecuteRequest { timeout_ms: 500, ..argv(id, &["wait", "30000"]) };
    let answer = world.execute(request).await.unwrap();
    assert!(answer.timed_out);
    assert_eq!((answer.exit_code, answer.signal.as_str(), answer.stdout.as_str()), (137, "SIGKILL", "waiting\n"));
    assert!(began.elapsed() < Duration::from_secs(1));
    assert_eq!(world.script.signals.lock().unwrap().as_slice(), [9]);
}

#[tokio::test]
async fn process_that_never_stops_to_print_is_timed_out() {
    let (world, id) = world().await;
    let began = Instant::now();
    let answer = world.execute(ExecuteRequest { timeout_ms: 100, ..argv(id, &["yes"]) }).await.unwrap();
    assert!(answer.timed_out && answer.stdout.starts_with("y\ny\n"));
    assert!(began.elapsed() < Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn output_that_is_not_text_fits_into_an_answer() {
    let (world, id) = world().await;
    let size = 8 * 1024 * 1024;
    let request = ExecuteRequest { max_output_bytes: size, ..argv(id, &["binary", &size.to_string()]) };
    let answer = world.execute(request).await.unwrap();
    assert!(answer.stdout.starts_with('\u{FFFD}') && answer.stdout.len() <= size as usize);
    assert!(answer.stdout_truncated && answer.stdout_bytes == u64::from(size));
}

#[tokio::test(start_paused = true)]
async fn timeout_is_told_also_when_the_agent_says_nothing() {
    let (world, id) = world().await;
    let request = ExecuteRequest { timeout_ms: 500, ..argv(id, &["stubborn"]) };
    let began = Instant::now();
    let answer = world.execute(request).await.unwrap();
    assert!(answer.timed_out && answer.exit_code == 137 && answer.wall_time_ms >= 500.0);
    assert!(began.elapsed() < Duration::from_secs(4));
    world.settle().await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn hang_up_ends_an_execution_without_a_request_id() {
    let (world, id) = world().await;
    let hung_up = timeout(Duration::from_secs(1), world.execute(argv(id, &["wait", "30000"]))).await;
    assert!(hung_up.is_err());
    world.settle().await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn hang_up_leaves_an_execution_with_a_request_id_to_its_repeat() {
    let (world, id) = world().await;
    let request = ExecuteRequest { request_id: "r1".into(), ..argv(id, &["wait", "3000"]) };
    assert!(timeout(Duration::from_secs(1), world.execute(request.clone())).await.is_err());
    world.settle().await;
    assert_eq!(world.script.running(), 1);
    let attached = world.execute(request.clone()).await.unwrap();
    assert_eq!(attached.stdout, "waiting\ndone\n");
    let finished = world.execute(request).await.unwrap();
    assert_eq!(finished, attached);
    assert_eq!(world.script.starts.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn abandoned_execution_with_a_request_id_ends_at_its_timeout() {
    let (world, id) = world().await;
    let wait = argv(id, &["wait", "30000"]);
    let request = ExecuteRequest { request_id: "r1".into(), timeout_ms: 2000, ..wait };
    assert!(timeout(Duration::from_secs(1), world.execute(request)).await.is_err());
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn request_id_with_other_content_is_refused() {
    let (world, id) = world().await;
    let request = ExecuteRequest { request_id: "r1".into(), ..argv(id, &["echo", "a"]) };
    world.execute(request.clone()).await.unwrap();
    let other = ExecuteRequest { timeout_ms: 9, ..request };
    assert_eq!(world.execute(other).await.unwrap_err().words(), ("ALREADY_EXISTS", "REQUEST_ID_REUSED"));
}

#[tokio::test(start_paused = true)]
async fn execution_that_never_started_may_be_repeated() {
    let (world, id) = world().await;
    world.script.missing.lock().unwrap().insert("echo");
    let request = ExecuteRequest { request_id: "r1".into(), ..argv(id, &["echo", "a"]) };
    assert_eq!(world.execute(request.clone()).await.unwrap_err().reason, "PROGRAM_NOT_FOUND");
    world.script.missing.lock().unwrap().clear();
    assert_eq!(world.execute(request).await.unwrap().stdout, "a");
}

#[tokio::test(start_paused = true)]
async fn executions_at_once_are_bounded_and_places_are_given_back() {
    let (world, id) = world().await;
    let many = |_| world.execute(argv(id, &["wait", "1000"]));
    let answers = futures::future::join_all((0..260).map(many)).await;
    let refused: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert_eq!(refused.len(), 4);
    assert_eq!(refused[0].words(), ("RESOURCE_EXHAUSTED", "EXECUTION_LIMIT"));
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn broken_stream_is_an_error_and_the_sandbox_stays_usable() {
    let (world, id) = world().await;
    assert_eq!(world.execute(argv(id, &["break"])).await.unwrap_err().words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
    assert_eq!(world.script.running.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn every_bad_field_is_named() {
    let (world, id) = world().await;
    let good = argv(id, &["echo", "a"]);
    let long = "a".repeat(1024 * 1024 + 1);
    let cases = [
        ("code", ExecuteRequest { argv: vec![], ..good.clone() }),
        ("code", ExecuteRequest { code: Some("1".into()), ..good.clone() }),
        ("code", code(id, "python", &long)),
        ("language", code(id, "cobol", "1")),
        ("language", ExecuteRequest { language: "python".into(), ..good.clone() }),
        ("argv", argv(id, &[""])),
        ("argv", argv(id, &["a\0"])),
        ("argv", argv(id, &[&long[..122_881]])),
        ("argv", argv(id, &vec!["a"; 1025])),
        ("command", ExecuteRequest { argv: vec![], command: Some("a\0".into()), ..good.clone() }),
        ("command", ExecuteRequest { argv: vec![], command: Some(long[..122_881].into()), ..good.clone() }),
        ("cwd", ExecuteRequest { cwd: "a".into(), ..good.clone() }),
        ("cwd", ExecuteRequest { cwd: "/a/../b".into(), ..good.clone() }),
        ("env", ExecuteRequest { env: [("1A".to_owned(), String::new())].into(), ..good.clone() }),
        ("stdin", ExecuteRequest { stdin: long.clone(), ..good.clone() }),
        ("timeout_ms", ExecuteRequest { timeout_ms: 86_400_001, ..good.clone() }),
        ("max_output_bytes", ExecuteRequest { max_output_bytes: 8_388_609, ..good.clone() }),
        ("request_id", ExecuteRequest { request_id: "a b".into(), ..good.clone() }),
        ("sandbox_id", ExecuteRequest { sandbox_id: "x".into(), ..good.clone() }),
    ];
    for (field, request) in cases {
        let failure = world.execute(request).await.unwrap_err();
        assert_eq!((failure.kind, failure.fields), ("INVALID_ARGUMENT", vec![field.to_owned()]));
    }
    let failure = world.execute(code(id, "cobol", "1")).await.unwrap_err();
    assert!(failure.message.contains("python, javascript, typescript, go"), "{}", failure.message);
}
