//! One process: what it gets, what it prints, how it ends.

use std::{fs, os::unix::fs::PermissionsExt};

use cloud_sandbox_proto::agent::v1::{
    CheckRequest, CloseStdin, StagedFile, Start, run_request::Input, run_response::Event,
};
use tonic::Code;

use crate::rig::{Agent, descriptors, eventually, is_gvisor, program, sh};

#[tokio::test]
async fn check_tells_the_version() {
    let mut agent = Agent::start().await;
    let answer = agent.client.check(CheckRequest {}).await.unwrap().into_inner();
    assert_eq!(answer.version, env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn both_outputs_and_the_exit_code_come_apart() {
    let agent = Agent::start().await;
    let outcome = agent.sh("echo hello; echo oops >&2; exit 3").await;
    assert_eq!((outcome.text(), outcome.stderr.as_slice()), ("hello\n", &b"oops\n"[..]));
    assert_eq!((outcome.exited.exit_code, outcome.exited.signal), (3, 0));
    assert!(outcome.exited.wall_time_us > 0 && outcome.exited.peak_memory_bytes > 0);
}

#[tokio::test]
async fn processor_time_of_children_is_counted() {
    let agent = Agent::start().await;
    let outcome = agent.sh("sh -c 'i=0; while [ $i -lt 50000 ]; do i=$((i+1)); done'").await;
    assert!(outcome.exited.cpu_time_us > 5_000, "{:?}", outcome.exited);
}

#[tokio::test]
async fn a_process_ended_by_a_signal_has_no_exit_code() {
    let agent = Agent::start().await;
    let outcome = agent.sh("kill -SEGV $$").await;
    assert_eq!((outcome.exited.exit_code, outcome.exited.signal), (0, 11));
}

#[tokio::test]
async fn the_environment_is_exactly_what_was_given() {
    let agent = Agent::start().await;
    let mut start = program(&["env"]);
    start.env.insert("GREETING".to_owned(), "hi there".to_owned());
    let outcome = agent.run(start).await;
    let mut lines: Vec<&str> = outcome.text().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["GREETING=hi there", "PATH=/usr/local/bin:/usr/bin:/bin"]);
}

#[tokio::test]
async fn a_process_starts_clean() {
    let agent = Agent::start().await;
    let outcome = agent
        .sh("pwd; umask; grep -E '^Sig(Ign|Blk)' /proc/self/status || printf '\\n\\n'; printf '%s\\n' /proc/self/fd/*")
        .await;
    let lines: Vec<&str> = outcome.text().lines().collect();
    let (clean, listed) = lines.split_at(4);
    let listed = listed.join("\n");
    let none = "0000000000000000";
    assert_eq!(clean[..2], ["/", "0022"]);
    assert_eq!(descriptors(&listed), ["0", "1", "2"]);
    // gVisor does not list them
    let signals = [format!("SigBlk:\t{none}"), format!("SigIgn:\t{none}")];
    assert!(is_gvisor() || clean[2..] == signals, "{clean:?}");
}

#[tokio::test]
async fn a_process_is_killed_for_memory_before_the_agent() {
    let agent = Agent::start().await;
    let resting = agent.proc(&format!("{}/oom_score_adj", agent.pid())).unwrap();
    let outcome = agent.sh("cat /proc/self/oom_score_adj").await;
    assert_eq!(outcome.text(), "500\n");
    assert_eq!(agent.proc(&format!("{}/oom_score_adj", agent.pid())).unwrap(), resting);
    assert!(resting.trim().parse::<i32>().unwrap() < 500);
}

#[tokio::test]
async fn standard_input_is_echoed_and_ends() {
    let agent = Agent::start().await;
    let mut cat = agent.open(program(&["cat"])).await.unwrap();
    cat.send(Input::Stdin("one\n".into())).await;
    assert_eq!(cat.read_until("one\n").await, "one\n");
    cat.send(Input::Stdin("two\n".into())).await;
    cat.send(Input::CloseStdin(CloseStdin {})).await;
    let outcome = cat.outcome().await;
    assert_eq!((outcome.text(), outcome.exited.exit_code), ("two\n", 0));
}

#[tokio::test]
async fn input_that_nobody_reads_is_no_error() {
    let agent = Agent::start().await;
    let running = agent.open(sh("exec <&-; sleep 0.2; exit 5")).await.unwrap();
    for _ in 0..8 {
        running.send(Input::Stdin(vec![b'x'; 64 * 1024].into())).await;
    }
    assert_eq!(running.outcome().await.exited.exit_code, 5);
}

#[tokio::test]
async fn a_kill_is_heard_behind_input_that_nobody_reads() {
    let agent = Agent::start().await;
    let running = agent.open(program(&["sleep", "600"])).await.unwrap();
    // until the agent takes no more
    running.fill(64 * 1024, 5).await;
    assert!(running.signal(0).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
}

#[tokio::test]
async fn eight_mebibytes_come_out_whole_and_in_order() {
    let agent = Agent::start().await;
    let content: Vec<u8> = (0..2 * 1024 * 1024_u32).flat_map(u32::to_le_bytes).collect();
    fs::write(agent.folder().join("big"), &content).unwrap();
    let outcome = agent.run(program(&["cat", &agent.path("big")])).await;
    assert!(outcome.stdout == content, "{} bytes came", outcome.stdout.len());
}

#[tokio::test]
async fn a_slow_reader_stops_the_process_and_not_the_memory() {
    let agent = Agent::start().await;
    let mut running = agent.open(sh("head -c 67108864 /dev/zero; echo done >&2")).await.unwrap();
    running.next().await.unwrap();
    let before = agent.memory_kib();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 2048, "the agent grew by {grown} KiB");
    assert!(agent.is_alive(running.pid), "the process waits for its reader");
}

#[tokio::test]
async fn one_endless_line_passes_through_little_memory() {
    let agent = Agent::start().await;
    agent.sh("head -c 1048576 /dev/zero").await;
    let before = agent.memory_kib();
    let length = 256 * 1024 * 1024;
    let running = agent.open(sh(&format!("head -c {length} /dev/zero | tr '\\0' x"))).await.unwrap();
    let mut peak = 0;
    let watch = async {
        loop {
            peak = peak.max(agent.memory_kib());
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let counted = tokio::select! {
        counted = running.count(b'x') => counted,
        () = watch => 0,
    };
    assert_eq!(counted, length);
    assert!(peak - before < 2048, "the agent grew by {} KiB", peak - before);
}

#[tokio::test]
async fn a_line_arrives_as_soon_as_it_is_printed() {
    let agent = Agent::start().await;
    let mut running = agent.open(sh("while read line; do echo $line; done")).await.unwrap();
    for _ in 0..200 {
        // nothing more is printed before this one was read
        running.send(Input::Stdin("line\n".into())).await;
        running.read_until("line\n").await;
    }
}

#[tokio::test]
async fn a_process_that_closes_its_descriptors_is_waited_for() {
    let agent = Agent::start().await;
    let outcome = agent.sh("exec <&- >&- 2>&-; sleep 0.2; exit 7").await;
    assert_eq!(outcome.exited.exit_code, 7);
    assert!(outcome.exited.wall_time_us >= 200_000);
}

#[tokio::test]
async fn a_missing_program_is_not_found() {
    let agent = Agent::start().await;
    let error = agent.open(program(&["no-such-program"])).await.err().unwrap();
    assert_eq!((error.code(), error.message()), (Code::NotFound, "program no-such-program not found in PATH"));
}

#[tokio::test]
async fn a_missing_interpreter_is_told_from_a_missing_program() {
    let agent = Agent::start().await;
    let script = agent.path("script");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let error = agent.open(program(&[&script])).await.err().unwrap();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("interpreter"), "{}", error.message());
    // What failed to start was reaped as well.
    assert_eq!(agent.sh("exit 4").await.exited.exit_code, 4);
}

#[tokio::test]
async fn a_start_that_cannot_be_says_why() {
    let agent = Agent::start().await;
    fs::write(agent.folder().join("plain"), "").unwrap();
    let plain = agent.path("plain");
    let with_cwd = |cwd: &str| Start { cwd: cwd.to_owned(), ..program(&["true"]) };
    let with_env = |name: &str| Start { env: [(name.to_owned(), String::new())].into(), ..program(&["/bin/true"]) };
    let long = "n".repeat(100_000);
    let cases = [
        (program(&[&long]), Code::NotFound, "not found in PATH"),
        (program(&[&plain]), Code::PermissionDenied, "not executable"),
        (program(&["/tmp"]), Code::PermissionDenied, "not executable"),
        (with_cwd("/no/such/folder"), Code::FailedPrecondition, "cwd /no/such/folder does not exist"),
        (with_cwd(&plain), Code::FailedPrecondition, "is not a folder"),
        (with_cwd("relative"), Code::InvalidArgument, "cwd"),
        (program(&[]), Code::InvalidArgument, "argv"),
        (program(&["true", "a\0b"]), Code::InvalidArgument, "NUL"),
        (with_env("A=B"), Code::InvalidArgument, "env"),
        (with_env(""), Code::InvalidArgument, "env"),
    ];
    for (start, code, message) in cases {
        let error = agent.open(start).await.err().unwrap();
        assert_eq!(error.code(), code, "{}", error.message());
        assert!(error.message().contains(message), "{}", error.message());
    }
}

#[tokio::test]
async fn the_first_message_must_be_start() {
    let mut agent = Agent::start().await;
    let close = cloud_sandbox_proto::agent::v1::RunRequest { input: Some(Input::CloseStdin(CloseStdin {})) };
    let error = agent.client.run(tokio_stream::iter([close])).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_second_start_ends_the_run() {
    let agent = Agent::start().await;
    let mut running = agent.open(program(&["sleep", "20"])).await.unwrap();
    let pid = running.pid;
    running.send(Input::Start(program(&["true"]))).await;
    assert_eq!(running.next().await.unwrap_err().code(), Code::InvalidArgument);
    eventually("the end of the process", || !agent.is_alive(pid)).await;
}

#[tokio::test]
async fn a_staged_file_lives_as_long_as_the_process() {
    let agent = Agent::start().await;
    let path = agent.path("new/stage/main.sh");
    let script = "echo staged; find $0 $(dirname $0) -maxdepth 0 -printf '%m\\n'; touch $(dirname $0)/left-over";
    let staged = Some(StagedFile { path: path.clone(), content: script.into() });
    let outcome = agent.run(Start { staged, ..program(&["sh", &path]) }).await;
    assert_eq!(outcome.text(), "staged\n600\n700\n");
    assert!(!agent.folder().join("new").exists());
}

#[tokio::test]
async fn a_staged_file_is_gone_after_a_failed_start() {
    let agent = Agent::start().await;
    let staged = Some(StagedFile { path: agent.path("stage/main"), content: "x".into() });
    agent.open(Start { staged, ..program(&["no-such-program"]) }).await.err().unwrap();
    assert!(!agent.folder().join("stage").exists());
}

#[tokio::test]
async fn a_staged_file_never_replaces_another() {
    let agent = Agent::start().await;
    fs::write(agent.folder().join("mine"), "mine").unwrap();
    let staged = Some(StagedFile { path: agent.path("mine"), content: "x".into() });
    let error = agent.open(Start { staged, ..program(&["true"]) }).await.err().unwrap();
    assert_eq!(error.code(), Code::AlreadyExists);
    assert_eq!(fs::read_to_string(agent.folder().join("mine")).unwrap(), "mine");
}

#[tokio::test]
async fn many_runs_at_once_keep_their_output_apart() {
    let agent = Agent::start().await;
    let runs = (0..20).map(|number| {
        let agent = &agent;
        async move { (number, agent.sh(&format!("echo {number}; exit {number}")).await) }
    });
    for (number, outcome) in futures::future::join_all(runs).await {
        assert_eq!((outcome.text(), outcome.exited.exit_code), (format!("{number}\n").as_str(), number));
    }
}

#[tokio::test]
async fn the_end_of_the_request_stream_alone_means_nothing() {
    let mut agent = Agent::start().await;
    let start = cloud_sandbox_proto::agent::v1::RunRequest { input: Some(Input::Start(sh("sleep 0.2; echo still"))) };
    let mut events = agent.client.run(tokio_stream::iter([start])).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(message) = events.message().await.unwrap() {
        seen.push(message.event.unwrap());
    }
    assert!(seen.contains(&Event::Stdout("still\n".into())), "{seen:?}");
}
