//! Forking: a new session from what another one was.

use cloud_sandbox_model::{ErrorKind, error::reason};
use cloud_sandbox_proto::v1::{CreateSessionRequest, ForkSessionRequest, PauseDepth, SessionState};
use cloud_sandbox_sim_node::Fault;

use crate::world::{World, anything, fork_of, sandbox};

#[tokio::test]
async fn fork_of_a_running_session_has_what_it_has_now_and_leaves_it_running() {
    let world = World::new().await;
    let labels = [("a".to_owned(), "1".to_owned())].into();
    let wanted = CreateSessionRequest { metadata: labels, timeout_seconds: 77, auto_resume: true, ..anything() };
    let session = world.create("ada", wanted).await.unwrap();
    let id = &session.session_id;
    world.node.set_content(sandbox(&session), "one\n");
    let fork = world.fork(fork_of(id)).await.unwrap();
    assert_eq!((fork.state(), &fork.forked_from), (SessionState::Running, id));
    assert_eq!((fork.timeout_seconds, fork.auto_resume, fork.metadata.len()), (77, true, 0));
    assert_eq!(world.content(&fork.session_id).await, "one\n");
    let manifest = fork.resume_manifest.unwrap();
    assert_eq!((manifest.depth(), manifest.checkpoint_id), (PauseDepth::Checkpointed, fork.checkpoint_id.clone()));
    assert_eq!(world.checkpoints(&fork.session_id).await, [fork.checkpoint_id]);
    let of = world.get(id).await.unwrap();
    assert_eq!((of.state(), &of.sandbox_id), (SessionState::Running, &session.sandbox_id));
    world.node.set_content(fork.sandbox_id.parse().unwrap(), "two\n");
    assert_eq!(world.content(id).await, "one\n");
    assert_eq!(world.kinds(&fork.session_id).await, ["forked"]);
}

#[tokio::test]
async fn fork_of_a_paused_session_has_its_last_checkpoint() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    let refused = world.fork(fork_of(id)).await.unwrap_err();
    assert_eq!((refused.kind(), refused.reason()), (ErrorKind::FailedPrecondition, reason::SESSION_STATE));
    let older = world.pause(id, PauseDepth::Checkpointed).await.unwrap().checkpoint_id;
    let fork = world.fork(fork_of(id)).await.unwrap();
    assert_eq!(world.content(&fork.session_id).await, "one\n");
    let resumed = world.resume(id).await.unwrap();
    world.node.set_content(sandbox(&resumed), "two\n");
    let from_older = ForkSessionRequest { checkpoint_id: older, ..fork_of(id) };
    let fork = world.fork(from_older).await.unwrap();
    assert_eq!(world.content(&fork.session_id).await, "one\n");
}

#[tokio::test]
async fn request_id_makes_one_fork() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let wanted = || ForkSessionRequest { request_id: "r".into(), ..fork_of(&session.session_id) };
    let first = world.fork(wanted()).await.unwrap();
    assert_eq!(world.fork(wanted()).await.unwrap().session_id, first.session_id);
    let other = ForkSessionRequest { metadata: [("a".to_owned(), "1".to_owned())].into(), ..wanted() };
    assert_eq!(world.fork(other).await.unwrap_err().reason(), reason::REQUEST_ID_REUSED);
    assert_eq!(world.node.sandboxes().len(), 2);
}

#[tokio::test]
async fn retry_of_a_fork_goes_on_with_the_checkpoint_of_the_first_try() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let wanted = || ForkSessionRequest { request_id: "r".into(), ..fork_of(&session.session_id) };
    world.node.fail("AcquireSandbox", Fault::LoseReply);
    assert_eq!(world.fork(wanted()).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.node.heal("AcquireSandbox");
    world.node.set_content(sandbox(&session), "two\n");
    let fork = world.fork(wanted()).await.unwrap().session_id;
    let runs = world.content(&fork).await;
    world.node.end(world.stored(&fork).await.unwrap().sandbox.unwrap()).await;
    world.get(&fork).await.unwrap();
    world.resume(&fork).await.unwrap();
    assert_eq!(world.content(&fork).await, runs, "what its checkpoint holds is what it was made from");
}

#[tokio::test]
async fn fork_that_gets_no_sandbox_leaves_nothing() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    for (method, kind) in [("AcquireSandbox", ErrorKind::ResourceExhausted), ("RestoreSandbox", ErrorKind::DataLoss)] {
        world.node.fail(method, Fault::Refuse(kind));
        assert_eq!(world.fork(fork_of(&session.session_id)).await.unwrap_err().kind(), kind);
        world.node.heal(method);
        assert_eq!((world.all().await.len(), world.node.sandboxes()), (1, vec![sandbox(&session)]));
    }
}
