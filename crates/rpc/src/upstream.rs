//! One type for a service that is called, whether it runs in this process or in another: generated clients are made
//! over it (`SchedulerServiceClient::new(upstream)`), so there is no second code path.

use std::{error::Error as StdError, time::Duration};

use http::{Request, Response};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint},
};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

/// The boxed error of a transport.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A service that can be called.
pub type Upstream = BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>;

/// The largest message between services, in bytes: the largest file piece or output with room for its envelope.
pub const MESSAGE_MAX: usize = 20 * 1024 * 1024;

// Connections are few and local to a cluster; larger windows let one stream fill the link.
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Calls a service of this process directly: no socket, no HTTP/2.
pub fn in_process<S, B>(service: S) -> Upstream
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = tonic::codegen::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service.map_err(Into::into).map_response(|response| response.map(Body::new));
    BoxCloneSyncService::new(service)
}

/// Calls a service at `uri` (`http://host:port`). The connection is made at the first call and again when it breaks.
pub fn connect(uri: &str) -> Result<Upstream, BoxError> {
    let endpoint = Endpoint::from_shared(uri.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(over(endpoint.connect_lazy()))
}

/// An upstream over a channel that somebody else made, to an agent's socket for example.
#[must_use]
pub fn over(channel: Channel) -> Upstream {
    BoxCloneSyncService::new(channel.map_err(Into::into))
}
