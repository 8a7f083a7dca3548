//! The same over the network: what HTTP/2 makes of ends, cancels and broken connections.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cloud_sandbox_auth::Role;
use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{DownloadFileRequest, ExecuteRequest, exec_request::Input};
use cloud_sandbox_rpc::{
    Dial, Upstream, from_status,
    upstream::{BoxError, CONNECTION_WINDOW, STREAM_WINDOW, STREAMS},
};
use cloud_sandbox_sim_node::{FOREVER, Fault, assert_eventually, principal};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Request, service::Routes};

use crate::support::{Clients, World, code, commit, data, error, header, input, start, streamed, word};

/// Dials one address, whatever is asked for.
struct Always(String);

impl Dial for Always {
    fn dial(&self, _address: &str) -> Result<Upstream, BoxError> {
        cloud_sandbox_rpc::connect(&self.0)
    }
}

/// Serves on a free port of the loopback until the test ends.
async fn served(routes: Routes) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder()
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        .add_routes(routes);
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener).map(|accepted| {
        // without it an upload waits for its window updates
        accepted.and_then(|stream| stream.set_nodelay(true).map(|()| stream))
    });
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// Clients of services on the network that call the world's node at `node`.
async fn networked_to(world: &World, node: String) -> Clients {
    let edge = served(world.routes(principal("ada", Role::User), Arc::new(Always(node)))).await;
    Clients::over(cloud_sandbox_rpc::connect(&edge).unwrap())
}

/// The same, with the node on the network too.
async fn networked(world: &World) -> Clients {
    let node = served(world.node.routes()).await;
    networked_to(world, node).await
}

#[tokio::test]
async fn interactive_call_ends_at_its_deadline_though_the_caller_keeps_its_side_open() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut client = networked(&world).await.exec;
    // connections are made by the first call
    client.execute(code(id, "1")).await.unwrap();
    let (send, receive) = mpsc::channel(1);
    send.send(start(id)).await.unwrap();
    let mut request = Request::new(ReceiverStream::new(receive));
    request.set_timeout(Duration::from_secs(2));
    let mut events = client.exec(request).await.unwrap().into_inner();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "started");
    assert_eq!(from_status(&events.message().await.unwrap_err()).kind(), ErrorKind::DeadlineExceeded);
    assert_eventually("the node call's end", || world.node.in_flight() == 0).await;
    drop(send);
}

#[tokio::test]
async fn over_the_network_it_relays_and_hanging_up_drops_the_nodes_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut client = networked(&world).await.exec;
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

/// A node that breaks off each connection once it has heard something, until it is healed; then it passes bytes on to
/// `node`.
async fn breaking(node: String, breaks: usize) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        for number in 0.. {
            let (mut caller, _) = listener.accept().await.unwrap();
            let mut there = tokio::net::TcpStream::connect(node.trim_start_matches("http://")).await.unwrap();
            if number < breaks {
                // the preface and the settings of HTTP/2 come first, and the node's are waited for
                let mut bytes = vec![0; 64 * 1024];
                let mut heard = 0;
                while heard < 200 {
                    tokio::select! {
                        read = caller.read(&mut bytes) => {
                            let read = read.unwrap();
                            heard += read;
                            there.write_all(&bytes[..read]).await.unwrap();
                        }
                        read = async {
                            let mut answer = [0; 4096];
                            there.read(&mut answer).await.map(|read| answer[..read].to_vec())
                        } => caller.write_all(&read.unwrap()).await.unwrap(),
                    }
                }
            } else {
                tokio::spawn(async move { copy_bidirectional(&mut caller, &mut there).await });
            }
        }
    });
    address
}

#[tokio::test]
async fn connection_that_breaks_is_an_unknown_outcome_or_is_tried_again_with_a_request_id() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let node = served(world.node.routes()).await;
    world.node.fail("Execute", Fault::Hang);
    let mut clients = networked_to(&world, breaking(node.clone(), 1).await).await;
    let unknown = error(clients.exec.execute(code(id, "1")).await);
    assert_eq!((unknown.kind(), unknown.reason()), (ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN));

    world.node.heal("Execute");
    let mut clients = networked_to(&world, breaking(node, 1).await).await;
    let named = ExecuteRequest { request_id: "r1".into(), ..code(id, "1") };
    assert_eq!(clients.exec.execute(named).await.unwrap().into_inner().stdout, "1");
}

#[tokio::test]
async fn node_where_nothing_listens_has_run_nothing() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    // port 9 (discard) of the loopback: nothing listens there
    let mut clients = networked_to(&world, "http://127.0.0.1:9".into()).await;
    let refused = error(clients.exec.execute(code(id, "1")).await);
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::Unavailable, reason::NODE_UNREACHABLE));
}

#[tokio::test]
async fn upload_whose_caller_hangs_up_is_not_committed_and_its_node_call_ends() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut files = networked(&world).await.files;
    let (send, receive) = mpsc::channel(4);
    send.send(header(id)).await.unwrap();
    send.send(data("abc")).await.unwrap();
    let call = tokio::spawn(async move { files.upload_file(ReceiverStream::new(receive)).await });
    assert_eventually("the upload's arrival", || world.node.in_flight() == 1).await;
    call.abort();
    drop(send);
    assert_eventually("the upload's end", || world.node.in_flight() == 0).await;
    assert!(!world.node.uploads().iter().any(|upload| upload.starts_with("commit")), "{:?}", world.node.uploads());
}

#[tokio::test]
async fn upload_ends_at_its_deadline_though_the_caller_keeps_sending() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut files = networked(&world).await.files;
    let (send, receive) = mpsc::channel(4);
    send.send(header(id)).await.unwrap();
    let sender = tokio::spawn(async move { while send.send(data("abc")).await.is_ok() {} });
    let mut request = Request::new(ReceiverStream::new(receive));
    request.set_timeout(Duration::from_millis(200));
    // the client's own clock may be the first to notice, and calls it cancelled
    let ended = error(files.upload_file(request).await).kind();
    assert!(matches!(ended, ErrorKind::DeadlineExceeded | ErrorKind::Cancelled), "{ended:?}");
    assert_eventually("the upload's end", || world.node.in_flight() == 0).await;
    assert!(!world.node.uploads().iter().any(|upload| upload.starts_with("commit")), "{:?}", world.node.uploads());
    sender.await.unwrap();
}

#[tokio::test]
async fn upload_that_the_node_does_not_read_is_not_taken_from_the_caller() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.fail("UploadFile", Fault::Hang);
    let mut files = networked(&world).await.files;
    let (send, receive) = mpsc::channel(1);
    send.send(header(id)).await.unwrap();
    let call = tokio::spawn(async move { files.upload_file(ReceiverStream::new(receive)).await });
    let mut taken = 0;
    let piece = data(vec![0; 256 * 1024]);
    while tokio::time::timeout(Duration::from_millis(300), send.send(piece.clone())).await.is_ok() {
        taken += 1;
        assert!(taken < 200, "{taken} pieces were taken though the node reads none");
    }
    call.abort();
}

#[tokio::test]
async fn download_is_not_read_ahead_of_its_caller() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let mut files = networked(&world).await.files;
    let request = DownloadFileRequest { sandbox_id: id, length: 1 << 30, ..DownloadFileRequest::default() };
    let mut pieces = files.download_file(request).await.unwrap().into_inner();
    pieces.message().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(world.node.sent("DownloadFile") < 100, "{} pieces were sent to nobody", world.node.sent("DownloadFile"));
    drop(pieces);
    assert_eventually("the download's drop", || world.node.in_flight() == 0).await;
}

#[tokio::test]
async fn streams_that_nobody_reads_hold_up_no_other_call() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut clients = networked(&world).await;
    let mut unread = Vec::new();
    for _ in 0..16 {
        let request =
            DownloadFileRequest { sandbox_id: id.to_string(), length: 1 << 30, ..DownloadFileRequest::default() };
        let mut pieces = clients.files.download_file(request).await.unwrap().into_inner();
        pieces.message().await.unwrap();
        unread.push(pieces);
    }
    let sent = std::cell::Cell::new(0);
    let is_full = || sent.replace(world.node.sent("DownloadFile")) == sent.get();
    assert_eventually("the streams to be as full as they get", is_full).await;
    assert_eq!(clients.exec.execute(code(id, "1")).await.unwrap().into_inner().stdout, "1");
}

/// What a relay costs: 256 MiB down and up, without and with it; `--run-ignored only --no-capture`.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement, not a check"]
async fn speed() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let node = served(world.node.routes()).await;
    let direct = Clients::over(cloud_sandbox_rpc::connect(&node).unwrap());
    let networked = networked_to(&world, node).await;
    for (kind, clients) in [("node, network", direct), ("relay, process", world.ada()), ("relay, network", networked)] {
        let mut files = clients.files;
        let began = std::time::Instant::now();
        let request = DownloadFileRequest { sandbox_id: id.clone(), length: 256 << 20, ..Default::default() };
        let mut pieces = files.download_file(request).await.unwrap().into_inner();
        while pieces.message().await.unwrap().is_some() {}
        let down = began.elapsed();
        let began = std::time::Instant::now();
        let pieces = std::iter::repeat_n(data(vec![0; 256 * 1024]), 1024);
        let all: Vec<_> = std::iter::once(header(&id)).chain(pieces).chain([commit()]).collect();
        files.upload_file(tokio_stream::iter(all)).await.unwrap();
        eprintln!("{kind}: down {down:?}, up {:?}", began.elapsed());
    }
}
