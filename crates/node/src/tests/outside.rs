//! What somebody outside does to sandboxes.

use std::time::Duration;

use cloud_sandbox_proto::v1::{SandboxState, StartExecutionRequest};
use cloud_sandbox_runtime::Usage;
use tokio::time::sleep;

use super::harness::*;

#[tokio::test(start_paused = true)]
async fn sandbox_that_was_killed_from_outside_is_gone_for_that_reason() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    world.begin(argv(id, &["echo", "a"])).await.unwrap();
    world.settle().await;
    world.runtime.kill_from_outside(id, "was killed from outside (exit code 137)");
    for _ in 0..2 {
        // at once, and of what is kept of it later
        let failure = world.execute(argv(id, &["echo", "a"])).await.unwrap_err();
        assert_eq!(failure.words(), ("NOT_FOUND", "SANDBOX_GONE"));
        assert!(
            failure.message.ends_with("is gone: it was killed from outside (exit code 137)"),
            "{}",
            failure.message
        );
        assert!(failure.metadata.contains(&("cause".into(), "killed".into())), "{:?}", failure.metadata);
        world.settle().await;
    }
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn kill_for_memory_is_told_as_that_also_where_it_came_from_outside() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    world.begin(argv(id, &["echo", "a"])).await.unwrap();
    world.settle().await;
    world.runtime.set_usage(id, Usage { oom_kills: Some(1), ..Usage::default() });
    world.runtime.kill_from_outside(id, "was killed from outside");
    world.settle().await;
    let failure = world.execute(argv(id, &["echo", "a"])).await.unwrap_err();
    assert!(failure.message.contains("memory limit"), "{}", failure.message);
}

#[tokio::test(start_paused = true)]
async fn runtime_that_was_told_of_a_kill_for_memory_is_believed() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    world.begin(argv(id, &["echo", "a"])).await.unwrap();
    world.settle().await;
    world.runtime.kill_for_memory(id);
    world.settle().await;
    let failure = world.execute(argv(id, &["echo", "a"])).await.unwrap_err();
    assert!(failure.metadata.contains(&("cause".to_owned(), "oom_killed".to_owned())), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn sandbox_that_was_paused_from_outside_is_paused_until_somebody_resumes_it() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    world.runtime.set_frozen_from_outside(id, true);
    world.settle().await;
    assert_eq!(world.get(id).await.unwrap().state, i32::from(SandboxState::Paused));
    assert!(world.in_directory(id).await.unwrap().paused);
    let failure = world.execute(argv(id, &["echo", "a"])).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "SANDBOX_PAUSED"));
    assert!(failure.message.contains("was paused from outside"), "{}", failure.message);
    world.resume(id).await.unwrap();
    assert!(!world.runtime.is_frozen(id));
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_from_outside_can_be_used_again() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    for by_us in [false, true] {
        if by_us {
            world.pause(id).await.unwrap();
        } else {
            world.runtime.set_frozen_from_outside(id, true);
        }
        world.settle().await;
        let failure = world.execute(argv(id, &["echo", "a"])).await.unwrap_err();
        assert_eq!(failure.message.contains("from outside"), !by_us);
        world.runtime.set_frozen_from_outside(id, false);
        world.settle().await;
        assert_eq!(world.get(id).await.unwrap().state, i32::from(SandboxState::Acquired));
        assert!(!world.in_directory(id).await.unwrap().paused);
        world.execute(argv(id, &["echo", "a"])).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn lease_goes_on_while_a_sandbox_is_paused_from_outside() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    world.keep_alive(id, 60).await.unwrap();
    world.runtime.set_frozen_from_outside(id, true);
    world.settle().await;
    world.keep_alive(id, 60).await.unwrap();
    sleep(Duration::from_secs(61)).await;
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn warm_sandbox_that_was_paused_from_outside_is_thrown_away() {
    let world = World::start(1, 5).await;
    let paused = world.runtime.sandboxes()[0];
    world.runtime.set_frozen_from_outside(paused, true);
    world.settle().await;
    assert!(!world.runtime.sandboxes().contains(&paused));
    let id = world.acquire().await;
    assert_ne!(id, paused);
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn execution_under_way_outlives_a_pause_from_outside() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let request = Some(argv(id, &["wait", "1000"]));
    let begun = world.exec().start_execution(StartExecutionRequest { request }).await.unwrap().into_inner();
    let execution = begun.execution.unwrap().execution_id;
    world.runtime.set_frozen_from_outside(id, true);
    world.settle().await;
    world.runtime.set_frozen_from_outside(id, false);
    sleep(Duration::from_secs(2)).await;
    let ended = world.execution(id, &execution).await.unwrap();
    assert_eq!(ended.exit.unwrap().exit_code, 0);
}
