//! How an agent starts, and what of it its users can see.

use std::{path::Path, process::Command};

use cloud_sandbox_agent::serve;
use tokio::net::UnixListener;

use crate::rig::{Agent, Running, client, left_out, sh};

#[tokio::test]
async fn an_inherited_socket_is_taken_over_and_kept_from_processes() {
    if left_out() {
        return;
    }
    let agent = Agent::start_on_inherited_socket().await;
    assert_eq!(agent.sh("ls /proc/self/fd").await.text(), "0\n1\n2\n3\n");
}

#[tokio::test]
async fn an_agent_that_cannot_listen_says_so() {
    if left_out() {
        return;
    }
    for arguments in [&["--listen-fd", "77"][..], &["--listen", "/no/such/folder/agent.sock"], &[]] {
        let output = Command::new(env!("CARGO_BIN_EXE_cloud-sandbox-agent")).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stderr.starts_with(b"cloud-sandbox-agent: "), "{output:?}");
    }
}

#[tokio::test]
async fn the_agent_cannot_be_read_or_traced() {
    let agent = Agent::start().await;
    // What is undumpable belongs to root, whoever runs it (proc_pid(5)).
    let owner = agent.sh(&format!("stat -c '%u %g' /proc/{}/mem", agent.pid())).await;
    assert_eq!(owner.text(), "0 0\n");
}

#[tokio::test]
async fn within_another_process_only_its_own_children_are_reaped() {
    if left_out() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let served = tokio::spawn(serve(UnixListener::bind(&socket).unwrap()));
    let mut other = Command::new("sh").args(["-c", "exit 8"]).spawn().unwrap();

    let running = Running::open(client(socket).await, sh("sleep 0.1; exit 3")).await.unwrap();
    assert_eq!(running.outcome().await.exited.exit_code, 3);
    assert!(Path::new(&format!("/proc/{}", other.id())).exists());
    assert_eq!(other.wait().unwrap().code(), Some(8));
    served.abort();
}
