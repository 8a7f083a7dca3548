//! The socket to whoever started the jailer.

use std::{
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use cloud_sandbox_jailer::{DESCRIPTORS_MAX, MESSAGE_MAX, Order, Reply};
use nix::{
    errno::Errno,
    fcntl::{FcntlArg, fcntl},
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockType, getsockopt, recvmsg, send, sendmsg, sockopt,
    },
};

use crate::fault::{Fault, Step};

/// All descriptors of the jailer are here or above, out of the way of those that the agent gets.
const FIRST_HIGH: RawFd = 16;

/// The socket.
pub struct Control(OwnedFd);

impl Control {
    /// The socket that is this program's standard input.
    pub fn take_stdin() -> Result<Self, Fault> {
        let stdin = io::stdin();
        let kind = getsockopt(&stdin.as_fd(), sockopt::SockType).step(|| "look at standard input".into())?;
        if kind != SockType::SeqPacket {
            return Err(Fault { step: "look at standard input".into(), error: Errno::EPROTOTYPE });
        }
        duplicate_high(&stdin).map(Self).step(|| "keep the control socket".into())
    }

    /// The order and its descriptors, all high.
    pub fn receive(&self) -> Result<(Order, Vec<OwnedFd>), Fault> {
        let mut text = vec![0; MESSAGE_MAX];
        let mut space = nix::cmsg_space!([RawFd; DESCRIPTORS_MAX]);
        let mut parts = [IoSliceMut::new(&mut text)];
        let message = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)
            .step(|| "receive the order".into())?;
        let mut received = Vec::new();
        for part in message.cmsgs().step(|| "receive descriptors".into())? {
            if let ControlMessageOwned::ScmRights(fds) = part {
                for fd in fds {
                    // SAFETY: the kernel has just put this descriptor into this process, for nobody else here.
                    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
                    received.push(duplicate_high(&fd).step(|| "move a descriptor".into())?);
                }
            }
        }
        let length = message.bytes;
        let order = serde_json::from_slice(&text[..length]).map_err(|_| malformed())?;
        Ok((order, received))
    }

    /// Answers. Whoever does not listen any more needs no answer.
    pub fn send(&self, reply: &Reply) {
        let text = serde_json::to_vec(reply).unwrap_or_default();
        let _ = send(self.0.as_raw_fd(), &text, MsgFlags::MSG_NOSIGNAL);
    }

    /// The same with a descriptor.
    pub fn hand_over(&self, reply: &Reply, made: &impl AsRawFd) {
        let text = serde_json::to_vec(reply).unwrap_or_default();
        let fds = [made.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let _ = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(&text)], &rights, MsgFlags::MSG_NOSIGNAL, None);
    }
}

/// An order that is none, or that lacks its descriptors.
pub fn malformed() -> Fault {
    Fault { step: "read the order".into(), error: Errno::EBADMSG }
}

/// A second descriptor for the same thing with a high number, closed at exec.
pub fn duplicate_high(fd: &impl AsFd) -> nix::Result<OwnedFd> {
    let number = fcntl(fd.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(FIRST_HIGH))?;
    // SAFETY: F_DUPFD has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
