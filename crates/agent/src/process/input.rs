//! What the node sends to a process: bytes for its input, and sizes.
//!
//! Bytes that the process does not take yet wait in a backlog, so that a resize behind them is heard. The backlog is
//! bounded; past its bound the node is held back. Signals come by a call of their own, which never waits here.

use std::{
    fs::File,
    future::pending,
    io::{self, Write},
};

use bytes::{Buf, BytesMut};
use cloud_sandbox_proto::agent::v1::{RunRequest, run_request::Input};
use tokio::io::{Interest, unix::AsyncFd};
use tonic::{Status, Streaming};

use super::terminal;

/// What a process that does not read may cost in memory.
const BACKLOG: usize = 256 * 1024;

/// Where input goes.
pub(super) struct Stdin {
    /// None once it is closed, by the node or by the process.
    file: Option<AsyncFd<File>>,
    is_terminal: bool,
    /// One buffer, since pieces kept apart would cost more than they hold when they are small.
    backlog: BytesMut,
    closing: bool,
    mid_line: bool,
}

/// Relays messages until the process is gone; ends only on a fault of the node's.
pub(super) async fn feed(mut messages: Streaming<RunRequest>, mut stdin: Stdin) -> Status {
    let mut open = true;
    loop {
        tokio::select! {
            message = messages.message(), if open && stdin.has_room() => match message {
                Ok(Some(RunRequest { input: Some(Input::Start(_)) })) => {
                    return Status::invalid_argument("start may only be the first message of a run");
                }
                Ok(Some(RunRequest { input: Some(Input::Stdin(bytes)) })) => stdin.push(&bytes),
                Ok(Some(RunRequest { input: Some(Input::CloseStdin(_)) })) => stdin.close(),
                Ok(Some(RunRequest { input: Some(Input::Resize(size)) })) => {
                    if let Some(file) = stdin.terminal() {
                        terminal::resize(file, size);
                    }
                }
                // A message from a newer node than this agent.
                Ok(Some(RunRequest { input: None })) => {}
                // The end means nothing, and a broken stream is told by the other direction.
                Ok(None) | Err(_) => open = false,
            },
            () = stdin.write(), if stdin.has_work() => {}
            else => pending().await,
        }
    }
}

impl Stdin {
    /// `file` must be nonblocking.
    pub(super) fn new(file: File, is_terminal: bool) -> io::Result<Self> {
        // SAFETY: a file keeps its one open descriptor until it is dropped.
        let file = Some(unsafe { AsyncFd::register_with_interest(file, Interest::WRITABLE) }?);
        Ok(Self { file, is_terminal, backlog: BytesMut::new(), closing: false, mid_line: false })
    }

    fn has_room(&self) -> bool {
        self.backlog.len() < BACKLOG
    }

    fn has_work(&self) -> bool {
        self.file.is_some() && !self.backlog.is_empty()
    }

    fn terminal(&self) -> Option<&File> {
        self.file.as_ref().filter(|_| self.is_terminal).map(AsyncFd::get_ref)
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.file.is_some() && !self.closing && !bytes.is_empty() {
            self.mid_line = bytes.last() != Some(&b'\n');
            self.backlog.extend_from_slice(bytes);
        }
    }

    fn close(&mut self) {
        if self.closing {
            return;
        }
        if self.is_terminal {
            // A terminal stays open both ways; its end of file is a character. Within a line the first one only ends
            // the line (termios(3), VEOF).
            let end = self.terminal().map_or(terminal::END_OF_FILE, terminal::end_of_file);
            let times = if self.mid_line { 2 } else { 1 };
            self.push(&[end; 2][..times]);
            self.closing = true;
        } else {
            self.closing = true;
            self.finish();
        }
    }

    /// Writes once, as soon as the process takes something.
    async fn write(&mut self) {
        let Some(file) = &self.file else { return };
        match file.async_io(Interest::WRITABLE, |mut file| file.write(&self.backlog)).await {
            Ok(length) => {
                self.backlog.advance(length);
                if self.backlog.is_empty() {
                    // What it has grown to is given back.
                    self.backlog = BytesMut::new();
                }
                self.finish();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // Nobody reads any more (EPIPE, or EIO on a terminal), which is the process's good right.
            Err(_) => self.abandon(),
        }
    }

    fn finish(&mut self) {
        if self.closing && !self.is_terminal && self.backlog.is_empty() {
            self.file = None;
        }
    }

    fn abandon(&mut self) {
        self.backlog = BytesMut::new();
        if !self.is_terminal {
            self.file = None;
        }
    }
}
