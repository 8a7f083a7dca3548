//! A step that failed.

use std::{fmt, io};

use nix::errno::Errno;

/// What was tried, and why it did not work.
#[derive(Debug)]
pub struct Fault {
    pub step: String,
    pub error: Errno,
}

impl Fault {
    /// The fault that `errno` holds after a failed system call.
    pub fn last(step: &str) -> Self {
        Self { step: step.to_owned(), error: Errno::last() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to {}: {}", self.step, self.error)
    }
}

/// Names the step that a result belongs to.
pub trait Step<T> {
    fn step(self, name: impl FnOnce() -> String) -> Result<T, Fault>;
}

impl<T> Step<T> for nix::Result<T> {
    fn step(self, name: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault { step: name(), error })
    }
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, name: impl FnOnce() -> String) -> Result<T, Fault> {
        self.map_err(|error| Fault { step: name(), error: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) })
    }
}
