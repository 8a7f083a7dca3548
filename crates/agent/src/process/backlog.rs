//! Bytes on their way into a process.

use std::{
    fs::File,
    io::{self, Write},
};

use bytes::{Buf, BytesMut};
use tokio::io::{Interest, unix::AsyncFd};

/// What a process that does not read may cost in memory, for each of its inputs.
const ROOM: usize = 256 * 1024;

/// A descriptor to write to, and what it does not take yet.
pub(super) struct Backlog {
    /// None once it is closed, by the node or by the process.
    file: Option<AsyncFd<File>>,
    /// One buffer, since pieces kept apart would cost more than they hold when they are small.
    bytes: BytesMut,
}

impl Backlog {
    /// `file` must be nonblocking.
    pub(super) fn new(file: File) -> io::Result<Self> {
        // SAFETY: a file keeps its one open descriptor until it is dropped.
        let file = Some(unsafe { AsyncFd::register_with_interest(file, Interest::WRITABLE) }?);
        Ok(Self { file, bytes: BytesMut::new() })
    }

    pub(super) fn has_room(&self) -> bool {
        self.bytes.len() < ROOM
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(super) fn file(&self) -> Option<&File> {
        self.file.as_ref().map(AsyncFd::get_ref)
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.file.is_some() {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// Closes it; what waits is lost.
    pub(super) fn close(&mut self) {
        self.file = None;
        self.clear();
    }

    pub(super) fn clear(&mut self) {
        // What it has grown to is given back.
        self.bytes = BytesMut::new();
    }

    /// Writes once, as soon as the process takes something. An error says that nobody reads any more (EPIPE, or EIO on
    /// a terminal).
    pub(super) async fn write(&mut self) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        match file.async_io(Interest::WRITABLE, |mut file| file.write(&self.bytes)).await {
            Ok(length) => {
                self.bytes.advance(length);
                if self.bytes.is_empty() {
                    self.clear();
                }
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(error),
        }
    }
}
