use std::{sync::atomic::Ordering, time::Duration};

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    agent::v1::WallProof,
    v1::{AcquireSandboxRequest, ResourceLimits},
};
use cloud_sandbox_runtime::walls;
use cloud_sandbox_storage::NodeTemplate;
use tokio::time::sleep;

use super::harness::*;

#[tokio::test(start_paused = true)]
async fn pool_fills_and_refills_after_an_acquire() {
    let world = World::start(3, 10).await;
    assert_eq!(world.runtime.sandboxes().len(), 3);

    let acquired = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap();
    assert!(acquired.warm);
    world.settle().await;
    assert_eq!(world.runtime.sandboxes().len(), 4);
    let entry = world.entry().await;
    assert_eq!((entry.ready, entry.acquired, entry.creating, entry.capacity), (3, 1, 0, 10));
    assert_eq!(entry.templates, [NodeTemplate::ready("host", "linux")]);
}

#[tokio::test(start_paused = true)]
async fn pool_never_exceeds_what_may_exist() {
    let world = World::start(3, 4).await;
    for _ in 0..4 {
        world.acquire().await;
        world.settle().await;
    }
    assert_eq!(world.runtime.sandboxes().len(), 4);
    let refusal = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err();
    assert_eq!(refusal.words(), ("RESOURCE_EXHAUSTED", "CAPACITY"));
}

#[tokio::test(start_paused = true)]
async fn room_of_a_released_sandbox_is_free_at_once() {
    let world = World::start(0, 1).await;
    for _ in 0..3 {
        let id = world.acquire().await;
        world.release(id).await.unwrap();
    }
    assert_eq!(world.runtime.created(), 3);
}

#[tokio::test(start_paused = true)]
async fn warm_sandbox_that_dies_is_replaced_and_never_given() {
    let world = World::start(2, 5).await;
    let victim = world.runtime.sandboxes()[0];
    world.runtime.kill(victim);
    world.settle().await;
    assert_eq!(world.runtime.sandboxes().len(), 2);
    assert!(!world.runtime.sandboxes().contains(&victim));
    let ids = [world.acquire().await, world.acquire().await];
    assert!(!ids.contains(&victim));
}

#[tokio::test(start_paused = true)]
async fn acquire_skips_a_sandbox_that_died_a_moment_ago() {
    let world = World::start(2, 5).await;
    for id in world.runtime.sandboxes() {
        world.runtime.kill(id);
    }
    let id = world.acquire().await;
    assert!(world.runtime.sandboxes().contains(&id));
    assert!(world.execute(argv(id, &["echo", "a"])).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn burst_larger_than_the_pool_is_served_cold() {
    let world = World::start(2, 10).await;
    let acquires = (0..6).map(|_| world.try_acquire(AcquireSandboxRequest::default()));
    let answers = futures::future::join_all(acquires).await;
    let warm = answers.iter().filter(|answer| answer.as_ref().unwrap().warm).count();
    assert_eq!(warm, 2);
    let ids: std::collections::HashSet<SandboxId> = answers.iter().map(|a| id_of(a.as_ref().unwrap())).collect();
    assert_eq!(ids.len(), 6);
}

#[tokio::test(start_paused = true)]
async fn acquire_waits_for_what_is_being_made_when_there_is_no_other_room() {
    let world = World::start_with(options(2, 2), |_| {}).await;
    let acquires = (0..2).map(|_| world.try_acquire(AcquireSandboxRequest::default()));
    for answer in futures::future::join_all(acquires).await {
        answer.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn failing_creates_are_tried_again_with_pauses_until_they_work() {
    let world = World::start_with(options(2, 5), |runtime| runtime.set_failing("create", true)).await;
    sleep(Duration::from_secs(5)).await;
    assert!(world.runtime.sandboxes().is_empty());
    let refusal = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err();
    assert_eq!(refusal.words(), ("INTERNAL", "INTERNAL"));
    assert!(!refusal.message.contains("made to fail"));

    world.runtime.set_failing("create", false);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(world.runtime.sandboxes().len(), 2);
    assert_eq!(world.entry().await.ready, 2);
}

#[tokio::test(start_paused = true)]
async fn sandbox_whose_agent_never_answers_is_destroyed() {
    let world = World::start(0, 5).await;
    world.script.mute.store(true, Ordering::SeqCst);
    let refusal = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err();
    assert_eq!(refusal.kind, "INTERNAL");
    world.settle().await;
    assert!(world.runtime.sandboxes().is_empty());
    assert_eq!(world.entry().await.creating, 0);
}

#[tokio::test(start_paused = true)]
async fn sandbox_whose_walls_do_not_hold_is_destroyed_and_never_given() {
    let world = World::start_with(options(2, 5), |runtime| runtime.set_walls(vec![walls::FILES])).await;
    let proof = |held| WallProof { wall: walls::FILES.into(), held, detail: String::new() };
    *world.script.proofs.lock().unwrap() = vec![proof(false)];
    let refusal = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err();
    assert_eq!(refusal.words(), ("INTERNAL", "INTERNAL"));
    world.settle().await;
    assert!(world.runtime.created() > 0 && world.runtime.sandboxes().is_empty());

    *world.script.proofs.lock().unwrap() = vec![proof(true)];
    sleep(Duration::from_secs(31)).await;
    assert_eq!(world.entry().await.ready, 2);
    world.try_acquire(AcquireSandboxRequest::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn sandbox_that_cannot_be_connected_to_is_destroyed() {
    let world = World::start(0, 5).await;
    world.runtime.set_failing("connect", true);
    assert_eq!(world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err().kind, "INTERNAL");
    world.settle().await;
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn other_memory_stays_warm_and_other_disk_is_made_cold() {
    let world = World::start(1, 5).await;
    let limits = |limits| AcquireSandboxRequest { limits: Some(limits), ..Default::default() };
    let memory = ResourceLimits { memory_bytes: 2 << 30, ..Default::default() };
    let answer = world.try_acquire(limits(memory)).await.unwrap();
    assert!(answer.warm);
    assert_eq!(answer.sandbox.unwrap().limits.unwrap().memory_bytes, 2 << 30);

    let disk = ResourceLimits { disk_bytes: 8 << 20, ..Default::default() };
    let answer = world.try_acquire(limits(disk)).await.unwrap();
    assert!(!answer.warm);
    assert_eq!(answer.sandbox.unwrap().limits.unwrap().disk_bytes, 8 << 20);
}

#[tokio::test(start_paused = true)]
async fn warm_sandbox_makes_room_for_one_of_another_shape() {
    let world = World::start(2, 2).await;
    let disk = ResourceLimits { disk_bytes: 8 << 20, ..Default::default() };
    let request = AcquireSandboxRequest { limits: Some(disk), ..Default::default() };
    let id = id_of(&world.try_acquire(request).await.unwrap());
    world.settle().await;
    assert_eq!(world.runtime.sandboxes().len(), 2);
    assert!(world.runtime.sandboxes().contains(&id));
}

#[tokio::test(start_paused = true)]
async fn limits_that_cannot_be_set_fail_the_acquire_and_end_the_sandbox() {
    let world = World::start(1, 5).await;
    world.runtime.set_failing("set_limits", true);
    let memory = ResourceLimits { memory_bytes: 2 << 30, ..Default::default() };
    let request = AcquireSandboxRequest { limits: Some(memory), ..Default::default() };
    assert_eq!(world.try_acquire(request).await.unwrap_err().kind, "INTERNAL");
    world.settle().await;
    assert_eq!((world.runtime.created(), world.runtime.sandboxes().len()), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn room_is_held_while_a_sandbox_cannot_be_destroyed() {
    let world = World::start(0, 1).await;
    let id = world.acquire().await;
    world.runtime.set_failing("destroy", true);
    let refusal = world.release(id).await.unwrap_err();
    assert_eq!(refusal.kind, "INTERNAL");
    assert_eq!(world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err().reason, "CAPACITY");

    world.runtime.set_failing("destroy", false);
    world.release(id).await.unwrap();
    world.acquire().await;
}

#[tokio::test(start_paused = true)]
async fn sandbox_whose_runtime_is_away_is_destroyed_soon_after_that_is_back() {
    let world = World::start(0, 1).await;
    let id = world.acquire().await;
    world.runtime.set_unavailable(true);
    for _ in 0..2 {
        let refusal = world.release(id).await.unwrap_err();
        assert_eq!(refusal.words(), ("UNAVAILABLE", "RUNTIME_UNAVAILABLE"));
        assert!(refusal.message.contains("as soon as there is its runtime again"), "{}", refusal.message);
    }
    // however long that takes
    sleep(Duration::from_secs(3600)).await;
    world.runtime.set_unavailable(false);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.runtime.sandboxes(), []);
    assert_eq!(world.release(id).await.unwrap_err().reason, "SANDBOX_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn one_connection_serves_a_sandbox() {
    let world = World::start(1, 1).await;
    let id = world.acquire().await;
    for _ in 0..5 {
        world.execute(argv(id, &["echo", "a"])).await.unwrap();
    }
    assert_eq!(world.script.connections.load(Ordering::SeqCst), 1);
}
