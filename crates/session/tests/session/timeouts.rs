//! Timeouts, absolute and idle, and what happens at them.

use std::time::{Duration, SystemTime};

use cloud_sandbox_model::ErrorKind;
use cloud_sandbox_proto::v1::{
    CreateSessionRequest, PauseDepth, Session, SessionState, TimeoutAction, UpdateSessionRequest,
};

use crate::world::{World, ago, anything, sandbox};

async fn session(world: &World, wanted: CreateSessionRequest) -> Session {
    let session = world.create("ada", wanted).await.unwrap();
    world.node.set_content(sandbox(&session), "one\n");
    session
}

async fn run_since(world: &World, id: &str, since: SystemTime) {
    world.rewrite(id, |record| record.details.running_since = Some(since)).await;
}

#[tokio::test]
async fn session_that_has_run_for_its_time_is_paused_and_says_why() {
    let world = World::new().await;
    let id = session(&world, CreateSessionRequest { timeout_seconds: 100, ..anything() }).await.session_id;
    run_since(&world, &id, ago(90)).await;
    world.look().await;
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Running);
    let due = world.stored(&id).await.unwrap().due_at.unwrap();
    assert!(due < SystemTime::now() + Duration::from_secs(11), "it is looked at when its time is over");
    run_since(&world, &id, ago(101)).await;
    world.look().await;
    let paused = world.get(&id).await.unwrap();
    assert_eq!((paused.state(), paused.pause_depth()), (SessionState::Paused, PauseDepth::Checkpointed));
    let told = "it has run for its 100 seconds: paused, checkpointed";
    assert_eq!(world.events(&id).await.pop().unwrap(), ("timeout".to_owned(), told.to_owned()));
    let resumed = world.resume(&id).await.unwrap();
    let end = SystemTime::try_from(resumed.expire_time.unwrap()).unwrap();
    assert!(end > SystemTime::now() + Duration::from_secs(60), "its time begins anew");
    assert_eq!(world.content(&id).await, "one\n");
}

#[tokio::test]
async fn session_whose_timeout_deletes_it_is_gone() {
    let world = World::new().await;
    let wanted = CreateSessionRequest { timeout_seconds: 100, on_timeout: TimeoutAction::Delete.into(), ..anything() };
    let id = session(&world, wanted).await.session_id;
    world.checkpoint(&id).await.unwrap();
    run_since(&world, &id, ago(101)).await;
    world.look().await;
    world.keeper.collect().await;
    assert_eq!((world.stored(&id).await, world.node.sandboxes(), world.workspaces.all()), (None, vec![], vec![]));
}

#[tokio::test]
async fn session_that_nobody_uses_is_paused_and_one_in_use_is_not() {
    let world = World::new().await;
    let wanted = CreateSessionRequest { idle_timeout_seconds: 100, ..anything() };
    let made = session(&world, wanted).await;
    let id = &made.session_id;
    world.node.leave_idle_since(sandbox(&made), ago(90));
    world.look().await;
    assert_eq!(world.get(id).await.unwrap().state(), SessionState::Running);
    let due = world.stored(id).await.unwrap().due_at.unwrap();
    assert!(due < SystemTime::now() + Duration::from_secs(11));
    world.node.leave_idle_since(sandbox(&made), ago(205));
    world.look().await;
    let paused = world.get(id).await.unwrap();
    assert_eq!((paused.state(), paused.pause_depth()), (SessionState::Paused, PauseDepth::Checkpointed));
    let (kind, told) = world.events(id).await.pop().unwrap();
    assert!(kind == "idle_timeout" && told.starts_with("it was not used for 20"), "{kind}: {told}");
}

#[tokio::test]
async fn idle_session_without_an_idle_timeout_runs_on() {
    let world = World::new().await;
    let made = session(&world, anything()).await;
    world.node.leave_idle_since(sandbox(&made), ago(3000));
    world.look().await;
    let running = world.get(&made.session_id).await.unwrap();
    assert_eq!((running.state(), running.timeout_seconds), (SessionState::Running, 3600));
}

#[tokio::test]
async fn time_of_a_paused_session_does_not_pass() {
    let world = World::new().await;
    let wanted = CreateSessionRequest { timeout_seconds: 1, idle_timeout_seconds: 1, ..anything() };
    let made = session(&world, wanted).await;
    world.pause(&made.session_id, PauseDepth::Frozen).await.unwrap();
    run_since(&world, &made.session_id, ago(100)).await;
    world.node.leave_idle_since(sandbox(&made), ago(100));
    world.look().await;
    assert_eq!(world.get(&made.session_id).await.unwrap().pause_depth(), PauseDepth::Frozen);
}

#[tokio::test]
async fn timeout_that_is_changed_counts_from_when_it_began_to_run() {
    let world = World::new().await;
    let id = session(&world, anything()).await.session_id;
    run_since(&world, &id, ago(50)).await;
    let change = |seconds| UpdateSessionRequest {
        session_id: id.clone(),
        timeout_seconds: Some(seconds),
        ..UpdateSessionRequest::default()
    };
    world.update(change(60)).await.unwrap();
    let due = world.stored(&id).await.unwrap().due_at.unwrap();
    assert!(due < SystemTime::now() + Duration::from_secs(11));
    world.update(change(40)).await.unwrap();
    world.look().await;
    assert_eq!(world.get(&id).await.unwrap().state(), SessionState::Paused);
    for (seconds, field) in [(0, "timeout_seconds"), (2_592_001, "timeout_seconds")] {
        let refused = world.update(change(seconds)).await.unwrap_err();
        assert_eq!((refused.kind(), refused.violations()[0].field.as_str()), (ErrorKind::InvalidArgument, field));
    }
}
