//! Starts an agent of its own for each test and speaks to it.

mod agent;
mod bridge;
mod place;

use std::time::{Duration, Instant};

use cloud_sandbox_proto::agent::v1::{
    Exited, RunRequest, RunResponse, SignalRequest, Start, agent_service_client::AgentServiceClient,
    run_request::Input, run_response::Event,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

pub use self::{
    agent::{Agent, client},
    place::{in_container, is_gvisor, left_out},
};

/// Long enough for a busy machine, short enough to see what hangs.
pub const PATIENCE: Duration = Duration::from_secs(30);

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

    /// Sends standard input until the agent takes no more, at least `least` pieces; returns how much it took.
    pub async fn fill(&self, piece: usize, least: usize) -> usize {
        self.fill_with(Input::Stdin(vec![b'x'; piece].into()), least).await * piece
    }

    /// Sends the same message until the agent takes no more; returns how many it took. It must take `least`, for which
    /// it may need its time; after that, a pause means that it takes no more.
    pub async fn fill_with(&self, input: Input, least: usize) -> usize {
        for taken in 0..least {
            let sent = timeout(PATIENCE, self.input.send(request(input.clone()))).await;
            sent.unwrap_or_else(|_| panic!("the agent took only {taken} of {least}")).unwrap();
        }
        let mut taken = least;
        let pause = Duration::from_millis(300);
        while let Ok(sent) = timeout(pause, self.input.send(request(input.clone()))).await {
            sent.unwrap();
            taken += 1;
        }
        taken
    }

    /// Reads standard output until `text` has come.
    pub async fn read_until(&mut self, text: &str) -> String {
        self.read_while(|seen| !seen.contains(text)).await
    }

    /// Reads standard output as long as what has come is not enough.
    pub async fn read_while(&mut self, lacks: impl Fn(&str) -> bool) -> String {
        let mut seen = String::new();
        while lacks(&seen) {
            match self.next().await.unwrap() {
                Event::Stdout(bytes) => seen.push_str(std::str::from_utf8(&bytes).unwrap()),
                other => panic!("{other:?} after {seen:?}"),
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

fn request(input: Input) -> RunRequest {
    RunRequest { input: Some(input) }
}

/// The open descriptors of a shell that printed `/proc/self/fd/*`, without that of the folder it read.
pub fn descriptors(printed: &str) -> Vec<&str> {
    let names = printed.lines().map(|line| line.trim_start_matches("/proc/self/fd/"));
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.pop();
    names
}
