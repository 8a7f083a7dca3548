//! One type for a service that is called, whether it runs in this process or in another: generated clients are made
//! over it (`SchedulerServiceClient::new(upstream)`), so there is no second code path.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use tonic::{body::Body, transport::Endpoint};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

/// The boxed error of a transport.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A transport that failed; why is its source.
#[derive(Debug)]
pub struct TransportError(BoxError);

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the transport failed")
    }
}

impl StdError for TransportError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

/// A service that can be called.
///
/// Its error has a type of its own: over a boxed one, the compiler cannot see that the futures of generated clients are
/// `Send` inside a service's boxed future (rust-lang/rust#102211).
#[derive(Debug, Clone)]
pub struct Upstream(BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>);

impl Upstream {
    /// The upstream that `service` is.
    pub fn new<S>(service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = BoxError> + Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        Self(BoxCloneSyncService::new(service))
    }

    /// The upstream with what `header` gives as `authorization` on every call.
    #[must_use]
    pub fn authorized(
        self,
        header: impl Fn() -> Result<HeaderValue, BoxError> + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::new(tower::service_fn(move |mut request: Request<Body>| {
            let (header, mut upstream) = (header(), self.clone());
            async move {
                request.headers_mut().insert(AUTHORIZATION, header?);
                upstream.ready().await?.call(request).await.map_err(BoxError::from)
            }
        }))
    }
}

impl Service<Request<Body>> for Upstream {
    type Response = Response<Body>;
    type Error = TransportError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, TransportError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.0.poll_ready(context).map_err(TransportError)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = self.0.call(request);
        Box::pin(async move { call.await.map_err(TransportError) })
    }
}

/// The largest message between services, in bytes: the largest file piece or output with room for its envelope.
pub const MESSAGE_MAX: usize = 20 * 1024 * 1024;

/// How many calls may be under way over one connection; more wait for their turn.
pub const STREAMS: u32 = 200;
/// What one call's stream may be ahead of its reader, in bytes: enough for one stream to fill the link.
pub const STREAM_WINDOW: u32 = 1024 * 1024;
/// What all of them may: as much as they can hold together, so that streams which nobody reads hold up no other call. One
/// connection carries the calls of many callers.
pub const CONNECTION_WINDOW: u32 = STREAMS * STREAM_WINDOW;
// Each frame costs a system call here and there.
const FRAME: u32 = 256 * 1024;
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
    Upstream::new(service)
}

/// Calls a service at `uri` (`http://host:port`). The connection is made at the first call and again when it breaks.
pub fn connect(uri: &str) -> Result<Upstream, BoxError> {
    let endpoint = Endpoint::from_shared(uri.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(FRAME)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true);
    Ok(Upstream::new(endpoint.connect_lazy().map_err(Into::into)))
}
