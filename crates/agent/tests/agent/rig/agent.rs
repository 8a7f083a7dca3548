//! An agent of a test, in whichever place.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use cloud_sandbox_proto::{
    agent::v1::{CheckRequest, Start, agent_service_client::AgentServiceClient, run_request::Input},
    v1::file_service_client::FileServiceClient,
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

use super::{
    Outcome, PATIENCE, Running,
    bridge::Bridge,
    place::{Place, container},
    request, sh,
};

const PROGRAM: &str = env!("CARGO_BIN_EXE_cloud-sandbox-agent");

pub struct Agent {
    pub client: AgentServiceClient<Channel>,
    process: Child,
    folder: TempDir,
    /// where it is not reached by a socket of its own
    bridge: Option<Bridge>,
}

impl Agent {
    pub async fn start() -> Self {
        let command = match Place::of_agents() {
            Place::Here | Place::Stdio => Command::new(PROGRAM),
            Place::Docker(_) => return Self::start_in_container(&[]).await,
        };
        Self::of(command, temporary_folder()).await.expect("the agent serves")
    }

    /// Starts it where `full` in its temporary folder is a file system of 1 MiB; none where the host forbids that.
    pub async fn start_with_small_disk() -> Option<Self> {
        let folder = temporary_folder();
        let full = folder.path().join("full");
        fs::create_dir(&full).unwrap();
        if let Place::Docker(_) = Place::of_agents() {
            let disk = format!("--tmpfs={}:rw,size=1m,mode=755", full.display());
            return Some(Self::of_container(folder, &[&disk]).await);
        }
        let script = r#"mount -t tmpfs -o size=1m tmpfs "$1" && shift && exec "$@""#;
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]).arg(full).arg(PROGRAM);
        Self::of(command, folder).await
    }

    /// Starts it as the first process of a PID namespace; none where the host forbids that.
    pub async fn start_as_init() -> Option<Self> {
        if let Place::Docker(_) = Place::of_agents() {
            return Some(Self::start_in_container(&[]).await);
        }
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--mount-proc", "--fork", "--kill-child"]).arg(PROGRAM);
        Self::of(command, temporary_folder()).await
    }

    /// Starts it as somebody who may nothing that others may not.
    pub async fn start_without_capabilities() -> Self {
        if let Place::Docker(_) = Place::of_agents() {
            return Self::start_in_container(&["--cap-drop=ALL"]).await;
        }
        let mut command = Command::new(PROGRAM);
        let forgo = || {
            for capability in 0..64 {
                // SAFETY: a plain system call. What it may not do, or what is no capability, it does not have.
                unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability) };
            }
            Ok(())
        };
        // SAFETY: prctl is async-signal-safe.
        unsafe { command.pre_exec(forgo) };
        Self::of(command, temporary_folder()).await.expect("the agent serves")
    }

    /// Starts it as root that acts as `user`, whose its temporary folder is; none where the tests may not do that.
    pub async fn start_apart_from(user: u32) -> Option<Self> {
        let (folder, user) = (temporary_folder(), user.to_string());
        let told = ["--apart-from", user.as_str()];
        chown(folder.path(), user.parse().ok(), None).ok()?;
        match Place::of_agents() {
            Place::Here => {
                let mut command = Command::new(PROGRAM);
                command.arg("--listen").arg(folder.path().join("agent.sock")).args(told).stdin(Stdio::null());
                Self::connect(command.spawn().ok()?, folder, None).await
            }
            Place::Stdio => {
                let mut command = Command::new(PROGRAM);
                command.arg("--stdio").args(told).stdin(Stdio::piped()).stdout(Stdio::piped());
                Self::bridged(command, folder).await
            }
            Place::Docker(runtime) => {
                let options = ["--cap-drop=ALL", "--cap-add=SETUID", "--cap-add=SETPCAP"];
                let mut command = container(runtime.as_deref(), folder.path(), &options);
                command.args(told).stdin(Stdio::piped()).stdout(Stdio::piped());
                Self::bridged(command, folder).await
            }
        }
    }

    /// Starts it on a socket that listens already.
    pub async fn start_on_inherited_socket() -> Self {
        let folder = temporary_folder();
        let listener = std::os::unix::net::UnixListener::bind(folder.path().join("agent.sock")).unwrap();
        // A copy that survives the exec, with a number of its own choice.
        let inherited = nix::fcntl::fcntl(&listener, nix::fcntl::FcntlArg::F_DUPFD(20)).unwrap();
        let process = Command::new(PROGRAM).args(["--listen-fd", &inherited.to_string()]).spawn().unwrap();
        Self::connect(process, folder, None).await.expect("the agent takes it over")
    }

    /// Starts it on its standard streams, on this machine.
    pub async fn start_on_standard_streams() -> Self {
        Self::by_standard_streams(Command::new(PROGRAM), temporary_folder()).await.expect("the agent serves")
    }

    /// Starts it as the first process of a container, with further options of `docker run`.
    pub async fn start_in_container(options: &[&str]) -> Self {
        Self::of_container(temporary_folder(), options).await
    }

    async fn of_container(folder: TempDir, options: &[&str]) -> Self {
        let Place::Docker(runtime) = Place::of_agents() else { panic!("agents are not in containers") };
        let mut command = container(runtime.as_deref(), folder.path(), options);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::bridged(command, folder).await.expect("the agent serves")
    }

    /// Starts what is an agent but for its way in, on this machine.
    async fn of(mut command: Command, folder: TempDir) -> Option<Self> {
        if let Place::Stdio = Place::of_agents() {
            return Self::by_standard_streams(command, folder).await;
        }
        command.arg("--listen").arg(folder.path().join("agent.sock")).stdin(Stdio::null());
        Self::connect(command.spawn().ok()?, folder, None).await
    }

    async fn by_standard_streams(mut command: Command, folder: TempDir) -> Option<Self> {
        command.arg("--stdio").stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::bridged(command, folder).await
    }

    async fn bridged(mut command: Command, folder: TempDir) -> Option<Self> {
        let mut process = command.spawn().ok()?;
        let bridge = Bridge::to(&mut process, &folder.path().join("agent.sock"));
        Self::connect(process, folder, Some(bridge)).await
    }

    async fn connect(mut process: Child, folder: TempDir, bridge: Option<Bridge>) -> Option<Self> {
        let socket = folder.path().join("agent.sock");
        let started = Instant::now();
        // A socket is there a moment before it listens.
        while UnixStream::connect(&socket).await.is_err() {
            if process.try_wait().unwrap().is_some() || started.elapsed() > PATIENCE {
                let _ = process.kill();
                return None;
            }
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
        let client = client(socket).await;
        if bridge.is_some() {
            // the socket is there before the agent is
            let answer = client.clone().check(CheckRequest {}).await;
            if answer.is_err() {
                let _ = process.kill();
                return None;
            }
        }
        Some(Self { client, process, folder, bridge })
    }

    /// Its process id where it is.
    pub fn pid(&self) -> u32 {
        if let Place::Docker(_) = Place::of_agents() { 1 } else { self.process.id() }
    }

    /// What a file below `/proc` says where the agent is.
    pub fn proc(&self, path: &str) -> Option<String> {
        let path = format!("/proc/{path}");
        match (&self.bridge, Place::of_agents()) {
            (Some(bridge), Place::Docker(_)) => bridge.read(path),
            _ => fs::read_to_string(path).ok(),
        }
    }

    /// The names in a folder below `/proc` where the agent is, and where those lead that are links.
    pub fn proc_names(&self, path: &str) -> Vec<(String, String)> {
        let path = format!("/proc/{path}");
        if let (Some(bridge), Place::Docker(_)) = (&self.bridge, Place::of_agents()) {
            return bridge.list(path);
        }
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        let target = |entry: &fs::DirEntry| entry.path().read_link().unwrap_or_default().display().to_string();
        entries.map(|entry| (entry.file_name().into_string().unwrap(), target(&entry))).collect()
    }

    /// The state of a process: a letter. None when there is no such process.
    pub fn state(&self, pid: u32) -> Option<char> {
        self.proc(&format!("{pid}/stat"))?.rsplit(") ").next()?.chars().next()
    }

    /// Whether a process exists and is not a zombie.
    pub fn is_alive(&self, pid: u32) -> bool {
        self.state(pid).is_some_and(|state| state != 'Z')
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// The memory that it holds, without the program's own pages: those come as its code is reached, and stay. gVisor's
    /// kernel tells both as one.
    pub fn memory_kib(&self) -> u64 {
        let status = self.proc(&format!("{}/status", self.pid())).unwrap();
        let value = |name| status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
        value("RssAnon:").or_else(|| value("VmRSS:")).unwrap().parse().unwrap()
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

fn temporary_folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

pub async fn client(socket: PathBuf) -> AgentServiceClient<Channel> {
    AgentServiceClient::new(channel(Endpoint::from_static("http://agent"), socket).await)
}

pub async fn channel(endpoint: Endpoint, socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await.unwrap()
}
