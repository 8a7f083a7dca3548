//! Starts an agent of its own for each test and speaks to it.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use cloud_sandbox_proto::{
    agent::v1::{
        Exited, RunRequest, RunResponse, SignalRequest, Start, agent_service_client::AgentServiceClient,
        run_request::Input, run_response::Event,
    },
    v1::file_service_client::FileServiceClient,
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{net::UnixStream, sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Long enough for a busy machine, short enough to see what hangs.
const PATIENCE: Duration = Duration::from_secs(30);

pub struct Agent {
    pub client: AgentServiceClient<Channel>,
    process: Child,
    folder: TempDir,
}

impl Agent {
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_cloud-sandbox-agent"))
            .arg("--listen")
            .arg(folder.path().join("agent.sock"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self::connect(process, folder).await.expect("the agent listens")
    }

    /// Starts it where `full` in its temporary folder is a file system of 1 MiB; none where the host forbids that.
    pub async fn start_with_small_disk() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("full")).unwrap();
        let script = r#"mount -t tmpfs -o size=1m tmpfs "$2/full" && exec "$1" --listen "$2/agent.sock""#;
        let process = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
            .arg(env!("CARGO_BIN_EXE_cloud-sandbox-agent"))
            .arg(folder.path())
            .spawn()
            .ok()?;
        Self::connect(process, folder).await
    }

    /// Starts it as the first process of a PID namespace; none where the host forbids that.
    pub async fn start_as_init() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let process = Command::new("unshare")
            .args(["--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"])
            .arg(env!("CARGO_BIN_EXE_cloud-sandbox-agent"))
            .arg("--listen")
            .arg(folder.path().join("agent.sock"))
            .stdin(Stdio::null())
            .spawn()
            .ok()?;
        Self::connect(process, folder).await
    }

    /// Starts it as somebody who may nothing that others may not.
    pub async fn start_without_capabilities() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cloud-sandbox-agent"));
        command.arg("--listen").arg(folder.path().join("agent.sock")).stdin(Stdio::null());
        let forgo = || {
            for capability in 0..64 {
                // SAFETY: a plain system call. What it may not do, or what is no capability, it does not have.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) };
            }
            Ok(())
        };
        // SAFETY: prctl is async-signal-safe.
        let process = unsafe { command.pre_exec(forgo) }.spawn().unwrap();
        Self::connect(process, folder).await.expect("the agent listens")
    }

    /// Starts it on a socket that listens already.
    pub async fn start_on_inherited_socket() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("agent.sock")).unwrap();
        // A copy that survives the exec, with a number of its own choice.
        let inherited = nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_DUPFD(20)).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_cloud-sandbox-agent"))
            .args(["--listen-fd", &inherited.to_string()])
            .spawn()
            .unwrap();
        Self::connect(process, folder).await.expect("the agent takes it over")
    }

    async fn connect(mut process: Child, folder: TempDir) -> Option<Self> {
        let socket = folder.path().join("agent.sock");
        let started = Instant::now();
        // A socket is there a moment before it listens.
        while UnixStream::connect(&socket).await.is_err() {
            if process.try_wait().unwrap().is_some() || started.elapsed() > PATIENCE {
                let _ = process.kill();
                return None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Some(Self { client: client(socket).await, process, folder })
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The files, over a connection of their own that streams which nobody reads do not fill.
    pub async fn files(&self) -> FileServiceClient<Channel> {
        let endpoint = Endpoint::from_static("http://agent")
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(256 * 1024 * 1024);
        let channel = channel(endpoint, self.folder.path().join("agent.sock")).await;
        FileServiceClient::new(channel).max_decoding_message_size(16 * 1024 * 1024)
    }

    /// A connection as the node makes it: so that a stream which nobody reads holds up no other.
    pub async fn client_of_node(&self) -> AgentServiceClient<Channel> {
        let endpoint = Endpoint::from_static("http://agent")
            .initial_stream_window_size(256 * 1024)
            .initial_connection_window_size(256 * 1024 * 1024);
        AgentServiceClient::new(channel(endpoint, self.folder.path().join("agent.sock")).await)
    }

    /// A second connection.
    pub async fn another_client(&self) -> AgentServiceClient<Channel> {
        client(self.folder.path().join("agent.sock")).await
    }

    /// A second connection, and a handle to cut it with.
    pub async fn client_to_cut(&self) -> (AgentServiceClient<Channel>, std::os::unix::net::UnixStream) {
        let stream = std::os::unix::net::UnixStream::connect(self.folder.path().join("agent.sock")).unwrap();
        stream.set_nonblocking(true).unwrap();
        let handle = stream.try_clone().unwrap();
        let mut stream = Some(UnixStream::from_std(stream).unwrap());
        let connector = tower::service_fn(move |_| {
            let stream = stream.take().map(TokioIo::new);
            async move { stream.ok_or(std::io::Error::other("it connects once")) }
        });
        let channel = Endpoint::from_static("http://agent").connect_with_connector(connector).await.unwrap();
        (AgentServiceClient::new(channel), handle)
    }

    pub async fn open(&self, start: Start) -> Result<Running, Status> {
        Running::open(self.client.clone(), start).await
    }

    /// Runs to the end, with nothing to read.
    pub async fn run(&self, start: Start) -> Outcome {
        let running = self.open(start).await.unwrap();
        // Fails when the process has ended already.
        let _ = running.input.send(request(Input::CloseStdin(Default::default()))).await;
        running.outcome().await
    }

    pub async fn sh(&self, script: &str) -> Outcome {
        self.run(sh(script)).await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub struct Running {
    pub pid: u32,
    client: AgentServiceClient<Channel>,
    input: mpsc::Sender<RunRequest>,
    events: Streaming<RunResponse>,
}

#[derive(Debug)]
pub struct Outcome {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub control: Vec<u8>,
    pub exited: Exited,
}

impl Outcome {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

impl Running {
    pub async fn open(mut client: AgentServiceClient<Channel>, start: Start) -> Result<Self, Status> {
        let (input, requests) = mpsc::channel(1);
        input.send(request(Input::Start(start))).await.unwrap();
        let events = timeout(PATIENCE, client.run(ReceiverStream::new(requests))).await.expect("the run starts")?;
        let mut running = Self { pid: 0, client, input, events: events.into_inner() };
        let Event::Started(started) = running.next().await? else { panic!("started is first") };
        running.pid = started.pid;
        Ok(running)
    }

    pub async fn send(&self, input: Input) {
        timeout(PATIENCE, self.input.send(request(input))).await.expect("the agent takes input").unwrap();
    }

    /// Sends a signal, 0 to kill the session; whether the process was there.
    pub async fn signal(&self, signal: i32) -> Result<bool, Status> {
        let request = SignalRequest { pid: self.pid, signal };
        let answer = timeout(PATIENCE, self.client.clone().signal(request)).await.expect("the agent answers");
        answer.map(|answer| answer.into_inner().running)
    }

    pub async fn next(&mut self) -> Result<Event, Status> {
        let message = timeout(PATIENCE, self.events.message()).await.expect("an event comes")?;
        Ok(message.expect("the stream goes on").event.expect("an event is set"))
    }

    /// Sends standard input until the agent takes no more; returns how much it took.
    pub async fn fill(&self, piece: usize) -> usize {
        self.fill_with(Input::Stdin(vec![b'x'; piece].into())).await * piece
    }

    /// Sends the same message until the agent takes no more; returns how many it took.
    pub async fn fill_with(&self, input: Input) -> usize {
        let mut taken = 0;
        let pause = Duration::from_millis(300);
        while let Ok(sent) = timeout(pause, self.input.send(request(input.clone()))).await {
            sent.unwrap();
            taken += 1;
        }
        taken
    }

    /// Reads standard output until `text` has come.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut seen = String::new();
        while !seen.contains(text) {
            match self.next().await.unwrap() {
                Event::Stdout(bytes) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
                other => panic!("{other:?} before {text:?}, after {seen:?}"),
            }
        }
        seen
    }

    /// Reads to the end without keeping it; how many bytes of standard output there were, all of them `expected`.
    pub async fn count(mut self, expected: u8) -> usize {
        let mut count = 0;
        let all_expected = vec![expected; 64 * 1024];
        loop {
            match self.next().await.unwrap() {
                Event::Stdout(bytes) => {
                    // Compared as a whole: one by one takes seconds in a build that is not optimised.
                    assert!(bytes == all_expected[..bytes.len()]);
                    count += bytes.len();
                }
                Event::Exited(_) => return count,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Reads to the end.
    pub async fn outcome(mut self) -> Outcome {
        let (mut stdout, mut stderr, mut control) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match self.next().await.unwrap() {
                Event::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                Event::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                Event::Control(bytes) => control.extend_from_slice(&bytes),
                Event::Exited(exited) => {
                    assert!(self.events.message().await.unwrap().is_none(), "exited is last");
                    return Outcome { stdout, stderr, control, exited };
                }
                Event::Started(_) => panic!("started comes once"),
            }
        }
    }
}

pub fn sh(script: &str) -> Start {
    program(&["/bin/sh", "-c", script])
}

pub fn program(argv: &[&str]) -> Start {
    Start {
        argv: argv.iter().map(ToString::to_string).collect(),
        env: [("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned())].into(),
        cwd: "/".to_owned(),
        ..Start::default()
    }
}

/// Waits for something to become true.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < PATIENCE, "{what} never came true");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Whether a process exists and is not a zombie.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub async fn client(socket: PathBuf) -> AgentServiceClient<Channel> {
    AgentServiceClient::new(channel(Endpoint::from_static("http://agent"), socket).await)
}

async fn channel(endpoint: Endpoint, socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.unwrap()
}

fn request(input: Input) -> RunRequest {
    RunRequest { input: Some(input) }
}
