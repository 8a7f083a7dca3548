//! Connections that the agent makes to a socket of its node, which takes them up when it has a use for one.
//!
//! Invariant: while the node is there, exactly one connection waits to be taken up. A connection counts as taken up with
//! its first byte; what comes before that would be an answer that nobody asked for.

use std::{io, os::fd::AsRawFd, path::Path};

use nix::sys::socket::{MsgFlags, recv};
use tokio::{io::Interest, net::UnixStream, time::sleep};

use super::{PAUSE, serve_connection};
use crate::Agent;

/// Serves `agent` on connections to the socket at `path`, until nobody listens there any more.
pub async fn dial(path: &Path, agent: Agent) -> io::Result<()> {
    let mut stream = connect(path).await?;
    loop {
        if is_taken_up(&stream).await {
            tokio::spawn(serve_connection(Box::new(stream), agent.clone()));
        } else {
            // The node closed it, or has gone, which the next one finds out. Not at once, in case it closes each.
            sleep(PAUSE).await;
        }
        stream = match connect(path).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                return Ok(());
            }
            connected => connected?,
        };
    }
}

/// Tries again while the node has more connections to take up than it can hold, and when it goes away just then: the next
/// try finds out whether somebody else listens.
async fn connect(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionReset) => {
                sleep(PAUSE).await;
            }
            connected => return connected,
        }
    }
}

/// Whether there is a first byte when the wait for it is over. It stays where it is.
async fn is_taken_up(stream: &UnixStream) -> bool {
    let look = || Ok(recv(stream.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?);
    matches!(stream.async_io(Interest::READABLE, look).await, Ok(1))
}
