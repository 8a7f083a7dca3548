//! The sandbox's end of a TCP connection, as a stream.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use smoltcp::{
    iface::SocketHandle,
    socket::tcp::{RecvError, Socket, State},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{packet::FlowKey, stack::Shared};

/// A connection that a program in the sandbox has made. It is reset when it is dropped unfinished.
pub(super) struct Inside {
    stack: Shared,
    key: FlowKey,
    handle: SocketHandle,
    finished: bool,
}

impl Inside {
    pub(super) const fn new(stack: Shared, key: FlowKey, handle: SocketHandle) -> Self {
        Self { stack, key, handle, finished: false }
    }

    /// Says that both directions have ended: what is still on its way arrives.
    pub(super) fn finish(mut self) {
        self.finished = true;
    }

    /// Does something with the socket, and has the stack turned for what comes of it.
    fn with<T>(&self, act: impl FnOnce(&mut Socket<'static>) -> Poll<T>) -> Poll<T> {
        let done = act(self.stack.lock().sockets.get_mut(self.handle));
        if done.is_ready() {
            self.stack.wake();
        }
        done
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.stack.close(self.key, self.handle, !self.finished);
    }
}

impl AsyncRead for Inside {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| {
            if !socket.can_recv() && (socket.may_recv() || socket.state() == State::SynReceived) {
                socket.register_recv_waker(cx.waker());
                return Poll::Pending;
            }
            match socket.recv_slice(buf.initialize_unfilled()) {
                Ok(length) => {
                    buf.advance(length);
                    Poll::Ready(Ok(()))
                }
                Err(RecvError::Finished) => Poll::Ready(Ok(())),
                Err(RecvError::InvalidState) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            }
        })
    }
}

impl AsyncWrite for Inside {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|socket| {
            if !socket.can_send() && (socket.may_send() || socket.state() == State::SynReceived) {
                socket.register_send_waker(cx.waker());
                return Poll::Pending;
            }
            Poll::Ready(socket.send_slice(buf).map_err(|_| io::ErrorKind::BrokenPipe.into()))
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // the stack sends what it has as soon as it can
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|socket| {
            socket.close();
            Poll::Ready(Ok(()))
        })
    }
}
