//! Pausing at each depth, and going on.

use cloud_sandbox_model::{ErrorKind, SessionState as State, error::reason};
use cloud_sandbox_proto::v1::{CreateSessionRequest, PauseDepth, SessionState};
use cloud_sandbox_sim_node::Fault;
use cloud_sandbox_storage::{Directory as _, sessions::Depth};

use crate::world::{World, ago, anything, sandbox};

#[tokio::test]
async fn frozen_session_goes_on_in_its_sandbox_and_nothing_is_lost() {
    let world = World::new().await;
    let env = [("TOKEN".to_owned(), "secret".to_owned())].into();
    let session = world.create("ada", CreateSessionRequest { env, ..anything() }).await.unwrap();
    let paused = world.pause(&session.session_id, PauseDepth::Frozen).await.unwrap();
    assert_eq!((paused.state(), paused.pause_depth()), (SessionState::Paused, PauseDepth::Frozen));
    assert!(world.node.is_frozen(sandbox(&session)));
    assert_eq!(paused.expire_time, None, "its time does not pass");
    let resumed = world.resume(&session.session_id).await.unwrap();
    assert_eq!(
        (resumed.sandbox_id.as_str(), resumed.pause_depth()),
        (session.sandbox_id.as_str(), PauseDepth::Unspecified)
    );
    let manifest = resumed.resume_manifest.unwrap();
    assert_eq!((manifest.depth(), manifest.checkpoint_id.as_str()), (PauseDepth::Frozen, ""));
    assert_eq!((manifest.env, manifest.lost), (vec!["TOKEN".to_owned()], vec![]));
    assert!(resumed.expire_time.is_some());
}

#[tokio::test]
async fn checkpointed_session_frees_its_sandbox_and_goes_on_in_another() {
    let world = World::new().await;
    let env = [("TOKEN".to_owned(), "secret".to_owned())].into();
    let session = world.create("ada", CreateSessionRequest { env, ..anything() }).await.unwrap();
    let id = &session.session_id;
    world.node.set_content(sandbox(&session), "one\ntwo\n");
    let paused = world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    assert_eq!((paused.pause_depth(), paused.sandbox_id.as_str()), (PauseDepth::Checkpointed, ""));
    assert_eq!((world.node.sandboxes(), world.workspaces.all().len()), (vec![], 1));
    let entry = world.directory.sandbox(sandbox(&session)).await.unwrap();
    assert!(entry.unwrap().ended, "what it printed can be read on");

    let resumed = world.resume(id).await.unwrap();
    assert_ne!(resumed.sandbox_id, session.sandbox_id);
    assert_eq!(world.content(id).await, "one\ntwo\n");
    let manifest = resumed.resume_manifest.clone().unwrap();
    assert_eq!((manifest.depth(), &manifest.checkpoint_id), (PauseDepth::Checkpointed, &paused.checkpoint_id));
    assert_eq!((manifest.files, manifest.bytes, manifest.env), (2, 8, vec!["TOKEN".to_owned()]));
    assert_eq!(manifest.lost, [], "nothing was done after it");
    assert!(manifest.checkpoint_time.is_some());
    assert_eq!(world.resume(id).await.unwrap(), resumed, "it runs already");
    assert_eq!(world.get(id).await.unwrap().resume_manifest, resumed.resume_manifest);
    assert_eq!(world.kinds(id).await, ["created", "checkpointed", "paused", "resumed"]);
}

#[tokio::test]
async fn frozen_session_can_be_paused_deeper_and_not_less_deep() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    for depth in [PauseDepth::Checkpointed, PauseDepth::Frozen, PauseDepth::Auto, PauseDepth::Checkpointed] {
        let paused = world.pause(id, depth).await.unwrap();
        assert_eq!((paused.state(), paused.pause_depth()), (SessionState::Paused, PauseDepth::Checkpointed));
    }
    assert_eq!((world.node.called("CheckpointSandbox"), world.node.sandboxes()), (1, vec![]));
    world.resume(id).await.unwrap();
    assert_eq!(world.content(id).await, "one\n");
}

#[tokio::test]
async fn session_paused_by_default_is_frozen_and_checkpointed_after_a_while() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    assert_eq!(world.pause(id, PauseDepth::Unspecified).await.unwrap().pause_depth(), PauseDepth::Frozen);
    world.look().await;
    assert_eq!(world.get(id).await.unwrap().pause_depth(), PauseDepth::Frozen, "for now");
    let freeze_long_ago = async || {
        let since_ms = cloud_sandbox_storage::sessions::to_millis(ago(601));
        world.rewrite(id, |record| record.details.paused.as_mut().unwrap().since_ms = since_ms).await;
        world.look().await;
        world.get(id).await.unwrap().pause_depth()
    };
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    assert_eq!(freeze_long_ago().await, PauseDepth::Frozen, "the latest wish was to stay so");
    world.pause(id, PauseDepth::Auto).await.unwrap();
    assert_eq!(freeze_long_ago().await, PauseDepth::Checkpointed);
    let (kind, told) = world.events(id).await.pop().unwrap();
    assert_eq!(kind, "deepened");
    assert_eq!(told, "it was frozen for long: checkpointed; its processes are gone, its next resume says which");
    assert_eq!(world.node.sandboxes(), []);
    world.resume(id).await.unwrap();
    assert_eq!(world.content(id).await, "one\n");
}

#[tokio::test]
async fn wish_for_a_checkpoint_later_outlives_a_crash_while_freezing() {
    let world = World::new().await;
    let session = world.session_with("").await;
    world.node.fail("PauseSandbox", Fault::LoseReply);
    assert_eq!(world.pause(&session.session_id, PauseDepth::Auto).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.node.heal("PauseSandbox");
    world.rewrite(&session.session_id, |record| record.details.flight.as_mut().unwrap().until_ms = 0).await;
    world.look().await;
    let paused = world.stored(&session.session_id).await.unwrap().details.paused.unwrap();
    assert_eq!((paused.depth, paused.auto), (Depth::Frozen, true));
}

#[tokio::test]
async fn step_that_the_node_refuses_is_taken_back() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.node.fail("PauseSandbox", Fault::Refuse(ErrorKind::FailedPrecondition));
    assert_eq!(world.pause(id, PauseDepth::Frozen).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Running);
    world.node.heal("PauseSandbox");
    for kind in [ErrorKind::ResourceExhausted, ErrorKind::Internal] {
        world.node.fail("CheckpointSandbox", Fault::Refuse(kind));
        assert_eq!(world.pause(id, PauseDepth::Checkpointed).await.unwrap_err().kind(), kind);
        assert_eq!(world.get(id).await.unwrap().state(), SessionState::Running);
        assert_eq!(world.stored(id).await.unwrap().details.paused, None);
    }
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    assert!(world.pause(id, PauseDepth::Checkpointed).await.is_err());
    assert_eq!(world.get(id).await.unwrap().pause_depth(), PauseDepth::Frozen);
    assert!(world.node.is_frozen(sandbox(&session)), "also after the node thawed it for the attempt");
    world.node.fail("ResumeSandbox", Fault::Refuse(ErrorKind::FailedPrecondition));
    assert_eq!(world.resume(id).await.unwrap_err().kind(), ErrorKind::FailedPrecondition);
    assert_eq!(world.get(id).await.unwrap().pause_depth(), PauseDepth::Frozen);
}

#[tokio::test]
async fn step_whose_reply_was_lost_is_settled_by_what_the_node_says() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    for (method, state) in [("PauseSandbox", State::Paused), ("ResumeSandbox", State::Running)] {
        world.node.fail(method, Fault::LoseReply);
        let called = match state {
            State::Paused => world.pause(id, PauseDepth::Frozen).await,
            _ => world.resume(id).await,
        };
        assert_eq!(called.unwrap_err().kind(), ErrorKind::Unavailable);
        world.node.heal(method);
        world.rewrite(id, |record| record.details.flight.as_mut().unwrap().until_ms = 0).await;
        world.look().await;
        assert_eq!(world.stored(id).await.unwrap().state, state);
    }
}

#[tokio::test]
async fn save_whose_reply_was_lost_never_was() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.node.fail("CheckpointSandbox", Fault::LoseReply);
    assert_eq!(world.pause(id, PauseDepth::Checkpointed).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.node.heal("CheckpointSandbox");
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Running);
    assert!(!world.node.is_stopped(sandbox(&session)), "its processes go on");
    world.keeper.collect().await;
    assert_eq!(world.workspaces.all(), [], "nobody knows of what was written");
    assert_eq!(world.checkpoints(id).await, Vec::<String>::new());
}

#[tokio::test]
async fn restore_that_fails_leaves_the_session_as_it_was() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let before = world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    for fault in [Fault::Refuse(ErrorKind::ResourceExhausted), Fault::Refuse(ErrorKind::Unavailable), Fault::LoseReply]
    {
        world.node.fail("RestoreSandbox", fault);
        assert!(world.resume(id).await.is_err());
        let after = world.get(id).await.unwrap();
        assert_eq!((after.state(), after.pause_depth()), (SessionState::Paused, PauseDepth::Checkpointed));
        assert_eq!((after.checkpoint_id, world.node.sandboxes()), (before.checkpoint_id.clone(), vec![]), "{fault:?}");
    }
    world.node.heal("RestoreSandbox");
    world.node.fail("AcquireSandbox", Fault::Refuse(ErrorKind::ResourceExhausted));
    assert_eq!(world.resume(id).await.unwrap_err().reason(), reason::CAPACITY);
    world.node.heal("AcquireSandbox");
    world.resume(id).await.unwrap();
    assert_eq!(world.content(id).await, "one\n");
}
