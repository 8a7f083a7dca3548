//! A port and the connections to it: HTTP/1 and HTTP/2 without TLS, told apart by their first bytes.
//!
//! Invariant: when [`Port::serve`] returns, nobody is connected any more. Calls under way when it is told to stop may go
//! on until the drain's time is over; then they are cut.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{Router, extract::ConnectInfo};
use cloud_sandbox_rpc::upstream::{CONNECTION_WINDOW, STREAM_WINDOW, STREAMS};
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{
        conn::auto,
        graceful::{GracefulShutdown, Watcher},
    },
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{ServiceExt, service_fn};

/// A client that sends half a request holds a connection no longer than this.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// A client that has vanished is noticed after the interval and the timeout together.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a caller may send in one piece: each costs a system call here and there, which is what a large upload waits for.
const FRAME: u32 = 256 * 1024;
/// Out of descriptors, accepting again at once would only burn the CPU.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A port that is bound and not served yet.
#[derive(Debug)]
pub struct Port {
    listener: TcpListener,
    address: SocketAddr,
}

impl Port {
    /// Binds `address`, which the setting called `setting` names.
    pub async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("failed to listen on {address} (setting {setting})"))?;
        let address = listener.local_addr().context("failed to read the address listened on")?;
        Ok(Self { listener, address })
    }

    /// Where it really listens: the port's number also where the setting said 0.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves `router` until `stop`, then lets calls under way end within `drain`. Returns how many connections were
    /// cut at its end.
    pub async fn serve(self, router: Router, stop: CancellationToken, drain: Duration) -> usize {
        let graceful = GracefulShutdown::new();
        let connections = TaskTracker::new();
        let cut = CancellationToken::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let connection = serve_connection(stream, peer, router.clone(), graceful.watcher(), stop.clone());
                    connections.spawn(cut.clone().run_until_cancelled_owned(connection));
                }
                Err(error) => {
                    tracing::warn!(%error, address = %self.address, "failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(self.listener);
        let drained = timeout(drain, graceful.shutdown()).await.is_ok();
        let left = if drained { 0 } else { connections.len() };
        cut.cancel();
        connections.close();
        connections.wait().await;
        left
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    watcher: Watcher,
    stop: CancellationToken,
) {
    // answers are small and awaited
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "failed to set TCP_NODELAY");
    }
    // whoever connects and says nothing is not waited for, neither now nor when the port closes
    let first = timeout(HEADER_TIMEOUT, stream.readable());
    if !matches!(stop.run_until_cancelled(first).await, Some(Ok(Ok(())))) {
        return;
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let builder = builder();
    let connection = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    if let Err(error) = watcher.watch(connection).await {
        // clients hang up; that is their business
        tracing::debug!(error, %peer, "connection ended");
    }
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .max_frame_size(FRAME);
    builder
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::routing::get;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::Notify,
    };

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

    async fn request(address: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn port_in_use_is_named_with_its_setting() {
        let port = Port::bind(ANY, "listen").await.unwrap();
        let error = Port::bind(port.address(), "grpc_listen").await.unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(&port.address().to_string()) && text.contains("grpc_listen"), "{text}");
        assert!(text.contains("in use"), "{text}");
    }

    #[tokio::test]
    async fn call_under_way_ends_well_after_the_stop() {
        let (begun, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begun_too, go_on_too) = (begun.clone(), go_on.clone());
        let answer = move || async move {
            begun_too.notify_one();
            go_on_too.notified().await;
            "well"
        };
        let port = Port::bind(ANY, "listen").await.unwrap();
        let (address, stop) = (port.address(), CancellationToken::new());
        let served = port.serve(Router::new().route("/", get(answer)), stop.clone(), Duration::from_secs(30));
        let served = tokio::spawn(served);
        let mut stream = request(address).await;
        begun.notified().await;
        stop.cancel();
        go_on.notify_one();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("well"), "{answer}");
        assert_eq!(served.await.unwrap(), 0);
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn silent_connection_does_not_hold_up_the_end() {
        let port = Port::bind(ANY, "listen").await.unwrap();
        let (address, stop) = (port.address(), CancellationToken::new());
        let served = tokio::spawn(port.serve(Router::new(), stop.clone(), Duration::from_secs(30)));
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut idle = request(address).await;
        assert!(idle.read(&mut [0; 1024]).await.unwrap() > 0);
        stop.cancel();
        assert_eq!(timeout(Duration::from_secs(5), served).await.unwrap().unwrap(), 0);
    }

    #[tokio::test]
    async fn call_that_does_not_end_is_cut_at_the_drains_end() {
        let begun = Arc::new(Notify::new());
        let begun_too = begun.clone();
        let answer = move || async move {
            begun_too.notify_one();
            std::future::pending::<()>().await;
        };
        let port = Port::bind(ANY, "listen").await.unwrap();
        let (address, stop) = (port.address(), CancellationToken::new());
        let served =
            tokio::spawn(port.serve(Router::new().route("/", get(answer)), stop.clone(), Duration::from_millis(50)));
        let mut stream = request(address).await;
        begun.notified().await;
        stop.cancel();
        assert_eq!(served.await.unwrap(), 1);
        assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0);
    }
}
