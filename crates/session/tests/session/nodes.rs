//! Nodes that die, shut down or do not answer, and a directory that loses its content.

use std::time::Duration;

use cloud_sandbox_model::{ErrorKind, SessionState as State};
use cloud_sandbox_proto::v1::{PauseDepth, SessionState};
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::Fault;
use cloud_sandbox_storage::Directory as _;

use crate::world::{World, ago, sandbox};

#[tokio::test]
async fn directory_that_lost_its_content_fails_no_session_at_once() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    let entry = world.directory.sandbox(sandbox(&session)).await.unwrap().unwrap();
    world.directory.remove_sandbox(sandbox(&session)).await.unwrap();
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Running);
    assert_eq!(world.pause(id, PauseDepth::Checkpointed).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.rewrite(id, |record| record.details.flight.iter_mut().for_each(|flight| flight.until_ms = 0)).await;
    world.look().await;
    world.look().await;
    let missing = world.stored(id).await.unwrap();
    assert_ne!(missing.state, State::Failed);
    assert!(missing.details.missing_since.is_some());
    world.directory.put_sandbox(&entry).await.unwrap();
    world.rewrite(id, |record| record.details.flight.iter_mut().for_each(|flight| flight.until_ms = 0)).await;
    world.look().await;
    world.look().await;
    let found = world.stored(id).await.unwrap();
    assert_eq!((found.state, found.details.missing_since), (State::Running, None));
    world.pause(id, PauseDepth::Checkpointed).await.unwrap();
}

#[tokio::test]
async fn session_whose_node_stays_gone_fails_and_goes_on_elsewhere() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.checkpoint(id).await.unwrap();
    world.kill_node().await;
    let another = world.another_node().await;
    assert_eq!(world.pause(id, PauseDepth::Frozen).await.unwrap_err().kind(), ErrorKind::Unavailable);
    for _ in 0..2 {
        world.rewrite(id, |record| record.details.flight.iter_mut().for_each(|flight| flight.until_ms = 0)).await;
        world.look().await;
        assert_ne!(world.stored(id).await.unwrap().state, State::Failed, "it may come back");
    }
    world
        .rewrite(id, |record| {
            record.details.missing_since = Some(ago(31));
            record.details.flight.iter_mut().for_each(|flight| flight.until_ms = 0);
        })
        .await;
    world.look().await;
    let failed = world.get(id).await.unwrap();
    assert_eq!((failed.state(), failed.failure.as_str()), (SessionState::Failed, "its node is gone"));
    let resumed = world.resume(id).await.unwrap();
    assert_eq!(another.content(sandbox(&resumed)), "one\n");
}

#[tokio::test]
async fn session_on_a_node_that_is_gone_can_be_deleted() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    world.node.cut_off();
    assert_eq!(world.delete(&id).await.unwrap_err().kind(), ErrorKind::Unavailable, "its node is alive, they say");
    world.kill_node().await;
    world.delete(&id).await.unwrap();
    assert_eq!(world.stored(&id).await, None);
}

#[tokio::test]
async fn sandbox_without_a_node_to_tell_is_gone_where_the_directory_is_certain() {
    let world = World::with(Options { missing_patience: Duration::ZERO, ..Options::default() }).await;
    let session = world.session_with("one\n").await;
    world.node.forget(sandbox(&session));
    world.directory.remove_sandbox(sandbox(&session)).await.unwrap();
    assert_eq!(world.get(&session.session_id).await.unwrap().state(), SessionState::Failed);
}

#[tokio::test]
async fn old_sandbox_that_cannot_be_released_holds_nothing_up() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.node.fail("ReleaseSandbox", Fault::Refuse(ErrorKind::Unavailable));
    world.pause(id, PauseDepth::Checkpointed).await.unwrap();
    world.resume(id).await.unwrap();
    world.rewrite(id, |record| record.details.running_since = Some(ago(4000))).await;
    world.look().await;
    let paused = world.stored(id).await.unwrap();
    assert_eq!((paused.state, paused.details.discarded.len()), (State::Paused, 2), "its timeout is kept");
    world.node.heal("ReleaseSandbox");
    world.look().await;
    assert_eq!((world.stored(id).await.unwrap().details.discarded, world.node.sandboxes()), (vec![], vec![]));
}

#[tokio::test]
async fn sessions_of_a_node_that_shuts_down_are_saved_and_others_are_not() {
    let world = World::new().await;
    let running = world.session_with("one\n").await.session_id;
    let frozen = world.session_with("two\n").await.session_id;
    world.pause(&frozen, PauseDepth::Frozen).await.unwrap();
    world.node.report(5, 20, true).await;
    let another = world.another_node().await;
    let elsewhere = world.session_with("").await.session_id;
    assert_eq!(another.sandboxes().len(), 1);
    world.keeper.evacuate(world.node.id()).await;
    for (id, kind, told) in [
        (&running, "paused", "its node is shutting down: paused, checkpointed"),
        (
            &frozen,
            "deepened",
            "its node is shutting down: checkpointed; its processes are gone, its next resume says which",
        ),
    ] {
        assert_eq!(world.get(id).await.unwrap().pause_depth(), PauseDepth::Checkpointed);
        assert_eq!(world.events(id).await.pop().unwrap(), (kind.to_owned(), told.to_owned()));
    }
    assert_eq!(world.node.sandboxes(), []);
    assert_eq!(world.get(&elsewhere).await.unwrap().state(), SessionState::Running);
    let resumed = world.resume(&running).await.unwrap();
    assert_eq!(another.content(sandbox(&resumed)), "one\n");
}

#[tokio::test]
async fn node_short_of_memory_gets_back_that_of_sessions_frozen_for_a_while() {
    let world = World::new().await;
    let ids = [world.session_with("one\n").await, world.session_with("two\n").await, world.session_with("").await];
    let [auto, frozen, running] = ids.map(|session| session.session_id);
    world.pause(&auto, PauseDepth::Auto).await.unwrap();
    world.pause(&frozen, PauseDepth::Frozen).await.unwrap();
    world.keeper.relieve_nodes().await;
    assert_eq!(world.get(&auto).await.unwrap().pause_depth(), PauseDepth::Frozen, "there is memory");

    world.node.report_low_memory().await;
    world.keeper.relieve_nodes().await;
    assert_eq!(world.get(&auto).await.unwrap().pause_depth(), PauseDepth::Checkpointed);
    let told = world.events(&auto).await.pop().unwrap();
    assert!(told.0 == "deepened" && told.1.starts_with("its node is short of memory"), "{told:?}");
    assert_eq!(world.get(&frozen).await.unwrap().pause_depth(), PauseDepth::Frozen, "it was asked to stay so");
    assert_eq!(world.get(&running).await.unwrap().state(), SessionState::Running);
}
