//! What the node sends to a process: bytes for its input and its control channel, and sizes.
//!
//! Bytes that the process does not take yet wait in a backlog, one for each input, so that what comes behind them is
//! heard: a resize, the end, bytes for the other input. A backlog is bounded; bytes for a full one hold the node back,
//! and whatever it sends after them. Signals come by a call of their own, which never waits here.

use std::{fs::File, future::pending, io};

use cloud_sandbox_proto::agent::v1::{RunRequest, run_request::Input};
use tonic::{Status, Streaming};

use super::{backlog::Backlog, terminal};

/// Where input goes.
pub(super) struct Inputs {
    pub(super) stdin: Stdin,
    pub(super) control: Option<Control>,
}

/// Standard input.
pub(super) struct Stdin {
    backlog: Backlog,
    is_terminal: bool,
    closing: bool,
    mid_line: bool,
}

/// Our writing end of a control channel.
pub(super) struct Control(Backlog);

/// Relays messages until the process is gone; ends only on a fault of the node's.
pub(super) async fn feed(mut messages: Streaming<RunRequest>, mut inputs: Inputs) -> Status {
    let mut open = true;
    // A message that has no room yet.
    let mut held = None;
    loop {
        if let Some(input) = held.take_if(|input| inputs.have_room_for(input))
            && let Err(fault) = inputs.take(input)
        {
            return fault;
        }
        tokio::select! {
            message = messages.message(), if open && held.is_none() => match message {
                Ok(Some(RunRequest { input })) => held = input,
                // The end means nothing, and a broken stream is told by the other direction.
                Ok(None) | Err(_) => open = false,
            },
            () = inputs.stdin.write(), if inputs.stdin.has_work() => {}
            () = write_control(&mut inputs.control), if inputs.control.as_ref().is_some_and(Control::has_work) => {}
            else => pending().await,
        }
    }
}

async fn write_control(control: &mut Option<Control>) {
    if let Some(control) = control {
        control.write().await;
    }
}

impl Inputs {
    fn have_room_for(&self, input: &Input) -> bool {
        match (input, &self.control) {
            (Input::Stdin(_), _) => self.stdin.backlog.has_room(),
            (Input::Control(_), Some(control)) => control.0.has_room(),
            _ => true,
        }
    }

    fn take(&mut self, input: Input) -> Result<(), Status> {
        match input {
            Input::Start(_) => return Err(Status::invalid_argument("start may only be the first message of a run")),
            Input::Stdin(bytes) => self.stdin.push(&bytes),
            Input::CloseStdin(_) => self.stdin.close(),
            Input::Resize(size) => {
                if let Some(file) = self.stdin.terminal() {
                    terminal::resize(file, size);
                }
            }
            Input::Control(bytes) => {
                let Some(control) = &mut self.control else {
                    return Err(Status::invalid_argument("the run has no control channel"));
                };
                control.0.push(&bytes);
            }
        }
        Ok(())
    }
}

impl Stdin {
    /// `file` must be nonblocking.
    pub(super) fn new(file: File, is_terminal: bool) -> io::Result<Self> {
        Ok(Self { backlog: Backlog::new(file)?, is_terminal, closing: false, mid_line: false })
    }

    fn has_work(&self) -> bool {
        !self.backlog.is_empty()
    }

    fn terminal(&self) -> Option<&File> {
        self.backlog.file().filter(|_| self.is_terminal)
    }

    fn push(&mut self, bytes: &[u8]) {
        if !self.closing && !bytes.is_empty() {
            self.mid_line = bytes.last() != Some(&b'\n');
            self.backlog.push(bytes);
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
        }
        self.closing = true;
        self.finish();
    }

    async fn write(&mut self) {
        match self.backlog.write().await {
            Ok(()) => self.finish(),
            // Not to read is the process's good right. A terminal may get another reader.
            Err(_) if self.is_terminal => self.backlog.clear(),
            Err(_) => self.backlog.close(),
        }
    }

    fn finish(&mut self) {
        if self.closing && !self.is_terminal && self.backlog.is_empty() {
            self.backlog.close();
        }
    }
}

impl Control {
    /// `file` must be nonblocking.
    pub(super) fn new(file: File) -> io::Result<Self> {
        Backlog::new(file).map(Self)
    }

    fn has_work(&self) -> bool {
        !self.0.is_empty()
    }

    async fn write(&mut self) {
        if self.0.write().await.is_err() {
            self.0.close();
        }
    }
}
