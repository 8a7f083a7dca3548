//! What stands between a client and a server, and breaks what passes.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// What befalls a connection.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// it is cut when the client has sent so many bytes
    CutUp(usize),
    /// it is cut when the server has sent so many bytes
    CutDown(usize),
    /// its requests that begin like this are answered like this, and it ends
    Answer(&'static str, &'static str),
    /// nothing that the client sends is answered
    Silence,
}

#[derive(Default)]
struct State {
    fault: Mutex<(Option<Fault>, usize)>,
    faulty: AtomicUsize,
    connections: Mutex<JoinSet<()>>,
}

/// A way to a server that can be broken.
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    listening: JoinSet<()>,
}

impl Proxy {
    pub async fn before(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::<State>::default();
        let mut listening = JoinSet::new();
        let shared = Arc::clone(&state);
        listening.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                shared.connections.lock().unwrap().spawn(async move { relay(client, server, &state).await });
            }
        });
        Self { address, state, listening }
    }

    pub fn url(&self) -> String {
        assert!(!self.listening.is_empty());
        format!("http://{}", self.address)
    }

    /// From now on, `fault` befalls the next `times` connections; those that are open end.
    pub async fn set(&self, fault: Fault, times: usize) {
        *self.state.fault.lock().unwrap() = (Some(fault), times);
        self.state.faulty.store(0, Ordering::SeqCst);
        let mut open = std::mem::take(&mut *self.state.connections.lock().unwrap());
        open.shutdown().await;
    }

    /// How often the fault has come about since it was set.
    pub fn faults(&self) -> usize {
        self.state.faulty.load(Ordering::SeqCst)
    }
}

impl State {
    fn next(&self) -> Option<Fault> {
        let mut fault = self.fault.lock().unwrap();
        let (fault, left) = &mut *fault;
        *left = left.checked_sub(1)?;
        *fault
    }

    fn came_about(&self) {
        self.faulty.fetch_add(1, Ordering::SeqCst);
    }
}

async fn relay(mut client: TcpStream, server: SocketAddr, state: &State) {
    let fault = state.next();
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut from_client, mut from_server) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let (mut up, mut down) = (0, 0);
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(length @ 1..) = read else { return };
                let mut piece = &from_client[..length];
                match fault {
                    Some(Fault::CutUp(most)) => piece = &piece[..length.min(most - up)],
                    Some(Fault::Answer(begin, answer)) if piece.starts_with(begin.as_bytes()) => {
                        state.came_about();
                        _ = client.write_all(answer.as_bytes()).await;
                        _ = client.shutdown().await;
                        // until the client has it: what is unread would reset the connection
                        while let Ok(1..) = client.read(&mut from_client).await {}
                        return;
                    }
                    Some(Fault::Silence) => {
                        state.came_about();
                        continue;
                    }
                    _ => {}
                }
                up += piece.len();
                if server.write_all(piece).await.is_err() || piece.len() < length {
                    return state.came_about();
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(length @ 1..) = read else { return };
                let mut piece = &from_server[..length];
                if let Some(Fault::CutDown(most)) = fault {
                    piece = &piece[..length.min(most - down)];
                }
                down += piece.len();
                if client.write_all(piece).await.is_err() || piece.len() < length {
                    return state.came_about();
                }
            }
        }
    }
}
