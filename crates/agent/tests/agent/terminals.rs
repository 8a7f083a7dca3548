//! Processes on a terminal.

use cloud_sandbox_proto::agent::v1::{CloseStdin, Start, WindowSize, run_request::Input};
use tonic::Code;

use crate::rig::{Agent, left_out, program, sh};

fn on_terminal(start: Start) -> Start {
    Start { terminal: Some(WindowSize { rows: 40, cols: 120 }), ..start }
}

#[tokio::test]
async fn a_terminal_has_its_size_and_takes_another() {
    let agent = Agent::start().await;
    let script = "stty size; echo $TERM; test -t 0 -a -t 1 -a -t 2 && echo tty; read line; stty size; exit 9";
    let mut running = agent.open(on_terminal(sh(script))).await.unwrap();
    assert_eq!(running.read_until("tty\r\n").await, "40 120\r\nxterm-256color\r\ntty\r\n");
    running.send(Input::Resize(WindowSize { rows: 50, cols: 132 })).await;
    // What no terminal can have is ignored.
    running.send(Input::Resize(WindowSize { rows: 0, cols: 70_000 })).await;
    running.send(Input::Stdin("\n".into())).await;
    let outcome = running.outcome().await;
    assert_eq!((outcome.text(), outcome.exited.exit_code), ("\r\n50 132\r\n", 9));
}

#[tokio::test]
async fn closed_input_is_end_of_file_also_within_a_line() {
    if left_out() {
        return;
    }
    let agent = Agent::start().await;
    for (input, output) in [("whole\n", "whole\r\nwhole\r\n"), ("part", "partpart")] {
        let running = agent.open(on_terminal(sh("stty -ctlecho; echo ready; cat"))).await;
        let mut running = running.unwrap();
        running.read_until("ready\r\n").await;
        running.send(Input::Stdin(input.into())).await;
        running.send(Input::CloseStdin(CloseStdin {})).await;
        let outcome = running.outcome().await;
        let seen = outcome.text().replace("\u{4}", "").replace("\u{8}", "");
        assert_eq!((seen.as_str(), outcome.exited.exit_code), (output, 0));
    }
}

#[tokio::test]
async fn control_c_interrupts_the_foreground() {
    if left_out() {
        return;
    }
    let agent = Agent::start().await;
    let mut running = agent.open(on_terminal(sh("echo ready; exec sleep 20"))).await.unwrap();
    running.read_until("ready\r\n").await;
    running.send(Input::Stdin("\u{3}".into())).await;
    assert_eq!(running.outcome().await.exited.signal, 2);
}

#[tokio::test]
async fn the_last_words_on_a_terminal_are_not_lost() {
    let agent = Agent::start().await;
    for _ in 0..20 {
        let outcome = agent.run(on_terminal(sh("printf 'x%.0s' $(seq 3000); echo end"))).await;
        assert!(outcome.text().ends_with("end\r\n"), "{:?}", outcome.text());
    }
}

#[tokio::test]
async fn a_daemon_on_the_terminal_does_not_hang_the_stream() {
    let agent = Agent::start().await;
    let outcome = agent.run(on_terminal(sh("trap '' HUP; sleep 5 & echo end"))).await;
    assert_eq!(outcome.text().replace("\u{4}", ""), "end\r\n");
}

#[tokio::test]
async fn an_impossible_size_is_refused() {
    let agent = Agent::start().await;
    let start = Start { terminal: Some(WindowSize { rows: 0, cols: 80 }), ..program(&["true"]) };
    assert_eq!(agent.open(start).await.err().unwrap().code(), Code::InvalidArgument);
}
