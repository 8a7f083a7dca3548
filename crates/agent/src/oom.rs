//! Lets what users run be killed for memory before the agent is.
//!
//! A child inherits its badness at fork. The agent therefore raises its own for the moment of a fork, through a file
//! opened before it made itself undumpable: afterwards `/proc/self` belongs to root, for its children until their exec
//! as well, so that nobody could write there any more.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

const OF_CHILDREN: &str = "500";

/// The agent's own `oom_score_adj` and what it rests at.
pub(crate) struct OomScore {
    file: File,
    resting: String,
}

impl OomScore {
    /// Opens it; an error where `/proc` is missing or the kernel would not let the agent go back.
    pub(crate) fn open() -> io::Result<Self> {
        let path = "/proc/self/oom_score_adj";
        let resting = std::fs::read_to_string(path)?.trim().to_owned();
        let score = Self { file: OpenOptions::new().write(true).open(path)?, resting };
        score.set(&score.resting)?;
        Ok(score)
    }

    /// Does `fork` with the badness that children shall have.
    pub(crate) fn raised<T>(&self, fork: impl FnOnce() -> T) -> T {
        // An agent that is already as bad or worse stays: its children shall not be spared more than it is.
        let raise = self.resting.parse().is_ok_and(|resting: i32| resting < 500);
        let raised = raise && self.set(OF_CHILDREN).is_ok();
        let result = fork();
        if raised {
            // Fails only when the kernel's lower bound was raised meanwhile; the agent is then as bad as its children.
            let _ = self.set(&self.resting);
        }
        result
    }

    fn set(&self, value: &str) -> io::Result<()> {
        self.file.write_all_at(value.as_bytes(), 0)
    }
}
