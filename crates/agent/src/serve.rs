//! HTTP/2: hands the calls of the node's connections to the two services.
//!
//! Connections come by one of three ways, whichever the sandbox has: accepted (`listen`), made by the agent (`dial`), or as
//! streams within its standard input and output (`stdio`). hyper's HTTP/2 connection and the generated services are
//! enough; tonic's transport and its stack of layers would cost every sandbox memory for nothing. One node connects, now
//! and then anew, so connections are not limited.

mod dial;
mod listen;
mod stdio;

use std::{convert::Infallible, time::Duration};

use cloud_sandbox_proto::{
    agent::v1::agent_service_server::AgentServiceServer,
    v1::file_service_server::{FileServiceServer, SERVICE_NAME as FILE_SERVICE},
};
use futures::future::BoxFuture;
use hyper::{Request, Response, body::Incoming, server::conn::http2, service::Service};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::{body::Body, codegen::Service as _};

pub use self::{
    dial::dial,
    listen::{serve, serve_agent},
    stdio::{Stdio, serve_stdio},
};
use crate::{Agent, MAX_MESSAGE, files::Files};

/// Per stream; over a local socket a window update costs microseconds, so this is throughput enough.
const STREAM_WINDOW: u32 = 256 * 1024;
/// All streams' together, so that those which wait for a process that does not read never stop the others. The node's
/// has to be as large for the other direction.
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;
/// What the node may send in one piece. Large, since each costs a system call here and there, and below what the
/// allocator returns to the system with each free.
const FRAME: u32 = 64 * 1024;
/// What a stream may hold for a reader that does not keep up.
const SEND_BUFFER: usize = 64 * 1024;
const MAX_STREAMS: u32 = 1024;
/// How long to wait before another try at a connection where the reason, as too many open files, does not go away at once.
const PAUSE: Duration = Duration::from_millis(50);

/// Both services of one connection.
struct Services {
    agent: AgentServiceServer<Agent>,
    files: FileServiceServer<Files>,
}

impl Service<Request<Incoming>> for Services {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next();
        if service == Some(FILE_SERVICE) { self.files.clone().call(request) } else { self.agent.clone().call(request) }
    }
}

/// A connection of the node. Boxed, so that there is one copy of what serves it, whatever it is made of.
trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

async fn serve_connection(stream: Box<dyn Connection>, agent: Agent) {
    let services = Services {
        agent: AgentServiceServer::new(agent).max_decoding_message_size(MAX_MESSAGE),
        files: FileServiceServer::new(Files).max_decoding_message_size(MAX_MESSAGE),
    };
    let served = http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .max_send_buf_size(SEND_BUFFER)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(16 * 1024)
        .auto_date_header(false)
        .serve_connection(TokioIo::new(stream), services)
        .await;
    // The node hung up or spoke nonsense; it knows better than a log that nobody reads.
    drop(served);
}
