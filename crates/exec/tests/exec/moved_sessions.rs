//! Sessions that have another sandbox than was known a moment ago.

use std::future::Future;

use cloud_sandbox_model::{ErrorKind, SandboxId, error::reason};
use cloud_sandbox_proto::v1::{ExecuteRequest, ListExecutionsRequest, WriteFileRequest};
use cloud_sandbox_sim_node::Fault;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::{Clients, World, code, commit, data, error, header, start, streamed, word};

/// How a session loses its sandbox.
#[derive(Debug, Clone, Copy)]
enum Loss {
    /// nobody knows it any more
    Forgotten,
    /// what it printed can still be read
    Ended,
}

/// Has `call` made in a session whose sandbox was just used, and which has another one by now.
async fn after_a_move<F: Future<Output = ()>>(loss: Loss, call: impl Fn(Clients, String) -> F) {
    let world = World::new().await;
    let (old, new) = (world.node.host("ada").await, world.node.host("ada").await);
    let session = world.sessions.running("ada", old);
    let clients = world.ada();
    clients.exec.clone().execute(code(&session, "1")).await.unwrap();
    lose(&world, old, loss).await;
    world.sessions.put(&session, new);
    call(clients, session).await;
}

async fn lose(world: &World, id: SandboxId, loss: Loss) {
    match loss {
        Loss::Forgotten => world.node.forget(id),
        Loss::Ended => world.node.end(id).await,
    }
}

#[tokio::test]
async fn call_in_a_session_finds_its_new_sandbox() {
    for loss in [Loss::Forgotten, Loss::Ended] {
        after_a_move(loss, |mut clients, session| async move {
            let answer = clients.exec.execute(code(session, "2")).await.unwrap().into_inner();
            assert_eq!(answer.stdout, "2", "{loss:?}");
        })
        .await;
        after_a_move(loss, |mut clients, session| async move {
            let mut events = clients.exec.execute_stream(streamed(session, "2")).await.unwrap().into_inner();
            assert_eq!(word(events.message().await.unwrap().unwrap().event), "started", "{loss:?}");
        })
        .await;
        after_a_move(loss, |mut clients, session_id| async move {
            let append = WriteFileRequest { session_id, path: "/a".into(), append: true, ..Default::default() };
            clients.files.write_file(append).await.unwrap();
        })
        .await;
        after_a_move(loss, |mut clients, session| async move {
            let mut events = clients.exec.exec(tokio_stream::iter([start(session)])).await.unwrap().into_inner();
            assert_eq!(word(events.message().await.unwrap().unwrap().event), "started", "{loss:?}");
        })
        .await;
        after_a_move(loss, |mut clients, session| async move {
            let parts = [header(session), data("abc"), commit()];
            clients.files.upload_file(tokio_stream::iter(parts)).await.unwrap();
        })
        .await;
    }
}

#[tokio::test]
async fn session_that_was_frozen_meanwhile_is_resumed_by_its_use() {
    let world = World::new().await;
    let sandbox = world.node.host("ada").await;
    let session = world.sessions.running("ada", sandbox);
    let mut exec = world.ada().exec;
    exec.execute(code(&session, "1")).await.unwrap();
    world.node.freeze(sandbox);
    world.sessions.pause(&session, true, None);
    assert_eq!(exec.execute(code(&session, "2")).await.unwrap().into_inner().stdout, "2");
    assert_eq!(world.sessions.called("ResumeSession"), 1);

    world.node.freeze(sandbox);
    world.sessions.pause(&session, false, None);
    let refused = error(exec.execute(code(&session, "3")).await);
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE));
}

#[tokio::test]
async fn code_that_was_running_when_its_sandbox_ended_is_not_run_again_unless_it_has_a_request_id() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    let mut exec = world.ada().exec;
    world.node.fail("Execute", Fault::EndMeanwhile);
    let gone = error(exec.execute(code(&session, "1")).await);
    assert_eq!((gone.reason(), world.node.called("Execute")), (reason::SANDBOX_GONE, 1));
    let named = ExecuteRequest { request_id: "r1".into(), ..code(&session, "1") };
    let gone = error(exec.execute(named).await);
    assert_eq!((gone.reason(), world.node.called("Execute")), (reason::SANDBOX_GONE, 3));
}

#[tokio::test]
async fn call_looks_for_a_new_sandbox_once() {
    let world = World::new().await;
    let sandbox = world.node.host("ada").await;
    let session = world.sessions.running("ada", sandbox);
    world.node.freeze(sandbox);
    let refused = error(world.ada().exec.execute(code(&session, "1")).await);
    assert_eq!(refused.reason(), reason::SANDBOX_PAUSED);
    assert_eq!((world.node.called("Execute"), world.sessions.called("GetSession")), (2, 2));
}

#[tokio::test]
async fn sandbox_that_is_named_itself_is_not_looked_for() {
    let world = World::new().await;
    let id = world.node.host("ada").await;
    world.node.freeze(id);
    assert_eq!(error(world.ada().exec.execute(code(id, "1")).await).reason(), reason::SANDBOX_PAUSED);
    assert_eq!((world.node.called("Execute"), world.sessions.called("GetSession")), (1, 0));
}

#[tokio::test]
async fn upload_goes_to_the_new_sandbox_when_only_its_header_is_on_the_way() {
    let world = World::new().await;
    let (old, new) = (world.node.host("ada").await, world.node.host("ada").await);
    let session = world.sessions.running("ada", old);
    world.sessions.put_later(&session, new);
    world.node.forget(old);
    let (send, receive) = mpsc::channel(4);
    send.send(header(&session)).await.unwrap();
    let mut files = world.ada().files;
    let call = tokio::spawn(async move { files.upload_file(ReceiverStream::new(receive)).await });
    let twice = || world.node.called("UploadFile") == 2;
    cloud_sandbox_sim_node::assert_eventually("the second try", twice).await;
    send.send(data("abc")).await.unwrap();
    send.send(commit()).await.unwrap();
    drop(send);
    call.await.unwrap().unwrap();
    assert_eq!(world.node.uploads(), ["commit 3"], "the new sandbox has all of it");
}

#[tokio::test]
async fn upload_that_was_read_is_to_be_made_again_by_its_caller() {
    let world = World::new().await;
    let session = world.sessions.running("ada", world.node.host("ada").await);
    world.node.fail("UploadFile", Fault::GoneAtSecondMessage);
    let parts = [header(&session), data("abc"), commit()];
    let refused = error(world.ada().files.upload_file(tokio_stream::iter(parts)).await);
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::Aborted, reason::SESSION_STATE));
    assert!(refused.message().contains("again"), "{refused}");
    assert_eq!(world.node.called("UploadFile"), 1);
}

#[tokio::test]
async fn executions_are_read_in_the_sandbox_that_the_session_has_now() {
    after_a_move(Loss::Ended, |mut clients, session_id| async move {
        // a call that knows the directory's entry of the sandbox that has ended
        clients.exec.execute(code(&session_id, "1")).await.unwrap();
        let list = ListExecutionsRequest { session_id, ..ListExecutionsRequest::default() };
        clients.exec.list_executions(list).await.unwrap();
    })
    .await;
}
