//! The connections to the agent in one sandbox: an HTTP/2 connection for processes, one for files and trees, and one for what
//! programs connect to, each made at the first call and again when it breaks.

mod port;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cloud_sandbox_model::{SandboxId, error::Error, error::Result};
use cloud_sandbox_proto::{
    agent::v1::{
        CheckRequest, ProveWallsRequest, RunRequest, RunResponse, SignalRequest, Started, WallProof,
        agent_service_client::AgentServiceClient, run_request::Input, run_response::Event,
    },
    v1::file_service_client::FileServiceClient,
};
use cloud_sandbox_runtime::{Port, Runtime};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

/// The largest message, in bytes: the largest file with room for its envelope.
const MESSAGE_MAX: usize = 20 * 1024 * 1024;
/// What one process may print ahead of its journal. The other end is a socket of this machine: an update takes so little
/// that more would not be faster.
const PROCESS_WINDOW: u32 = 128 * 1024;
/// More than all processes of a sandbox can hold together: those whose output waits for a reader hold up no other.
const PROCESSES_WINDOW: u32 = 48 * 1024 * 1024;
/// What one file may be ahead of its reader.
const FILE_WINDOW: u32 = 1024 * 1024;
/// What files that nobody reads on may hold. Of their own connection, so that they hold up no process.
const FILES_WINDOW: u32 = 16 * 1024 * 1024;
/// Frames of files are large: each costs a wake-up here and there.
const FILES_FRAME: u32 = 256 * 1024;
/// What a program may be ahead of who serves what it has connected to.
const PORT_WINDOW: u32 = 64 * 1024;
/// As much for each of the 256 connections that an agent has at once, and some for the port itself.
const PORTS_WINDOW: u32 = 257 * PORT_WINDOW;
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(100);
/// Messages on their way to a process. Few: what a process does not read must hold back its caller.
const INPUT_QUEUE: usize = 4;

/// The agent's client, cheap to clone.
#[derive(Clone)]
pub(crate) struct Agent {
    client: AgentServiceClient<Channel>,
    files: FileServiceClient<Channel>,
    /// over the connection of files: whole trees are as much, and hold up no process
    trees: AgentServiceClient<Channel>,
    /// of its own connection: programs that are not heard hold up no process
    ports: AgentServiceClient<Channel>,
}

/// A process that the agent has started. Dropping it before its end kills the process's session.
pub(crate) struct Process {
    pub(crate) input: mpsc::Sender<RunRequest>,
    pub(crate) remote: Remote,
    events: Streaming<RunResponse>,
    ended: bool,
}

/// Reaches a process beside its stream, where nothing waits behind input that it does not read.
#[derive(Clone)]
pub(crate) struct Remote {
    client: AgentServiceClient<Channel>,
    pid: u32,
}

impl Remote {
    /// The process's id inside the sandbox.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal to the process group. Says whether the process was still there.
    pub(crate) async fn signal(&self, signal: i32) -> Result<bool, Status> {
        let request = SignalRequest { pid: self.pid, signal };
        self.client.clone().signal(request).await.map(|answer| answer.into_inner().running)
    }

    /// Kills the process and everything in its session.
    pub(crate) async fn kill(&self) -> Result<bool, Status> {
        self.signal(0).await
    }
}

impl Process {
    /// The next event; `exited` is the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Event>, Status> {
        let event = self.events.message().await?.map(|response| response.event);
        self.ended = matches!(event, None | Some(Some(Event::Exited(_))));
        // an event of a newer agent is one that says nothing
        Ok(event.map(|event| event.unwrap_or(Event::Stdout(Bytes::new()))))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        // the end of the stream says the same, unless it is stuck behind input that nobody reads
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let remote = self.remote.clone();
            runtime.spawn(async move { remote.kill().await });
        }
    }
}

impl Agent {
    /// The client of `id`'s agent; connects when it is first used.
    pub(crate) fn new(runtime: Arc<dyn Runtime>, id: SandboxId) -> Self {
        let connector = tower::service_fn(move |_: Uri| {
            let runtime = Arc::clone(&runtime);
            async move { runtime.connect(id).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://agent")
            .initial_stream_window_size(PROCESS_WINDOW)
            .initial_connection_window_size(PROCESSES_WINDOW)
            .connect_with_connector_lazy(connector.clone());
        let client = AgentServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        let channel = Endpoint::from_static("http://agent")
            .initial_stream_window_size(FILE_WINDOW)
            .initial_connection_window_size(FILES_WINDOW)
            .max_frame_size(FILES_FRAME)
            .connect_with_connector_lazy(connector.clone());
        let ports = Endpoint::from_static("http://agent")
            .initial_stream_window_size(PORT_WINDOW)
            .initial_connection_window_size(PORTS_WINDOW)
            .connect_with_connector_lazy(connector);
        let trees = AgentServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX);
        let files = FileServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        Self {
            client: client.max_encoding_message_size(MESSAGE_MAX),
            files: files.max_encoding_message_size(MESSAGE_MAX),
            trees: trees.max_encoding_message_size(MESSAGE_MAX),
            ports: AgentServiceClient::new(ports),
        }
    }

    pub(crate) fn files(&self) -> FileServiceClient<Channel> {
        self.files.clone()
    }

    /// For whole trees.
    pub(crate) fn trees(&self) -> AgentServiceClient<Channel> {
        self.trees.clone()
    }

    pub(crate) fn client(&self) -> AgentServiceClient<Channel> {
        self.client.clone()
    }

    /// Returns once the agent answers.
    pub(crate) async fn wait_ready(&self, deadline: Duration) -> Result<()> {
        let mut last = None;
        let answered = timeout(deadline, async {
            let mut pause = FIRST_PAUSE;
            while let Err(status) = self.client().check(CheckRequest {}).await {
                last = Some(status);
                sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        });
        match (answered.await, last) {
            (Ok(()), _) => Ok(()),
            (Err(_), Some(status)) => Err(Error::internal("reach the agent of a new sandbox", status)),
            (Err(elapsed), None) => Err(Error::internal("reach the agent of a new sandbox", elapsed)),
        }
    }

    /// Has the agent try what must not be possible in its sandbox.
    pub(crate) async fn prove_walls(&self, request: ProveWallsRequest) -> Result<Vec<WallProof>, Status> {
        Ok(self.client().prove_walls(request).await?.into_inner().proofs)
    }

    /// Listens on a port of the sandbox's loopback: `port`, or any other where a program has that already. It closes
    /// with what is returned.
    pub(crate) async fn listen(&self, port: u16) -> Result<Port, Status> {
        port::listen(self.ports.clone(), port).await
    }

    /// Starts a process with its first messages.
    pub(crate) async fn run(&self, first: Vec<Input>) -> Result<Process, Status> {
        let (input, queue) = mpsc::channel(INPUT_QUEUE.max(first.len()));
        for message in first {
            input.try_send(RunRequest { input: Some(message) }).expect("the queue holds the first messages");
        }
        let mut events = self.client().run(ReceiverStream::new(queue)).await?.into_inner();
        let started = events.message().await?.and_then(|response| response.event);
        let Some(Event::Started(Started { pid })) = started else {
            return Err(Status::internal("the agent did not say what it started"));
        };
        let remote = Remote { client: self.client(), pid };
        Ok(Process { input, remote, events, ended: false })
    }
}
