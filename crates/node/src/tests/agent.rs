//! A scripted agent: `argv` says what a process does, and what was asked of it can be looked up.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use cloud_sandbox_proto::{
    agent::v1::{
        CheckRequest, CheckResponse, CompareSnapshotRequest, CompareSnapshotResponse, Exited, ProveWallsRequest,
        ProveWallsResponse, RunRequest, RunResponse, SignalRequest, SignalResponse, Start, Started,
        TakeSnapshotRequest, TakeSnapshotResponse, WallProof,
        agent_service_server::{AgentService, AgentServiceServer},
        run_request::Input,
        run_response::Event,
    },
    v1::{FileChange, FileChangeType, FileChanges},
};
use hyper::server::conn::http2;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{io::DuplexStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// What all agents of a test share.
#[derive(Default)]
pub(super) struct Script {
    /// programs that are not there
    pub(super) missing: Mutex<HashSet<&'static str>>,
    /// every process that was started
    pub(super) starts: Mutex<Vec<Start>>,
    /// every signal that was sent
    pub(super) signals: Mutex<Vec<i32>>,
    /// every folder that was looked at
    pub(super) snapshots: Mutex<Vec<String>>,
    /// where each process hears its signals
    processes: Mutex<HashMap<u32, mpsc::UnboundedSender<i32>>>,
    /// processes that run now
    pub(super) running: AtomicUsize,
    /// how often a ready command has run
    pub(super) tries: AtomicUsize,
    /// how many processes ran when files were restored
    pub(super) running_at_restore: AtomicUsize,
    /// connections made
    pub(super) connections: AtomicUsize,
    /// agents do not answer
    pub(super) mute: AtomicBool,
    /// how many bytes are in the writable folders
    pub(super) disk_used: AtomicU64,
    /// whether that is all that fits
    pub(super) disk_full: AtomicBool,
    /// starts are taken and not confirmed
    pub(super) loses_starts: AtomicBool,
    /// what is found of the walls
    pub(super) proofs: Mutex<Vec<WallProof>>,
    /// what a look at the files is refused with
    pub(super) refusal: Mutex<Option<Status>>,
}

impl Script {
    pub(super) fn serve(self: &Arc<Self>, stream: DuplexStream) {
        self.connections.fetch_add(1, Ordering::SeqCst);
        let service = AgentServiceServer::new(Agent(Arc::clone(self))).max_decoding_message_size(32 * 1024 * 1024);
        let connection = http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
        tokio::spawn(connection);
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(super) fn last_start(&self) -> Start {
        self.starts.lock().unwrap().last().cloned().unwrap()
    }
}

struct Agent(Arc<Script>);

/// Counts a process as running.
struct Running(Arc<Script>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

type Events = mpsc::Sender<Result<RunResponse, Status>>;

#[tonic::async_trait]
impl AgentService for Agent {
    type RunStream = ReceiverStream<Result<RunResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        if self.0.mute.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(CheckResponse {
            version: "test".into(),
            disk_used_bytes: self.0.disk_used.load(Ordering::SeqCst),
            disk_full: self.0.disk_full.load(Ordering::SeqCst),
        }))
    }

    async fn prove_walls(&self, _: Request<ProveWallsRequest>) -> Result<Response<ProveWallsResponse>, Status> {
        Ok(Response::new(ProveWallsResponse { proofs: self.0.proofs.lock().unwrap().clone() }))
    }

    async fn run(&self, request: Request<Streaming<RunRequest>>) -> Result<Response<Self::RunStream>, Status> {
        let mut input = request.into_inner();
        let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
            return Err(Status::invalid_argument("the first message of a run must be start"));
        };
        if self.0.missing.lock().unwrap().contains(start.argv[0].as_str()) {
            return Err(Status::not_found(format!("program {} not found in PATH", start.argv[0])));
        }
        if start.cwd == "/missing" {
            return Err(Status::failed_precondition("cwd /missing does not exist"));
        }
        self.0.starts.lock().unwrap().push(start.clone());
        if self.0.loses_starts.load(Ordering::SeqCst) {
            return Err(Status::unavailable("the connection broke"));
        }
        self.0.running.fetch_add(1, Ordering::SeqCst);
        let running = Running(Arc::clone(&self.0));
        let (events, receiver) = mpsc::channel(4);
        let (signals, heard) = mpsc::unbounded_channel();
        let pid = {
            let mut processes = self.0.processes.lock().unwrap();
            let pid = processes.len() as u32 + 2;
            processes.insert(pid, signals);
            pid
        };
        tokio::spawn(async move {
            let closed = events.clone();
            send(&events, Event::Started(Started { pid })).await;
            tokio::select! {
                () = process(&running.0, start, input, heard, events) => {}
                () = closed.closed() => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Result<Response<SignalResponse>, Status> {
        let SignalRequest { pid, signal } = request.into_inner();
        let running = self.0.processes.lock().unwrap().get(&pid).is_some_and(|process| process.send(signal).is_ok());
        Ok(Response::new(SignalResponse { running }))
    }

    async fn take_snapshot(
        &self,
        request: Request<TakeSnapshotRequest>,
    ) -> Result<Response<TakeSnapshotResponse>, Status> {
        self.refuse()?;
        self.0.snapshots.lock().unwrap().push(request.into_inner().path);
        Ok(Response::new(TakeSnapshotResponse { snapshot: self.0.snapshots.lock().unwrap().len() as u64 }))
    }

    async fn compare_snapshot(
        &self,
        request: Request<CompareSnapshotRequest>,
    ) -> Result<Response<CompareSnapshotResponse>, Status> {
        self.refuse()?;
        let path = format!("/workspace/{}", request.into_inner().snapshot);
        let file = FileChange { path, r#type: FileChangeType::Created.into(), new_size: 1, ..Default::default() };
        let changes = Some(FileChanges { files: vec![file], truncated: false });
        Ok(Response::new(CompareSnapshotResponse { changes }))
    }

    async fn stop_processes(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::StopProcessesRequest>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::StopProcessesResponse>, Status> {
        Err(Status::unimplemented("stop_processes"))
    }

    async fn continue_processes(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::ContinueProcessesRequest>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::ContinueProcessesResponse>, Status> {
        Err(Status::unimplemented("continue_processes"))
    }

    type SaveTreeStream = futures::stream::Empty<Result<cloud_sandbox_proto::agent::v1::SaveTreeResponse, Status>>;

    async fn save_tree(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::SaveTreeRequest>>,
    ) -> Result<Response<Self::SaveTreeStream>, Status> {
        Err(Status::unimplemented("save_tree"))
    }

    async fn restore_tree(
        &self,
        request: Request<Streaming<cloud_sandbox_proto::agent::v1::RestoreTreeRequest>>,
    ) -> Result<Response<cloud_sandbox_proto::agent::v1::RestoreTreeResponse>, Status> {
        let mut parts = request.into_inner();
        while parts.message().await?.is_some() {}
        self.0.running_at_restore.store(self.0.running(), Ordering::SeqCst);
        Ok(Response::new(cloud_sandbox_proto::agent::v1::RestoreTreeResponse::default()))
    }

    type ListenStream = futures::stream::Empty<Result<cloud_sandbox_proto::agent::v1::ListenResponse, Status>>;

    async fn listen(
        &self,
        _: Request<cloud_sandbox_proto::agent::v1::ListenRequest>,
    ) -> Result<Response<Self::ListenStream>, Status> {
        Err(Status::unimplemented("listen"))
    }

    type AcceptStream = futures::stream::Empty<Result<cloud_sandbox_proto::agent::v1::AcceptResponse, Status>>;

    async fn accept(
        &self,
        _: Request<Streaming<cloud_sandbox_proto::agent::v1::AcceptRequest>>,
    ) -> Result<Response<Self::AcceptStream>, Status> {
        Err(Status::unimplemented("accept"))
    }
}

impl Agent {
    fn refuse(&self) -> Result<(), Status> {
        self.0.refusal.lock().unwrap().clone().map_or(Ok(()), Err)
    }
}

async fn process(
    script: &Script,
    start: Start,
    mut input: Streaming<RunRequest>,
    mut signals: mpsc::UnboundedReceiver<i32>,
    events: Events,
) {
    let words: Vec<&str> = start.argv.iter().map(String::as_str).collect();
    // a shell that is told to run something does so
    let words = match words.as_slice() {
        ["bash" | "sh", "-c", line] => line.strip_prefix("run ").map_or(words, |line| line.split(' ').collect()),
        _ => words,
    };
    let exited = match words.as_slice() {
        ["echo", text] => print(&events, text.as_bytes().to_vec(), b"").await,
        ["both", out, err] => print(&events, out.as_bytes().to_vec(), err.as_bytes()).await,
        ["bash" | "sh", "-c", line] => print(&events, line.as_bytes().to_vec(), b"").await,
        ["bytes", hex @ ..] => {
            for byte in hex {
                send(&events, Event::Stdout(vec![u8::from_str_radix(byte, 16).unwrap()].into())).await;
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Exited::default()
        }
        ["flood", bytes] => flood(&events, bytes.parse().unwrap()).await,
        ["lines", count] => lines(&events, count.parse().unwrap()).await,
        ["binary", bytes] => print(&events, vec![0xFF; bytes.parse().unwrap()], b"").await,
        ["yes"] => {
            while !events.is_closed() {
                send(&events, Event::Stdout("y\n".into())).await;
            }
            return;
        }
        ["ready", after] => {
            let tries = script.tries.fetch_add(1, Ordering::SeqCst) + 1;
            let exit_code = i32::from(tries < after.parse().unwrap());
            Exited { exit_code, ..print(&events, b"not yet".to_vec(), b"").await }
        }
        ["fail", code, word] => {
            let exit_code = code.parse().unwrap();
            Exited { exit_code, ..print(&events, word.as_bytes().to_vec(), b"").await }
        }
        ["fill"] => Exited { disk_full: true, ..Default::default() },
        ["fail", code] => Exited { exit_code: code.parse().unwrap(), ..Default::default() },
        ["signal", signal] => Exited { signal: signal.parse().unwrap(), ..Default::default() },
        ["wait", milliseconds] => {
            let time = Duration::from_millis(milliseconds.parse().unwrap());
            send(&events, Event::Stdout("waiting\n".into())).await;
            tokio::select! {
                () = tokio::time::sleep(time) => print(&events, b"done\n".to_vec(), b"").await,
                killed = until_killed(script, &mut signals) => killed,
            }
        }
        ["stubborn"] => std::future::pending().await,
        ["cat"] => cat(script, &mut input, &mut signals, &events).await,
        ["break"] => {
            let _ = events.send(Err(Status::unavailable("broken"))).await;
            return;
        }
        _ => {
            let staged = start.staged.map(|staged| staged.content.to_vec()).unwrap_or_default();
            print(&events, staged, b"").await
        }
    };
    let exited = Exited { cpu_time_us: 1500, peak_memory_bytes: 4096, wall_time_us: 2500, ..exited };
    send(&events, Event::Exited(exited)).await;
}

/// One line of that many bytes.
async fn flood(events: &Events, mut bytes: usize) -> Exited {
    while bytes > 0 {
        let piece = bytes.min(32 * 1024);
        send(events, Event::Stdout(vec![b'x'; piece].into())).await;
        bytes -= piece;
    }
    Exited::default()
}

/// Numbered lines, every tenth of them an error on the other stream.
async fn lines(events: &Events, count: usize) -> Exited {
    for number in 0..count {
        send(events, Event::Stdout(format!("line {number}\n").into())).await;
        if number % 10 == 9 {
            send(events, Event::Stderr(format!("error {number}\n").into())).await;
        }
    }
    Exited::default()
}

async fn print(events: &Events, stdout: Vec<u8>, stderr: &[u8]) -> Exited {
    for chunk in stdout.chunks(32 * 1024) {
        send(events, Event::Stdout(chunk.to_vec().into())).await;
    }
    if !stderr.is_empty() {
        send(events, Event::Stderr(stderr.to_vec().into())).await;
    }
    Exited::default()
}

async fn cat(
    script: &Script,
    input: &mut Streaming<RunRequest>,
    signals: &mut mpsc::UnboundedReceiver<i32>,
    events: &Events,
) -> Exited {
    loop {
        let message = tokio::select! {
            message = input.message() => message,
            Some(signal) = signals.recv() => {
                script.signals.lock().unwrap().push(signal);
                return Exited { signal: if signal == 0 { 9 } else { signal }, ..Default::default() };
            }
        };
        match message.ok().flatten().and_then(|message| message.input) {
            Some(Input::Stdin(bytes)) => send(events, Event::Stdout(bytes)).await,
            Some(Input::CloseStdin(_)) => return Exited::default(),
            Some(Input::Resize(size)) => {
                send(events, Event::Stdout(format!("{}x{}", size.rows, size.cols).into())).await;
            }
            _ => std::future::pending().await,
        }
    }
}

async fn until_killed(script: &Script, signals: &mut mpsc::UnboundedReceiver<i32>) -> Exited {
    while let Some(signal) = signals.recv().await {
        script.signals.lock().unwrap().push(if signal == 0 { 9 } else { signal });
        // SIGINT is ignored
        if signal != 2 {
            return Exited { signal: if signal == 0 { 9 } else { signal }, ..Default::default() };
        }
    }
    std::future::pending().await
}

async fn send(events: &Events, event: Event) {
    let _ = events.send(Ok(RunResponse { event: Some(event) })).await;
}
