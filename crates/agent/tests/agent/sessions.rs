//! What a process leaves behind, and how all of it ends.

use std::time::Instant;

use cloud_sandbox_proto::{
    agent::v1::{StagedFile, Start},
    v1::{WriteFileRequest, write_file_request},
};

use crate::rig::{Agent, PATIENCE, Running, eventually, program, sh};

/// Children, grandchildren, and one in a process group of its own; prints their ids, in any order.
const TREE: &str = "sleep 600 & echo $!
(sleep 600 & echo $!; wait) &
set -m; sleep 600 & echo $!; set +m
echo ready; wait; sleep 600";

async fn grow_tree(agent: &Agent, running: &mut Running) -> Vec<u32> {
    let seen = running.read_while(|seen| seen.matches('\n').count() < 4).await;
    let pids: Vec<u32> = seen.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(pids.len() == 3 && seen.contains("ready\n"), "{seen}");
    assert!(pids.iter().all(|pid| agent.is_alive(*pid)));
    pids
}

#[tokio::test]
async fn kill_ends_everything_in_the_session() {
    let agent = Agent::start().await;
    let mut running = agent.open(program(&["bash", "-c", TREE])).await.unwrap();
    let pids = grow_tree(&agent, &mut running).await;
    assert!(running.signal(0).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
    eventually("the end of the tree", || !pids.iter().any(|pid| agent.is_alive(*pid))).await;
}

#[tokio::test]
async fn a_dropped_stream_ends_everything_in_the_session() {
    let agent = Agent::start().await;
    let staged = Some(StagedFile { path: agent.path("stage/main.sh"), content: TREE.into() });
    let start = Start { staged, ..program(&["bash", &agent.path("stage/main.sh")]) };
    let mut running = agent.open(start).await.unwrap();
    let mut pids = grow_tree(&agent, &mut running).await;
    pids.push(running.pid);
    drop(running);
    eventually("the end of the tree", || !pids.iter().any(|pid| agent.is_alive(*pid))).await;
    eventually("removal of the staged file", || !agent.folder().join("stage").exists()).await;
}

#[tokio::test]
async fn a_dropped_connection_ends_its_runs_and_no_others() {
    let agent = Agent::start().await;
    let kept = agent.open(sh("sleep 0.5; echo kept")).await.unwrap();
    let client = agent.another_client().await;
    // One that prints all the time, so that the stream is full when it is dropped.
    let lost = Running::open(client, sh("yes")).await.unwrap();
    let pid = lost.pid;
    drop(lost);
    eventually("the end of the process", || !agent.is_alive(pid)).await;
    assert_eq!(kept.outcome().await.text(), "kept\n");
}

#[tokio::test]
async fn input_that_nobody_reads_is_held_back_and_a_cut_connection_still_kills() {
    let agent = Agent::start().await;
    agent.sh("true").await;
    let before = agent.memory_kib();
    let (client, connection) = agent.client_to_cut().await;
    let running = Running::open(client, program(&["sleep", "600"])).await.unwrap();
    let pid = running.pid;
    let taken = running.fill(64 * 1024, 4).await;
    assert!((256 * 1024..2 * 1024 * 1024).contains(&taken), "the agent took {taken} bytes");
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 2 * 1024, "the agent grew by {grown} KiB");
    connection.shutdown(std::net::Shutdown::Both).unwrap();
    eventually("the end of the process", || !agent.is_alive(pid)).await;
}

#[tokio::test]
async fn a_daemon_that_holds_the_output_does_not_hang_the_stream() {
    let agent = Agent::start().await;
    let started = Instant::now();
    let outcome = agent.sh("sleep 600 & echo $!").await;
    assert!(started.elapsed() < PATIENCE);
    let daemon: u32 = outcome.text().trim().parse().unwrap();
    assert!(agent.is_alive(daemon), "what a process leaves behind goes on");
    agent.sh(&format!("kill -9 {daemon}")).await;
    eventually("the end of the daemon", || !agent.is_alive(daemon)).await;
}

#[tokio::test]
async fn a_daemon_that_keeps_writing_does_not_hang_the_stream() {
    let agent = Agent::start().await;
    let started = Instant::now();
    let outcome = agent.sh("yes & sleep 0.1; exit 6").await;
    assert!(started.elapsed() < PATIENCE);
    assert_eq!(outcome.exited.exit_code, 6);
}

#[tokio::test]
async fn what_was_printed_before_the_end_is_never_lost() {
    let agent = Agent::start().await;
    for _ in 0..20 {
        let outcome = agent.sh("head -c 60000 /dev/zero; head -c 60000 /dev/zero >&2").await;
        assert_eq!((outcome.stdout.len(), outcome.stderr.len()), (60_000, 60_000));
    }
}

fn parent_of(stat: &str) -> &str {
    stat.rsplit(") ").next().and_then(|fields| fields.split(' ').nth(1)).unwrap()
}

#[tokio::test]
async fn orphans_are_reaped() {
    let agent = Agent::start().await;
    agent.sh("(sleep 0.1 &) ; (true &) ; exit 0").await;
    let parent = agent.pid().to_string();
    let is_child = |pid: &str| agent.proc(&format!("{pid}/stat")).is_some_and(|stat| parent_of(&stat) == parent);
    eventually("the last child's end", || !agent.proc_names("").iter().any(|(pid, _)| is_child(pid))).await;
}

#[tokio::test]
async fn a_signal_reaches_the_process_group() {
    let agent = Agent::start().await;
    let script = "trap 'echo got; exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    let mut running = agent.open(sh(script)).await.unwrap();
    running.read_until("ready\n").await;
    for wrong in [-9, 1000] {
        assert_eq!(running.signal(wrong).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
    assert!(running.signal(15).await.unwrap());
    let outcome = running.outcome().await;
    assert_eq!((outcome.text(), outcome.exited.exit_code), ("got\n", 3));
}

#[tokio::test]
async fn the_agent_comes_back_small_after_big_files() {
    let agent = Agent::start().await;
    let mut files = agent.files().await;
    let before = agent.memory_kib();
    for _ in 0..3 {
        let body = Some(write_file_request::Body::Data(vec![1; 8 * 1024 * 1024].into()));
        files.write_file(WriteFileRequest { path: agent.path("big"), body, ..Default::default() }).await.unwrap();
    }
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 4096, "the agent kept {grown} KiB");
}
