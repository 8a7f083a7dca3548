//! Threads for work that takes long, so that the one which serves is never held up.
//!
//! Each piece of work has a thread of its own, which ends with it: an idle agent has none, and a sandbox that has no room
//! for another process refuses the work instead of ending the agent. Work stops soon after its call was dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use tokio::sync::{Semaphore, oneshot};
use tonic::Status;

/// How much may go on at once; more waits for its turn.
const THREADS: usize = 8;
const STACK: usize = 256 * 1024;

static TURNS: Semaphore = Semaphore::const_new(THREADS);

/// Whether anybody still waits for the work.
#[derive(Clone, Default)]
pub(crate) struct Call(Arc<AtomicBool>);

impl Call {
    /// Ends the work with an error once nobody waits for it.
    pub(crate) fn check(&self) -> Result<(), Status> {
        if self.0.load(Ordering::Relaxed) { Err(Status::cancelled("the call has ended")) } else { Ok(()) }
    }
}

/// Marks the call as over when dropped.
struct Caller(Call);

impl Drop for Caller {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}

/// Does `work` on a thread and waits for it.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce(&Call) -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let turn = TURNS.acquire().await.map_err(|_| Status::internal("the agent takes no more work"))?;
    let call = Call::default();
    let caller = Caller(call.clone());
    let (done, result) = oneshot::channel();
    spawn(move || {
        let result = work(&call);
        drop(turn);
        // Nobody waits any more.
        let _ = done.send(result);
    })?;
    let result = result.await.map_err(|_| Status::internal("the work ended without a result"))?;
    drop(caller);
    result
}

/// Does `work` on a thread that nobody waits for.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) -> Result<(), Status> {
    let spawned = thread::Builder::new().name("worker".into()).stack_size(STACK).spawn(work);
    spawned.map(drop).map_err(|error| Status::resource_exhausted(format!("failed to start a thread: {error}")))
}
