//! Drives a process: starts it at the agent, moves what it prints into the log, and ends it when its time is over or
//! nobody wants it any more.
//!
//! Invariant: a drive ends, whatever a process, an agent or a reader does: everything it waits for, it waits for
//! together with its clock and the end of its sandbox.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_proto::agent::v1::{Exited, run_request::Input, run_response::Event};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status};

use super::{Driver, Execution, Exit, changes, spec::Spec};
use crate::{
    agent::Process,
    sandbox::{Hits, Sandbox},
    signals,
};

/// What ends sooner, and well, has not run into a limit that mattered to it: filling even the smallest sandbox takes longer.
/// It spares quick runs a look at the sandbox's counters.
const OOM_TIME: Duration = Duration::from_millis(20);

/// How a process is known to have ended.
enum Ending {
    /// the agent said so
    Reported(Exited),
    /// it was killed, and the agent did not say what became of it within the grace; this long it ran
    GivenUp(Duration),
}

/// Why a process did not start.
enum NoStart {
    /// it certainly did not
    Refused(Error),
    /// it may have
    Unknown(Error),
}

/// Runs `spec` as `execution` to its end; its caller may have hung up long before.
pub(super) async fn process(sandbox: Arc<Sandbox>, execution: Arc<Execution>, spec: Spec, grace: Duration) {
    let end = tokio::select! {
        biased;
        end = run(&sandbox, &execution, spec, grace) => end,
        () = sandbox.ended.cancelled() => {
            let starting = execution.until_begun();
            if timeout(Duration::ZERO, starting).await.is_err() {
                // its start may have been on its way
                execution.started(0);
            }
            Err(sandbox.ending_error())
        }
    };
    execution.finish(end).await;
    if sandbox.ended.is_cancelled() {
        return;
    }
    // what this one hit must not be blamed on the next, even if nobody has looked
    sandbox.hits().await;
}

async fn run(sandbox: &Sandbox, execution: &Execution, mut spec: Spec, grace: Duration) -> Result<Exit> {
    let snapshot = if spec.changes { Some(changes::take(sandbox).await?) } else { None };
    let before = sandbox.hits_seen();
    let began = Instant::now();
    let started = tokio::select! {
        biased;
        started = timeout_at(began + spec.timeout + grace, start(sandbox, &mut spec)) => started,
        // nothing stands for it that could be asked again
        () = execution.unwanted.cancelled() => return Err(hung_up()),
    };
    let mut process = match started {
        Ok(Ok(process)) => process,
        Ok(Err(NoStart::Refused(error))) => return Err(error),
        Ok(Err(NoStart::Unknown(error))) => {
            execution.started(0);
            return Err(error);
        }
        Err(_) => {
            execution.started(0);
            return Err(unknown("the agent did not say whether it started it"));
        }
    };
    execution.drive(Driver::Process { input: process.input.clone(), remote: process.remote.clone() });
    execution.started(process.remote.pid());
    let follower = Follower { sandbox, execution, spec: &spec, began, grace };
    let (ending, timed_out) = follower.follow(&mut process).await?;
    drop(process);
    let mut exit = exit_of(sandbox, &ending, timed_out, before).await;
    if let Some(snapshot) = snapshot {
        exit.changes = Some(changes::compare(sandbox, snapshot).await);
    }
    Ok(exit)
}

/// Starts what `spec` says, with the program that the template has.
async fn start(sandbox: &Sandbox, spec: &mut Spec) -> Result<Process, NoStart> {
    if let Some(probe) = spec.probe()
        && let Err(status) = try_out(sandbox, probe, spec.probe_decides()).await
    {
        return Err(NoStart::Refused(match spec.refusal(&status) {
            Some(error) => error,
            None => lost(sandbox, &status).await,
        }));
    }
    loop {
        match sandbox.agent.run(spec.messages()).await {
            Ok(process) => return Ok(process),
            Err(status) if status.code() == Code::NotFound && spec.fall_back() => {}
            Err(status) => {
                return Err(match spec.refusal(&status) {
                    Some(error) => NoStart::Refused(error),
                    None => NoStart::Unknown(lost(sandbox, &status).await),
                });
            }
        }
    }
}

/// Starts a program to see whether it is there, and whether it succeeds where that `decides`.
async fn try_out(sandbox: &Sandbox, probe: Vec<Input>, decides: bool) -> Result<(), Status> {
    let mut process = sandbox.agent.run(probe).await?;
    while decides && let Some(event) = process.next().await? {
        if let Event::Exited(exited) = event {
            let succeeded = exited.exit_code == 0 && exited.signal == 0;
            return if succeeded { Ok(()) } else { Err(Status::not_found("it does not do what is needed")) };
        }
    }
    Ok(())
}

/// Moves what a process prints into the log until it ends.
struct Follower<'a> {
    sandbox: &'a Sandbox,
    execution: &'a Execution,
    spec: &'a Spec,
    began: Instant,
    grace: Duration,
}

impl Follower<'_> {
    /// How it ended, and whether for its timeout.
    async fn follow(&self, process: &mut Process) -> Result<(Ending, bool)> {
        let deadline = self.began + self.spec.timeout;
        let remote = process.remote.clone();
        let recorded = self.record(process);
        tokio::pin!(recorded);
        let timed_out = tokio::select! {
            // first, so that a process that never stops to print cannot keep its time from being noticed
            biased;
            () = sleep_until(deadline) => true,
            () = self.execution.unwanted.cancelled() => {
                tracing::debug!("caller hung up; its execution is ended");
                false
            }
            ended = &mut recorded => return Ok((Ending::Reported(ended?), false)),
        };
        // an agent that does not answer is given up after the grace, and so is a reader that holds up the log
        let given_up = Instant::now() + self.grace;
        let kill = async {
            let _ = timeout_at(given_up, remote.kill()).await;
            sleep_until(given_up).await;
        };
        tokio::select! {
            biased;
            ended = &mut recorded => Ok((Ending::Reported(ended?), timed_out)),
            () = kill => Ok((Ending::GivenUp(self.began.elapsed()), timed_out)),
        }
    }

    async fn record(&self, process: &mut Process) -> Result<Exited> {
        loop {
            match process.next().await {
                Ok(Some(Event::Stdout(piece))) => self.execution.stdout(&piece).await,
                Ok(Some(Event::Stderr(piece))) => self.execution.stderr(&piece).await,
                Ok(Some(Event::Exited(exited))) => return Ok(exited),
                Ok(Some(Event::Started(_) | Event::Control(_))) => {}
                Ok(None) => return Err(lost(self.sandbox, &Status::unknown("the stream ended early")).await),
                Err(status) => return Err(lost(self.sandbox, &status).await),
            }
        }
    }
}

/// Why an execution's end is not known, when its connection broke.
pub(crate) async fn lost(sandbox: &Sandbox, status: &Status) -> Error {
    let ended = sandbox.ended_meanwhile().await;
    ended.unwrap_or_else(|| unknown("the connection to the sandbox's agent broke").with_cause(status.clone()))
}

fn unknown(why: &str) -> Error {
    let message = format!("the execution was started, and how it ended is not known: {why}");
    Error::new(ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN, message)
}

pub(crate) fn hung_up() -> Error {
    Error::new(ErrorKind::Cancelled, reason::CANCELLED, "the caller hung up")
}

/// What is told of an end.
async fn exit_of(sandbox: &Sandbox, ending: &Ending, timed_out: bool, before: Hits) -> Exit {
    match ending {
        Ending::Reported(exited) => {
            let quick = Duration::from_micros(exited.wall_time_us) < OOM_TIME;
            let clean = exited.exit_code == 0 && exited.signal == 0;
            let now = if quick && clean { before } else { sandbox.hits().await };
            let signalled = exited.signal != 0;
            Exit {
                exit_code: if signalled { 128 + exited.signal } else { exited.exit_code },
                signal: if signalled { signals::name(exited.signal) } else { String::new() },
                timed_out,
                oom_killed: now.oom_kills > before.oom_kills,
                disk_limit: exited.disk_full,
                pids_limit: now.pids_refused > before.pids_refused,
                wall_time_ms: milliseconds(exited.wall_time_us),
                cpu_time_ms: milliseconds(exited.cpu_time_us),
                peak_memory_bytes: exited.peak_memory_bytes,
                ..Exit::default()
            }
        }
        Ending::GivenUp(ran) => {
            let now = sandbox.hits().await;
            Exit {
                exit_code: 128 + signals::KILL,
                signal: signals::name(signals::KILL),
                timed_out,
                oom_killed: now.oom_kills > before.oom_kills,
                pids_limit: now.pids_refused > before.pids_refused,
                wall_time_ms: ran.as_secs_f64() * 1000.0,
                ..Exit::default()
            }
        }
    }
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}
