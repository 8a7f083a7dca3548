//! What a process prints and writes to its control channel: read as it comes, and once it has ended, what it left.
//!
//! Invariant: all outputs of a process are relayed by one task, and what has been read from a plain one is sent without
//! a wait between. So whatever is not in a pipe any more has been sent, and to send what was printed before something
//! it is enough to empty the pipes.

use std::{fs::File, io, io::Read, os::fd::AsRawFd};

use bytes::Bytes;
use cloud_sandbox_proto::agent::v1::run_response::Event;
use tokio::io::{Interest, unix::AsyncFd};

use super::{Ended, Events, response};

/// The most that goes into one event.
const PIECE: usize = 32 * 1024;
/// The most that the kernel holds back on a terminal: 64 KiB of buffers, and 4 KiB of the line discipline.
const TERMINAL_BUFFERS: usize = 68 * 1024;

/// Where an output comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Source {
    Stdout,
    Stderr,
    Terminal,
    Control,
}

/// Our end of a pipe, terminal or control channel.
pub(super) struct Output {
    file: AsyncFd<File>,
    source: Source,
}

impl Output {
    /// `file` must be nonblocking.
    pub(super) fn new(file: File, source: Source) -> io::Result<Self> {
        // SAFETY: a file keeps its one open descriptor until it is dropped.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?;
        Ok(Self { file, source })
    }

    /// Sends pieces until the output ends, or its process has ended and what it left is sent. What lies in `earlier`
    /// when a piece is read was printed before it, and is sent before it. A daemon that holds the other end, or keeps on
    /// writing, holds up nothing.
    pub(super) async fn relay(&self, earlier: &[Self], events: &Events, ended: &Ended) {
        loop {
            // Room first: what has been read must not wait in memory.
            let Ok(room) = events.reserve().await else { return };
            let piece = tokio::select! {
                biased;
                _ = ended.clone() => break,
                piece = self.file.async_io(Interest::READABLE, |file| read_piece(file, PIECE)) => piece,
            };
            match piece {
                Ok(piece) if !piece.is_empty() => {
                    drain(earlier, events).await;
                    room.send(Ok(response(self.event(piece))));
                }
                // Nobody can write any more; a terminal says so by EIO.
                _ => return,
            }
        }
        self.finish(earlier, events).await;
    }

    /// Sends what the process has left.
    async fn finish(&self, earlier: &[Self], events: &Events) {
        let mut left = self.left_behind();
        while left > 0 {
            let Ok(room) = events.reserve().await else { return };
            let Some(piece) = self.take(left) else { return };
            left -= piece.len();
            drain(earlier, events).await;
            room.send(Ok(response(self.event(piece))));
        }
    }

    /// Reads up to `limit` bytes of what is there; none at the end, too.
    fn take(&self, limit: usize) -> Option<Bytes> {
        read_piece(self.file.get_ref(), limit.min(PIECE)).ok().filter(|piece| !piece.is_empty())
    }

    /// How much may lie in it, in bytes.
    fn left_behind(&self) -> usize {
        if self.source == Source::Terminal {
            // A terminal cannot tell: part of what was written is still on its way through the line discipline.
            return TERMINAL_BUFFERS;
        }
        let mut pending: libc::c_int = 0;
        // SAFETY: the descriptor is open, and FIONREAD writes one int.
        unsafe { libc::ioctl(self.file.as_raw_fd(), libc::FIONREAD, &raw mut pending) };
        usize::try_from(pending).unwrap_or(0)
    }

    fn event(&self, piece: Bytes) -> Event {
        match self.source {
            Source::Stdout | Source::Terminal => Event::Stdout(piece),
            Source::Stderr => Event::Stderr(piece),
            Source::Control => Event::Control(piece),
        }
    }
}

/// Sends what lies in `outputs` now. Others may read from them meanwhile: what is gone then was sent by them.
async fn drain(outputs: &[Output], events: &Events) {
    for output in outputs {
        let mut left = output.left_behind();
        while left > 0 {
            // Room of its own: three relays hold one each, so a queue of four has it.
            let Ok(room) = events.reserve().await else { return };
            let Some(piece) = output.take(left) else { break };
            left -= piece.len();
            room.send(Ok(response(output.event(piece))));
        }
    }
}

/// Reads once, up to `limit` bytes, into a piece of just the size it needs.
fn read_piece(mut file: &File, limit: usize) -> io::Result<Bytes> {
    let mut scratch = [0; PIECE];
    loop {
        match file.read(&mut scratch[..limit]) {
            Ok(length) => return Ok(Bytes::copy_from_slice(&scratch[..length])),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
