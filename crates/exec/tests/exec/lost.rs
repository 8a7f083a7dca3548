//! What is made of answers that get lost.

use cloud_sandbox_model::{Error, ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{
    CreateContextRequest, ExecStart, ExecuteRequest, ExecuteStreamRequest, MoveFileRequest, StartExecutionRequest,
    StatFileRequest, WriteExecutionStdinRequest, WriteFileRequest, exec_request::Input,
};
use cloud_sandbox_rpc::from_status;
use cloud_sandbox_sim_node::Fault;

use crate::support::{World, code, error, input, streamed, word};

fn words(error: &Error) -> (ErrorKind, &str) {
    (error.kind(), error.reason())
}

const UNKNOWN: (ErrorKind, &str) = (ErrorKind::DataLoss, reason::OUTCOME_UNKNOWN);
const UNREACHABLE: (ErrorKind, &str) = (ErrorKind::Unavailable, reason::NODE_UNREACHABLE);

fn named(id: &str) -> ExecuteRequest {
    ExecuteRequest { request_id: "r1".into(), ..code(id, "1") }
}

#[tokio::test]
async fn lost_reply_of_what_cannot_be_asked_again_is_an_unknown_outcome_and_is_not_tried_again() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let clients = world.ada();
    let (mut exec, mut files) = (clients.exec, clients.files);
    for method in ["Execute", "ExecuteStream", "Exec", "StartExecution", "WriteExecutionStdin", "WriteFile"] {
        world.node.fail(method, Fault::LoseReply);
    }
    let begin = ExecStart { request: Some(code(&id, "1")), ..ExecStart::default() };
    let stdin = WriteExecutionStdinRequest { sandbox_id: id.clone(), ..WriteExecutionStdinRequest::default() };
    let append = WriteFileRequest { sandbox_id: id.clone(), append: true, ..WriteFileRequest::default() };
    let heard = [
        ("Execute", error(exec.execute(code(&id, "1")).await)),
        ("ExecuteStream", error(exec.execute_stream(streamed(&id, "1")).await)),
        ("Exec", error(exec.exec(tokio_stream::iter([input(Input::Start(begin))])).await)),
        ("StartExecution", error(exec.start_execution(StartExecutionRequest { request: Some(code(&id, "1")) }).await)),
        ("WriteExecutionStdin", error(exec.write_execution_stdin(stdin).await)),
        ("WriteFile", error(files.write_file(append).await)),
    ];
    for (method, error) in heard {
        assert_eq!(words(&error), UNKNOWN, "{method}");
        assert_eq!(world.node.called(method), 1, "{method}");
    }
}

#[tokio::test]
async fn lost_reply_of_what_can_be_asked_again_is_unavailable() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let clients = world.ada();
    let (mut exec, mut files) = (clients.exec, clients.files);
    for method in ["Execute", "ExecuteStream", "Exec", "StartExecution", "WriteExecutionStdin", "WriteFile"] {
        world.node.fail(method, Fault::LoseReply);
    }
    let begin = ExecStart { request: Some(named(&id)), ..ExecStart::default() };
    let stdin =
        WriteExecutionStdinRequest { sandbox_id: id.clone(), offset: Some(0), ..WriteExecutionStdinRequest::default() };
    let whole = WriteFileRequest { sandbox_id: id.clone(), ..WriteFileRequest::default() };
    let heard = [
        ("Execute", error(exec.execute(named(&id)).await)),
        ("ExecuteStream", error(exec.execute_stream(ExecuteStreamRequest { request: Some(named(&id)) }).await)),
        ("Exec", error(exec.exec(tokio_stream::iter([input(Input::Start(begin))])).await)),
        ("StartExecution", error(exec.start_execution(StartExecutionRequest { request: Some(named(&id)) }).await)),
        ("WriteExecutionStdin", error(exec.write_execution_stdin(stdin).await)),
        ("WriteFile", error(files.write_file(whole).await)),
    ];
    for (method, error) in heard {
        assert_eq!(words(&error), UNREACHABLE, "{method}");
    }
}

#[tokio::test]
async fn what_is_safe_to_repeat_is_asked_again_once_when_its_connection_breaks() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    let clients = world.ada();
    let (mut exec, mut files, mut contexts) = (clients.exec, clients.files, clients.contexts);
    for method in ["Execute", "ExecuteStream", "StatFile", "CreateContext", "MoveFile"] {
        world.node.fail(method, Fault::LoseOneReply);
    }
    assert_eq!(exec.execute(named(&id)).await.unwrap().into_inner().stdout, "1");
    let stream = exec.execute_stream(ExecuteStreamRequest { request: Some(named(&id)) }).await;
    assert_eq!(word(stream.unwrap().into_inner().message().await.unwrap().unwrap().event), "started");
    files.stat_file(StatFileRequest { sandbox_id: id.clone(), ..StatFileRequest::default() }).await.unwrap();
    let create = CreateContextRequest { sandbox_id: id.clone(), request_id: "r1".into(), ..Default::default() };
    contexts.create_context(create).await.unwrap();
    for method in ["Execute", "ExecuteStream", "StatFile", "CreateContext"] {
        assert_eq!(world.node.called(method), 2, "{method}");
    }
    let moved = files.move_file(MoveFileRequest { sandbox_id: id, ..MoveFileRequest::default() }).await;
    assert_eq!(words(&error(moved)), UNREACHABLE);
    assert_eq!(world.node.called("MoveFile"), 1);
}

#[tokio::test]
async fn node_that_cannot_be_dialled_has_run_nothing() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.cut_off();
    assert_eq!(words(&error(world.ada().exec.execute(code(id, "1")).await)), UNREACHABLE);
}

#[tokio::test]
async fn stream_that_breaks_ends_with_an_error_and_tells_an_unknown_outcome_only_before_its_first_event() {
    let world = World::new().await;
    let id = world.node.host("ada").await.to_string();
    for (after, expected) in [(0, UNKNOWN), (1, UNREACHABLE), (2, UNREACHABLE)] {
        world.node.fail("ExecuteStream", Fault::Break(after));
        let mut events = world.ada().exec.execute_stream(streamed(&id, "1")).await.unwrap().into_inner();
        for _ in 0..after {
            events.message().await.unwrap().unwrap();
        }
        assert_eq!(words(&from_status(&events.message().await.unwrap_err())), expected, "after {after}");
        assert_eq!(world.node.in_flight(), 0);
    }
    world.node.fail("ExecuteStream", Fault::Break(0));
    let request = ExecuteStreamRequest { request: Some(named(&id)) };
    let mut events = world.ada().exec.execute_stream(request).await.unwrap().into_inner();
    assert_eq!(words(&from_status(&events.message().await.unwrap_err())), UNREACHABLE);
}
