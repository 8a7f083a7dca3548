//! Code contexts whose interpreters die, hang, lie, or do not start.

use std::time::Duration;

use cloud_sandbox_proto::v1::{
    ContextState, CreateContextRequest, ExecuteRequest, ReadExecutionOutputRequest, SignalExecutionRequest,
    WriteExecutionStdinRequest, read_execution_output_response::Content, write_execution_stdin_request::Input,
};
use cloud_sandbox_runtime::Usage;
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use super::{
    contexts_bench::{Bench, error_of},
    harness::*,
};

/// Finds the control channel in Python: the highest socket.
const CHANNEL: &str = r#"import os, stat
def is_socket(fd):
    try: return stat.S_ISSOCK(os.stat(fd).st_mode)
    except OSError: return False
channel = max(filter(is_socket, map(int, os.listdir("/proc/self/fd"))))
"#;
/// Python that no interrupt ends.
const STUBBORN: &str = "import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGURG])
open(THERE, 'w').close()
while True:
    pass
";

/// Waits until an interpreter has died.
async fn until_dead(bench: &Bench, id: &str) {
    let began = Instant::now();
    while bench.get(id).await.unwrap().state() != ContextState::Dead {
        assert!(began.elapsed() < Duration::from_secs(30), "it does not die");
        sleep(Duration::from_millis(10)).await;
    }
}

fn stubborn(bench: &Bench) -> String {
    STUBBORN.replace("THERE", &format!("{:?}", bench.path("runs")))
}

#[tokio::test]
async fn interpreter_that_dies_is_told_of_and_started_anew_by_the_next_execution() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let deaths = [
        ("import os; x = 1; os._exit(3)", 3, "", "exited with code 3"),
        ("import os, signal; os.kill(os.getpid(), 9)", 137, "SIGKILL", "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", 139, "SIGSEGV", "killed by SIGSEGV"),
    ];
    for (number, (death, exit_code, signal, words)) in deaths.into_iter().enumerate() {
        let answer = bench.run(&id, death).await;
        assert_eq!((answer.exit_code, answer.signal.as_str()), (exit_code, signal));
        let (name, value) = error_of(&answer);
        assert!(name == "InterpreterDied" && value.contains(words), "{value}");
        let dead = bench.get(&id).await.unwrap();
        assert_eq!((dead.state(), dead.pid), (ContextState::Dead, 0));

        let answer = bench.run(&id, "x").await;
        assert_eq!((error_of(&answer).0, answer.context_restarted), ("NameError", true));
        let alive = bench.get(&id).await.unwrap();
        assert_eq!((alive.state(), alive.restarts as usize), (ContextState::Idle, number + 1));
        assert!(!bench.run(&id, "1").await.context_restarted);
    }
}

#[tokio::test]
async fn interpreter_that_the_kernel_killed_for_memory_says_so() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let killing = async {
        bench.until_there("runs").await;
        bench.world.runtime.set_usage(bench.id, Usage { oom_kills: Some(1), ..Usage::default() });
        std::fs::write(bench.path("killed"), "").unwrap();
    };
    let text = "import os, time
open('runs', 'w').close()
while not os.path.exists('killed'): time.sleep(0.01)
os.kill(os.getpid(), 9)";
    let (answer, ()) = tokio::join!(bench.run(&id, text), killing);
    assert!(answer.oom_killed && answer.signal == "SIGKILL", "{answer:?}");
    assert!(!bench.run(&id, "import time; time.sleep(0.05)").await.oom_killed);
}

#[tokio::test]
async fn interpreter_that_dies_while_nothing_runs_is_dead() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    bench.run(&id, "import os, threading; threading.Timer(0.1, lambda: os._exit(3)).start()").await;
    until_dead(&bench, &id).await;
    assert!(bench.run(&id, "1").await.context_restarted);
}

#[tokio::test]
async fn timeout_interrupts_first_and_kills_what_does_not_listen() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    bench.run(&id, "x = 5").await;
    let request = ExecuteRequest { timeout_ms: 200, ..bench.cell(&id, "while True: pass") };
    let answer = bench.world.execute(request).await.unwrap();
    assert_eq!((answer.timed_out, error_of(&answer).0), (true, "KeyboardInterrupt"));
    assert_eq!(bench.value(&id, "x").await, "5");

    // it no longer listens before its time begins
    bench.run(&id, "import signal; _ = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGURG])").await;
    let began = Instant::now();
    let request = ExecuteRequest { timeout_ms: 2000, ..bench.cell(&id, "while True: pass") };
    let answer = bench.world.execute(request).await.unwrap();
    assert_eq!((answer.timed_out, answer.signal.as_str()), (true, "SIGKILL"));
    assert!(error_of(&answer).1.contains("timeout"), "{answer:?}");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(bench.get(&id).await.unwrap().state(), ContextState::Dead);
    let answer = bench.run(&id, "x").await;
    assert_eq!((error_of(&answer).0, answer.context_restarted), ("NameError", true));
}

#[tokio::test]
async fn interrupt_of_what_blocks_it_says_so_and_restart_gets_through() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let interrupting = async {
        bench.until_there("runs").await;
        let began = Instant::now();
        assert_eq!(bench.interrupt(&id).await.unwrap(), (true, false));
        assert!(began.elapsed() < Duration::from_secs(30));
        assert_eq!(bench.restart(&id).await.unwrap().state(), ContextState::Idle);
    };
    let text = stubborn(&bench);
    let (answer, ()) = tokio::join!(bench.run(&id, &text), interrupting);
    assert_eq!(error_of(&answer).0, "ContextRestarted");
}

#[tokio::test]
async fn interrupt_that_comes_late_hits_nothing_else() {
    let bench = Bench::start().await;
    for (language, work) in [("python", "sum(range(20000))"), ("javascript", "for (let i = 0; i < 1e6; i++) {}")] {
        let id = bench.context(language).await;
        for round in 0..40 {
            let (answer, _) = tokio::join!(bench.run(&id, work), async {
                sleep(Duration::from_micros(round * 50)).await;
                bench.interrupt(&id).await.unwrap()
            });
            assert!([0, 130].contains(&answer.exit_code), "{answer:?}");
            assert_eq!(bench.value(&id, "40 + 2").await, "42");
        }
        assert_eq!(bench.get(&id).await.unwrap().restarts, 0);
    }
}

#[tokio::test]
async fn caller_who_hangs_up_ends_what_it_ran_or_waited_for() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    bench.run(&id, "x = 5").await;
    let spin = format!("open({:?}, 'w').close()\nwhile True: pass", bench.path("runs"));
    {
        let runs = bench.world.execute(bench.cell(&id, &spin));
        let waits = async {
            bench.until_there("runs").await;
            let waits = bench.world.execute(bench.cell(&id, "x = 6"));
            assert!(timeout(Duration::from_millis(100), waits).await.is_err());
            sleep(Duration::from_millis(50)).await;
            assert_eq!(bench.get(&id).await.unwrap().executions, 1);
        };
        tokio::pin!(runs, waits);
        tokio::select! {
            _ = runs => panic!("it spins"),
            () = waits => {}
        }
    }
    assert_eq!(timeout(Duration::from_secs(30), bench.value(&id, "x")).await.unwrap(), "5");

    // one with a request_id goes on
    let spin = ExecuteRequest { request_id: "r".into(), ..bench.cell(&id, "import time; time.sleep(0.5); x = 7") };
    assert!(timeout(Duration::from_millis(200), bench.world.execute(spin)).await.is_err());
    assert_eq!(bench.value(&id, "x").await, "7");
}

#[tokio::test]
async fn signals_reach_what_runs_and_end_what_waits() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let signal = async |execution: &str, name: &str| {
        let request = SignalExecutionRequest {
            sandbox_id: bench.id.to_string(),
            execution_id: execution.to_owned(),
            signal: name.to_owned(),
            ..Default::default()
        };
        bench.world.exec().signal_execution(request).await.map(drop).map_err(|status| Failure::of(&status))
    };
    let ended = async |execution: &str| {
        for _ in 0..500 {
            if let Some(exit) = bench.world.execution(bench.id, execution).await.unwrap().exit {
                return exit;
            }
            sleep(Duration::from_millis(10)).await;
        }
        panic!("it does not end");
    };
    bench.run(&id, "import signal; caught = []; signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))").await;
    let spin = format!("open({:?}, 'w').close()\nwhile True: pass", bench.path("runs"));
    let runs = bench.world.begin(bench.cell(&id, &spin)).await.unwrap().execution_id;
    let waits = bench.world.begin(bench.cell(&id, "1")).await.unwrap().execution_id;
    bench.until_there("runs").await;

    let request = WriteExecutionStdinRequest {
        sandbox_id: bench.id.to_string(),
        execution_id: runs.clone(),
        input: Some(Input::Text("x".into())),
        ..Default::default()
    };
    let failure = bench.world.exec().write_execution_stdin(request).await.unwrap_err();
    assert_eq!(Failure::of(&failure).reason, "STDIN_CLOSED");

    signal(&waits, "SIGTERM").await.unwrap();
    assert_eq!(ended(&waits).await.signal, "SIGTERM");
    signal(&runs, "SIGUSR1").await.unwrap();
    sleep(Duration::from_millis(50)).await;
    signal(&runs, "SIGINT").await.unwrap();
    assert_eq!(ended(&runs).await.exit_code, 130);
    assert_eq!(signal(&runs, "SIGINT").await.unwrap_err().reason, "EXECUTION_ENDED");
    assert_eq!(bench.value(&id, "caught").await, "[1]");

    let runs = bench.world.begin(bench.cell(&id, "while True: pass")).await.unwrap().execution_id;
    signal(&runs, "SIGKILL").await.unwrap();
    assert_eq!(ended(&runs).await.signal, "SIGKILL");
    assert!(bench.run(&id, "1").await.context_restarted);
}

#[tokio::test]
async fn what_is_printed_while_nothing_runs_is_bounded_and_given_to_the_next() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let text = "import os, threading, time
def speak(text, number):
    while not os.path.exists(f'go{number}'): time.sleep(0.01)
    print(text, flush=True)
    open(f'spoken{number}', 'w').close()";
    bench.run(&id, text).await;
    // what an interpreter printed after its turn and before the next one, with what that prints
    let spoken = async |text: &str, number: u32, pause: u64| {
        bench.run(&id, &format!("threading.Thread(target=speak, args=({text}, {number})).start()")).await;
        std::fs::write(bench.path(&format!("go{number}")), "").unwrap();
        bench.until_there(&format!("spoken{number}")).await;
        sleep(Duration::from_millis(pause)).await;
        bench.run(&id, "print('next')").await
    };
    assert_eq!(spoken("'late'", 0, 0).await.stdout, "late\nnext\n");
    for number in 1.. {
        // what it printed last is on its way; on a busy machine the next turn meets some of it, which counts as its own
        let answer = spoken("'x' * 4_000_000", number, 1000).await;
        assert!(answer.stdout.ends_with("next\n"));
        if number == 5 || answer.stdout_bytes <= 64 * 1024 + 5 {
            assert_eq!(answer.stdout_bytes, 64 * 1024 + 5);
            break;
        }
    }
}

#[tokio::test]
async fn binary_output_survives() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let answer = bench.run(&id, "import os; _ = os.write(1, b'a\\xff\\xfe\\x00b')").await;
    assert_eq!(answer.stdout, "a\u{FFFD}\u{FFFD}\0b");
    let request = ReadExecutionOutputRequest {
        sandbox_id: bench.id.to_string(),
        execution_id: answer.execution_id,
        ..Default::default()
    };
    let read = bench.world.exec().read_execution_output(request).await.unwrap().into_inner();
    assert_eq!(read.content, Some(Content::Data(b"a\xFF\xFE\0b".to_vec().into())));
}

#[tokio::test]
async fn what_is_no_message_costs_the_interpreter_its_life() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    for words in
        ["b'garbage\\n'", "b'\\xff\\x00\\n'", "b'[' * 100000 + b'\\n'", "b'{\"type\":\"done\",\"exit_code\":[]}\\n'"]
    {
        let answer = bench.run(&id, &format!("{CHANNEL}os.write(channel, {words})\nwhile True: pass")).await;
        let (name, value) = error_of(&answer);
        assert_eq!((name, answer.signal.as_str()), ("InterpreterDied", "SIGKILL"), "{words}");
        assert!(value.contains("control channel"), "{value}");
        assert!(bench.run(&id, "1").await.context_restarted);
    }
    // while nothing runs as well
    bench
        .run(&id, &format!("{CHANNEL}import threading\nthreading.Timer(0.1, os.write, (channel, b'?\\n')).start()"))
        .await;
    until_dead(&bench, &id).await;
}

#[tokio::test]
async fn message_without_an_end_is_bounded() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let text =
        format!("{CHANNEL}import socket\nsocket.socket(fileno=channel).sendall(b'x' * (13 << 20))\nwhile True: pass");
    let answer = bench.run(&id, &text).await;
    let (name, value) = error_of(&answer);
    assert!(name == "InterpreterDied" && value.contains("12582912"), "{value}");
}

#[tokio::test]
async fn forged_messages_reach_nobody_else() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let other = bench.context("python").await;
    let victim = bench.world.begin(bench.cell(&other, "import time; time.sleep(0.5); 'mine'")).await.unwrap();
    let forged = format!(
        "{CHANNEL}for line in [
    '{{\"type\":\"result\",\"id\":\"{0}\",\"main\":true,\"data\":{{\"text/plain\":\"forged\"}}}}',
    '{{\"type\":\"done\",\"id\":\"{0}\",\"exit_code\":9}}',
    '{{\"type\":\"ready\",\"version\":\"9\"}}',
    '{{\"type\":\"dance\"}}',
]: os.write(channel, line.encode() + b'\\n')
'own'",
        victim.execution_id
    );
    assert_eq!(bench.value(&id, &forged).await, "'own'");
    assert_eq!(bench.value(&other, "1").await, "1");
    let ended = bench.world.execution(bench.id, &victim.execution_id).await.unwrap();
    assert_eq!(ended.exit.unwrap().exit_code, 0);
}

#[tokio::test]
async fn huge_results_are_dropped_and_named() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let text = "class Huge:
    def _repr_html_(self): return 'h' * (9 << 20)
    def __repr__(self): return 'huge'
Huge()";
    let answer = bench.run(&id, text).await;
    assert_eq!((answer.results[0].text.as_str(), answer.results[0].html.len()), ("huge", 0));
    assert_eq!(answer.results[0].dropped, ["text/html"]);

    let text = "class Large:
    def _repr_html_(self): return 'h' * (3 << 20)
for _ in range(4): display(Large())";
    let answer = bench.run(&id, text).await;
    assert_eq!((answer.results.len(), answer.results_omitted), (2, 2));
}

#[tokio::test]
async fn queue_of_a_context_is_bounded() {
    let bench = Bench::start().await;
    let id = bench.context("python").await;
    let spin = format!("open({:?}, 'w').close()\nwhile True: pass", bench.path("runs"));
    let _runs = bench.world.begin(bench.cell(&id, &spin)).await.unwrap();
    bench.until_there("runs").await;
    for _ in 0..64 {
        bench.world.begin(bench.cell(&id, "1")).await.unwrap();
    }
    let failure = bench.world.execute(bench.cell(&id, "1")).await.unwrap_err();
    assert_eq!(failure.words(), ("RESOURCE_EXHAUSTED", "CONTEXT_LIMIT"));
    assert_eq!(bench.get(&id).await.unwrap().executions, 65);
    bench.restart(&id).await.unwrap();
    assert_eq!(bench.get(&id).await.unwrap().executions, 0);
}

#[tokio::test]
async fn interpreter_that_does_not_start_is_told_of_and_not_kept() {
    let bench = Bench::start().await;
    let env = [("PATH".to_owned(), "/nowhere".to_owned())].into();
    let failure = bench.create(CreateContextRequest { env, ..bench.creating("python") }).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"));
    assert!(failure.message.contains("python3"), "{}", failure.message);
    let cwd = "/nowhere".to_owned();
    let failure = bench.create(CreateContextRequest { cwd, ..bench.creating("python") }).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "INVALID_REQUEST"));

    bench.change_starts(|start| {
        if let Some(staged) = &mut start.staged {
            staged.content = "import sys; print('out of luck', file=sys.stderr); sys.exit(4)".into();
        }
    });
    let request = CreateContextRequest { request_id: "r".into(), ..bench.creating("python") };
    let failure = bench.create(request.clone()).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "CONTEXT_LOST"));
    assert!(failure.message.contains("code 4") && failure.message.contains("out of luck"), "{}", failure.message);
    let failures = join_all((0..3).map(|_| bench.world.execute(bench.cell("default", "1")))).await;
    assert!(failures.into_iter().all(|failure| failure.unwrap_err().reason == "CONTEXT_LOST"));
    assert!(bench.list().await.is_empty());

    bench.change_starts(|_| {});
    bench.create(request).await.unwrap();
    assert_eq!(bench.value("default", "1").await, "1");
}

#[tokio::test]
async fn interpreter_that_is_never_ready_is_given_up() {
    let bench = Bench::start().await;
    bench.change_starts(|start| {
        if let Some(staged) = &mut start.staged {
            staged.content = "import time; time.sleep(600)".into();
        }
    });
    let failure = timeout(Duration::from_secs(60), bench.create(bench.creating("python"))).await.unwrap().unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "CONTEXT_LOST"));
    assert!(failure.message.contains("10 s"), "{}", failure.message);
}
