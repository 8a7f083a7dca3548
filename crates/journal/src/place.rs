//! Where something stands in a log.

/// One of the two byte streams of an execution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Standard output; of a terminal, everything.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// Both, in the order in which they are named everywhere.
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];
}

/// From where a reader wants to read: the bytes of each stream that it has already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// bytes of standard output to skip
    pub stdout: u64,
    /// bytes of standard error to skip
    pub stderr: u64,
}

impl Position {
    /// The offset in one stream.
    #[must_use]
    pub fn of(self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }
}

/// How much of each kind came before a point of the log. It only grows along a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub stdout: u64,
    pub stderr: u64,
    pub events: u64,
}

impl Place {
    pub fn of(self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    pub fn plus(self, other: Self) -> Self {
        Self {
            stdout: self.stdout.saturating_add(other.stdout),
            stderr: self.stderr.saturating_add(other.stderr),
            events: self.events.saturating_add(other.events),
        }
    }

    pub fn minus(self, other: Self) -> Self {
        Self {
            stdout: self.stdout.saturating_sub(other.stdout),
            stderr: self.stderr.saturating_sub(other.stderr),
            events: self.events.saturating_sub(other.events),
        }
    }

    /// Whether nothing here is behind `other`.
    pub fn reaches(self, other: Self) -> bool {
        self.stdout >= other.stdout && self.stderr >= other.stderr && self.events >= other.events
    }

    /// The larger of each.
    pub fn max(self, other: Self) -> Self {
        Self {
            stdout: self.stdout.max(other.stdout),
            stderr: self.stderr.max(other.stderr),
            events: self.events.max(other.events),
        }
    }

    /// Bytes of both streams.
    pub fn bytes(self) -> u64 {
        self.stdout.saturating_add(self.stderr)
    }
}
