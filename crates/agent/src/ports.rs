//! Ports of the sandbox's loopback that its node serves, where it cannot put a listening socket of its own there.
//!
//! The agent accepts and relays, and knows nothing of what is said. Invariant: what waits or is open is bounded, and gone
//! with the stream of its port. No user can use any of it: only the node speaks to the agent.

mod relay;

use std::{
    collections::HashMap,
    io,
    net::Ipv4Addr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cloud_sandbox_proto::agent::v1::{
    AcceptRequest, AcceptResponse, ListenResponse, Listening, accept_request::Part, listen_response::Event,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{
        OwnedSemaphorePermit, Semaphore,
        mpsc::{Receiver, Sender, channel},
    },
    time::sleep,
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use crate::status;

/// How many connections may wait or be open, of all ports.
const MAX_CONNECTIONS: usize = 256;
/// Announcements on their way. Those that wait for room have been accepted, so no more of them than these and one.
const ANNOUNCED: usize = 16;
/// How long to wait after a failed accept: the reason, too many open files, does not go away at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// All ports, and the connections to them that nobody has taken up yet.
pub(crate) struct Ports {
    waiting: Mutex<HashMap<u64, Connection>>,
    next: AtomicU64,
    places: Arc<Semaphore>,
}

impl Default for Ports {
    fn default() -> Self {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self { waiting: Mutex::default(), next: AtomicU64::new(1), places }
    }
}

/// A program that has connected.
struct Connection {
    stream: TcpStream,
    /// ends with its port
    closed: CancellationToken,
    _place: OwnedSemaphorePermit,
}

type Events = Sender<Result<ListenResponse, Status>>;

impl Ports {
    /// Opens `port`, or any other where that is taken. It closes when what is returned is dropped.
    pub(crate) async fn listen(
        self: &Arc<Self>,
        port: u32,
    ) -> Result<Receiver<Result<ListenResponse, Status>>, Status> {
        let port = u16::try_from(port).ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| Status::invalid_argument("port must be 1 to 65535"))?;
        let failed = |error: io::Error| status::from_io(&format!("listen on port {port}"), &error);
        let listener = match TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(failed)?
            }
            bound => bound.map_err(failed)?,
        };
        let port = listener.local_addr().map_err(failed)?.port().into();
        let (events, receiver) = channel(ANNOUNCED);
        let ports = Arc::clone(self);
        // It ends with the stream's drop.
        tokio::spawn(async move {
            let _ = events.send(Ok(event(Event::Listening(Listening { port })))).await;
            let closed = CancellationToken::new();
            tokio::select! {
                () = events.closed() => {}
                () = ports.serve(&listener, &events, &closed) => {}
            }
            closed.cancel();
            ports.waiting().retain(|_, connection| !connection.closed.is_cancelled());
        });
        Ok(receiver)
    }

    /// Takes up the connection that the first message names.
    pub(crate) async fn accept(
        &self,
        mut parts: Streaming<AcceptRequest>,
    ) -> Result<Receiver<Result<AcceptResponse, Status>>, Status> {
        let Some(Part::Connection(number)) = parts.message().await?.and_then(|message| message.part) else {
            return Err(Status::invalid_argument("the first message must be connection"));
        };
        let connection = self.waiting().remove(&number);
        let connection = connection.ok_or_else(|| Status::not_found(format!("connection {number} does not wait")))?;
        let (responses, receiver) = channel(relay::PIECES);
        // It ends with the connection, its port, or the stream's drop.
        tokio::spawn(async move {
            let Connection { stream, closed, _place: place } = connection;
            tokio::select! {
                () = closed.cancelled() => {}
                () = responses.closed() => {}
                () = relay::relay(stream, parts, &responses) => {}
            }
            drop(place);
        });
        Ok(receiver)
    }

    /// Announces connections for as long as somebody hears it.
    async fn serve(&self, listener: &TcpListener, events: &Events, closed: &CancellationToken) {
        loop {
            let Ok(room) = events.reserve().await else { return };
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(_) => {
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // What finds no place is closed.
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { continue };
            // Small answers are not held back; a failure costs time, nothing else.
            let _ = stream.set_nodelay(true);
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            self.waiting().insert(number, Connection { stream, closed: closed.clone(), _place: place });
            room.send(Ok(event(Event::Connection(number))));
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Connection>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn event(event: Event) -> ListenResponse {
    ListenResponse { event: Some(event) }
}
