//! What the keeper does of itself, and what changes while something is under way.

use std::time::Duration;

use cloud_sandbox_model::{ErrorKind, SessionState as State};
use cloud_sandbox_proto::v1::{CreateSessionRequest, PauseDepth, SessionState, UpdateSessionRequest};
use cloud_sandbox_session::Options;
use cloud_sandbox_sim_node::{Fault, assert_eventually};
use cloud_sandbox_storage::sessions::{Flight, to_millis};

use crate::world::{World, ago, anything, sandbox};

fn flight_until(until: std::time::SystemTime) -> Option<Flight> {
    let pilot = "somebody/else".to_owned();
    let until_ms = to_millis(until);
    Some(Flight { pilot, until_ms, checkpoint: None, sandbox: None, before: None, failure: String::new() })
}

#[tokio::test]
async fn labels_are_merged_and_removed() {
    let world = World::new().await;
    let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    let wanted = CreateSessionRequest { metadata: labels(&[("a", "1"), ("b", "2")]), ..anything() };
    let id = world.create("ada", wanted).await.unwrap().session_id;
    let change = UpdateSessionRequest {
        session_id: id.clone(),
        metadata: labels(&[("b", "3"), ("c", "4")]),
        remove_metadata: vec!["a".into(), "never".into()],
        idle_timeout_seconds: Some(9),
        auto_resume: Some(true),
        ..UpdateSessionRequest::default()
    };
    let changed = world.update(change).await.unwrap();
    assert_eq!(changed.metadata, labels(&[("b", "3"), ("c", "4")]));
    assert_eq!((changed.idle_timeout_seconds, changed.auto_resume, changed.timeout_seconds), (9, true, 3600));
    assert_eq!(world.get(&id).await.unwrap().metadata, changed.metadata);
    let bad = UpdateSessionRequest { session_id: id, metadata: labels(&[("x=y", "")]), ..Default::default() };
    assert_eq!(world.update(bad).await.unwrap_err().violations()[0].field, "metadata");
}

#[tokio::test]
async fn update_while_a_save_is_under_way_is_kept_by_it() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    world.node.fail("CheckpointSandbox", Fault::Hold);
    let (replica, saved) = (world.another(Options::default()), id.clone());
    let pausing = tokio::spawn(async move { replica.pause(&saved, PauseDepth::Checkpointed).await });
    assert_eventually("the save", || world.node.in_flight() == 1).await;
    let metadata = [("a".to_owned(), "1".to_owned())].into();
    world.update(UpdateSessionRequest { session_id: id.clone(), metadata, ..Default::default() }).await.unwrap();
    world.node.heal("CheckpointSandbox");
    let paused = pausing.await.unwrap().unwrap();
    assert_eq!((paused.state(), paused.metadata["a"].as_str()), (SessionState::Paused, "1"));
    assert_eq!(world.kinds(&id).await, ["created", "updated", "checkpointed", "paused"]);
}

#[tokio::test]
async fn keeper_leaves_alone_what_is_under_way_and_finishes_what_is_not() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    let leave = async |until| {
        world
            .rewrite(&id, |record| {
                record.state = State::Pausing;
                record.details.flight = flight_until(until);
            })
            .await;
        world.look().await;
        world.stored(&id).await.unwrap().state
    };
    let now = std::time::SystemTime::now();
    assert_eq!(leave(now + Duration::from_secs(20)).await, State::Pausing, "somebody is at it");
    world.node.fail("GetSandbox", Fault::Refuse(ErrorKind::Unavailable));
    assert_eq!(leave(ago(1)).await, State::Pausing, "the node does not say how it is");
    world.node.heal("GetSandbox");
    assert_eq!(leave(ago(1)).await, State::Running);
    let told = "it was left on its way, and is running now";
    assert_eq!(world.events(&id).await.pop().unwrap(), ("recovered".to_owned(), told.to_owned()));
}

#[tokio::test]
async fn flight_that_ends_far_ahead_was_written_under_another_clock() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    let ahead = std::time::SystemTime::now() + Duration::from_secs(86_400);
    world
        .rewrite(&id, |record| {
            record.state = State::Pausing;
            record.details.flight = flight_until(ahead);
        })
        .await;
    world.look().await;
    assert_eq!(world.stored(&id).await.unwrap().state, State::Running);
}

#[tokio::test]
async fn keeper_that_is_alone_takes_over_at_its_start_what_another_process_had_under_way() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    let soon = std::time::SystemTime::now() + Duration::from_secs(20);
    let leave = async || {
        world
            .rewrite(&id, |record| {
                record.state = State::Pausing;
                record.details.flight = flight_until(soon);
                record.due_at = Some(soon);
            })
            .await;
    };
    leave().await;
    world.keeper.round().await;
    assert_eq!(world.stored(&id).await.unwrap().state, State::Pausing, "others may be at it");
    let alone = world.another(Options { alone: true, ..Options::default() });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(alone.keeper.clone().run(async { drop(stopped.await) }));
    let mut state = State::Pausing;
    for _ in 0..1000 {
        state = world.stored(&id).await.unwrap().state;
        if state == State::Running {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(state, State::Running);
    stop.send(()).unwrap();
    running.await.unwrap();
}

#[tokio::test]
async fn keeper_renews_leases_and_looks_again_before_they_end() {
    let world = World::new().await;
    let session = world.session_with("one\n").await;
    let id = &session.session_id;
    world.look().await;
    assert_eq!(world.node.called("KeepAliveSandbox"), 1, "the lease is long since it was created");
    let due = world.stored(id).await.unwrap().due_at.unwrap();
    assert!(due < std::time::SystemTime::now() + Duration::from_secs(601));
    world.pause(id, PauseDepth::Frozen).await.unwrap();
    world.look().await;
    assert!(world.node.lease_end(sandbox(&session)).unwrap() > due + Duration::from_secs(40_000));
}

#[tokio::test]
async fn delete_that_was_interrupted_is_finished() {
    let world = World::new().await;
    let id = world.session_with("one\n").await.session_id;
    world.node.fail("ReleaseSandbox", Fault::Refuse(ErrorKind::Unavailable));
    assert_eq!(world.delete(&id).await.unwrap_err().kind(), ErrorKind::Unavailable);
    world.rewrite(&id, |record| record.details.flight.as_mut().unwrap().until_ms = 0).await;
    world.look().await;
    assert!(world.stored(&id).await.is_some(), "its sandbox is still there");
    world.node.heal("ReleaseSandbox");
    world.rewrite(&id, |record| record.details.flight.as_mut().unwrap().until_ms = 0).await;
    world.look().await;
    assert_eq!((world.stored(&id).await, world.node.sandboxes()), (None, vec![]));
}

#[tokio::test]
async fn session_left_on_its_way_whose_sandbox_is_gone_fails() {
    let world = World::new().await;
    for state in [State::Pausing, State::Resuming] {
        let session = world.session_with("one\n").await;
        world.rewrite(&session.session_id, |record| record.state = state).await;
        world.node.forget(sandbox(&session));
        for _ in 0..2 {
            world.look().await;
            assert_eq!(world.stored(&session.session_id).await.unwrap().state, State::Failed, "{state:?}");
        }
    }
}
