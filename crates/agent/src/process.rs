//! Runs processes: one supervising task per run, from the start to the last event.
//!
//! The task relays output into a small channel, so that a slow reader stops the process rather than fill memory; feeds
//! input beside it; and outlives the node's interest: when the stream is dropped it kills the session and still waits
//! for the exit.

mod backlog;
mod children;
mod control;
mod input;
mod output;
mod program;
mod session;
mod spawn;
mod staged;
mod standstill;
mod stat;
mod terminal;
mod user;

use std::{future::pending, sync::Arc, time::Instant};

use cloud_sandbox_proto::agent::v1::{Exited, RunRequest, RunResponse, Start, Started, run_response::Event};
use futures::{
    FutureExt,
    future::{BoxFuture, Shared, join_all},
};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tonic::{Status, Streaming};

use crate::disk::{self, Disk};
pub use children::Children;
use children::Exit;
pub(crate) use children::keep_reaped;
use input::Inputs;
use output::Output;
pub(crate) use spawn::nonblocking;
use staged::Staged;
pub(crate) use standstill::Standstill;
pub use stat::read_processes_by;

/// Events on their way to the stream: one for each of three relays, which hold room while they wait for something to
/// read, and one to empty an output through; little enough to hold back a process.
const EVENTS: usize = 4;

/// Ends with the exit; none when the child could not be waited for.
type Ended = Shared<BoxFuture<'static, Option<Exit>>>;
type Events = Sender<Result<RunResponse, Status>>;

/// A process that has been started, and what goes with it.
struct Run {
    pid: i32,
    began: Instant,
    children: Arc<Children>,
    ended: Ended,
    inputs: Inputs,
    outputs: Vec<Output>,
    control: Option<Output>,
    staged: Option<Staged>,
}

/// Starts a process and its supervising task. What comes out ends with `exited`; dropping it kills the session.
pub(crate) fn run(
    children: Arc<Children>,
    start: Start,
    input: Streaming<RunRequest>,
) -> Result<Receiver<Result<RunResponse, Status>>, Status> {
    let user = user::resolve(&start.user)?;
    let staged = start.staged.as_ref().map(|staged| Staged::write(staged, user.as_ref())).transpose()?;
    let spawned = spawn::spawn(&children, start, user)?;
    let run = Run {
        pid: spawned.pid,
        began: spawned.began,
        children,
        ended: spawned.exit.map(Result::ok).boxed().shared(),
        inputs: spawned.ends.inputs,
        outputs: spawned.ends.outputs,
        control: spawned.ends.control,
        staged,
    };
    let (events, receiver) = channel(EVENTS);
    // It ends by itself: with the process, or with the stream's drop.
    tokio::spawn(run.supervise(input, events));
    Ok(receiver)
}

impl Run {
    async fn supervise(self, input: Streaming<RunRequest>, events: Events) {
        let Self { pid, began, children, ended, inputs, outputs, control, mut staged } = self;
        let pid_of_event = u32::try_from(pid).unwrap_or(0);
        let _ = events.send(Ok(response(Event::Started(Started { pid: pid_of_event })))).await;

        let mut full = false;
        let fault = {
            let relayed = relay(&outputs, control.as_ref(), &events, &ended, &mut staged);
            let fed = input::feed(input, inputs);
            // of what is run in an interpreter, its node asks when it is over
            let filled = async { if control.is_some() { pending().await } else { disk::until_full().await } };
            tokio::pin!(relayed, fed, filled);
            loop {
                tokio::select! {
                    found_full = &mut relayed => {
                        full |= found_full;
                        break None;
                    }
                    fault = &mut fed => break Some(fault),
                    () = events.closed() => break None,
                    () = &mut filled, if !full => full = true,
                }
            }
        };
        if fault.is_some() || events.is_closed() {
            kill_session(&children, pid, &ended).await;
        }
        let exit = ended.await;
        full |= Disk::now().full;
        drop(staged);
        let last = match (fault, exit) {
            (Some(fault), _) => Err(fault),
            (None, Some(exit)) => Ok(response(Event::Exited(exited(exit, began, full)))),
            (None, None) => Err(Status::internal(format!("lost the exit of process {pid}"))),
        };
        let _ = events.send(last).await;
    }
}

/// Relays all outputs until the process has ended, and what it left in them. Says whether it left the disk full.
async fn relay(
    outputs: &[Output],
    control: Option<&Output>,
    events: &Events,
    ended: &Ended,
    staged: &mut Option<Staged>,
) -> bool {
    let clean_up = async {
        ended.clone().await;
        // before the staged file makes room
        let full = Disk::now().full;
        drop(staged.take());
        full
    };
    let plain = outputs.iter().map(|output| output.relay(&[], events, ended));
    let control = control.into_iter().map(|control| control.relay(outputs, events, ended));
    tokio::join!(join_all(plain.chain(control)), clean_up).1
}

/// Sends a signal to the process group of a run, or kills all of its session when `signal` is 0. False when the run is
/// over: its id may be another's by then.
pub(crate) async fn signal(children: &Children, leader: i32, signal: i32) -> bool {
    if !children.is_running(leader) {
        return false;
    }
    match signal {
        0 => session::kill_session(leader).await,
        signal => session::signal_group(leader, signal),
    }
    true
}

/// Kills the session of a run whose stream is gone: also what its leader left behind there, if no other run has its id.
async fn kill_session(children: &Children, leader: i32, ended: &Ended) {
    if ended.peek().is_none() || !children.is_running(leader) {
        session::kill_session(leader).await;
    }
}

fn exited(exit: Exit, began: Instant, disk_full: bool) -> Exited {
    let wall_time = exit.at.saturating_duration_since(began);
    Exited {
        exit_code: exit.code,
        signal: exit.signal,
        cpu_time_us: exit.cpu_time_us,
        peak_memory_bytes: exit.peak_memory_bytes,
        wall_time_us: u64::try_from(wall_time.as_micros()).unwrap_or(u64::MAX),
        disk_full,
    }
}

fn response(event: Event) -> RunResponse {
    RunResponse { event: Some(event) }
}
