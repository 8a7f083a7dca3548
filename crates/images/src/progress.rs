//! How far the making of an image is, to be read at any time.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use tokio::sync::watch;

/// What is being done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Phase {
    /// It has not begun, or another call makes the same image.
    #[default]
    Waiting,
    /// The daemon or this process fetches from a registry.
    Pulling,
    /// An archive or the layers that came are written as files.
    Unpacking,
    /// A folder is copied.
    Copying,
    /// Layers are put together, and what a sandbox needs is added.
    Merging,
    /// All is written out to the disk.
    Syncing,
}

impl Phase {
    /// The phase in a word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Pulling => "pulling",
            Self::Unpacking => "unpacking",
            Self::Copying => "copying",
            Self::Merging => "merging",
            Self::Syncing => "syncing",
        }
    }
}

/// How far a phase is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Step {
    pub phase: Phase,
    /// bytes (of what is fetched or read, or of what is written) that are done in this phase
    pub done: u64,
    /// bytes that there are to be done; 0 where nobody knows
    pub total: u64,
}

/// Where the making of an image writes how far it is. Copies are the same one.
#[derive(Debug, Clone)]
pub struct Progress(Arc<watch::Sender<Step>>);

impl Default for Progress {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Step::default())))
    }
}

impl Progress {
    pub fn new() -> Self {
        Self::default()
    }

    /// How far it is now.
    pub fn now(&self) -> Step {
        *self.0.borrow()
    }

    /// Tells of each change; changes that come fast may be told as one.
    pub fn subscribe(&self) -> watch::Receiver<Step> {
        self.0.subscribe()
    }

    pub(crate) fn begin(&self, phase: Phase, total: u64) {
        self.0.send_replace(Step { phase, done: 0, total });
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.0.send_modify(|step| step.done += bytes);
    }

    pub(crate) fn set(&self, done: u64, total: u64) {
        self.0.send_modify(|step| (step.done, step.total) = (done, total));
    }
}

/// Tells a thread at work on files that nobody waits for its result any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Sets a [`Stop`] when it is dropped.
pub(crate) struct StopOnDrop(Stop);

impl StopOnDrop {
    pub(crate) fn new() -> (Self, Stop) {
        let stop = Stop::default();
        (Self(stop.clone()), stop)
    }
}

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.0.store(true, Ordering::Relaxed);
    }
}
