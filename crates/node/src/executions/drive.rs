//! Drives one execution: starts it at the agent, reads its events to the end, and ends it when its time is over.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_model::error::{Error, ErrorKind, Result, reason};
use cloud_sandbox_proto::agent::v1::{Exited, run_request::Input, run_response::Event};
use cloud_sandbox_rpc::to_status;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::{Code, Status};

use super::{Execution, Exit, spec::Spec};
use crate::{agent::Process, sandbox::Sandbox, signals};

/// How long to wait for word that the sandbox ended when its connection breaks: that is usually why.
const END_PATIENCE: Duration = Duration::from_secs(1);
/// What ends sooner has not run into the memory limit: filling even the smallest sandbox takes longer. It spares quick
/// runs a look at the sandbox's counters.
const OOM_TIME: Duration = Duration::from_millis(20);

/// How a process is known to have ended.
pub(crate) enum Ending {
    /// the agent said so
    Reported(Exited),
    /// it was killed, and the agent did not say what became of it within the grace; this long it ran
    GivenUp(Duration),
}

/// Runs `execution` to its end and records it; its caller may have hung up long before.
pub(super) async fn drive(
    sandbox: Arc<Sandbox>,
    execution: Arc<Execution>,
    spec: Spec,
    request_id: String,
    grace: Duration,
) {
    let output_bytes = 2 * spec.max_output;
    let end = tokio::select! {
        biased;
        end = run(&sandbox, &execution, spec, grace) => end,
        () = sandbox.ended.cancelled() => Err(sandbox.gone_error()),
        () = execution.unwanted.cancelled() => {
            tracing::debug!("caller hung up; its execution is ended");
            Err(Error::new(ErrorKind::Cancelled, reason::INVALID_REQUEST, "the caller hung up"))
        }
    };
    let outcome = match &end {
        Ok(exit) if exit.timed_out => "timeout",
        Ok(_) => "ended",
        Err(_) => "failed",
    };
    metrics::counter!("cloud_sandbox_executions_total", "outcome" => outcome).increment(1);
    // its place is free before its caller knows, who may send the next one at once
    sandbox.executions.end(&execution, &request_id, output_bytes);
    execution.capture.send_modify(|capture| capture.finish(end.map_err(to_status)));
}

async fn run(sandbox: &Sandbox, execution: &Execution, mut spec: Spec, grace: Duration) -> Result<Exit> {
    let oom_kills_before = sandbox.oom_kills_seen();
    let began = Instant::now();
    let deadline = began + spec.timeout;
    let Ok(started) = timeout_at(deadline + grace, start(sandbox, &mut spec, Spec::messages)).await else {
        // it may run for all we know: its request_id must not start it again
        execution.capture.send_modify(|capture| capture.started = true);
        let ending = Ending::GivenUp(began.elapsed());
        return Ok(exit_of(sandbox, &ending, true, oom_kills_before).await);
    };
    let mut process = started?;
    execution.capture.send_modify(|capture| capture.started = true);
    let (ending, timed_out) = follow(sandbox, execution, &mut process, &spec, began, grace).await?;
    drop(process);
    Ok(exit_of(sandbox, &ending, timed_out, oom_kills_before).await)
}

/// Starts what `spec` says, with the program that the template has.
pub(crate) async fn start(
    sandbox: &Sandbox,
    spec: &mut Spec,
    messages: impl Fn(&Spec) -> Vec<Input>,
) -> Result<Process> {
    if let Some(probe) = spec.probe()
        && let Err(status) = sandbox.agent.run(probe).await
    {
        return Err(failed_start(sandbox, spec, &status).await);
    }
    loop {
        match sandbox.agent.run(messages(spec)).await {
            Ok(process) => return Ok(process),
            Err(status) if status.code() == Code::NotFound && spec.fall_back() => {}
            Err(status) => return Err(failed_start(sandbox, spec, &status).await),
        }
    }
}

async fn failed_start(sandbox: &Sandbox, spec: &Spec, status: &Status) -> Error {
    match status.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled => lost(sandbox, status).await,
        _ => spec.start_error(status),
    }
}

/// Records what the process prints until it ends, and kills it when its time is over.
async fn follow(
    sandbox: &Sandbox,
    execution: &Execution,
    process: &mut Process,
    spec: &Spec,
    began: Instant,
    grace: Duration,
) -> Result<(Ending, bool)> {
    let mut next = began + spec.timeout;
    let mut timed_out = false;
    let mut killing = None;
    loop {
        let event = tokio::select! {
            // first, so that a process that never stops to print cannot keep its time from being noticed
            biased;
            () = sleep_until(next) => {
                if timed_out {
                    return Ok((Ending::GivenUp(began.elapsed()), true));
                }
                timed_out = true;
                next = Instant::now() + grace;
                let remote = process.remote.clone();
                killing = Some(Box::pin(async move { remote.kill().await }));
                continue;
            }
            // an agent that does not answer is given up after the grace
            _ = async { killing.as_mut().expect("guarded").await }, if killing.is_some() => {
                killing = None;
                continue;
            }
            event = process.next() => event,
        };
        match event {
            Ok(Some(event)) => {
                if let Some(exited) = record(execution, event, spec.max_output) {
                    return Ok((Ending::Reported(exited), timed_out));
                }
            }
            Ok(None) => return Err(lost(sandbox, &Status::unknown("the stream ended early")).await),
            Err(status) => return Err(lost(sandbox, &status).await),
        }
    }
}

fn record(execution: &Execution, event: Event, max_output: usize) -> Option<Exited> {
    match event {
        Event::Started(_) => {}
        Event::Stdout(piece) => execution.capture.send_modify(|capture| capture.push_stdout(&piece, max_output)),
        Event::Stderr(piece) => execution.capture.send_modify(|capture| capture.push_stderr(&piece, max_output)),
        Event::Exited(exited) => return Some(exited),
    }
    None
}

/// Why an execution's end is not known.
pub(crate) async fn lost(sandbox: &Sandbox, status: &Status) -> Error {
    match timeout(END_PATIENCE, sandbox.ended.cancelled()).await {
        Ok(()) => sandbox.gone_error(),
        Err(_) => Error::internal("follow the execution", status.clone()),
    }
}

/// What is told of an end.
pub(crate) async fn exit_of(sandbox: &Sandbox, ending: &Ending, timed_out: bool, oom_kills_before: u64) -> Exit {
    match ending {
        Ending::Reported(exited) => {
            let quick = Duration::from_micros(exited.wall_time_us) < OOM_TIME;
            let clean = exited.exit_code == 0 && exited.signal == 0;
            let oom_killed = !(quick && clean) && sandbox.oom_kills().await > oom_kills_before;
            let signalled = exited.signal != 0;
            Exit {
                exit_code: if signalled { 128 + exited.signal } else { exited.exit_code },
                signal: if signalled { signals::name(exited.signal) } else { String::new() },
                timed_out,
                oom_killed,
                wall_time_ms: milliseconds(exited.wall_time_us),
                cpu_time_ms: milliseconds(exited.cpu_time_us),
                peak_memory_bytes: exited.peak_memory_bytes,
            }
        }
        Ending::GivenUp(ran) => Exit {
            exit_code: 128 + signals::KILL,
            signal: signals::name(signals::KILL),
            timed_out,
            wall_time_ms: ran.as_secs_f64() * 1000.0,
            ..Exit::default()
        },
    }
}

fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}
