//! The process of a context: started with a control channel, heard event by event.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_proto::agent::v1::{
    CloseStdin, Exited, RunRequest, StagedFile, Start, run_request::Input, run_response::Event,
};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, SemaphorePermit, mpsc},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tonic::{Code, Status};

use super::{
    frames::{Frame, Lines},
    kernels::Kernel,
};
use crate::{
    agent::{Process, Remote},
    executions::lost,
    sandbox::Sandbox,
    signals,
};

/// How long an interpreter may take until it is ready.
const READY_PATIENCE: Duration = Duration::from_secs(10);
/// A line that is longer is taken in turns with those of all sandboxes, so that interpreters which are out to fill the
/// node's memory do not.
const LARGE: usize = 256 * 1024;
static LARGE_TURNS: Semaphore = Semaphore::const_new(16);
/// How long a turn lasts: a line is written at once, or never.
const LARGE_PATIENCE: Duration = Duration::from_secs(10);
/// Languages that a kernel may not know.
const PROBED: [&str; 1] = ["typescript"];
/// What an interpreter, or what it is linked with, reads at its start.
const READ_AT_START: [&str; 7] = ["PYTHON", "NODE_", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_"];
/// What of its last words an interpreter that does not start is quoted with.
const LAST_WORDS: usize = 2048;

/// A running interpreter. Dropped, its session is killed.
pub(super) struct Interpreter {
    process: Process,
    lines: Lines,
    large: Option<(SemaphorePermit<'static>, Instant)>,
    parsing: Option<JoinHandle<Result<Frame, String>>>,
    pub(super) version: String,
    /// it has the environment of the one who acquired the sandbox
    pub(super) is_personal: bool,
    /// the variables of the way to the network that it was told
    pub(super) proxy: HashMap<String, String>,
    /// it was asked whether it knows its language, and does
    knows: Vec<&'static str>,
}

/// Something that an interpreter did.
#[derive(Debug)]
pub(super) enum Happened {
    Stdout(Bytes),
    Stderr(Bytes),
    Frame(Frame),
    Exited(Exited),
    /// it said what is no message
    Malformed(String),
    /// the connection broke
    Lost(Status),
}

/// What an interpreter is started with.
pub(super) struct Beginning<'a> {
    pub(super) sandbox: &'a Sandbox,
    pub(super) kernel: &'static Kernel,
    /// a folder that nobody else uses
    pub(super) folder: String,
    pub(super) env: HashMap<String, String>,
    pub(super) cwd: String,
    pub(super) is_personal: bool,
}

impl Beginning<'_> {
    /// Starts it and waits until it is ready.
    pub(super) async fn start(self) -> Result<Interpreter> {
        let (sandbox, kernel, is_personal) = (self.sandbox, self.kernel, self.is_personal);
        let (argv, path, content) = kernel.staged(&self.folder);
        let staged = Some(StagedFile { path, content });
        let start = Start { argv, env: self.env, cwd: self.cwd, staged, control: true, ..Start::default() };
        let until = Instant::now() + READY_PATIENCE;
        let first = vec![Input::Start(start), Input::CloseStdin(CloseStdin {})];
        let process = match timeout_at(until, sandbox.agent.run(first)).await {
            Ok(Ok(process)) => process,
            Ok(Err(status)) => return Err(not_started(sandbox, kernel, &status).await),
            Err(_) => return Err(not_ready(kernel, "was not started in time")),
        };
        let mut interpreter = Interpreter {
            process,
            lines: Lines::default(),
            large: None,
            parsing: None,
            version: String::new(),
            is_personal,
            proxy: sandbox.view().lease.map(|lease| lease.proxy.clone()).unwrap_or_default(),
            knows: Vec::new(),
        };
        interpreter.until_ready(sandbox, kernel, until).await?;
        Ok(interpreter)
    }
}

impl Interpreter {
    async fn until_ready(&mut self, sandbox: &Sandbox, kernel: &Kernel, until: Instant) -> Result<()> {
        let mut words = Vec::new();
        loop {
            let Ok(happened) = timeout_at(until, self.next()).await else {
                let message = format!("was not ready within {} s{}", READY_PATIENCE.as_secs(), quoted(&words));
                return Err(not_ready(kernel, &message));
            };
            match happened {
                Happened::Frame(Frame::Ready { version }) => {
                    self.version = version;
                    return Ok(());
                }
                Happened::Stdout(piece) | Happened::Stderr(piece) => {
                    words.extend_from_slice(&piece);
                    words.drain(..words.len().saturating_sub(LAST_WORDS));
                }
                Happened::Frame(_) => {}
                Happened::Exited(exited) => {
                    let message = format!("{} before it was ready{}", how(&exited), quoted(&words));
                    return Err(not_ready(kernel, &message));
                }
                Happened::Malformed(why) => return Err(not_ready(kernel, &format!("said what is no message: {why}"))),
                Happened::Lost(status) => return Err(lost(sandbox, &status).await),
            }
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.remote.pid()
    }

    /// Reaches it beside what it is told in order.
    pub(super) fn remote(&self) -> Remote {
        self.process.remote.clone()
    }

    /// Where messages to it go.
    pub(super) fn input(&self) -> mpsc::Sender<RunRequest> {
        self.process.input.clone()
    }

    /// What it does next. A call that is given up loses nothing.
    pub(super) async fn next(&mut self) -> Happened {
        loop {
            if let Some(parsing) = &mut self.parsing {
                let parsed = parsing.await.unwrap_or_else(|error| Err(error.to_string()));
                self.parsing = None;
                self.large = None;
                return heard(parsed);
            }
            match self.lines.pop() {
                Some(line) if line.len() > LARGE => {
                    // a long line takes long, during which this thread serves others
                    self.parsing = Some(tokio::task::spawn_blocking(move || Frame::parse(&line)));
                }
                Some(line) => return heard(Frame::parse(&line)),
                None => {
                    if let Some(happened) = self.read().await {
                        return happened;
                    }
                }
            }
        }
    }

    /// Reads on; gives nothing when what was read is for the control channel.
    async fn read(&mut self) -> Option<Happened> {
        if self.lines.begun() <= LARGE {
            self.large = None;
        } else if self.large.is_none() {
            let turn = LARGE_TURNS.acquire().await.expect("it is never closed");
            self.large = Some((turn, Instant::now() + LARGE_PATIENCE));
        }
        let event = match &self.large {
            None => self.process.next().await,
            Some((_, until)) => match timeout_at(*until, self.process.next()).await {
                Ok(event) => event,
                Err(_) => return Some(Happened::Malformed("a line that does not end".to_owned())),
            },
        };
        match event {
            Ok(Some(Event::Control(piece))) => self.lines.push(&piece).err().map(Happened::Malformed),
            Ok(Some(Event::Stdout(piece))) => Some(Happened::Stdout(piece)),
            Ok(Some(Event::Stderr(piece))) => Some(Happened::Stderr(piece)),
            Ok(Some(Event::Exited(exited))) => Some(Happened::Exited(exited)),
            Ok(Some(Event::Started(_))) => None,
            Ok(None) => Some(Happened::Lost(Status::unknown("the stream ended early"))),
            Err(status) => Some(Happened::Lost(status)),
        }
    }

    /// Finds out whether it knows a language that not every version of its program does.
    pub(super) async fn learn(&mut self, sandbox: &Sandbox, kernel: &'static Kernel) -> Result<()> {
        let Some(language) = kernel.told.filter(|language| PROBED.contains(language)) else { return Ok(()) };
        if self.knows.contains(&language) {
            return Ok(());
        }
        let document = json!({"op": "execute", "id": "learn", "code": "", "language": language});
        let learned = timeout(READY_PATIENCE, async {
            // one that has ended says so in its events
            let _ = self.input().send(message(&document)).await;
            loop {
                match self.next().await {
                    Happened::Frame(Frame::Error { error, .. }) => break Some(error.value),
                    Happened::Frame(Frame::Done { .. }) => break None,
                    Happened::Exited(exited) => break Some(format!("its interpreter {}", how(&exited))),
                    Happened::Malformed(why) => break Some(why),
                    Happened::Lost(status) => break Some(status.message().to_owned()),
                    Happened::Frame(_) | Happened::Stdout(_) | Happened::Stderr(_) => {}
                }
            }
        });
        match learned.await {
            Ok(None) => {
                self.knows.push(language);
                Ok(())
            }
            Ok(Some(why)) => Err(unavailable(sandbox, kernel, &why)),
            Err(_) => Err(not_ready(kernel, "did not answer in time")),
        }
    }

    /// Whether it is what the sandbox's environment makes of an interpreter. One that was started before the sandbox was
    /// acquired can be told of variables, but not of those that are read at a start only.
    pub(super) fn fits(&self, sandbox: &Sandbox) -> bool {
        let lease = if self.is_personal { None } else { sandbox.view().lease };
        let read_at_start = |name: &String| READ_AT_START.iter().any(|start| name.starts_with(start));
        !lease.is_some_and(|lease| lease.env.keys().any(read_at_start))
    }

    /// Kills it and waits until it has ended; nothing when nobody says so in time.
    pub(super) async fn kill(&mut self, grace: Duration) -> Option<Exited> {
        let remote = self.remote();
        let ended = async {
            let _ = remote.kill().await;
            loop {
                match self.next().await {
                    Happened::Exited(exited) => return Some(exited),
                    Happened::Lost(_) => return None,
                    _ => {}
                }
            }
        };
        timeout(grace, ended).await.ok().flatten()
    }
}

/// A message to an interpreter, as its stream carries it.
pub(super) fn message(document: &Value) -> RunRequest {
    let mut line = document.to_string();
    line.push('\n');
    RunRequest { input: Some(Input::Control(line.into())) }
}

fn heard(parsed: Result<Frame, String>) -> Happened {
    parsed.map_or_else(Happened::Malformed, Happened::Frame)
}

/// How a process ended, in words that follow its name.
pub(super) fn how(exited: &Exited) -> String {
    match exited.signal {
        0 => format!("exited with code {}", exited.exit_code),
        signal => format!("was killed by {}", signals::name(signal)),
    }
}

fn quoted(words: &[u8]) -> String {
    let text = String::from_utf8_lossy(words);
    let text = text.trim();
    if text.is_empty() { String::new() } else { format!("; it printed: {text}") }
}

fn not_ready(kernel: &Kernel, what: &str) -> Error {
    let message = format!("the {} interpreter {what}", kernel.language);
    Error::new(ErrorKind::FailedPrecondition, reason::CONTEXT_LOST, message)
}

/// The template has no such language.
pub(super) fn unavailable(sandbox: &Sandbox, kernel: &Kernel, why: &str) -> Error {
    let message = format!("language {} is not available: {why}", kernel.language);
    Error::new(ErrorKind::FailedPrecondition, reason::LANGUAGE_UNAVAILABLE, message)
        .with_metadata("language", kernel.language)
        .with_metadata("program", kernel.program)
        .with_metadata("template", sandbox.template())
}

async fn not_started(sandbox: &Sandbox, kernel: &Kernel, status: &Status) -> Error {
    let message = status.message();
    match status.code() {
        Code::NotFound => {
            unavailable(sandbox, kernel, &format!("template {} has no {}", sandbox.template(), kernel.program))
        }
        Code::FailedPrecondition | Code::PermissionDenied => {
            Error::new(ErrorKind::FailedPrecondition, reason::INVALID_REQUEST, message)
        }
        Code::InvalidArgument => Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message),
        Code::ResourceExhausted => Error::new(ErrorKind::ResourceExhausted, reason::CONTEXT_LIMIT, message),
        Code::Unimplemented => Error::internal("start an interpreter", status.clone()),
        _ => lost(sandbox, status).await,
    }
}
