//! Every step of every saga by name, and what tests do at them.
//!
//! A saga takes its steps through [`Steps::take`]. So the list of steps is the code's own, and a test that fails, or takes
//! twice, each one of [`Step::ALL`] has met them all.

use std::{future::Future, sync::Arc};

use async_trait::async_trait;
use cloud_sandbox_model::Result;

macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident = $word:literal,)*) => {
        /// A step of a saga.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Step {
            $($(#[$doc])* $name,)*
        }

        impl Step {
            /// Every step.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The word for it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $word,)*
                }
            }
        }
    };
}

steps! {
    /// a new session's row is written
    Insert = "insert",
    /// the row says that a checkpoint will be restored
    BeginRestore = "begin_restore",
    /// a sandbox is acquired
    Acquire = "acquire",
    /// the row names the new sandbox
    NoteSandbox = "note_sandbox",
    /// the checkpoint is restored into it
    Restore = "restore",
    /// its lease is made long
    Lend = "lend",
    /// the row says that the session runs in it
    NoteRunning = "note_running",
    /// the row says that the session will be frozen
    BeginFreeze = "begin_freeze",
    /// the sandbox is frozen
    Freeze = "freeze",
    /// the row says so
    NoteFrozen = "note_frozen",
    /// the row says that the session will be thawed
    BeginThaw = "begin_thaw",
    /// the sandbox is thawed
    Thaw = "thaw",
    /// the row says so
    NoteThawed = "note_thawed",
    /// the row says that a checkpoint will be written
    BeginSave = "begin_save",
    /// the sandbox is saved
    Save = "save",
    /// the row has the checkpoint
    NoteSaved = "note_saved",
    /// a sandbox that is not the session's any more is released
    Release = "release",
    /// the row forgets it
    NoteReleased = "note_released",
    /// the row says that the session will be deleted
    BeginDelete = "begin_delete",
    /// the row is deleted
    Forget = "forget",
}

/// When a step is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

/// Somebody who is told of each step, and may hold it up for ever or have it taken twice.
#[async_trait]
pub trait Probe: Send + Sync + 'static {
    /// Returns when the saga may go on.
    async fn at(&self, step: Step, moment: Moment);

    /// Whether the step is taken once more after a success.
    fn repeats(&self, step: Step) -> bool;
}

/// The way to take steps: straight on, unless a probe watches.
#[derive(Clone, Default)]
pub(crate) struct Steps(Option<Arc<dyn Probe>>);

impl Steps {
    pub(crate) fn watched_by(probe: Arc<dyn Probe>) -> Self {
        Self(Some(probe))
    }

    /// Takes a step.
    pub(crate) async fn take<T, F: Future<Output = Result<T>>>(&self, step: Step, action: impl Fn() -> F) -> Result<T> {
        let Some(probe) = &self.0 else { return action().await };
        probe.at(step, Moment::Before).await;
        let mut done = action().await;
        if done.is_ok() && probe.repeats(step) {
            done = action().await;
        }
        probe.at(step, Moment::After).await;
        done
    }
}
