//! Faults at random points: the agent, the node, the exec service or the gateway is killed, or the caller's connection is
//! cut, while an execution prints. Whatever happens, nothing runs twice, no byte that a caller has seen is lost from the
//! journal, and no stream is left hanging.
//!
//! `CLOUD_SANDBOX_CHAOS_SEED` repeats a run.

use std::{
    fs,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use cloud_sandbox_proto::v1::{
    AttachExecutionRequest, ExecEvent, ExecuteRequest, ExecuteStreamRequest, ReadExecutionOutputRequest,
    exec_event::Event, exec_output::Content, exec_service_client::ExecServiceClient,
    read_execution_output_response::Content as Range,
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};
use tonic_types::StatusExt as _;

use crate::{
    fleet::{Fleet, left_out},
    grpc::{Authorized, Bearer},
    harness::{Api, children},
};

/// Rounds in each world.
const ROUNDS: usize = 250;
/// Fleets that are broken at the same time: one alone mostly waits for its processes.
const WORLDS: u64 = 2;
/// What a stream may take to say something, or to end.
const SILENCE_MAX: Duration = Duration::from_secs(15);
const ROUND_MAX: Duration = Duration::from_secs(40);
const BURSTS: usize = 6;
const LINES: usize = 40;
const EXIT_CODE: i32 = 7;

/// A TCP relay whose connections can be cut.
#[derive(Clone)]
struct Relay {
    address: String,
    cut: Arc<Mutex<CancellationToken>>,
}

impl Relay {
    async fn to(upstream: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let relay = Self { address, cut: Arc::default() };
        let cut = Arc::clone(&relay.cut);
        tokio::spawn(async move {
            while let Ok((mut inside, _)) = listener.accept().await {
                let (token, upstream) = (cut.lock().unwrap().clone(), upstream.clone());
                tokio::spawn(token.run_until_cancelled_owned(async move {
                    let Ok(mut outside) = TcpStream::connect(upstream).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                }));
            }
        });
        relay
    }

    fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    None,
    CutConnection,
    KillGateway,
    KillExec,
    KillAgent,
    KillNode,
}

impl Fault {
    fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..100) {
            0..10 => Self::None,
            10..55 => Self::CutConnection,
            55..70 => Self::KillGateway,
            70..80 => Self::KillExec,
            80..92 => Self::KillAgent,
            _ => Self::KillNode,
        }
    }
}

/// How a round went for its caller.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Exited(i32),
    /// the sandbox is gone, with this reason
    Lost(String),
}

/// What a caller knows of its execution.
#[derive(Default)]
struct Caller {
    execution: Option<String>,
    received: Vec<u8>,
}

struct World {
    fleet: Fleet,
    relay: Relay,
    exec: ExecServiceClient<Authorized>,
    api: Api,
    sandbox: String,
}

impl World {
    async fn start() -> Self {
        let fleet = Fleet::start().await;
        let api = fleet.user("ada").await;
        let relay = Relay::to(fleet.url.trim_start_matches("http://").to_owned()).await;
        let channel = Channel::from_shared(relay.address.clone()).unwrap().connect_lazy();
        let exec = ExecServiceClient::with_interceptor(channel, Bearer::of(api.token.as_deref().unwrap()));
        let sandbox = fleet.acquire(&api).await;
        Self { fleet, relay, exec, api, sandbox }
    }

    async fn break_something(&mut self, fault: Fault) {
        match fault {
            Fault::None => {}
            Fault::CutConnection => self.relay.cut(),
            Fault::KillGateway => self.restart("gateway").await,
            Fault::KillExec => self.restart("exec").await,
            Fault::KillNode => self.restart("node").await,
            Fault::KillAgent => {
                for pid in children(self.fleet.pid("node")) {
                    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
                    if cgroup.contains(&self.sandbox) {
                        let pid = nix::unistd::Pid::from_raw(pid.try_into().unwrap());
                        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                    }
                }
            }
        }
    }

    async fn restart(&mut self, role: &str) {
        self.fleet.kill(role);
        tokio::time::sleep(Duration::from_millis(10)).await;
        self.fleet.start_again(role);
    }

    /// A sandbox to go on with, once a node has one.
    async fn acquire(&mut self) {
        let begun = Instant::now();
        loop {
            let (status, answer) = self.api.post("/api/v1/sandbox/acquire", serde_json::json!({})).await;
            if status == 200 {
                self.sandbox = answer["sandbox_id"].as_str().unwrap().to_owned();
                return;
            }
            assert!(begun.elapsed() < ROUND_MAX, "no sandbox any more: {status} {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// How often the sandbox has begun with an execution; `None` when the sandbox is gone.
    async fn runs(&self, id: &str) -> Option<usize> {
        let look = serde_json::json!({"sandbox_id": self.sandbox, "command": "cat /workspace/ran"});
        let begun = Instant::now();
        loop {
            let (status, answer) = self.api.post("/api/v1/execute", look.clone()).await;
            match status {
                200 => return Some(answer["stdout"].as_str().unwrap().lines().filter(|line| *line == id).count()),
                404 => return None,
                _ => assert!(begun.elapsed() < ROUND_MAX, "the sandbox does not answer: {status} {answer}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn request(sandbox_id: &str, id: &str) -> ExecuteRequest {
    let line = format!(
        "echo {id} >> /workspace/ran; b=0; while [ $b -lt {BURSTS} ]; do i=0; while [ $i -lt {LINES} ]; do \
         echo {id} $b $i; i=$((i+1)); done; b=$((b+1)); sleep 0.01; done; exit {EXIT_CODE}"
    );
    let (sandbox_id, request_id) = (sandbox_id.to_owned(), id.to_owned());
    ExecuteRequest { sandbox_id, command: Some(line), request_id, ..ExecuteRequest::default() }
}

fn expected(id: &str) -> String {
    let lines = (0..BURSTS).flat_map(|burst| (0..LINES).map(move |line| (burst, line)));
    lines.map(|(burst, line)| format!("{id} {burst} {line}\n")).collect()
}

/// Why nothing more will come, unless it is worth another try.
fn verdict(status: &Status) -> Option<End> {
    let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    let lost = ["SANDBOX_GONE", "SANDBOX_NOT_FOUND", "OUTCOME_UNKNOWN", "LEASE_ENDED"];
    if lost.contains(&reason.as_str()) {
        return Some(End::Lost(reason));
    }
    let worth_it = [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::Internal];
    assert!(worth_it.contains(&status.code()), "an answer nobody expects: {status:?}");
    None
}

/// Asks until there is an answer, through everything that breaks.
async fn follow(mut exec: ExecServiceClient<Authorized>, sandbox: String, id: String, caller: &mut Caller) -> End {
    loop {
        let opened = match &caller.execution {
            None => {
                let request = ExecuteStreamRequest { request: Some(request(&sandbox, &id)) };
                let opened = exec.execute_stream(request).await;
                opened.map(|answer| Source::New(answer.into_inner()))
            }
            Some(execution) => {
                let request = AttachExecutionRequest {
                    sandbox_id: sandbox.clone(),
                    execution_id: execution.clone(),
                    stdout_offset: caller.received.len() as u64,
                    stderr_offset: 0,
                    ..Default::default()
                };
                exec.attach_execution(request).await.map(|answer| Source::Known(answer.into_inner()))
            }
        };
        let status = match opened {
            Ok(mut source) => match listen(&mut source, caller).await {
                Ok(code) => return End::Exited(code),
                Err(status) => status,
            },
            Err(status) => status,
        };
        if let Some(end) = verdict(&status) {
            return end;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

enum Source {
    New(tonic::Streaming<cloud_sandbox_proto::v1::ExecuteStreamResponse>),
    Known(tonic::Streaming<cloud_sandbox_proto::v1::AttachExecutionResponse>),
}

impl Source {
    async fn next(&mut self) -> Result<Option<ExecEvent>, Status> {
        Ok(match self {
            Self::New(stream) => stream.message().await?.and_then(|message| message.event),
            Self::Known(stream) => stream.message().await?.and_then(|message| message.event),
        })
    }
}

async fn listen(source: &mut Source, caller: &mut Caller) -> Result<i32, Status> {
    // a repeated request is told everything from the beginning
    let mut at = if matches!(source, Source::New(_)) { 0 } else { caller.received.len() };
    loop {
        let next = tokio::time::timeout(SILENCE_MAX, source.next()).await;
        let event = next.expect("a stream hangs")?.expect("a stream ends without saying how");
        match event.event.expect("an event says something") {
            Event::Started(started) => caller.execution = Some(started.execution_id),
            Event::Stdout(output) => {
                assert_eq!(output.offset, at as u64, "a piece is lost or comes twice");
                let bytes = match output.content.unwrap() {
                    Content::Text(text) => text.into_bytes(),
                    Content::Data(data) => data.to_vec(),
                };
                let known = caller.received.len().saturating_sub(at).min(bytes.len());
                assert_eq!(bytes[..known], caller.received[at..at + known], "what was told before is told again");
                caller.received.extend_from_slice(&bytes[known..]);
                at += bytes.len();
            }
            Event::Exited(exited) => return Ok(exited.exit_code),
            other => panic!("an event nobody expects: {other:?}"),
        }
    }
}

/// What the journal has of an execution's output.
async fn journalled(mut exec: ExecServiceClient<Authorized>, sandbox: &str, execution: &str) -> Vec<u8> {
    let request = ReadExecutionOutputRequest {
        sandbox_id: sandbox.to_owned(),
        execution_id: execution.to_owned(),
        ..ReadExecutionOutputRequest::default()
    };
    let begun = Instant::now();
    loop {
        match exec.read_execution_output(request.clone()).await {
            Ok(answer) => match answer.into_inner().content {
                Some(Range::Text(text)) => return text.into_bytes(),
                Some(Range::Data(data)) => return data.to_vec(),
                None => return Vec::new(),
            },
            Err(status) => {
                let again = [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::Internal];
                assert!(again.contains(&status.code()), "the journal is lost: {status:?}");
                assert!(begun.elapsed() < ROUND_MAX, "the journal cannot be read: {status:?}");
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_breaks_nothing_runs_twice_is_lost_or_hangs() {
    if left_out() {
        return;
    }
    let seed = std::env::var("CLOUD_SANDBOX_CHAOS_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = seed.unwrap_or_else(rand::random);
    eprintln!("CLOUD_SANDBOX_CHAOS_SEED={seed}");
    let worlds = (0..WORLDS).map(|number| tokio::spawn(rounds(seed.wrapping_add(number)))).collect::<Vec<_>>();
    let (mut exited, mut lost) = (0, 0);
    for world in worlds {
        let of_world = world.await.unwrap();
        exited += of_world.0;
        lost += of_world.1;
    }
    eprintln!("{exited} executions told to their end, {lost} lost with their sandbox");
    assert!(exited > lost && lost > 0, "the faults must be of all kinds");
}

/// Breaks a fleet again and again, and counts the executions that were told to their end and those that were lost.
async fn rounds(seed: u64) -> (u32, u32) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut world = World::start().await;
    let (mut exited, mut lost) = (0, 0);
    for round in 0..ROUNDS {
        let (id, fault) = (format!("r{round}"), Fault::random(&mut random));
        let delay = Duration::from_millis(random.random_range(0..120));
        let (exec, sandbox, of_caller) = (world.exec.clone(), world.sandbox.clone(), id.clone());
        let caller = tokio::spawn(async move {
            let mut caller = Caller::default();
            let end = tokio::time::timeout(ROUND_MAX, follow(exec, sandbox, of_caller, &mut caller)).await;
            (end.expect("a caller is kept waiting"), caller)
        });
        tokio::time::sleep(delay).await;
        world.break_something(fault).await;
        let (end, caller) = caller.await.unwrap_or_else(|error| panic!("round {round}, {fault:?}: {error}"));
        world.fleet.wait_until_ready().await;

        if let Some(execution) = &caller.execution {
            let kept = journalled(world.exec.clone(), &world.sandbox, execution).await;
            assert!(kept.starts_with(&caller.received), "round {round}, {fault:?}: the journal has lost bytes");
        }
        assert!(expected(&id).as_bytes().starts_with(&caller.received), "round {round}, {fault:?}: other bytes");
        match end {
            End::Exited(code) => {
                exited += 1;
                assert_eq!(code, EXIT_CODE, "round {round}, {fault:?}");
                assert_eq!(caller.received, expected(&id).as_bytes(), "round {round}, {fault:?}");
            }
            End::Lost(reason) => {
                lost += 1;
                let allowed = matches!(fault, Fault::KillAgent | Fault::KillNode);
                assert!(allowed, "round {round}: {reason} although only this broke: {fault:?}");
            }
        }
        match world.runs(&id).await {
            Some(runs) => assert_eq!(runs, 1, "round {round}, {fault:?}: once, neither more nor less"),
            None => world.acquire().await,
        }
    }
    (exited, lost)
}
