//! Measures over gRPC what REST clients do not see: how soon a line arrives, how fast files go in and out, and many
//! processes at once. Prints rows for the page that `bench.py` writes.
//!
//! Started by `bench.py` with the address of a server that it has started, and that server's process id.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::{
    env, fs,
    time::{Duration, Instant},
};

use bytes::Bytes;
use cloud_sandbox_proto::v1::{
    AcquireSandboxRequest, DownloadFileRequest, ExecuteRequest, ExecuteStreamRequest, IssueTokenRequest,
    ReleaseSandboxRequest, ResourceLimits, UploadCommit, UploadFileHeader, UploadFileRequest,
    auth_service_client::AuthServiceClient, exec_event::Event, exec_output::Content,
    exec_service_client::ExecServiceClient, file_service_client::FileServiceClient,
    scheduler_service_client::SchedulerServiceClient, upload_file_request::Part,
};
use nix::time::{ClockId, clock_gettime};
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Channel, Endpoint},
};

const LINES: usize = 500;
const PROCESSES: usize = 200;
const LINES_EACH: usize = 500;
const FILE_BYTES: u64 = 1 << 30;
const PIECE: usize = 1 << 20;
const GIB: u64 = 1 << 30;

#[derive(Clone)]
struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Authorized = InterceptedService<Channel, Bearer>;

#[derive(Clone)]
struct Clients {
    scheduler: SchedulerServiceClient<Authorized>,
    exec: ExecServiceClient<Authorized>,
    files: FileServiceClient<Authorized>,
}

impl Clients {
    async fn connect(address: &str) -> Self {
        let endpoint = Endpoint::from_shared(address.to_owned()).unwrap();
        let endpoint = endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(16 << 20);
        // as the server's own clients have it
        let channel = endpoint.max_frame_size(256 << 10).tcp_nodelay(true).connect().await.unwrap();
        let wanted = IssueTokenRequest { user_id: "bench".into(), ..IssueTokenRequest::default() };
        let issued = AuthServiceClient::new(channel.clone()).issue_token(wanted).await.unwrap().into_inner();
        let bearer = Bearer(format!("Bearer {}", issued.access_token).parse().unwrap());
        let files = FileServiceClient::with_interceptor(channel.clone(), bearer.clone());
        Self {
            scheduler: SchedulerServiceClient::with_interceptor(channel.clone(), bearer.clone()),
            exec: ExecServiceClient::with_interceptor(channel, bearer),
            files: files.max_decoding_message_size(8 << 20),
        }
    }

    async fn acquire(&mut self, limits: ResourceLimits) -> String {
        let request = AcquireSandboxRequest { limits: Some(limits), ..AcquireSandboxRequest::default() };
        self.scheduler.acquire_sandbox(request).await.unwrap().into_inner().sandbox.unwrap().sandbox_id
    }

    async fn release(&mut self, sandbox_id: String) {
        self.scheduler.release_sandbox(ReleaseSandboxRequest { sandbox_id }).await.unwrap();
    }

    /// Runs `request` and gives each piece of its output as it comes.
    async fn stream(&mut self, request: ExecuteRequest, mut each: impl FnMut(&str)) {
        let request = ExecuteStreamRequest { request: Some(request) };
        let mut events = self.exec.execute_stream(request).await.unwrap().into_inner();
        while let Some(event) = events.message().await.unwrap() {
            if let Some(Event::Stdout(output)) = event.event.unwrap().event
                && let Some(Content::Text(text)) = output.content
            {
                each(&text);
            }
        }
    }
}

/// Nanoseconds of the clock that a sandbox reads too.
fn now() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    u64::try_from(now.tv_sec()).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec()).unwrap()
}

fn row(name: &str, mut times: Vec<f64>, goal: &str) {
    times.sort_by(f64::total_cmp);
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize];
    println!("| {name} | {:.2} | {:.2} | {:.2} | {} | {goal} |", at(0.5), at(0.95), at(0.99), times.len());
}

/// From just before a program prints a line until its client has it.
async fn line_latency(clients: &mut Clients) {
    let sandbox_id = clients.acquire(ResourceLimits::default()).await;
    let code = format!(
        "import time\nfor _ in range({LINES}):\n    print(time.monotonic_ns(), flush=True)\n    time.sleep(0.003)"
    );
    let request = ExecuteRequest { sandbox_id: sandbox_id.clone(), code: Some(code), ..ExecuteRequest::default() };
    let mut times = Vec::new();
    clients
        .stream(request, |text| {
            let now = now();
            let printed = text.lines().filter_map(|line| line.parse::<u64>().ok());
            times.extend(printed.map(|printed| (now - printed) as f64 / 1e6));
        })
        .await;
    assert_eq!(times.len(), LINES, "every line comes");
    row("a line, printed to received, over gRPC", times, "p50 under 1");
    clients.release(sandbox_id).await;
}

/// Memory of a process itself, without the files that it has in shared memory, in bytes.
fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    (kib("RssAnon:") + kib("RssFile:")) * 1024
}

fn children(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// What each process of a server has in memory when it does nothing.
#[derive(Clone)]
struct Idle(Vec<(u32, u64)>);

impl Idle {
    fn of(server: u32) -> Self {
        Self([vec![server], children(server)].concat().into_iter().map(|pid| (pid, own_memory(pid))).collect())
    }

    /// By how much the process that has grown most has.
    fn grown(&self) -> u64 {
        self.0.iter().map(|(pid, idle)| own_memory(*pid).saturating_sub(*idle)).max().unwrap_or(0)
    }
}

/// The most that a process of a server grows beyond what it has when idle, while it is watched.
struct Watch {
    task: tokio::task::JoinHandle<u64>,
    stop: tokio::sync::oneshot::Sender<()>,
}

impl Watch {
    fn begin(idle: Idle) -> Self {
        let (stop, mut stopped) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut most = 0;
            while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
                most = most.max(idle.grown());
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            most
        });
        Self { task, stop }
    }

    async fn end(self) -> f64 {
        let _ = self.stop.send(());
        self.task.await.unwrap() as f64 / f64::from(1 << 20)
    }
}

/// One large file, in one stream, in and out.
async fn file_throughput(clients: &mut Clients, server: u32) {
    let limits = ResourceLimits { memory_bytes: 4 * GIB, disk_bytes: 2 * GIB, ..ResourceLimits::default() };
    let sandbox_id = clients.acquire(limits).await;
    let piece = Bytes::from(vec![b'x'; PIECE]);
    let header = UploadFileHeader {
        sandbox_id: sandbox_id.clone(),
        path: "/workspace/large".to_owned(),
        ..UploadFileHeader::default()
    };
    let pieces = (0..FILE_BYTES / PIECE as u64).map(move |_| Part::Data(piece.clone()));
    let parts = std::iter::once(Part::Header(header)).chain(pieces).chain([Part::Commit(UploadCommit {})]);
    let messages = parts.map(|part| UploadFileRequest { part: Some(part) });

    let idle = Idle::of(server);
    let (watch, begun) = (Watch::begin(idle.clone()), Instant::now());
    let written = clients.files.upload_file(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let upload = begun.elapsed();
    let grown_up = watch.end().await;
    assert_eq!(written.file.unwrap().size, FILE_BYTES);

    let (watch, begun) = (Watch::begin(idle), Instant::now());
    let request = DownloadFileRequest {
        sandbox_id: sandbox_id.clone(),
        path: "/workspace/large".to_owned(),
        ..DownloadFileRequest::default()
    };
    let mut stream = clients.files.download_file(request).await.unwrap().into_inner();
    let mut received = 0;
    while let Some(message) = stream.message().await.unwrap() {
        received += message.data.len() as u64;
    }
    let download = begun.elapsed();
    let grown_down = watch.end().await;
    assert_eq!(received, FILE_BYTES);
    clients.release(sandbox_id).await;
    for (name, time, grown) in [("upload", upload, grown_up), ("download", download, grown_down)] {
        let rate = FILE_BYTES as f64 / 1e6 / time.as_secs_f64();
        println!(
            "{name} of 1 GiB over gRPC: {rate:.0} MB/s (to reach: over 400), no process grew by more than {grown:.0} MiB (to reach: under 64)."
        );
    }
}

/// Many processes in one sandbox, all streamed at once.
async fn many_processes(clients: &mut Clients) {
    let sandbox_id = clients.acquire(ResourceLimits { pids: 4096, ..ResourceLimits::default() }).await;
    let begun = Instant::now();
    let runs = (0..PROCESSES).map(|number| {
        let (mut clients, sandbox_id) = (clients.clone(), sandbox_id.clone());
        tokio::spawn(async move {
            let line = format!("i=0; while [ $i -lt {LINES_EACH} ]; do echo {number} $i; i=$((i+1)); done");
            let argv = ["sh", "-c", &line].map(str::to_owned).to_vec();
            let request = ExecuteRequest { sandbox_id, argv, ..ExecuteRequest::default() };
            let mut all = String::new();
            clients.stream(request, |text| all.push_str(text)).await;
            all.lines().enumerate().all(|(i, line)| line == format!("{number} {i}"))
                && all.lines().count() == LINES_EACH
        })
    });
    for run in runs.collect::<Vec<_>>() {
        assert!(run.await.unwrap(), "a stream has lost lines, or their order");
    }
    let time = begun.elapsed();
    println!(
        "{PROCESSES} processes at once in one sandbox, {LINES_EACH} lines each, all streamed, none lost, in order: {:.2} s.",
        time.as_secs_f64()
    );
    clients.release(sandbox_id).await;
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // cargo adds a flag of its own
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let [address, server] = arguments.as_slice() else { panic!("usage: grpc http://host:port SERVER_PID") };
    let server = server.parse().unwrap();
    let mut clients = Clients::connect(address).await;
    line_latency(&mut clients).await;
    println!();
    file_throughput(&mut clients, server).await;
    many_processes(&mut clients).await;
}
