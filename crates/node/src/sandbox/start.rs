//! What a template starts in each of its sandboxes before anybody has it: a process in the background, kept for as long as
//! the sandbox, and a command that is run again and again until it says that the process is ready.
//!
//! A checkpoint holds no processes, so that a restore ends the process first and starts it anew over what was restored. What
//! it left behind in sessions of their own goes on, as it does in the sandbox of any other execution.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cloud_sandbox_model::{
    error::{Error, ErrorKind, Result, reason},
    template::StartCommand,
};
use cloud_sandbox_proto::agent::v1::{CloseStdin, Exited, Start, run_request::Input, run_response::Event};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::{Code, Status};
use tracing::Instrument;

use super::Sandbox;
use crate::{
    agent::{Process, Remote},
    executions::environment::{CWD_DEFAULT, environment},
    node::Shared,
    signals,
};

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// How long a process that was killed may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(3);
/// What is kept of what it prints, for the message of its failure, in bytes.
const WORDS_MAX: usize = 2048;
/// The shells that a line is given to, the first that is there.
const SHELLS: [&str; 2] = ["bash", "sh"];

/// The process that a sandbox's template has started in it.
#[derive(Default)]
pub(crate) struct Started(Mutex<Option<Background>>);

#[derive(Clone)]
struct Background {
    remote: Remote,
    words: Arc<Mutex<Words>>,
    exited: watch::Receiver<Option<Exited>>,
}

/// The last of what a process printed.
#[derive(Default)]
struct Words(VecDeque<u8>);

impl Words {
    fn push(&mut self, piece: &[u8]) {
        self.0.extend(&piece[piece.len().saturating_sub(WORDS_MAX)..]);
        self.0.drain(..self.0.len().saturating_sub(WORDS_MAX));
    }

    fn quoted(&self) -> String {
        let bytes: Vec<u8> = self.0.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        if text.is_empty() { String::new() } else { format!("; it printed: {text}") }
    }
}

impl Started {
    /// Its process's id inside the sandbox.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.background().as_ref().map(|background| background.remote.pid())
    }

    /// Ends it.
    pub(crate) async fn stop(&self) {
        let Some(mut background) = self.background().take() else { return };
        let ended = async {
            // one that has ended already is what is wanted
            let _ = background.remote.kill().await;
            let _ = background.exited.wait_for(Option::is_some).await;
        };
        if timeout(KILL_PATIENCE, ended).await.is_err() {
            tracing::warn!("what the template started takes long to end");
        }
    }

    fn background(&self) -> MutexGuard<'_, Option<Background>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts what a sandbox's template says, and returns when it is ready.
pub(crate) async fn start(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, command: &StartCommand) -> Result<()> {
    let seconds = command.ready_seconds;
    let deadline = Instant::now() + Duration::from_secs(seconds.into());
    let process = timeout_at(deadline, run(sandbox, &command.command)).await;
    let process = process.map_err(|_| failed(sandbox, &format!("did not start within {seconds} s")))??;
    let mut background = keep(node, sandbox, process);
    *sandbox.started.background() = Some(background.clone());
    if command.ready_command.is_empty() {
        return Ok(());
    }
    let mut pause = FIRST_PAUSE;
    loop {
        let last = tokio::select! {
            biased;
            how = background.failure() => {
                let words = background.words().quoted();
                return Err(failed(sandbox, &format!("{how} before it was ready{words}")));
            }
            tried = timeout_at(deadline, is_ready(sandbox, &command.ready_command)) => match tried {
                Ok(tried) => match tried? {
                    None => return Ok(()),
                    Some(why) => format!("; its ready command {why}"),
                },
                Err(_) => "; its ready command did not end".to_owned(),
            },
        };
        let next = deadline.min(Instant::now() + pause);
        if next >= deadline {
            let words = background.words().quoted();
            return Err(failed(sandbox, &format!("was not ready within {seconds} s{last}{words}")));
        }
        tokio::select! {
            biased;
            // the next round says so
            _ = background.failure() => {}
            () = sleep_until(next) => {}
        }
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

impl Background {
    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when it has ended with a failure, and says how. One that ended well may have put itself into the background.
    async fn failure(&mut self) -> String {
        let is_failure = |exited: &Option<Exited>| exited.as_ref().is_some_and(|exited| !is_success(exited));
        let failed = self.exited.wait_for(is_failure).await.ok().and_then(|exited| exited.as_ref().map(how));
        match failed {
            Some(how) => how,
            // the sandbox has ended, which its owner sees
            None => std::future::pending().await,
        }
    }
}

/// Reads what a process prints for as long as it runs, or its sandbox lives: its stream is its life.
fn keep(node: &Arc<Shared>, sandbox: &Arc<Sandbox>, mut process: Process) -> Background {
    let (sender, exited) = watch::channel(None);
    let background = Background { remote: process.remote.clone(), words: Arc::default(), exited };
    let (kept, ended) = (background.words.clone(), sandbox.ended.clone());
    let reading = async move {
        loop {
            let event = tokio::select! {
                () = ended.cancelled() => return,
                event = process.next() => event,
            };
            match event {
                Ok(Some(Event::Stdout(piece) | Event::Stderr(piece))) => {
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push(&piece);
                }
                Ok(Some(Event::Exited(exited))) => {
                    tracing::info!(how = how(&exited), "what the template started has ended");
                    sender.send_replace(Some(exited));
                    return;
                }
                Ok(Some(Event::Started(_) | Event::Control(_))) => {}
                // the connection is gone, and the sandbox with it
                Ok(None) | Err(_) => return,
            }
        }
    };
    node.tasks.spawn(reading.in_current_span());
    background
}

/// Runs the ready command once. Says why it is not ready yet.
async fn is_ready(sandbox: &Sandbox, line: &str) -> Result<Option<String>> {
    let mut process = run(sandbox, line).await?;
    let mut words = Words::default();
    loop {
        match process.next().await {
            Ok(Some(Event::Stdout(piece) | Event::Stderr(piece))) => words.push(&piece),
            Ok(Some(Event::Exited(exited))) if is_success(&exited) => return Ok(None),
            Ok(Some(Event::Exited(exited))) => return Ok(Some(format!("{}{}", how(&exited), words.quoted()))),
            Ok(Some(Event::Started(_) | Event::Control(_))) => {}
            Ok(None) => return Err(Error::internal("run a ready command", "its stream ended early")),
            Err(status) => return Err(Error::internal("run a ready command", status)),
        }
    }
}

/// Starts a shell line, as executions of nobody in particular are.
async fn run(sandbox: &Sandbox, line: &str) -> Result<Process> {
    for shell in SHELLS {
        let start = Start {
            argv: vec![shell.to_owned(), "-c".to_owned(), line.to_owned()],
            env: environment(&sandbox.origin.env, &HashMap::new(), HashMap::new()),
            cwd: CWD_DEFAULT.to_owned(),
            ..Start::default()
        };
        match sandbox.agent.run(vec![Input::Start(start), Input::CloseStdin(CloseStdin {})]).await {
            Ok(process) => return Ok(process),
            Err(status) if status.code() == Code::NotFound => {}
            Err(status) => return Err(not_started(sandbox, status)),
        }
    }
    Err(failed(sandbox, "cannot be run: the template has neither bash nor sh"))
}

fn not_started(sandbox: &Sandbox, status: Status) -> Error {
    match status.code() {
        Code::FailedPrecondition | Code::PermissionDenied | Code::InvalidArgument | Code::ResourceExhausted => {
            failed(sandbox, &format!("could not be run: {}", status.message()))
        }
        _ => Error::internal("run the start command of a template", status),
    }
}

fn failed(sandbox: &Sandbox, what: &str) -> Error {
    let template = sandbox.template();
    let message = format!("the start command of template {template} {what}");
    Error::new(ErrorKind::FailedPrecondition, reason::TEMPLATE_FAILED, message).with_metadata("template", template)
}

fn is_success(exited: &Exited) -> bool {
    exited.exit_code == 0 && exited.signal == 0
}

fn how(exited: &Exited) -> String {
    match exited.signal {
        0 => format!("ended with exit code {}", exited.exit_code),
        signal => format!("was ended by {}", signals::name(signal)),
    }
}
