//! The same service over gRPC, on the edge's port and on the port of gRPC alone.
//!
//! With a worker thread each, so that connections answer the server's good-bye while the test waits for its end.

use std::time::Duration;

use cloud_sandbox_proto::v1::{
    AcquireSandboxRequest, ExecCloseStdin, ExecEvent, ExecRequest, ExecStart, ExecuteRequest, ExecuteStreamRequest,
    TerminalSize, exec_event::Event, exec_output::Content, exec_request::Input, exec_service_client::ExecServiceClient,
    scheduler_service_client::SchedulerServiceClient,
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Code, Request, Streaming,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::Channel,
};

use crate::harness::{SOON, Server};

/// Sends a token with every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl Bearer {
    pub fn of(token: &str) -> Self {
        Self(format!("Bearer {token}").parse().unwrap())
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

pub type Authorized = InterceptedService<Channel, Bearer>;

struct Clients {
    scheduler: SchedulerServiceClient<Authorized>,
    exec: ExecServiceClient<Authorized>,
}

async fn clients(server: &Server, url: &str) -> Clients {
    let token = server.user("ada").await.token.unwrap();
    let bearer = Bearer::of(&token);
    let channel = Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    Clients {
        scheduler: SchedulerServiceClient::with_interceptor(channel.clone(), bearer.clone()),
        exec: ExecServiceClient::with_interceptor(channel, bearer),
    }
}

async fn acquired(clients: &mut Clients) -> String {
    let answer = clients.scheduler.acquire_sandbox(AcquireSandboxRequest::default()).await.unwrap();
    answer.into_inner().sandbox.unwrap().sandbox_id
}

fn text(event: &ExecEvent) -> String {
    match &event.event {
        Some(Event::Stdout(output) | Event::Stderr(output)) => match &output.content {
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Data(data)) => String::from_utf8_lossy(data).into_owned(),
            None => String::new(),
        },
        _ => String::new(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn both_ports_speak_grpc() {
    let server = Server::start().await;
    for url in [server.url.clone(), server.grpc_url.clone()] {
        let mut clients = clients(&server, &url).await;
        let sandbox_id = acquired(&mut clients).await;
        let request = ExecuteRequest { sandbox_id, code: Some("print(6 * 7)".into()), ..Default::default() };
        let answer = clients.exec.execute(request).await.unwrap().into_inner();
        assert_eq!((answer.stdout.as_str(), answer.exit_code), ("42\n", 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn stream_brings_output_in_order_with_offsets() {
    let server = Server::start().await;
    let mut clients = clients(&server, &server.url).await;
    let sandbox_id = acquired(&mut clients).await;
    let command = "for i in $(seq 20000); do echo line $i; done".to_owned();
    let request = ExecuteRequest { sandbox_id, command: Some(command), ..Default::default() };
    let stream = clients.exec.execute_stream(ExecuteStreamRequest { request: Some(request) }).await.unwrap();
    let mut stream = stream.into_inner();
    let (mut seen, mut exit) = (String::new(), None);
    while let Some(answer) = stream.next().await {
        let event = answer.unwrap().event.unwrap();
        if let Some(Event::Stdout(output)) = &event.event {
            assert_eq!(output.offset, seen.len() as u64);
        }
        seen.push_str(&text(&event));
        if let Some(Event::Exited(exited)) = event.event {
            exit = Some(exited);
        }
    }
    let expected: String = (1..=20_000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(seen, expected);
    assert_eq!(exit.unwrap().stdout_bytes, expected.len() as u64);
}

async fn interactive(
    clients: &mut Clients,
    start: ExecStart,
) -> (mpsc::Sender<ExecRequest>, Streaming<cloud_sandbox_proto::v1::ExecResponse>) {
    let (send, receive) = mpsc::channel(8);
    send.send(ExecRequest { input: Some(Input::Start(start)) }).await.unwrap();
    let stream = clients.exec.exec(ReceiverStream::new(receive)).await.unwrap().into_inner();
    (send, stream)
}

/// Reads until `wanted` was printed, and gives all that was.
async fn until(stream: &mut Streaming<cloud_sandbox_proto::v1::ExecResponse>, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        let next = tokio::time::timeout(SOON, stream.next()).await;
        let next = next.unwrap_or_else(|_| panic!("{wanted:?} did not come; came {seen:?}"));
        seen.push_str(&text(&next.expect("the stream goes on").unwrap().event.unwrap()));
    }
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn interactive_process_is_typed_to_and_signalled() {
    let server = Server::start().await;
    let mut clients = clients(&server, &server.url).await;
    let sandbox_id = acquired(&mut clients).await;
    let command = "trap 'echo got INT' INT; while read line; do echo heard $line; done; echo end".to_owned();
    let request = ExecuteRequest { sandbox_id, command: Some(command), ..Default::default() };
    let (send, mut stream) =
        interactive(&mut clients, ExecStart { request: Some(request), ..ExecStart::default() }).await;
    send.send(ExecRequest { input: Some(Input::Stdin("one\n".into())) }).await.unwrap();
    until(&mut stream, "heard one\n").await;
    send.send(ExecRequest { input: Some(Input::Signal("SIGINT".into())) }).await.unwrap();
    send.send(ExecRequest { input: Some(Input::Stdin("two\n".into())) }).await.unwrap();
    let seen = until(&mut stream, "heard two\n").await;
    assert!(seen.contains("got INT"), "{seen}");
    send.send(ExecRequest { input: Some(Input::CloseStdin(ExecCloseStdin {})) }).await.unwrap();
    until(&mut stream, "end\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn terminal_has_a_size_that_changes() {
    let server = Server::start().await;
    let mut clients = clients(&server, &server.url).await;
    let sandbox_id = acquired(&mut clients).await;
    let command = "stty size; read line; stty size; tty".to_owned();
    let request = ExecuteRequest { sandbox_id, command: Some(command), ..Default::default() };
    let terminal = Some(TerminalSize { rows: 30, cols: 90 });
    let (send, mut stream) =
        interactive(&mut clients, ExecStart { request: Some(request), terminal, ..ExecStart::default() }).await;
    until(&mut stream, "30 90").await;
    send.send(ExecRequest { input: Some(Input::Resize(TerminalSize { rows: 40, cols: 100 })) }).await.unwrap();
    send.send(ExecRequest { input: Some(Input::Stdin("\n".into())) }).await.unwrap();
    let seen = until(&mut stream, "/dev/pts/").await;
    assert!(seen.contains("40 100"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn slow_reader_slows_the_process_and_nothing_grows() {
    let server = Server::start().await;
    let mut clients = clients(&server, &server.url).await;
    let sandbox_id = acquired(&mut clients).await;
    let command = "head -c 512M /dev/zero".to_owned();
    let request = ExecuteRequest { sandbox_id: sandbox_id.clone(), command: Some(command), ..Default::default() };
    let (_send, mut stream) =
        interactive(&mut clients, ExecStart { request: Some(request), ..ExecStart::default() }).await;
    stream.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let api = server.user("ada").await;
    let memory = std::fs::read_to_string(format!("/proc/{}/statm", server.pid())).unwrap();
    let pages: u64 = memory.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(pages * 4096 < 256 << 20, "{memory}");
    assert!(!api.shell(&sandbox_id, "pgrep -x head").await.is_empty(), "it waits for its reader");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn errors_carry_their_reason() {
    let server = Server::start().await;
    let mut clients = clients(&server, &server.url).await;
    let request = ExecuteRequest { sandbox_id: "x".into(), command: Some("true".into()), ..Default::default() };
    let status = clients.exec.execute(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let error = cloud_sandbox_rpc::from_status(&status);
    assert_eq!((error.reason(), error.violations()[0].field.as_str()), ("INVALID_ID", "sandbox_id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nodes_are_out_of_reach_at_the_edge() {
    use cloud_sandbox_proto::node::v1::{GetSandboxRequest, node_service_client::NodeServiceClient};
    let server = Server::start().await;
    for url in [&server.url, &server.grpc_url] {
        let channel = Channel::from_shared(url.clone()).unwrap().connect().await.unwrap();
        let status = NodeServiceClient::new(channel).get_sandbox(GetSandboxRequest::default()).await.unwrap_err();
        assert!(matches!(status.code(), Code::Unimplemented | Code::Unauthenticated), "{status}");
    }
}
