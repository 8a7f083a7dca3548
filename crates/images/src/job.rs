//! What a thread at work on files is told by those who wait for it, and tells them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use cloud_sandbox_model::template::Progress;
use tokio::sync::RwLock;

use crate::{ImageError, limits::Limits, turns::Turn, work::Work};

/// One making of an image, or of a layer of one. Copies are the same one.
#[derive(Clone)]
pub(crate) struct Job {
    /// what is made, for errors: `tarball /srv/a.tar`
    pub(crate) what: String,
    /// the folder of the store
    pub(crate) store: Arc<Path>,
    pub(crate) limits: Limits,
    pub(crate) progress: Arc<Progress>,
    stop: Arc<AtomicBool>,
    /// held for reading by each thread at work
    running: Arc<RwLock<()>>,
    /// The turns that the work is done in. A thread has them too, so that they last until it has ended, also when the
    /// call was dropped.
    turns: Vec<Arc<Turn>>,
}

/// A number that no other thing that is half made has in its name.
pub(crate) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Job {
    pub(crate) fn new(what: String, store: Arc<Path>, limits: Limits, progress: Arc<Progress>) -> Self {
        let (stop, running) = (Arc::default(), Arc::default());
        Self { what, store, limits, progress, stop, running, turns: Vec::new() }
    }

    /// The same for a part of it, in a turn of its own.
    pub(crate) fn part(&self, what: String, turn: Turn) -> Self {
        Self { what, ..self.clone() }.in_turn(turn)
    }

    /// The same as long as somebody has this turn.
    pub(crate) fn in_turn(mut self, turn: Turn) -> Self {
        self.turns.push(Arc::new(turn));
        self
    }

    /// A new folder to make something in.
    pub(crate) fn work(&self) -> Result<Work, ImageError> {
        Work::new(&self.store, number())
    }

    /// The path of a new file among what is half made.
    pub(crate) fn draft(&self) -> PathBuf {
        crate::work::drafts(&self.store).join(format!("blob-{}", number()))
    }

    /// An error once nobody waits any more.
    pub(crate) fn go_on(&self) -> Result<(), ImageError> {
        if self.is_stopped() { Err(ImageError::Stopped) } else { Ok(()) }
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits for the threads whose calls were dropped, so that nothing of them is left.
    pub(crate) async fn ended(&self) {
        drop(self.running.write().await);
    }

    /// Runs on a thread of its own, which ends soon after this call is dropped.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        run: impl FnOnce(&Self) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let job = Self { stop: Arc::default(), ..self.clone() };
        let dropped = SetOnDrop(job.stop.clone());
        let running = self.running.clone().read_owned().await;
        // Nobody may wait for the result any more: then it is dropped before the thread counts as ended.
        let ended = tokio::task::spawn_blocking(move || (run(&job), running)).await;
        drop(dropped);
        let ended = ended.map(|(result, _)| result);
        match ended {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // the runtime shuts down
                Err(_) => Err(ImageError::Stopped),
            },
        }
    }
}

struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
