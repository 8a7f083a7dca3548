//! How an agent starts, and what of it its users can see.

use std::{os::unix::fs::MetadataExt, path::Path, process::Command};

use cloud_sandbox_agent::serve;
use tokio::net::UnixListener;

use crate::rig::{Agent, Running, client, descriptors, in_container, is_gvisor, left_out, program, sh};

#[tokio::test]
async fn an_inherited_socket_is_taken_over_and_kept_from_processes() {
    if left_out() {
        return;
    }
    let agent = Agent::start_on_inherited_socket().await;
    assert_eq!(descriptors(agent.sh("printf '%s\\n' /proc/self/fd/*").await.text()), ["0", "1", "2"]);
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
    if !in_container() {
        let agent = Agent::start().await;
        // What is undumpable belongs to root, whoever runs it (proc_pid(5)).
        let memory = std::fs::metadata(format!("/proc/{}/mem", agent.pid())).unwrap();
        assert_eq!((memory.uid(), memory.gid()), (0, 0));
        return;
    }
    let agent = Agent::start_in_container(&["--user=1000:1000", "--cap-drop=ALL"]).await;
    assert_ne!(agent.sh("cat /proc/1/mem").await.exited.exit_code, 0);
    // Old gVisor lets whoever has the user id of the agent open what that has open: a sandbox can end itself, and answer
    // its node in place of its agent, of which the node believes no more.
    if !is_gvisor() {
        let outcome = agent.sh("for fd in /proc/1/fd/*; do readlink $fd && exit 1; done; : > /proc/1/fd/1").await;
        assert_ne!(outcome.exited.exit_code, 0);
        assert_eq!(outcome.text(), "");
    }
    // ptrace(PTRACE_ATTACH)
    let attach = "print syscall(101, 16, 1, 0, 0)";
    assert_eq!(agent.run(program(&["perl", "-e", attach])).await.text(), "-1");
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
