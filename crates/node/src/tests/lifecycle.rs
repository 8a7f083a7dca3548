use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::v1::{AcquireSandboxRequest, SandboxState};
use cloud_sandbox_runtime::Usage;
use tokio::time::{Instant, sleep};

use super::harness::*;
use crate::{Node, Options};

async fn acquire_for(world: &World, timeout_seconds: u32) -> SandboxId {
    id_of(&world.try_acquire(AcquireSandboxRequest { timeout_seconds, ..Default::default() }).await.unwrap())
}

#[tokio::test(start_paused = true)]
async fn sandbox_is_destroyed_when_its_lease_ends() {
    let world = World::start(0, 5).await;
    let id = acquire_for(&world, 10).await;
    sleep(Duration::from_millis(9900)).await;
    assert!(world.get(id).await.is_ok());
    sleep(Duration::from_millis(200)).await;
    assert_eq!(world.get(id).await.unwrap_err().words(), ("NOT_FOUND", "SANDBOX_NOT_FOUND"));
    assert!(world.runtime.sandboxes().is_empty());
    assert!(world.in_directory(id).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn keep_alive_starts_the_lease_anew_with_its_length_or_another() {
    let world = World::start(0, 5).await;
    let id = acquire_for(&world, 10).await;
    sleep(Duration::from_secs(8)).await;
    world.keep_alive(id, 0).await.unwrap();
    sleep(Duration::from_secs(8)).await;
    let before = world.in_directory(id).await.unwrap().expires_at;
    world.keep_alive(id, 100).await.unwrap();
    assert!(world.in_directory(id).await.unwrap().expires_at > before + Duration::from_secs(80));
    sleep(Duration::from_secs(98)).await;
    assert!(world.get(id).await.is_ok());
    sleep(Duration::from_secs(3)).await;
    assert!(world.get(id).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn keep_alive_is_bounded_and_needs_the_directory() {
    let world = World::start(0, 5).await;
    let id = acquire_for(&world, 10).await;
    assert_eq!(world.keep_alive(id, 86_401).await.unwrap_err().fields, ["timeout_seconds"]);
    world.directory.failing.store(true, Ordering::SeqCst);
    assert_eq!(world.keep_alive(id, 100).await.unwrap_err().reason, "STORE_UNAVAILABLE");
    sleep(Duration::from_secs(11)).await;
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn execution_ends_with_the_lease_and_says_why() {
    let world = World::start(0, 5).await;
    let id = acquire_for(&world, 10).await;
    let failure = world.execute(argv(id, &["wait", "30000"])).await.unwrap_err();
    assert_eq!(failure.words(), ("NOT_FOUND", "LEASE_ENDED"));
    assert!(failure.message.contains("lease ended"), "{}", failure.message);
}

#[tokio::test(start_paused = true)]
async fn released_sandbox_is_gone_everywhere_and_never_used_again() {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    world.release(id).await.unwrap();
    assert!(!world.runtime.sandboxes().contains(&id));
    assert!(world.in_directory(id).await.is_none());
    let expected = ("NOT_FOUND", "SANDBOX_NOT_FOUND");
    assert_eq!(world.release(id).await.unwrap_err().words(), expected);
    assert_eq!(world.get(id).await.unwrap_err().words(), expected);
    assert_eq!(world.execute(argv(id, &["echo", "a"])).await.unwrap_err().words(), expected);
    for _ in 0..4 {
        assert_ne!(world.acquire().await, id);
    }
}

#[tokio::test(start_paused = true)]
async fn releases_at_the_same_time_both_see_the_end() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let (first, second) = tokio::join!(world.release(id), world.release(id));
    assert!(first.is_ok());
    assert!(second.is_ok() || second.unwrap_err().kind == "NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn warm_sandbox_cannot_be_named_by_a_caller() {
    let world = World::start(1, 5).await;
    let id = world.runtime.sandboxes()[0];
    let expected = ("NOT_FOUND", "SANDBOX_NOT_FOUND");
    assert_eq!(world.get(id).await.unwrap_err().words(), expected);
    assert_eq!(world.release(id).await.unwrap_err().words(), expected);
    assert_eq!(world.keep_alive(id, 0).await.unwrap_err().words(), expected);
    assert_eq!(world.pause(id).await.unwrap_err().words(), expected);
    assert_eq!(world.execute(argv(id, &["echo", "a"])).await.unwrap_err().words(), expected);
}

#[tokio::test(start_paused = true)]
async fn sandbox_ends_with_its_agent_and_its_calls_say_so() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let request = argv(id, &["wait", "30000"]);
    let execution = world.execute(request);
    let killing = async {
        sleep(Duration::from_secs(1)).await;
        world.runtime.kill(id);
    };
    let (failure, ()) = tokio::join!(execution, killing);
    let failure = failure.unwrap_err();
    assert_eq!(failure.words(), ("NOT_FOUND", "SANDBOX_GONE"));
    assert!(failure.message.contains("agent ended"), "{}", failure.message);
    world.settle().await;
    assert!(world.runtime.sandboxes().is_empty());
    assert!(world.in_directory(id).await.unwrap().ended);
}

#[tokio::test(start_paused = true)]
async fn paused_sandbox_refuses_work_until_it_is_resumed() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    assert_eq!(world.pause(id).await.unwrap().state, i32::from(SandboxState::Paused));
    assert_eq!(world.pause(id).await.unwrap().state, i32::from(SandboxState::Paused));
    assert!(world.runtime.is_frozen(id));
    assert!(world.in_directory(id).await.unwrap().paused);
    world.settle().await;
    let entry = world.entry().await;
    assert_eq!((entry.acquired, entry.paused), (1, 1));
    let failure = world.execute(argv(id, &["echo", "a"])).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "SANDBOX_PAUSED"));

    assert_eq!(world.resume(id).await.unwrap().state, i32::from(SandboxState::Acquired));
    assert_eq!(world.resume(id).await.unwrap().state, i32::from(SandboxState::Acquired));
    assert!(!world.runtime.is_frozen(id) && !world.in_directory(id).await.unwrap().paused);
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn failed_pause_and_resume_leave_the_state_as_it_was() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    world.runtime.set_failing("freeze", true);
    assert_eq!(world.pause(id).await.unwrap_err().kind, "INTERNAL");
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
    world.runtime.set_failing("freeze", false);
    world.pause(id).await.unwrap();
    world.runtime.set_failing("thaw", true);
    assert_eq!(world.resume(id).await.unwrap_err().kind, "INTERNAL");
    assert_eq!(world.get(id).await.unwrap().state, i32::from(SandboxState::Paused));
}

#[tokio::test(start_paused = true)]
async fn paused_sandbox_can_be_kept_alive_released_and_expires() {
    let world = World::start(0, 5).await;
    let id = acquire_for(&world, 10).await;
    world.pause(id).await.unwrap();
    sleep(Duration::from_secs(8)).await;
    world.keep_alive(id, 0).await.unwrap();
    assert!(world.in_directory(id).await.unwrap().paused);
    sleep(Duration::from_secs(8)).await;
    assert!(world.runtime.is_frozen(id));
    sleep(Duration::from_secs(3)).await;
    assert!(world.runtime.sandboxes().is_empty());

    let id = world.acquire().await;
    world.pause(id).await.unwrap();
    world.release(id).await.unwrap();
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn memory_kills_are_told_of_the_execution_they_happened_in() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let kills = |kills| world.runtime.set_usage(id, Usage { oom_kills: Some(kills), ..Default::default() });
    assert!(!world.execute(argv(id, &["signal", "9"])).await.unwrap().oom_killed);
    kills(1);
    let answer = world.execute(argv(id, &["signal", "9"])).await.unwrap();
    assert_eq!((answer.oom_killed, answer.exit_code, answer.signal.as_str()), (true, 137, "SIGKILL"));
    assert!(!world.execute(argv(id, &["fail", "1"])).await.unwrap().oom_killed);
    kills(3);
    assert!(world.execute(argv(id, &["fail", "1"])).await.unwrap().oom_killed);
}

#[tokio::test(start_paused = true)]
async fn shutdown_destroys_everything_and_says_goodbye() {
    let world = World::start(2, 10).await;
    let id = world.acquire().await;
    let paused = world.acquire().await;
    world.pause(paused).await.unwrap();
    let request = argv(id, &["wait", "30000"]);
    let execution = world.execute(request);
    let stopping = async {
        sleep(Duration::from_secs(1)).await;
        world.node.shutdown(Duration::from_secs(10)).await
    };
    let (failure, left) = tokio::join!(execution, stopping);
    assert_eq!(left, 0);
    assert_eq!(failure.unwrap_err().reason, "SANDBOX_GONE");
    assert!(world.runtime.sandboxes().is_empty());
    assert!(world.in_directory(id).await.unwrap().ended && world.in_directory(paused).await.is_none());
    assert!(world.no_nodes().await);
    assert_eq!(world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err().reason, "DRAINING");
}

#[tokio::test(start_paused = true)]
async fn shutdown_while_sandboxes_are_being_made_leaves_none() {
    let world = World::start_with(options(8, 10), |_| {}).await;
    let acquire = world.try_acquire(AcquireSandboxRequest::default());
    let (_, left) = tokio::join!(acquire, world.node.shutdown(Duration::from_secs(30)));
    assert_eq!(left, 0);
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_up_after_its_patience_and_says_what_is_left() {
    let world = World::start(2, 10).await;
    world.runtime.set_failing("destroy", true);
    let began = Instant::now();
    assert_eq!(world.node.shutdown(Duration::from_secs(3)).await, 2);
    assert!(began.elapsed() < Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn leftovers_are_reclaimed_before_anything_is_made() {
    let leftover = SandboxId::generate();
    let world = World::start_with(options(1, 5), |runtime| runtime.leave_behind(leftover)).await;
    assert!(world.in_directory(leftover).await.is_none());
    assert!(cloud_sandbox_runtime::Runtime::reclaim(&*world.runtime).await.unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn contradicting_options_are_refused_together() {
    let wrong = Options { pool_min: 3, pool_max: 0, create_parallelism: 0, ..options(0, 1) };
    let script = Arc::default();
    let directory: Arc<TestDirectory> = Arc::default();
    let folder = tempfile::tempdir().unwrap();
    let store = workspaces(&folder.path().join("journal")).await;
    let error = Node::start(wrong, runtimes(&[&runtime(&script)]), directory, store).await.err().unwrap();
    let fields: Vec<_> = error.violations().iter().map(|violation| violation.field.as_str()).collect();
    assert_eq!(fields, ["pool_max", "pool_min", "create_parallelism"]);
}

#[tokio::test(start_paused = true)]
async fn node_is_reported_again_once_the_directory_is_back() {
    let world = World::start(1, 5).await;
    world.directory.failing.store(true, Ordering::SeqCst);
    sleep(Duration::from_secs(20)).await;
    world.directory.failing.store(false, Ordering::SeqCst);
    world.acquire().await;
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.entry().await.acquired, 1);
}
