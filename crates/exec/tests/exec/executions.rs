//! Streams of executions.

use std::time::Duration;

use bytes::Bytes;
use cloud_sandbox_model::ErrorKind;
use cloud_sandbox_proto::v1::{
    ExecAttach, ExecCloseStdin, ExecRequest, ExecStart, ExecuteStreamRequest, exec_request::Input,
};
use cloud_sandbox_rpc::from_status;
use cloud_sandbox_sim_node::{FOREVER, Fault, assert_eventually};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;

use crate::support::{World, code, error, input, start, streamed, word};

#[tokio::test]
async fn output_comes_as_it_is_printed_and_ends() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let mut events = world.ada().exec.execute_stream(streamed(id, "hi")).await.unwrap().into_inner();
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

    let mut events = world.ada().exec.execute_stream(streamed(id, FOREVER)).await.unwrap().into_inner();
    events.message().await.unwrap();
    assert_eq!(world.node.in_flight(), 1);
    drop(events);
    assert_eventually("the stream's drop", || world.node.in_flight() == 0).await;

    world.node.fail("Execute", Fault::Hang);
    let mut client = world.ada().exec;
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
        request.set_timeout(Duration::from_secs(2));
        request
    };
    let mut forever = Request::new(streamed(id, FOREVER));
    forever.set_timeout(Duration::from_secs(2));
    let mut events = world.ada().exec.execute_stream(forever).await.unwrap().into_inner();
    let ended = loop {
        if let Err(status) = events.message().await {
            break from_status(&status);
        }
    };
    assert_eq!(ended.kind(), ErrorKind::DeadlineExceeded);

    world.node.fail("Execute", Fault::Hang);
    let ended = error(world.ada().exec.execute(within(Request::new(code(id, "1")))).await);
    assert_eq!(ended.kind(), ErrorKind::DeadlineExceeded);
    assert_eventually("the drop of both", || world.node.in_flight() == 0).await;
}

#[tokio::test]
async fn interactive_execution_is_relayed_both_ways() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let (send, receive) = mpsc::channel(8);
    send.send(start(id)).await.unwrap();
    let mut events = world.ada().exec.exec(ReceiverStream::new(receive)).await.unwrap().into_inner();
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
    let mut events = world.ada().exec.exec(tokio_stream::iter(messages)).await.unwrap().into_inner();
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
        (vec![input(Input::Start(ExecStart::default()))], "start.request"),
    ];
    for (messages, field) in cases {
        let refused = error(world.ada().exec.exec(tokio_stream::iter(messages)).await);
        assert_eq!((refused.kind(), refused.violations()[0].field.as_str()), (ErrorKind::InvalidArgument, field));
    }
    let nothing = error(world.ada().exec.execute_stream(ExecuteStreamRequest { request: None }).await);
    assert_eq!(nothing.violations()[0].field, "request");
    assert_eq!(world.node.calls(), [""; 0]);
}

#[tokio::test]
async fn caller_that_reads_slowly_slows_the_node() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let (send, receive) = mpsc::channel::<ExecRequest>(1);
    send.send(start(id)).await.unwrap();
    let events = world.ada().exec.exec(ReceiverStream::new(receive)).await.unwrap().into_inner();
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

#[tokio::test]
async fn caller_attaches_to_an_execution_by_the_first_message() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    let attach = ExecAttach { sandbox_id: id.to_string(), execution_id: "ex1".into(), ..ExecAttach::default() };
    let messages = [input(Input::Attach(attach.clone())), input(Input::Signal("SIGINT".into()))];
    let mut events = world.ada().exec.exec(tokio_stream::iter(messages)).await.unwrap().into_inner();
    assert_eq!(word(events.message().await.unwrap().unwrap().event), "started");
    assert_eventually("the signal", || world.node.input().contains(&"signal SIGINT".to_owned())).await;
    assert_eq!(world.node.input()[0], "attach");
    let theirs = error(world.by("bob").exec.exec(tokio_stream::iter([input(Input::Attach(attach))])).await);
    assert_eq!(theirs.kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn stream_is_relayed_as_it_comes() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    for come in 1..=2 {
        world.node.fail("ExecuteStream", Fault::Stall(come));
        let mut events = world.ada().exec.execute_stream(streamed(id, "hi")).await.unwrap().into_inner();
        for expected in &["started", "stdout Text(\"hi\")"][..come] {
            assert_eq!(word(events.message().await.unwrap().unwrap().event), *expected);
        }
    }
}
