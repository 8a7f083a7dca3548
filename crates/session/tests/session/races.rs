//! The same done twice, at once, and from two replicas.

use std::time::Duration;

use cloud_sandbox_model::{ErrorKind, SessionState as State, error::reason};
use cloud_sandbox_proto::v1::{PauseDepth, SessionState};
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::{Fault, assert_eventually};
use futures::future::join_all;

use crate::world::{World, sandbox};

#[tokio::test]
async fn of_many_pauses_at_once_from_two_replicas_one_does_it() {
    let world = World::new().await;
    let id = &world.session_with("one\n").await.session_id;
    let other = world.another(Options::default());
    let replicas = [&*world, &other, &*world, &other];
    let paused = join_all(replicas.map(|replica| replica.pause(id, PauseDepth::Checkpointed))).await;
    for paused in paused {
        assert_eq!(paused.unwrap().pause_depth(), PauseDepth::Checkpointed);
    }
    assert_eq!((world.node.called("CheckpointSandbox"), world.workspaces.all().len()), (1, 1));
    let resumed = join_all(replicas.map(|replica| replica.resume(id))).await;
    let first = resumed[0].as_ref().unwrap().sandbox_id.clone();
    assert!(resumed.iter().all(|resumed| resumed.as_ref().unwrap().sandbox_id == first));
    assert_eq!((world.node.called("RestoreSandbox"), world.node.sandboxes().len()), (1, 1));
}

#[tokio::test]
async fn two_keepers_at_once_save_once() {
    let world = World::new().await;
    let id = &world.session_with("one\n").await.session_id;
    world.rewrite(id, |record| record.details.running_since = Some(crate::world::ago(4000))).await;
    let other = world.another(Options::default());
    world.make_due().await;
    tokio::join!(world.keeper.round(), other.keeper.round());
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Paused);
    assert_eq!(world.node.called("CheckpointSandbox"), 1);
}

#[tokio::test]
async fn resume_during_a_pause_waits_for_it() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    world.node.fail("CheckpointSandbox", Fault::Hold);
    let (replica, paused) = (world.another(Options::default()), id.clone());
    let pausing = tokio::spawn(async move { replica.pause(&paused, PauseDepth::Checkpointed).await });
    assert_eventually("the save", || world.node.in_flight() == 1).await;
    let (replica, resumed) = (world.another(Options::default()), id.clone());
    let resuming = tokio::spawn(async move { replica.resume(&resumed).await });
    world.node.heal("CheckpointSandbox");
    assert!(pausing.await.unwrap().is_ok());
    assert_eq!(resuming.await.unwrap().unwrap().state(), SessionState::Running);
    assert_eq!(world.content(&id).await, "one\n");
}

#[tokio::test]
async fn session_deleted_during_a_save_or_a_restore_leaves_nothing() {
    let world = World::new().await;
    for method in ["CheckpointSandbox", "RestoreSandbox", "AcquireSandbox"] {
        let id = world.session_with("one\n").await.session_id;
        if method != "CheckpointSandbox" {
            world.pause(&id, PauseDepth::Checkpointed).await.unwrap();
        }
        world.node.fail(method, Fault::Hold);
        let (replica, acted) = (world.another(Options::default()), id.clone());
        let acting = tokio::spawn(async move {
            match method {
                "CheckpointSandbox" => replica.pause(&acted, PauseDepth::Checkpointed).await,
                _ => replica.resume(&acted).await,
            }
        });
        assert_eventually(method, || world.node.in_flight() == 1).await;
        world.delete(&id).await.unwrap();
        world.node.heal(method);
        let overtaken = acting.await.unwrap().unwrap_err();
        assert!(matches!(overtaken.kind(), ErrorKind::Aborted | ErrorKind::NotFound), "{method}: {overtaken:?}");
        world.keeper.collect().await;
        let left = (world.all().await.len(), world.node.sandboxes(), world.workspaces.all());
        assert_eq!(left, (0, vec![], vec![]), "{method}");
    }
}

#[tokio::test]
async fn saga_that_another_replica_took_over_changes_nothing_any_more() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.node.fail("CheckpointSandbox", Fault::Hold);
    let (replica, paused) = (world.another(Options::default()), id.clone());
    let pausing = tokio::spawn(async move { replica.pause(&paused, PauseDepth::Checkpointed).await });
    assert_eventually("the save", || world.node.in_flight() == 1).await;
    world.rewrite(id, |record| record.details.flight.as_mut().unwrap().until_ms = 0).await;
    world.look().await;
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Running, "it is undone");
    world.node.heal("CheckpointSandbox");
    let overtaken = pausing.await.unwrap().unwrap_err();
    assert_eq!((overtaken.kind(), overtaken.reason()), (ErrorKind::Aborted, reason::SESSION_STATE));
    assert_eq!((world.content(id).await.as_str(), world.node.sandboxes()), ("one\n", vec![sandbox(&session)]));
    assert!(!world.node.is_stopped(sandbox(&session)), "its processes go on");
    world.keeper.collect().await;
    assert_eq!(world.workspaces.all(), []);
}

#[tokio::test]
async fn caller_that_leaves_does_not_stop_a_save() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    world.node.fail("CheckpointSandbox", Fault::Hold);
    let (replica, paused) = (world.another(Options::default()), id.clone());
    let pausing = tokio::spawn(async move { replica.pause(&paused, PauseDepth::Checkpointed).await });
    assert_eventually("the save", || world.node.in_flight() == 1).await;
    pausing.abort();
    world.node.heal("CheckpointSandbox");
    let paused = world.pause(&id, PauseDepth::Auto).await.unwrap();
    assert_eq!((paused.pause_depth(), world.node.sandboxes()), (PauseDepth::Checkpointed, vec![]));
}

#[tokio::test]
async fn save_and_restore_that_take_long_say_that_they_are_at_it() {
    let options = Options { flight_lease: Duration::from_secs(3), ..Options::default() };
    let world = World::with(options.clone()).await;
    let id = world.session_with("one\n").await.session_id;
    for (method, state) in [("CheckpointSandbox", State::Pausing), ("RestoreSandbox", State::Resuming)] {
        world.node.fail(method, Fault::Hold);
        let (replica, acted) = (world.another(options.clone()), id.clone());
        let acting = tokio::spawn(async move {
            match state {
                State::Pausing => replica.pause(&acted, PauseDepth::Checkpointed).await,
                _ => replica.resume(&acted).await,
            }
        });
        assert_eventually(method, || world.node.in_flight() == 1).await;
        let leases = world.node.called("KeepAliveSandbox");
        let until = async || world.stored(&id).await.unwrap().details.flight.unwrap().until_ms;
        let first = until().await;
        for _ in 0..1000 {
            if until().await > first {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(until().await > first, "{method}");
        world.look().await;
        assert_eq!(world.stored(&id).await.unwrap().state, state, "nobody takes it over");
        assert_eq!(world.node.called("KeepAliveSandbox") > leases, state == State::Resuming);
        world.node.heal(method);
        acting.await.unwrap().unwrap();
    }
    assert_eq!(world.content(&id).await, "one\n");
}
