//! Creating once, whatever happens to the call.

use std::time::Duration;

use cloud_sandbox_model::{ErrorKind, SessionState as State, error::reason};
use cloud_sandbox_proto::v1::{
    CreateSessionRequest, ListSessionsRequest, SessionState, session_service_server::SessionService as _,
};
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::{Fault, assert_eventually};

use crate::world::{World, anything, call, once, outcome, sandbox};

#[tokio::test]
async fn request_id_makes_one_session_and_one_sandbox() {
    let world = World::new().await;
    let first = world.create("ada", once("r")).await.unwrap();
    assert_eq!(world.create("ada", once("r")).await.unwrap(), first);
    let other = CreateSessionRequest { timeout_seconds: 9, ..once("r") };
    let refused = world.create("ada", other).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::AlreadyExists, reason::REQUEST_ID_REUSED));
    assert_eq!(world.node.sandboxes().len(), 1);
    assert_ne!(world.create("bob", once("r")).await.unwrap().session_id, first.session_id);
}

#[tokio::test]
async fn create_that_is_refused_leaves_nothing() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Refuse(ErrorKind::InvalidArgument));
    assert_eq!(world.create("ada", once("r")).await.unwrap_err().kind(), ErrorKind::InvalidArgument);
    world.node.heal("AcquireSandbox");
    let list = world.service.list_sessions(call("ada", ListSessionsRequest::default())).await.unwrap();
    assert!(list.into_inner().sessions.is_empty());
    assert!(world.create("ada", once("r")).await.is_ok(), "its request id is free again");
}

#[tokio::test]
async fn retry_of_a_create_whose_reply_was_lost_gets_the_first_sandbox() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::LoseReply);
    assert_eq!(world.create("ada", once("r")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.node.heal("AcquireSandbox");
    let session = world.create("ada", once("r")).await.unwrap();
    assert_eq!(world.node.sandboxes(), [sandbox(&session)]);
}

#[tokio::test]
async fn create_goes_on_although_its_caller_hung_up() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Hold);
    let replica = world.another(Options::default());
    let creating = tokio::spawn(async move { replica.create("ada", once("r")).await });
    assert_eventually("the acquire", || world.node.in_flight() == 1).await;
    creating.abort();
    world.node.heal("AcquireSandbox");
    let session = world.create("ada", once("r")).await.unwrap();
    assert_eq!((session.state(), world.node.sandboxes()), (SessionState::Running, vec![sandbox(&session)]));
}

#[tokio::test]
async fn create_whose_outcome_nobody_knows_fails_when_no_retry_comes() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::LoseReply);
    assert_eq!(world.create("ada", once("r")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    let left = world.all().await.remove(0);
    assert_eq!(left.state, State::Creating);
    assert!(left.due_at.unwrap() > left.updated_at + Duration::from_secs(30), "a retry has its time");
    world.look().await;
    let failed = world.get(&left.id.to_string()).await.unwrap();
    assert_eq!((failed.state(), failed.failure.as_str()), (SessionState::Failed, "its creation was interrupted"));
    assert_eq!(world.create("ada", once("r")).await.unwrap(), failed);
    world.delete(&failed.session_id).await.unwrap();
}

#[tokio::test]
async fn lease_of_a_sandbox_is_long_only_when_a_row_names_it() {
    let world = World::new().await;
    world.node.fail("KeepAliveSandbox", Fault::Refuse(ErrorKind::Unavailable));
    let session = world.create("ada", anything()).await.unwrap();
    let lease_end = || world.node.lease_end(sandbox(&session)).unwrap();
    let first_look = world.stored(&session.session_id).await.unwrap().due_at.unwrap();
    assert!(first_look + Duration::from_secs(30) < lease_end(), "there is time for another try");
    world.node.heal("KeepAliveSandbox");
    world.look().await;
    assert!(lease_end() > first_look + Duration::from_secs(80_000));
}

#[tokio::test]
async fn session_deleted_while_it_is_created_leaves_no_sandbox() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Hold);
    let service = world.service.clone();
    let creating = tokio::spawn(async move { service.create_session(call("ada", anything())).await });
    assert_eventually("the acquire", || world.node.in_flight() == 1).await;
    let list = world.service.list_sessions(call("ada", ListSessionsRequest::default())).await.unwrap().into_inner();
    world.delete(&list.sessions[0].session_id).await.unwrap();
    world.node.heal("AcquireSandbox");
    assert_eq!(outcome(creating.await.unwrap()).unwrap_err().reason(), reason::SESSION_NOT_FOUND);
    assert_eq!((world.node.called("AcquireSandbox"), world.node.sandboxes()), (1, vec![]));
}

#[tokio::test]
async fn two_creates_at_once_with_one_request_id_make_one_session() {
    let world = World::new().await;
    world.node.fail("AcquireSandbox", Fault::Hold);
    let creating = ["a", "b"].map(|_| {
        let service = world.service.clone();
        tokio::spawn(async move { service.create_session(call("ada", once("r"))).await.unwrap().into_inner() })
    });
    assert_eventually("an acquire", || world.node.in_flight() == 1).await;
    world.node.heal("AcquireSandbox");
    let [first, second] = creating;
    assert_eq!(first.await.unwrap(), second.await.unwrap());
    assert_eq!(world.node.sandboxes().len(), 1);
}
