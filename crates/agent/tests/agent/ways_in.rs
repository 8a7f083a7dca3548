//! How connections come in where the agent does not listen: it dials, or its standard streams carry them.

use std::{
    io::Write,
    process::{Child, Command, Stdio},
    time::Duration,
};

use cloud_sandbox_proto::agent::v1::{CheckRequest, agent_service_client::AgentServiceClient};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, UnixStream},
    time::timeout,
};
use tonic::transport::{Channel, Endpoint};

use crate::rig::{Agent, PATIENCE, Running, eventually, left_out, sh};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-sandbox-agent");

/// An agent that dials, and the socket that it dials.
struct Dialling {
    process: Child,
    listener: UnixListener,
    folder: TempDir,
}

impl Dialling {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("node.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let process = Command::new(PROGRAM).arg("--dial").arg(&socket).stdin(Stdio::null()).spawn().unwrap();
        Self { process, listener, folder }
    }

    async fn accept(&self) -> UnixStream {
        timeout(PATIENCE, self.listener.accept()).await.expect("the agent dials").unwrap().0
    }

    /// Whether another connection comes although none was taken up.
    async fn dials_again(&self) -> bool {
        timeout(Duration::from_millis(200), self.listener.accept()).await.is_ok()
    }

    async fn client(&self) -> AgentServiceClient<Channel> {
        let mut stream = Some(self.accept().await);
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or(std::io::Error::other("it connects once")) }
        });
        AgentServiceClient::new(Endpoint::from_static("http://agent").connect_with_connector(connector).await.unwrap())
    }

    async fn ended(&mut self) -> std::process::ExitStatus {
        eventually("the agent's end", || self.process.try_wait().unwrap().is_some()).await;
        self.process.wait().unwrap()
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn one_connection_waits_until_it_is_taken_up_and_then_the_next() {
    if left_out() {
        return;
    }
    let agent = Dialling::start();
    let mut first = agent.client().await;
    // its first byte is on its way: the preface of HTTP/2
    let mut second = agent.client().await;
    let waiting = agent.accept().await;
    assert!(!agent.dials_again().await, "one waits, and that is enough");
    for client in [&mut first, &mut second] {
        client.check(CheckRequest {}).await.unwrap();
    }
    let running = Running::open(second, sh("echo over the second")).await.unwrap();
    assert_eq!(running.outcome().await.text(), "over the second\n");
    // nothing was said on the one that waits, not even by the agent
    assert_eq!(waiting.try_read(&mut [0]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_connection_that_is_closed_unused_is_made_again() {
    if left_out() {
        return;
    }
    let agent = Dialling::start();
    for _ in 0..3 {
        drop(agent.accept().await);
    }
    agent.client().await.check(CheckRequest {}).await.unwrap();
}

/// And so does a container, of which it is the first process.
#[tokio::test]
async fn an_agent_whose_node_is_gone_ends() {
    if left_out() {
        return;
    }
    for remove in [false, true] {
        let mut agent = Dialling::start();
        let running = Running::open(agent.client().await, sh("sleep 1")).await.unwrap();
        if remove {
            std::fs::remove_file(agent.folder.path().join("node.sock")).unwrap();
        }
        // a socket that nobody has any more refuses; only the file stays
        agent.listener = UnixListener::bind(agent.folder.path().join("other.sock")).unwrap();
        assert_eq!(agent.ended().await.code(), Some(0));
        drop(running);
    }
}

#[tokio::test]
async fn standard_streams_carry_many_connections() {
    if left_out() {
        return;
    }
    let agent = Agent::start_on_standard_streams().await;
    let content = "x".repeat(1024 * 1024);
    let mut stuck = agent.open(sh("head -c 67108864 /dev/zero")).await.unwrap();
    stuck.next().await.unwrap();
    for _ in 0..40 {
        let client = agent.another_client().await;
        let running = Running::open(client, sh(&format!("head -c {} /dev/zero | tr '\\0' x", content.len()))).await;
        assert!(running.unwrap().outcome().await.text() == content);
    }
}

#[tokio::test]
async fn what_users_run_has_nothing_of_the_standard_streams() {
    if left_out() {
        return;
    }
    let agent = Agent::start_on_standard_streams().await;
    // 3 is the folder that ls reads; the three others are pipes of the run
    assert_eq!(agent.sh("ls /proc/self/fd").await.text(), "0\n1\n2\n3\n");
    let kept = agent.sh("echo $PPID; readlink /proc/$PPID/fd/0 /proc/$PPID/fd/1 /proc/$PPID/fd/2").await;
    let mut lines = kept.text().lines();
    assert_eq!(lines.next(), Some(agent.pid().to_string().as_str()));
    // read as root, where the tests are; nobody else may look
    assert!(lines.all(|line| line == "/dev/null"), "{}", kept.text());
    for name in ["0", "1", "2"] {
        let process = agent.sh(&format!("echo nonsense > /proc/{}/fd/{name}; true", agent.pid())).await;
        assert_eq!(process.exited.exit_code, 0);
    }
    assert_eq!(agent.sh("echo still there").await.text(), "still there\n");
}

#[tokio::test]
async fn the_end_of_standard_input_ends_the_agent() {
    if left_out() {
        return;
    }
    let mut process = standard_streams();
    drop(process.stdin.take());
    eventually("the agent's end", || process.try_wait().unwrap().is_some()).await;
    let output = process.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), vec![]));
}

#[tokio::test]
async fn nonsense_on_standard_input_ends_the_agent_with_an_error() {
    if left_out() {
        return;
    }
    let mut process = standard_streams();
    process.stdin.as_mut().unwrap().write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    eventually("the agent's end", || process.try_wait().unwrap().is_some()).await;
    assert_eq!(process.wait().unwrap().code(), Some(1));
}

#[tokio::test]
async fn standard_streams_that_cannot_be_waited_for_are_refused() {
    if left_out() {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    let output = Command::new(PROGRAM).arg("--stdio").stdin(file).stdout(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.starts_with("cloud-sandbox-agent: failed to open --stdio"), "{error}");
}

#[tokio::test]
async fn standard_streams_are_one_socket_as_well() {
    if left_out() {
        return;
    }
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let end = |socket: &std::os::unix::net::UnixStream| std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
    let mut process = Command::new(PROGRAM);
    process.arg("--stdio").stdin(end(&theirs)).stdout(end(&theirs));
    drop(theirs);
    let mut running = process.spawn().unwrap();
    drop(process);
    ours.set_nonblocking(true).unwrap();
    let (streams, session) = cloud_sandbox_runtime::multiplex::multiplex(UnixStream::from_std(ours).unwrap());
    let session = tokio::spawn(session);
    let mut stream = streams.connect().await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    // the length of its settings: it answers
    assert_eq!(stream.read_u8().await.unwrap(), 0);
    drop((stream, streams));
    session.await.unwrap().unwrap();
    eventually("the agent's end", || running.try_wait().unwrap().is_some()).await;
    assert_eq!(running.wait().unwrap().code(), Some(0));
}

fn standard_streams() -> Child {
    let mut command = Command::new(PROGRAM);
    command.arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}
