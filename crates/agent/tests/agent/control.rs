//! Control channels: bytes on descriptor 3, in their order with what is printed.

use std::{fs, os::unix::fs::PermissionsExt};

use cloud_sandbox_proto::agent::v1::{CloseStdin, Start, WindowSize, run_request::Input, run_response::Event};
use tonic::Code;

use crate::rig::{Agent, PATIENCE, descriptors, program, sh};

fn controlled(start: Start) -> Start {
    Start { control: true, ..start }
}

#[tokio::test]
async fn bytes_go_both_ways_on_descriptor_3_and_nothing_else_leaks() {
    let agent = Agent::start().await;
    let script = "read line <&3; printf 'got %s' \"$line\" >&3; printf '%s\\n' /proc/self/fd/*";
    let running = agent.open(controlled(sh(script))).await.unwrap();
    running.send(Input::Control("ping\n".into())).await;
    let outcome = running.outcome().await;
    assert_eq!(outcome.control, b"got ping");
    assert_eq!(descriptors(outcome.text()), ["0", "1", "2", "3"]);
}

#[tokio::test]
async fn without_a_channel_there_is_none() {
    let agent = Agent::start().await;
    let mut running = agent.open(sh("printf '%s\\n' /proc/self/fd/*; echo end; sleep 20")).await.unwrap();
    let seen = running.read_until("end\n").await;
    assert_eq!(descriptors(seen.trim_end_matches("end\n")), ["0", "1", "2"]);
    running.send(Input::Control("x".into())).await;
    assert_eq!(running.next().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_terminal_has_no_channel() {
    let agent = Agent::start().await;
    let start = Start { terminal: Some(WindowSize { rows: 24, cols: 80 }), ..controlled(sh("true")) };
    assert_eq!(agent.open(start).await.err().unwrap().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_failed_start_is_told_with_a_channel_too() {
    let agent = Agent::start().await;
    let path = agent.path("script");
    fs::write(&path, "#!/no/such/interpreter\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    for _ in 0..3 {
        let error = agent.open(controlled(program(&[&path]))).await.err().unwrap();
        assert_eq!(error.code(), Code::NotFound, "{}", error.message());
    }
}

#[tokio::test]
async fn what_was_printed_before_control_bytes_is_sent_before_them() {
    let agent = Agent::start().await;
    let script = "i=0; while [ $i -lt 5000 ]; do
        echo o$i; echo e$i >&2; echo c$i >&3; i=$((i+1)); done";
    let mut running = agent.open(controlled(sh(script))).await.unwrap();
    let (mut stdout, mut stderr, mut control) = (Tally::new('o'), Tally::new('e'), Tally::new('c'));
    loop {
        match running.next().await.unwrap() {
            Event::Stdout(bytes) => stdout.add(&bytes),
            Event::Stderr(bytes) => stderr.add(&bytes),
            Event::Control(bytes) => {
                control.add(&bytes);
                let (printed, errors) = (stdout.seen, stderr.seen);
                assert!(printed.min(errors) >= control.seen, "{printed}, {errors} before {}", control.seen);
            }
            Event::Exited(_) => break,
            Event::Started(_) => panic!("started comes once"),
        }
    }
    assert_eq!((stdout.seen, stderr.seen, control.seen), (5000, 5000, 5000));
}

#[tokio::test]
async fn a_lot_that_was_printed_before_control_bytes_is_sent_before_them() {
    let agent = Agent::start().await;
    // More than a piece, and just what a pipe holds; the reader comes late.
    let script = "for i in 1 2 3 4 5 6 7 8; do read go
        head -c 65536 /dev/zero; head -c 65536 /dev/zero >&2; printf . >&3; done";
    let mut running = agent.open(controlled(sh(script))).await.unwrap();
    let (mut printed, mut errors) = (0, 0);
    for round in 1..=8 {
        running.send(Input::Stdin("\n".into())).await;
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        loop {
            match running.next().await.unwrap() {
                Event::Stdout(bytes) => printed += bytes.len(),
                Event::Stderr(bytes) => errors += bytes.len(),
                Event::Control(_) => break,
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((printed, errors), (round * 65536, round * 65536));
    }
}

/// Counts numbered lines, which come in order.
struct Tally {
    mark: char,
    part: String,
    seen: usize,
}

impl Tally {
    fn new(mark: char) -> Self {
        Self { mark, part: String::new(), seen: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.part.push_str(std::str::from_utf8(bytes).unwrap());
        while let Some((line, rest)) = self.part.split_once('\n') {
            assert_eq!(line, format!("{}{}", self.mark, self.seen));
            self.seen += 1;
            self.part = rest.to_owned();
        }
    }
}

#[tokio::test]
async fn control_bytes_left_at_the_end_are_not_lost() {
    let agent = Agent::start().await;
    for _ in 0..20 {
        let outcome = agent.run(controlled(sh("echo last; head -c 60000 /dev/zero >&3"))).await;
        assert_eq!((outcome.text(), outcome.control.len()), ("last\n", 60_000));
    }
}

#[tokio::test]
async fn control_bytes_pass_input_that_nobody_reads_and_the_other_way_round() {
    let agent = Agent::start().await;
    let full = vec![b'x'; 300 * 1024];

    let running = agent.open(controlled(sh("read line <&3; echo got $line >&3"))).await.unwrap();
    running.send(Input::Stdin(full.clone().into())).await;
    running.send(Input::Control("it\n".into())).await;
    assert_eq!(running.outcome().await.control, b"got it\n");

    let mut running = agent.open(controlled(sh("read line; echo got $line; cat; echo end"))).await.unwrap();
    // More than the socket and the backlog hold.
    for _ in 0..2 {
        running.send(Input::Control(full.clone().into())).await;
    }
    running.send(Input::Stdin("it\n".into())).await;
    assert_eq!(running.read_until("\n").await, "got it\n");
    running.send(Input::CloseStdin(CloseStdin {})).await;
    assert_eq!(running.outcome().await.text(), "end\n");
}

#[tokio::test]
async fn control_bytes_that_nobody_reads_are_held_back() {
    let agent = Agent::start().await;
    agent.run(controlled(sh("true"))).await;
    let before = agent.memory_kib();
    let running = agent.open(controlled(program(&["sleep", "600"]))).await.unwrap();
    let taken = running.fill_with(Input::Control(vec![b'x'; 64 * 1024].into()), 6).await;
    assert!((6..64).contains(&taken), "the agent took {taken} pieces");
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 2 * 1024, "the agent grew by {grown} KiB");
    assert!(running.signal(0).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
}

#[tokio::test]
async fn a_slow_reader_of_control_bytes_stops_the_process_and_not_the_memory() {
    let agent = Agent::start().await;
    let script = "cat /dev/zero & cat /dev/zero >&2 & cat /dev/zero >&3";
    let mut running = agent.open(controlled(sh(script))).await.unwrap();
    running.next().await.unwrap();
    let before = agent.memory_kib();
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 2048, "the agent grew by {grown} KiB");
    let mut control = 0;
    while control < 4 * 1024 * 1024 {
        if let Event::Control(bytes) = running.next().await.unwrap() {
            control += bytes.len();
        }
    }
}

#[tokio::test]
async fn a_process_may_close_its_channel() {
    let agent = Agent::start().await;
    let running = agent.open(controlled(sh("echo bye >&3; exec 3>&-; read line; echo $line"))).await.unwrap();
    for _ in 0..8 {
        running.send(Input::Control(vec![b'x'; 64 * 1024].into())).await;
    }
    running.send(Input::Stdin("on\n".into())).await;
    let outcome = running.outcome().await;
    assert_eq!((outcome.text(), outcome.control.as_slice()), ("on\n", &b"bye\n"[..]));
}

#[tokio::test]
async fn a_daemon_that_holds_the_channel_does_not_hang_the_stream() {
    let agent = Agent::start().await;
    let started = std::time::Instant::now();
    let outcome = agent.run(controlled(sh("cat /dev/zero >&3 & sleep 0.1; echo $!; exit 6"))).await;
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(outcome.exited.exit_code, 6);
}
