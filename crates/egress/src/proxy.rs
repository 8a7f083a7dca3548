//! The proxy of one sandbox: HTTP/1.1 with CONNECT and with absolute addresses.
//!
//! Each connection is one task, which serves requests one after the other and becomes the tunnel that CONNECT asks for. Each request has a
//! connection to its host for itself: what is kept open is between the sandbox and its node alone, so each request is
//! decided by its own target, and no host sees what was meant for another.

mod answer;
mod forward;
mod target;

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use cloud_sandbox_runtime::{BoxedStream, Listener};
use http::{Method, Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn, upgrade::OnUpgrade};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional_with_sizes},
    net::TcpStream,
    sync::Semaphore,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{CONNECTIONS_MAX, Network, flow::Flow, metered::Metered};
use answer::Answer;
use target::Target;

/// What the log and metrics call connections of the proxy.
const MODE: &str = "egress";
/// How long the head of a request may take, from the end of the one before.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a connection may carry nothing.
const IDLE_TIMEOUT: Duration = Duration::from_secs(5 * 60);
/// The most bytes of a head, in either direction; hyper keeps no more of a message than that.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// The most header fields of a message.
const HEADERS_MAX: usize = 128;
/// What a tunnel holds in either direction.
const TUNNEL_BUFFER: usize = 16 * 1024;
/// How long who is turned away may take.
const TURN_AWAY_TIMEOUT: Duration = Duration::from_secs(1);

/// Serves until `cancel` or the listener says that the sandbox has ended, and ends all that it began.
pub(crate) async fn serve(network: &Arc<Network>, mut listener: Box<dyn Listener>, cancel: &CancellationToken) {
    let stop = cancel.child_token();
    // also where this future is dropped
    let _cut = stop.clone().drop_guard();
    let tasks = TaskTracker::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(sandbox_id = %network.sandbox_id, %error, "the proxy's listener has ended");
                break;
            }
        };
        if let Ok(permit) = Arc::clone(&room).try_acquire_owned() {
            let (network, stop, forwards) = (Arc::clone(network), stop.clone(), tasks.clone());
            let connection = Arc::new(Connection { network, stop, forwards, tunnel: Mutex::new(None) });
            tasks.spawn(async move {
                connection.serve(stream).await;
                drop(permit);
            });
        } else {
            // here, so that no more than one is being turned away
            tokio::select! {
                () = stop.cancelled() => {}
                _ = timeout(TURN_AWAY_TIMEOUT, turn_away(stream)) => {}
            }
        }
    }
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

/// Says that there are too many connections, to who has asked for something.
async fn turn_away(mut stream: BoxedStream) {
    // a connection that is closed with something unread is reset, and its answer may be lost
    let mut head = [0; 4096];
    if stream.read(&mut head).await.is_ok() {
        let _ = stream.write_all(answer::too_many().as_bytes()).await;
        let _ = stream.shutdown().await;
    }
}

/// One connection of a program in the sandbox.
struct Connection {
    network: Arc<Network>,
    stop: CancellationToken,
    /// drives the connections to hosts that requests are forwarded over
    forwards: TaskTracker,
    /// what the connection becomes when its last answer is written
    tunnel: Mutex<Option<Tunnel>>,
}

struct Tunnel {
    inside: OnUpgrade,
    outside: Metered<TcpStream>,
    flow: Flow,
}

impl Connection {
    async fn serve(self: Arc<Self>, stream: BoxedStream) {
        let service = service_fn(|request| {
            let connection = Arc::clone(&self);
            async move { Ok::<_, Infallible>(connection.answer(request).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .max_header_size(HEAD_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        let result = tokio::select! {
            biased;
            () = self.stop.clone().cancelled_owned() => return,
            result = served => result,
        };
        if let Err(error) = result {
            tracing::debug!(sandbox_id = %self.network.sandbox_id, %error, "a connection to the proxy failed");
            return;
        }
        let tunnel = self.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Tunnel { inside, mut outside, flow }) = tunnel
            && let Ok(inside) = inside.await
        {
            let carry = async {
                let mut inside = TokioIo::new(inside);
                let copied =
                    copy_bidirectional_with_sizes(&mut inside, &mut outside, TUNNEL_BUFFER, TUNNEL_BUFFER).await;
                if let Err(error) = copied {
                    tracing::debug!(sandbox_id = %self.network.sandbox_id, %error, "a tunnel broke");
                }
            };
            flow.run(carry, IDLE_TIMEOUT, self.stop.clone()).await;
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let target = match Target::of(&request) {
            Ok(target) => target,
            Err(malformed) => return answer::malformed(&malformed),
        };
        let (flow, outside) = match self.network.dial(MODE, &target.host, target.port).await {
            Ok(dialed) => dialed,
            Err(refusal) => return answer::refused(&target, &refusal),
        };
        if request.method() == Method::CONNECT {
            let tunnel = Tunnel { inside: hyper::upgrade::on(request), outside, flow };
            *self.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some(tunnel);
            return answer::tunnel();
        }
        forward::forward(request, &target, flow, outside, self).await
    }
}
