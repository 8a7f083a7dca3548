//! ExecService and FileService against a simulated node, called as clients call them: through generated clients.

#![allow(clippy::unwrap_used)]

use std::{fmt::Display, sync::Arc, time::Duration};

use bytes::Bytes;
use cloud_sandbox_auth::Role;
use cloud_sandbox_exec::{ExecService, FileService};
use cloud_sandbox_model::{Error, ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::node::v1::node_service_server::NodeServiceServer;
use cloud_sandbox_proto::v1::{
    DeleteFileRequest, ExecCloseStdin, ExecEvent, ExecRequest, ExecStart, ExecuteRequest, ExecuteStreamRequest,
    ReadFileRequest, WriteFileRequest, exec_event::Event, exec_request::Input, exec_service_client::ExecServiceClient,
    file_service_client::FileServiceClient,
};
use cloud_sandbox_rpc::{Dial, LocalDial, Upstream, from_status, in_process, upstream::BoxError};
use cloud_sandbox_sim_node::{FOREVER, Fault, SimNode, assert_eventually, principal};
use cloud_sandbox_storage::{Directory, MemoryDirectory};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, service::interceptor::InterceptedService};

struct World {
    node: SimNode,
    directory: Arc<MemoryDirectory>,
    dial: LocalDial,
}

impl World {
    async fn new() -> Self {
        let (directory, dial) = (Arc::new(MemoryDirectory::new()), LocalDial::new());
        let node = SimNode::start(directory.clone(), &dial, 5, 9).await;
        Self { node, directory, dial }
    }

    /// The exec service as `user` reaches it.
    fn exec(&self, user: &'static str, role: Role) -> ExecServiceClient<Upstream> {
        let service = ExecService::new(self.directory.clone(), Arc::new(self.dial.clone())).grpc();
        let identify = move |mut request: Request<()>| {
            request.extensions_mut().insert(principal(user, role));
            Ok(request)
        };
        ExecServiceClient::new(in_process(InterceptedService::new(service, identify)))
    }

    fn ada(&self) -> ExecServiceClient<Upstream> {
        self.exec("ada", Role::User)
    }

    fn files(&self, user: &'static str) -> FileServiceClient<Upstream> {
        let service = FileService::new(self.directory.clone(), Arc::new(self.dial.clone())).grpc();
        let identify = move |mut request: Request<()>| {
            request.extensions_mut().insert(principal(user, Role::User));
            Ok(request)
        };
        FileServiceClient::new(in_process(InterceptedService::new(service, identify)))
    }
}

fn code(id: impl Display, code: &str) -> ExecuteRequest {
    ExecuteRequest { sandbox_id: id.to_string(), code: Some(code.into()), ..ExecuteRequest::default() }
}

fn streamed(id: impl Display, text: &str) -> ExecuteStreamRequest {
    ExecuteStreamRequest { request: Some(code(id, text)) }
}

fn input(input: Input) -> ExecRequest {
    ExecRequest { input: Some(input) }
}

fn start(id: impl Display) -> ExecRequest {
    input(Input::Start(ExecStart { request: Some(code(id, "")), terminal: None }))
}

/// What kind of event, in a word.
fn word(event: Option<ExecEvent>) -> String {
    match event.and_then(|event| event.event) {
        Some(Event::Started(_)) => "started".into(),
        Some(Event::Stdout(output)) => format!("stdout {:?}", output.content.unwrap()),
        Some(Event::Stderr(_)) => "stderr".into(),
        Some(Event::Exited(_)) => "exited".into(),
        None => "nothing".into(),
    }
}

fn error<T: std::fmt::Debug>(result: Result<T, Status>) -> Error {
    from_status(&result.unwrap_err())
}

/// Every call about `id` by `user`, as errors.
async fn every_call(world: &World, user: &'static str, id: &str) -> Vec<(&'static str, Error)> {
    let (mut exec, mut files) = (world.exec(user, Role::User), world.files(user));
    let path = || "/a".to_owned();
    let id = || id.to_owned();
    vec![
        ("Execute", error(exec.execute(code(id(), "1")).await)),
        ("ExecuteStream", error(exec.execute_stream(streamed(id(), "1")).await)),
        ("Exec", error(exec.exec(tokio_stream::iter([start(id())])).await)),
        ("ReadFile", {
            let request = ReadFileRequest { sandbox_id: id(), path: path(), ..ReadFileRequest::default() };
            error(files.read_file(request).await)
        }),
        ("WriteFile", {
            let request = WriteFileRequest { sandbox_id: id(), path: path(), ..WriteFileRequest::default() };
            error(files.write_file(request).await)
        }),
        ("DeleteFile", {
            let request = DeleteFileRequest { sandbox_id: id(), path: path(), recursive: false };
            error(files.delete_file(request).await)
        }),
    ]
}

#[tokio::test]
async fn call_is_relayed_with_its_request_id_and_deadline() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut request = Request::new(code(id, "print(1)"));
    request.metadata_mut().insert("x-request-id", "r1".parse().unwrap());
    request.set_timeout(Duration::from_secs(9));
    let response = world.ada().execute(request).await.unwrap().into_inner();
    assert_eq!(response.stdout, "print(1)");
    assert_eq!(world.node.last_context(), (Some("r1".into()), true));
}

#[tokio::test]
async fn files_are_relayed() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let mut files = world.files("ada");
    let path = "/workspace/a".to_owned();
    let write = WriteFileRequest { sandbox_id: id.clone(), path: path.clone(), ..WriteFileRequest::default() };
    assert_eq!(files.write_file(write).await.unwrap().into_inner().file.unwrap().path, path);
    let read = ReadFileRequest { sandbox_id: id.clone(), path: path.clone(), ..ReadFileRequest::default() };
    assert_eq!(files.read_file(read).await.unwrap().into_inner().file.unwrap().path, path);
    let delete = DeleteFileRequest { sandbox_id: id, path: path.clone(), recursive: false };
    let deleted = files.delete_file(delete).await.unwrap().into_inner();
    assert_eq!((deleted.path, deleted.deleted), (path, true));
}

#[tokio::test]
async fn somebody_elses_sandbox_is_not_found_by_any_call_and_its_node_is_not_asked() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    for (method, error) in every_call(&world, "bob", &id).await {
        assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND), "{method}");
    }
    for (method, error) in every_call(&world, "ada", &SandboxId::generate().to_string()).await {
        assert_eq!((error.kind(), error.reason()), (ErrorKind::NotFound, reason::SANDBOX_NOT_FOUND), "{method}");
    }
    assert_eq!(world.node.calls(), [""; 0]);
}

#[tokio::test]
async fn admin_runs_in_its_tenants_sandboxes() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    assert!(world.exec("root", Role::Admin).execute(code(id, "1")).await.is_ok());
}

#[tokio::test]
async fn missing_sandbox_id_is_named_by_every_call() {
    let world = World::new().await;
    for (method, error) in every_call(&world, "ada", "").await {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{method}");
        assert_eq!(error.violations()[0].field, "sandbox_id", "{method}");
    }
}

#[tokio::test]
async fn unreachable_node_is_unavailable_to_every_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.cut_off();
    for (method, error) in every_call(&world, "ada", &id.to_string()).await {
        assert_eq!((error.kind(), error.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE), "{method}");
    }
    assert!(world.directory.sandbox(id).await.unwrap().is_some(), "its lease goes on");
}

#[tokio::test]
async fn sandbox_that_is_gone_is_not_found_though_its_entry_was_just_read() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut client = world.ada();
    client.execute(code(id, "1")).await.unwrap();
    world.node.forget(id);
    assert_eq!(error(client.execute(code(id, "1")).await).reason(), reason::SANDBOX_NOT_FOUND);
    assert_eq!(world.directory.sandbox(id).await.unwrap(), None);
}

#[tokio::test]
async fn missing_file_does_not_make_the_sandbox_forgotten() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.fail("ReadFile", Fault::Refuse(ErrorKind::NotFound));
    let request = ReadFileRequest { sandbox_id: id.to_string(), path: "/a".into(), ..ReadFileRequest::default() };
    let refused = error(world.files("ada").read_file(request).await);
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::NotFound, "SIMULATED"));
    assert!(world.directory.sandbox(id).await.unwrap().is_some());
}

#[tokio::test]
async fn output_comes_as_it_is_printed_and_ends() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut events = world.ada().execute_stream(streamed(id, "hi")).await.unwrap().into_inner();
    let mut seen = Vec::new();
    while let Some(message) = events.message().await.unwrap() {
        seen.push(word(message.event));
    }
    assert_eq!(seen, ["started", "stdout Text(\"hi\")", "exited"]);
    assert_eq!(world.node.in_flight(), 0);
}

#[tokio::test]
async fn hanging_up_drops_the_nodes_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;

    let mut events = world.ada().execute_stream(streamed(id, FOREVER)).await.unwrap().into_inner();
    events.message().await.unwrap();
    assert_eq!(world.node.in_flight(), 1);
    drop(events);
    assert_eventually("the stream's drop", || world.node.in_flight() == 0).await;

    world.node.fail("Execute", Fault::Hang);
    let mut client = world.ada();
    let call = tokio::spawn(async move { client.execute(code(id, "1")).await });
    assert_eventually("the call's arrival", || world.node.in_flight() == 1).await;
    call.abort();
    assert_eventually("the call's drop", || world.node.in_flight() == 0).await;
}

#[tokio::test]
async fn deadline_ends_the_nodes_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let within = |mut request: Request<_>| {
        request.set_timeout(Duration::from_millis(80));
        request
    };
    let mut forever = Request::new(streamed(id, FOREVER));
    forever.set_timeout(Duration::from_millis(80));
    let mut events = world.ada().execute_stream(forever).await.unwrap().into_inner();
    let ended = loop {
        if let Err(status) = events.message().await {
            break from_status(&status);
        }
    };
    assert_eq!(ended.kind(), ErrorKind::DeadlineExceeded);

    world.node.fail("Execute", Fault::Hang);
    let ended = error(world.ada().execute(within(Request::new(code(id, "1")))).await);
    assert_eq!(ended.kind(), ErrorKind::DeadlineExceeded);
    assert_eventually("the drop of both", || world.node.in_flight() == 0).await;
}

#[tokio::test]
async fn interactive_execution_is_relayed_both_ways() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let (send, receive) = mpsc::channel(8);
    send.send(start(id)).await.unwrap();
    let mut events = world.ada().exec(ReceiverStream::new(receive)).await.unwrap().into_inner();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "started");
    for text in ["one", "two"] {
        send.send(input(Input::Stdin(Bytes::from(text)))).await.unwrap();
        assert_eq!(word(events.message().await.unwrap().unwrap().event), format!("stdout Text({text:?})"));
    }
    send.send(input(Input::Signal("SIGINT".into()))).await.unwrap();
    send.send(input(Input::CloseStdin(ExecCloseStdin {}))).await.unwrap();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "exited");
    assert!(events.message().await.unwrap().is_none());
    assert_eq!(world.node.input(), ["start", "stdin one", "stdin two", "signal SIGINT", "close"]);
}

#[tokio::test]
async fn end_of_the_request_stream_does_not_close_standard_input() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let messages = [start(id), input(Input::Stdin(Bytes::from("x")))];
    let mut events = world.ada().exec(tokio_stream::iter(messages)).await.unwrap().into_inner();
    for _ in 0..2 {
        events.message().await.unwrap().unwrap();
    }
    let more = tokio::time::timeout(Duration::from_millis(100), events.message()).await;
    assert!(more.is_err(), "the execution goes on: {more:?}");
    assert_eq!(world.node.input(), ["start", "stdin x", "end"]);
    drop(events);
    assert_eventually("the drop", || world.node.in_flight() == 0).await;
}

#[tokio::test]
async fn first_message_must_start() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let cases = [
        (vec![], "start"),
        (vec![input(Input::CloseStdin(ExecCloseStdin {})), start(id)], "start"),
        (vec![ExecRequest { input: None }], "start"),
        (vec![input(Input::Start(ExecStart { request: None, terminal: None }))], "start.request"),
    ];
    for (messages, field) in cases {
        let refused = error(world.ada().exec(tokio_stream::iter(messages)).await);
        assert_eq!((refused.kind(), refused.violations()[0].field.as_str()), (ErrorKind::InvalidArgument, field));
    }
    let nothing = error(world.ada().execute_stream(ExecuteStreamRequest { request: None }).await);
    assert_eq!(nothing.violations()[0].field, "request");
    assert_eq!(world.node.calls(), [""; 0]);
}

#[tokio::test]
async fn caller_that_reads_slowly_slows_the_node() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let (send, receive) = mpsc::channel::<ExecRequest>(1);
    send.send(start(id)).await.unwrap();
    let events = world.ada().exec(ReceiverStream::new(receive)).await.unwrap().into_inner();
    let piece = input(Input::Stdin(Bytes::from(vec![b'x'; 64 * 1024])));
    let mut sent = 0;
    while sent < 10_000 {
        let sending = tokio::time::timeout(Duration::from_millis(200), send.send(piece.clone())).await;
        if sending.is_err() {
            break;
        }
        sent += 1;
    }
    assert!(sent < 1000, "{sent} pieces were taken though nobody reads");
    drop(events);
}

/// Dials one address, whatever is asked for.
struct Always(String);

impl Dial for Always {
    fn dial(&self, _address: &str) -> Result<Upstream, BoxError> {
        cloud_sandbox_rpc::connect(&self.0)
    }
}

/// Serves on a free port of the loopback until the test ends.
async fn served(routes: tonic::service::Routes) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
    address
}

/// A client of an exec service on the network, which calls the world's node over the network too.
async fn networked(world: &World) -> ExecServiceClient<Upstream> {
    let node = served(tonic::service::Routes::new(NodeServiceServer::new(world.node.clone()))).await;
    let service = ExecService::new(world.directory.clone(), Arc::new(Always(node))).grpc();
    let identify = |mut request: Request<()>| {
        request.extensions_mut().insert(principal("ada", Role::User));
        Ok(request)
    };
    let exec = served(tonic::service::Routes::new(InterceptedService::new(service, identify))).await;
    ExecServiceClient::new(cloud_sandbox_rpc::connect(&exec).unwrap())
}

#[tokio::test]
async fn interactive_call_ends_at_its_deadline_though_the_caller_keeps_its_side_open() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let (send, receive) = mpsc::channel(1);
    send.send(start(id)).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(receive));
    request.set_timeout(Duration::from_millis(100));
    let mut events = networked(&world).await.exec(request).await.unwrap().into_inner();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "started");
    assert_eq!(from_status(&events.message().await.unwrap_err()).kind(), ErrorKind::DeadlineExceeded);
    assert_eventually("the node call's end", || world.node.in_flight() == 0).await;
    drop(send);
}

#[tokio::test]
async fn over_the_network_it_relays_and_hanging_up_drops_the_nodes_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut client = networked(&world).await;
    assert_eq!(client.execute(code(id, "1")).await.unwrap().into_inner().stdout, "1");

    let (send, receive) = mpsc::channel(1);
    send.send(start(id)).await.unwrap();
    let mut events = client.exec(ReceiverStream::new(receive)).await.unwrap().into_inner();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "started");
    send.send(input(Input::Stdin(Bytes::from("x")))).await.unwrap();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "stdout Text(\"x\")");
    // a client's connection lets go of a call only when both directions are dropped
    drop((events, send));
    assert_eventually("the interactive call's drop", || world.node.in_flight() == 0).await;

    let mut events = client.execute_stream(streamed(id, FOREVER)).await.unwrap().into_inner();
    events.message().await.unwrap();
    drop(events);
    assert_eventually("the stream's drop", || world.node.in_flight() == 0).await;

    world.node.fail("Execute", Fault::Hang);
    let mut another = client.clone();
    let call = tokio::spawn(async move { another.execute(code(id, "1")).await });
    assert_eventually("the call's arrival", || world.node.in_flight() == 1).await;
    call.abort();
    assert_eventually("the call's drop", || world.node.in_flight() == 0).await;
}
