//! Executions by their ids: in the background, listed, attached to, written to, signalled, searched.

use std::time::Duration;

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::v1::{
    self, AttachExecutionRequest, ExecuteRequest, ExecutionState, GrepExecutionOutputRequest, ListExecutionsRequest,
    OutputStream, ResizeExecutionTerminalRequest, SignalExecutionRequest, TerminalSize, WriteExecutionStdinRequest,
    exec_event::Event, read_execution_output_response, write_execution_stdin_request::Input,
};
use tokio::time::{sleep, timeout};
use tonic::Status;

use super::{follow::*, harness::*};

impl World {
    async fn write(&self, id: SandboxId, execution: &str, text: &str, offset: Option<u64>) -> Result<u64, Failure> {
        self.write_and(id, execution, text, offset, false).await
    }

    async fn write_and(
        &self,
        id: SandboxId,
        execution: &str,
        text: &str,
        offset: Option<u64>,
        close: bool,
    ) -> Result<u64, Failure> {
        let request = WriteExecutionStdinRequest {
            sandbox_id: id.to_string(),
            execution_id: execution.to_owned(),
            input: Some(Input::Text(text.to_owned())),
            close,
            offset,
            ..Default::default()
        };
        let answer = self.exec().write_execution_stdin(request).await;
        answer.map(|answer| answer.into_inner().stdin_bytes).map_err(|status| Failure::of(&status))
    }

    async fn signal(&self, id: SandboxId, execution: &str, signal: &str) -> Result<(), Failure> {
        let request = SignalExecutionRequest {
            sandbox_id: id.to_string(),
            execution_id: execution.to_owned(),
            signal: signal.to_owned(),
            ..Default::default()
        };
        self.exec().signal_execution(request).await.map(drop).map_err(|status| Failure::of(&status))
    }

    async fn resize(&self, id: SandboxId, execution: &str, size: TerminalSize) -> Result<(), Failure> {
        let request = ResizeExecutionTerminalRequest {
            sandbox_id: id.to_string(),
            execution_id: execution.to_owned(),
            terminal: Some(size),
            ..Default::default()
        };
        self.exec().resize_execution_terminal(request).await.map(drop).map_err(|status| Failure::of(&status))
    }
}

async fn world() -> (World, SandboxId) {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    (world, id)
}

fn open(request: ExecuteRequest) -> ExecuteRequest {
    ExecuteRequest { stdin_open: true, ..request }
}

#[tokio::test(start_paused = true)]
async fn background_execution_is_told_while_it_runs_and_after_its_end() {
    let (world, id) = world().await;
    let request = ExecuteRequest { tag: "build".into(), ..argv(id, &["wait", "5000"]) };
    let started = world.begin(request).await.unwrap();
    assert_eq!((started.state(), started.summary.as_str()), (ExecutionState::Running, "wait 5000"));
    assert_eq!((started.tag.as_str(), started.cwd.as_str(), started.stdin_open), ("build", "/workspace", false));
    assert!(started.pid > 0 && started.create_time.is_some() && started.end_time.is_none());

    sleep(Duration::from_secs(6)).await;
    let ended = world.execution(id, &started.execution_id).await.unwrap();
    assert_eq!((ended.state(), ended.pid, ended.stdout_bytes), (ExecutionState::Exited, 0, 13));
    let exit = ended.exit.unwrap();
    assert_eq!((exit.exit_code, exit.stdout_bytes, exit.cpu_time_ms), (0, 13, 1.5));
    assert!(ended.end_time.is_some());
}

#[tokio::test(start_paused = true)]
async fn background_execution_has_a_day_and_takes_no_bounds_on_output() {
    let (world, id) = world().await;
    let started = world.begin(argv(id, &["wait", "80000000"])).await.unwrap();
    // the lease is longer for this
    world.keep_alive(id, 86_400).await.unwrap();
    sleep(Duration::from_secs(70_000)).await;
    assert_eq!(world.execution(id, &started.execution_id).await.unwrap().state(), ExecutionState::Running);
    for (field, request) in [
        ("max_output_bytes", ExecuteRequest { max_output_bytes: 1, ..argv(id, &["cat"]) }),
        ("output_strategy", ExecuteRequest { output_strategy: 1, ..argv(id, &["cat"]) }),
        ("changes", ExecuteRequest { changes: true, ..argv(id, &["cat"]) }),
    ] {
        assert_eq!(world.begin(request).await.unwrap_err().fields, [field]);
    }
}

#[tokio::test(start_paused = true)]
async fn start_that_fails_is_the_error_of_the_call_and_is_not_listed() {
    let (world, id) = world().await;
    world.script.missing.lock().unwrap().insert("nope");
    assert_eq!(world.begin(argv(id, &["nope"])).await.unwrap_err().reason, "PROGRAM_NOT_FOUND");
    let request = ListExecutionsRequest { sandbox_id: id.to_string(), ..Default::default() };
    assert!(world.list(request).await.unwrap().executions.is_empty());
}

#[tokio::test(start_paused = true)]
async fn list_filters_and_pages_oldest_first() {
    let (world, id) = world().await;
    let mut ids = Vec::new();
    for number in 0..5 {
        let words = if number < 3 { ["echo", "a"] } else { ["wait", "60000"] };
        let request = ExecuteRequest { tag: format!("t{}", number % 2), ..argv(id, &words) };
        ids.push(world.begin(request).await.unwrap().execution_id);
        sleep(Duration::from_millis(5)).await;
        std::thread::sleep(Duration::from_millis(2));
    }
    world.settle().await;
    let all = ListExecutionsRequest { sandbox_id: id.to_string(), ..Default::default() };
    let names = |answer: &v1::ListExecutionsResponse| -> Vec<String> {
        answer.executions.iter().map(|execution| execution.execution_id.clone()).collect()
    };
    let page = world.list(ListExecutionsRequest { page_size: 3, ..all.clone() }).await.unwrap();
    assert_eq!(names(&page), ids[..3]);
    let token = page.next_page_token;
    let page = world.list(ListExecutionsRequest { page_size: 3, page_token: token, ..all.clone() }).await.unwrap();
    assert_eq!((names(&page).as_slice(), page.next_page_token.as_str()), (&ids[3..], ""));
    let running = ListExecutionsRequest { state: ExecutionState::Running.into(), ..all.clone() };
    assert_eq!(names(&world.list(running).await.unwrap()), ids[3..]);
    let tagged = ListExecutionsRequest { tag: "t1".into(), ..all.clone() };
    assert_eq!(names(&world.list(tagged).await.unwrap()), [ids[1].clone(), ids[3].clone()]);
    for (field, request) in [
        ("page_size", ListExecutionsRequest { page_size: 1001, ..all.clone() }),
        ("page_token", ListExecutionsRequest { page_token: "x".into(), ..all.clone() }),
        ("state", ListExecutionsRequest { state: 99, ..all.clone() }),
    ] {
        assert_eq!(world.list(request).await.unwrap_err().fields, [field]);
    }
}

#[tokio::test(start_paused = true)]
async fn attach_gives_what_was_printed_and_then_what_comes() {
    let (world, id) = world().await;
    let started = world.begin(argv(id, &["wait", "5000"])).await.unwrap();
    world.settle().await;
    let (events, exited) = world.attach(id, &started.execution_id, (0, 0)).await.unwrap().all().await;
    assert!(matches!(&events[0], Event::Started(it) if it.execution_id == started.execution_id && it.pid > 0));
    assert_eq!(stdout(&events, 0), b"waiting\ndone\n");
    assert_eq!(exited.unwrap().exit_code, 0);
    let (events, _) = world.attach(id, &started.execution_id, (3, 0)).await.unwrap().all().await;
    assert_eq!(stdout(&events, 3), b"ting\ndone\n");
    let (events, exited) = world.attach(id, &started.execution_id, (13, 0)).await.unwrap().all().await;
    assert_eq!((events.len(), exited.unwrap().stdout_bytes), (1, 13));
}

#[tokio::test(start_paused = true)]
async fn dropped_attach_changes_nothing() {
    let (world, id) = world().await;
    let started = world.begin(argv(id, &["wait", "5000"])).await.unwrap();
    drop(world.attach(id, &started.execution_id, (0, 0)).await.unwrap());
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.execution(id, &started.execution_id).await.unwrap().exit.unwrap().exit_code, 0);
}

#[tokio::test(start_paused = true)]
async fn execution_that_is_not_there_is_not_found() {
    let (world, id) = world().await;
    let other = cloud_sandbox_model::ExecutionId::generate().to_string();
    let expected = ("NOT_FOUND", "EXECUTION_NOT_FOUND");
    assert_eq!(world.execution(id, &other).await.unwrap_err().words(), expected);
    assert_eq!(world.attach(id, &other, (0, 0)).await.err().unwrap().words(), expected);
    assert_eq!(world.read(id, &other, 0, 0).await.unwrap_err().words(), expected);
    assert_eq!(world.write(id, &other, "a", None).await.unwrap_err().words(), expected);
    assert_eq!(world.signal(id, &other, "").await.unwrap_err().words(), expected);
    assert_eq!(world.resize(id, &other, SIZE).await.unwrap_err().words(), expected);
    assert_eq!(world.execution(id, "x").await.unwrap_err().reason, "INVALID_ID");
}

#[tokio::test(start_paused = true)]
async fn input_is_written_once_however_often_it_is_sent() {
    let (world, id) = world().await;
    let request = ExecuteRequest { stdin: "ab".into(), ..open(argv(id, &["cat"])) };
    let name = world.begin(request).await.unwrap().execution_id;
    assert!(world.execution(id, &name).await.unwrap().stdin_open);
    assert_eq!(world.write(id, &name, "cd", Some(2)).await.unwrap(), 4);
    assert_eq!(world.write(id, &name, "cd", Some(2)).await.unwrap(), 4);
    assert_eq!(world.write(id, &name, "cdef", Some(2)).await.unwrap(), 6);
    assert_eq!(world.write(id, &name, "gh", None).await.unwrap(), 8);
    let failure = world.write(id, &name, "x", Some(9)).await.unwrap_err();
    assert_eq!(failure.kind, "OUT_OF_RANGE");
    assert_eq!(world.write_and(id, &name, "gh", Some(6), true).await.unwrap(), 8);
    world.settle().await;
    let ended = world.execution(id, &name).await.unwrap();
    assert_eq!((ended.state(), ended.stdin_open), (ExecutionState::Exited, false));
    let (events, _) = world.attach(id, &name, (0, 0)).await.unwrap().all().await;
    assert_eq!(stdout(&events, 0), b"abcdefgh");
}

#[tokio::test(start_paused = true)]
async fn input_that_is_closed_takes_no_more() {
    let (world, id) = world().await;
    let closed = world.begin(argv(id, &["wait", "5000"])).await.unwrap().execution_id;
    let expected = ("FAILED_PRECONDITION", "STDIN_CLOSED");
    assert_eq!(world.write(id, &closed, "a", None).await.unwrap_err().words(), expected);
    assert_eq!(world.write_and(id, &closed, "", None, true).await.unwrap_err().words(), expected);

    let name = world.begin(open(argv(id, &["wait", "5000"]))).await.unwrap().execution_id;
    assert_eq!(world.write_and(id, &name, "a", Some(0), true).await.unwrap(), 1);
    assert_eq!(world.write_and(id, &name, "a", Some(0), true).await.unwrap(), 1);
    assert_eq!(world.write_and(id, &name, "ab", Some(0), true).await.unwrap_err().words(), expected);
}

#[tokio::test(start_paused = true)]
async fn nothing_reaches_an_execution_that_has_ended() {
    let (world, id) = world().await;
    let name = world
        .begin(ExecuteRequest { terminal: Some(SIZE), ..open(argv(id, &["echo", "a"])) })
        .await
        .unwrap()
        .execution_id;
    world.until_exited(id, &name).await;
    let expected = ("FAILED_PRECONDITION", "EXECUTION_ENDED");
    assert_eq!(world.write(id, &name, "a", None).await.unwrap_err().words(), expected);
    assert_eq!(world.signal(id, &name, "SIGINT").await.unwrap_err().words(), expected);
    assert_eq!(world.resize(id, &name, SIZE).await.unwrap_err().words(), expected);
}

#[tokio::test(start_paused = true)]
async fn input_that_nobody_reads_waits_and_what_was_taken_is_counted() {
    let (world, id) = world().await;
    let name = world.begin(open(argv(id, &["wait", "60000"]))).await.unwrap().execution_id;
    let much = "x".repeat(1024 * 1024);
    let mut taken = 0;
    // the windows between here and the process take some
    loop {
        let writing = world.write(id, &name, &much, Some(taken));
        match timeout(Duration::from_secs(1), writing).await {
            Ok(written) => taken = written.unwrap(),
            Err(_) => break,
        }
    }
    let failure = world.write(id, &name, "x", Some(u64::MAX)).await.unwrap_err();
    let accepted: u64 = failure.metadata.iter().find(|(key, _)| key == "stdin_bytes").unwrap().1.parse().unwrap();
    assert!(accepted >= taken && accepted < taken + much.len() as u64);

    // a signal gets past it, and ends it
    let blocked = world.write(id, &name, &much, None);
    let killing = async {
        sleep(Duration::from_secs(1)).await;
        world.signal(id, &name, "SIGKILL").await.unwrap();
    };
    let (blocked, ()) = tokio::join!(blocked, killing);
    assert_eq!(blocked.unwrap_err().reason, "EXECUTION_ENDED");
}

#[tokio::test(start_paused = true)]
async fn call_that_waits_ends_at_its_deadline() {
    let (world, id) = world().await;
    let mut request = tonic::Request::new(argv(id, &["wait", "60000"]));
    request.set_timeout(Duration::from_secs(2));
    let status = world.exec().execute(request).await.unwrap_err();
    assert_eq!(Failure::of(&status).kind, "DEADLINE_EXCEEDED");
    world.settle().await;
    assert_eq!(world.script.running(), 0);

    let name = world.begin(argv(id, &["wait", "60000"])).await.unwrap().execution_id;
    let attach =
        AttachExecutionRequest { sandbox_id: id.to_string(), execution_id: name.clone(), ..Default::default() };
    let mut request = tonic::Request::new(attach);
    request.set_timeout(Duration::from_secs(2));
    let stream = world.exec().attach_execution(request).await.unwrap().into_inner();
    let (events, ended) = Attached(stream).all().await;
    assert_eq!(stdout(&events, 0), b"waiting\n");
    assert_eq!(ended.unwrap_err().kind, "DEADLINE_EXCEEDED");
    assert_eq!(world.execution(id, &name).await.unwrap().state(), ExecutionState::Running);
}

#[tokio::test(start_paused = true)]
async fn signals_end_what_hears_them() {
    let (world, id) = world().await;
    for (signal, name, code) in [("", "SIGTERM", 143), ("SIGKILL", "SIGKILL", 137), ("HUP", "SIGHUP", 129)] {
        let started = world.begin(argv(id, &["wait", "60000"])).await.unwrap().execution_id;
        world.settle().await;
        world.signal(id, &started, "SIGINT").await.unwrap();
        world.settle().await;
        assert_eq!(world.execution(id, &started).await.unwrap().state(), ExecutionState::Running);
        world.signal(id, &started, signal).await.unwrap();
        let exit = world.until_exited(id, &started).await.exit.unwrap();
        assert_eq!((exit.signal.as_str(), exit.exit_code), (name, code));
    }
    let started = world.begin(argv(id, &["wait", "60000"])).await.unwrap().execution_id;
    assert_eq!(world.signal(id, &started, "SIGNONSENSE").await.unwrap_err().fields, ["signal"]);
}

#[tokio::test(start_paused = true)]
async fn only_a_terminal_is_resized() {
    let (world, id) = world().await;
    let plain = world.begin(open(argv(id, &["cat"]))).await.unwrap().execution_id;
    assert_eq!(world.resize(id, &plain, SIZE).await.unwrap_err().words(), ("FAILED_PRECONDITION", "NO_TERMINAL"));
    let request = ExecuteRequest { terminal: Some(SIZE), ..open(argv(id, &["cat"])) };
    let started = world.begin(request).await.unwrap();
    assert!(started.has_terminal);
    assert_eq!(world.script.last_start().terminal.unwrap().cols, 80);
    world.resize(id, &started.execution_id, TerminalSize { rows: 50, cols: 100 }).await.unwrap();
    world.settle().await;
    let read = world.read(id, &started.execution_id, 0, 0).await.unwrap();
    assert_eq!(read.content, Some(read_execution_output_response::Content::Text("50x100".into())));
    let wrong = TerminalSize { rows: 0, cols: 1001 };
    let failure = world.resize(id, &started.execution_id, wrong).await.unwrap_err();
    assert_eq!(failure.fields, ["terminal.rows", "terminal.cols"]);
}

#[tokio::test(start_paused = true)]
async fn ranges_are_read_while_it_runs_and_put_together_give_everything() {
    let (world, id) = world().await;
    let name = world.begin(argv(id, &["lines", "500"])).await.unwrap().execution_id;
    world.until_exited(id, &name).await;
    let mut all = String::new();
    loop {
        let range = world.read(id, &name, all.len() as u64, 100).await.unwrap();
        assert_eq!(range.offset, all.len() as u64);
        let Some(read_execution_output_response::Content::Text(text)) = range.content else { panic!() };
        all.push_str(&text);
        assert_eq!(range.next_offset, all.len() as u64);
        if range.end {
            assert_eq!(range.total_bytes, all.len() as u64);
            break;
        }
    }
    assert!(all.starts_with("line 0\nline 1\n") && all.ends_with("line 499\n"));
    let running = world.begin(argv(id, &["wait", "60000"])).await.unwrap().execution_id;
    world.settle().await;
    let range = world.read(id, &running, 0, 0).await.unwrap();
    assert_eq!((range.end, range.total_bytes, range.next_offset), (false, 8, 8));
    assert_eq!(world.read(id, &running, 0, 8_388_609).await.unwrap_err().fields, ["limit"]);
}

#[tokio::test(start_paused = true)]
async fn output_is_searched() {
    let (world, id) = world().await;
    let name = world.begin(argv(id, &["lines", "100"])).await.unwrap().execution_id;
    world.until_exited(id, &name).await;
    let request = GrepExecutionOutputRequest {
        sandbox_id: id.to_string(),
        execution_id: name,
        pattern: "^(LINE 42|error 9.)$".into(),
        ignore_case: true,
        context_lines: 1,
        ..Default::default()
    };
    let found = world.exec().grep_execution_output(request.clone()).await.unwrap().into_inner();
    let lines: Vec<_> = found.matches.iter().map(|found| (found.stream(), found.line.as_str())).collect();
    assert_eq!(lines, [(OutputStream::Stdout, "line 42"), (OutputStream::Stderr, "error 99")]);
    let first = &found.matches[0];
    assert_eq!(
        (first.line_number, &first.before[..], &first.after[..]),
        (43, &["line 41".into()][..], &["line 43".into()][..])
    );
    let only = GrepExecutionOutputRequest {
        stream: OutputStream::Stderr.into(),
        max_matches: 1,
        pattern: ".".into(),
        ..request.clone()
    };
    let found = world.exec().grep_execution_output(only).await.unwrap().into_inner();
    assert_eq!((found.matches.len(), found.more, found.matches[0].line.as_str()), (1, true, "error 9"));
    for (field, request) in [
        ("pattern", GrepExecutionOutputRequest { pattern: "(".into(), ..request.clone() }),
        ("pattern", GrepExecutionOutputRequest { pattern: String::new(), ..request.clone() }),
        ("max_matches", GrepExecutionOutputRequest { max_matches: 1001, ..request.clone() }),
        ("context_lines", GrepExecutionOutputRequest { context_lines: 21, ..request.clone() }),
    ] {
        let status = world.exec().grep_execution_output(request).await.unwrap_err();
        assert_eq!(Failure::of(&status).fields, [field]);
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_that_are_not_text_survive() {
    let (world, id) = world().await;
    let name = world.begin(argv(id, &["bytes", "61", "C3", "A9", "FF", "62", "E2", "82"])).await.unwrap().execution_id;
    world.until_exited(id, &name).await;
    let whole = [0x61, 0xC3, 0xA9, 0xFF, 0x62, 0xE2, 0x82];
    for from in 0..whole.len() {
        let (events, _) = world.attach(id, &name, (from as u64, 0)).await.unwrap().all().await;
        assert_eq!(stdout(&events, from as u64), whole[from..]);
    }
    let range = world.read(id, &name, 0, 0).await.unwrap();
    assert_eq!(range.content, Some(read_execution_output_response::Content::Data(whole.to_vec().into())));
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_by_answer_and_by_stream() {
    let (world, id) = world().await;
    let request = ExecuteRequest { changes: true, request_id: "c".into(), ..argv(id, &["echo", "a"]) };
    let answer = world.execute(request.clone()).await.unwrap();
    assert_eq!(answer.changes.as_ref().unwrap().files[0].path, "/workspace/1");
    assert_eq!(world.script.snapshots.lock().unwrap().as_slice(), ["/workspace"]);
    assert_eq!(world.execute(request.clone()).await.unwrap(), answer);
    let (events, exited) = world.attach(id, &answer.execution_id, (0, 0)).await.unwrap().all().await;
    assert_eq!(exited.unwrap().changes, answer.changes);
    assert_eq!(events.len(), 2);

    *world.script.refusal.lock().unwrap() = Some(Status::resource_exhausted("too many"));
    let failure = world.execute(ExecuteRequest { request_id: "d".into(), ..request.clone() }).await.unwrap_err();
    assert_eq!(failure.kind, "INTERNAL");
    assert_eq!(world.script.starts.lock().unwrap().len(), 1);
    *world.script.refusal.lock().unwrap() = None;
    world.execute(ExecuteRequest { request_id: "d".into(), ..request }).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn answer_is_the_part_that_was_asked_for() {
    let (world, id) = world().await;
    let run = |strategy: v1::OutputStrategy| {
        let request =
            ExecuteRequest { max_output_bytes: 400, output_strategy: strategy.into(), ..argv(id, &["lines", "1000"]) };
        let world = &world;
        async move { world.execute(request).await.unwrap() }
    };
    let head = run(v1::OutputStrategy::Head).await;
    assert!(head.stdout.starts_with("line 0\n") && head.stdout.len() == 400);
    assert_eq!(head.stdout_omitted_bytes, head.stdout_bytes - 400);
    let tail = run(v1::OutputStrategy::Tail).await;
    assert!(tail.stdout.ends_with("line 999\n") && tail.stdout_truncated);
    let both = run(v1::OutputStrategy::HeadTail).await;
    assert!(both.stdout.starts_with("line 0\n") && both.stdout.ends_with("line 999\n"));
    assert!(both.stdout.contains("bytes omitted ...]\n"), "{}", both.stdout);
    let errors = run(v1::OutputStrategy::Errors).await;
    assert!(errors.stderr.contains("error 999") && errors.stderr_truncated);
    let request = ExecuteRequest { output_strategy: 2, ..argv(id, &["echo", "a"]) };
    assert_eq!(world.stream(request).await.unwrap_err().fields, ["output_strategy"]);
}

#[tokio::test(start_paused = true)]
async fn fields_that_do_not_go_with_a_context_are_named() {
    let (world, id) = world().await;
    let good = ExecuteRequest { context_id: "default".into(), ..code(id, "python", "1") };
    let cases = [
        ("context_id", ExecuteRequest { context_id: "x".into(), ..good.clone() }),
        ("command", ExecuteRequest { code: None, language: String::new(), command: Some("ls".into()), ..good.clone() }),
        ("argv", ExecuteRequest { code: None, language: String::new(), argv: vec!["ls".into()], ..good.clone() }),
        ("stdin", ExecuteRequest { stdin: "a".into(), ..good.clone() }),
        ("terminal", ExecuteRequest { terminal: Some(SIZE), ..good.clone() }),
        ("stdin_open", ExecuteRequest { stdin_open: true, ..good.clone() }),
        ("user", ExecuteRequest { user: "root".into(), ..good.clone() }),
        ("tag", ExecuteRequest { tag: "a b".into(), ..argv(id, &["echo"]) }),
        ("user", ExecuteRequest { user: "a b".into(), ..argv(id, &["echo"]) }),
        ("output_strategy", ExecuteRequest { output_strategy: 9, ..argv(id, &["echo"]) }),
        ("terminal.rows", ExecuteRequest { terminal: Some(TerminalSize { rows: 0, cols: 1 }), ..argv(id, &["echo"]) }),
    ];
    for (field, request) in cases {
        let failure = world.execute(request).await.unwrap_err();
        assert_eq!((failure.kind, failure.fields), ("INVALID_ARGUMENT", vec![field.to_owned()]));
    }
}

#[tokio::test(start_paused = true)]
async fn user_is_passed_on() {
    let (world, id) = world().await;
    world.execute(ExecuteRequest { user: "1000".into(), ..argv(id, &["echo", "a"]) }).await.unwrap();
    assert_eq!(world.script.last_start().user, "1000");
}
