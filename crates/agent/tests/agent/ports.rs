//! Ports of the sandbox's loopback that the node serves.

use cloud_sandbox_proto::agent::v1::{
    AcceptEnd, AcceptRequest, ListenRequest, ListenResponse, accept_request, accept_response,
    agent_service_client::AgentServiceClient, listen_response::Event, run_request::Input,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::rig::{Agent, PATIENCE, Running, eventually, program};

const MIB: usize = 1024 * 1024;

/// A port, for as long as it is kept.
struct Port {
    number: u32,
    client: AgentServiceClient<Channel>,
    events: Streaming<ListenResponse>,
}

impl Port {
    async fn open(agent: &Agent, wanted: u32) -> Result<Self, Status> {
        let mut client = agent.client_of_node().await;
        let mut events = client.listen(ListenRequest { port: wanted }).await?.into_inner();
        let first = timeout(PATIENCE, events.message()).await.expect("the agent listens")?.unwrap().event.unwrap();
        let Event::Listening(listening) = first else { panic!("{first:?} comes first") };
        Ok(Self { number: listening.port, client, events })
    }

    /// The number of the next that connects.
    async fn announced(&mut self) -> u64 {
        let event = timeout(PATIENCE, self.events.message()).await.expect("somebody connects").unwrap().unwrap().event;
        let Some(Event::Connection(number)) = event else { panic!("{event:?}") };
        number
    }

    async fn accept(&mut self) -> Connection {
        let number = self.announced().await;
        Connection::take_up(&self.client, number).await.unwrap()
    }
}

/// The node's end of a connection.
struct Connection {
    requests: Option<mpsc::Sender<AcceptRequest>>,
    responses: Streaming<cloud_sandbox_proto::agent::v1::AcceptResponse>,
}

impl Connection {
    async fn take_up(client: &AgentServiceClient<Channel>, number: u64) -> Result<Self, Status> {
        Self::begin(client, accept_request::Part::Connection(number)).await
    }

    async fn begin(client: &AgentServiceClient<Channel>, first: accept_request::Part) -> Result<Self, Status> {
        let (requests, queue) = mpsc::channel(1);
        requests.send(AcceptRequest { part: Some(first) }).await.unwrap();
        let responses = client.clone().accept(ReceiverStream::new(queue)).await?.into_inner();
        Ok(Self { requests: Some(requests), responses })
    }

    async fn send(&self, data: &[u8]) {
        self.request(accept_request::Part::Data(data.to_vec().into())).await;
    }

    /// Sends the program no more.
    async fn end(&self) {
        self.request(accept_request::Part::End(AcceptEnd {})).await;
    }

    async fn request(&self, part: accept_request::Part) {
        let sent = self.requests.as_ref().unwrap().send(AcceptRequest { part: Some(part) });
        timeout(PATIENCE, sent).await.expect("the agent takes it").unwrap();
    }

    /// The next bytes; none when the program sends no more.
    async fn next(&mut self) -> Result<Option<Vec<u8>>, Status> {
        let message = timeout(PATIENCE, self.responses.message()).await.expect("something comes")?;
        match message.expect("the stream goes on").part.unwrap() {
            accept_response::Part::Data(data) => Ok(Some(data.to_vec())),
            accept_response::Part::End(_) => Ok(None),
        }
    }

    async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(data) = self.next().await.unwrap() {
            all.extend_from_slice(&data);
        }
        all
    }
}

/// A program that connects to a port and does what `then` says with the socket `s`.
async fn connecting(agent: &Agent, port: u32, then: &str) -> Running {
    let script = format!(
        "import socket, sys
def connect(): return socket.create_connection(('127.0.0.1', {port}))
def wait(): return sys.stdin.readline()
{then}"
    );
    agent.open(program(&["python3", "-uc", &script])).await.unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_each_may_end_first() {
    let agent = Agent::start().await;
    let mut port = Port::open(&agent, 3128).await.unwrap();
    let then = "s = connect()
s.sendall(b'a' * (3 << 20))
s.shutdown(socket.SHUT_WR)
got = b''
while piece := s.recv(65536): got += piece
print(len(got), got == b'b' * len(got))";
    let running = connecting(&agent, port.number, then).await;
    let mut connection = port.accept().await;
    assert!(connection.rest().await == vec![b'a'; 3 * MIB]);
    for _ in 0..64 {
        connection.send(&[b'b'; 32 * 1024]).await;
    }
    connection.end().await;
    assert_eq!(running.outcome().await.text(), "2097152 True\n");
    connection.requests = None;
    assert!(connection.responses.message().await.unwrap().is_none(), "it ends well");

    let then = "s = connect()
assert s.recv(9) == b''
s.sendall(b'after the end')
s.close()";
    let running = connecting(&agent, port.number, then).await;
    let mut connection = port.accept().await;
    connection.end().await;
    assert_eq!(connection.rest().await, b"after the end");
    assert_eq!(running.outcome().await.exited.exit_code, 0);
}

#[tokio::test]
async fn a_port_that_is_taken_is_replaced_by_another() {
    let agent = Agent::start().await;
    let first = Port::open(&agent, 3128).await.unwrap();
    let mut second = Port::open(&agent, first.number).await.unwrap();
    assert_ne!(first.number, second.number);
    let running = connecting(&agent, second.number, "connect().sendall(b'here')").await;
    assert_eq!(second.accept().await.rest().await, b"here");
    assert_eq!(running.outcome().await.exited.exit_code, 0);
}

#[tokio::test]
async fn ports_and_connections_that_are_none_are_refused() {
    let agent = Agent::start().await;
    for wrong in [0, 65536, u32::MAX] {
        assert_eq!(Port::open(&agent, wrong).await.err().unwrap().code(), Code::InvalidArgument, "{wrong}");
    }
    let none = Connection::take_up(&agent.client, 7).await.err().unwrap();
    assert_eq!((none.code(), none.message()), (Code::NotFound, "connection 7 does not wait"));
    let data = accept_request::Part::Data(b"x".to_vec().into());
    assert_eq!(Connection::begin(&agent.client, data).await.err().unwrap().code(), Code::InvalidArgument);

    let mut port = Port::open(&agent, 3128).await.unwrap();
    let _running = connecting(&agent, port.number, "s = connect(); wait()").await;
    let number = port.announced().await;
    let connection = Connection::take_up(&port.client, number).await.unwrap();
    assert_eq!(Connection::take_up(&port.client, number).await.err().unwrap().code(), Code::NotFound);
    let again = accept_request::Part::Connection(number);
    connection.requests.as_ref().unwrap().send(AcceptRequest { part: Some(again) }).await.unwrap();
    let mut connection = connection;
    assert_eq!(connection.next().await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn what_is_dropped_is_cut() {
    let agent = Agent::start().await;
    let mut port = Port::open(&agent, 3128).await.unwrap();
    let then = "def ends(s):
    try: return s.recv(1) == b''
    except ConnectionError: return True
one, two, three = connect(), connect(), connect()
print(ends(one))
print(ends(two), ends(three))
try: connect()
except ConnectionRefusedError: print('refused')";
    let mut running = connecting(&agent, port.number, then).await;
    drop(port.accept().await);
    running.read_until("True\n").await;
    let mut open = port.accept().await;
    let waits = port.announced().await;
    let Port { client, events, .. } = port;
    drop(events);
    assert_eq!(running.read_until("refused\n").await, "True True\nrefused\n");
    assert!(open.responses.message().await.is_ok_and(|message| message.is_none()));
    assert_eq!(Connection::take_up(&client, waits).await.err().unwrap().code(), Code::NotFound);
}

#[tokio::test]
async fn a_program_that_is_gone_is_told_of() {
    let agent = Agent::start().await;
    let mut port = Port::open(&agent, 3128).await.unwrap();
    let then = "import struct
s = connect()
wait()
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()";
    let running = connecting(&agent, port.number, then).await;
    let mut connection = port.accept().await;
    running.send(Input::Stdin("\n".into())).await;
    assert_eq!(connection.next().await.unwrap_err().code(), Code::Aborted);
}

#[tokio::test]
async fn connections_are_bounded_and_their_places_given_back() {
    let agent = Agent::start().await;
    let mut port = Port::open(&agent, 3128).await.unwrap();
    let then = "all = [connect() for _ in range(256)]
print('all')
wait()
late = connect()
try: late = late.recv(1)
except ConnectionError: late = b''
print('late', late)
for s in all[:10]: s.close()
wait()
more = [connect() for _ in range(10)]
print('more')
wait()";
    let mut running = connecting(&agent, port.number, then).await;
    let mut numbers = Vec::new();
    for _ in 0..256 {
        numbers.push(port.announced().await);
    }
    running.read_until("all\n").await;
    running.send(Input::Stdin("\n".into())).await;
    running.read_until("late b''\n").await;
    // the ten that have ended
    for number in &numbers[..10] {
        assert_eq!(Connection::take_up(&port.client, *number).await.unwrap().rest().await, b"");
    }
    running.send(Input::Stdin("\n".into())).await;
    running.read_until("more\n").await;
    for _ in 0..10 {
        let number = port.announced().await;
        assert!(!numbers.contains(&number));
    }
}

#[tokio::test]
async fn a_program_that_is_not_heard_is_held_back_and_nobody_else() {
    let agent = Agent::start().await;
    let mut port = Port::open(&agent, 3128).await.unwrap();
    let before = agent.memory_kib();
    let then = "s = connect()
s.settimeout(0.5)
try:
    while True: s.sendall(b'x' * 65536)
except TimeoutError: print('held')
wait()";
    let mut running = connecting(&agent, port.number, then).await;
    let unheard = port.accept().await;
    running.read_until("held\n").await;
    let grown = agent.memory_kib().saturating_sub(before);
    assert!(grown < 2 * 1024, "the agent grew by {grown} KiB");
    let other = connecting(&agent, port.number, "connect().sendall(b'heard')").await;
    assert_eq!(port.accept().await.rest().await, b"heard");
    assert_eq!(other.outcome().await.exited.exit_code, 0);
    drop(unheard);
    drop(port);
    let pid = running.pid;
    drop(running);
    eventually("the end of the program", || !agent.is_alive(pid)).await;
}

#[tokio::test]
async fn what_was_sent_before_the_requests_ended_arrives_and_then_the_connection_is_closed() {
    let agent = Agent::start().await;
    let mut port = Port::open(&agent, 3128).await.unwrap();
    let then = "s = connect()
wait()
got = b''
while piece := s.recv(65536): got += piece
print(len(got))
try:
    while True: s.sendall(b'x' * 65536)
except ConnectionError: print('closed')";
    let mut running = connecting(&agent, port.number, then).await;
    let mut connection = port.accept().await;
    for _ in 0..8 {
        connection.send(&[b'x'; 32 * 1024]).await;
    }
    connection.requests = None;
    running.send(Input::Stdin("\n".into())).await;
    assert_eq!(running.read_until("closed\n").await, "262144\nclosed\n");
    assert!(connection.responses.message().await.unwrap().is_none());
}
