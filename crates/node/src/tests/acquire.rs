use std::{sync::atomic::Ordering, time::Duration};

use cloud_sandbox_proto::{
    node::v1 as node,
    v1::{AcquireSandboxRequest, ResourceLimits, SandboxState},
};
use tokio::time::sleep;

use super::harness::*;

fn named(request_id: &str) -> AcquireSandboxRequest {
    AcquireSandboxRequest { request_id: request_id.into(), ..Default::default() }
}

/// Begins a call and drops it.
async fn hang_up(call: impl Future) {
    assert!(futures::poll!(std::pin::pin!(call)).is_pending());
}

#[tokio::test(start_paused = true)]
async fn acquired_sandbox_is_described_and_can_be_found() {
    let world = World::start(1, 5).await;
    let request = AcquireSandboxRequest {
        timeout_seconds: 60,
        metadata: [("team".to_owned(), "a".to_owned())].into(),
        ..Default::default()
    };
    let answer = world.try_acquire(request).await.unwrap();
    let (id, sandbox) = (id_of(&answer), answer.sandbox.unwrap());
    assert_eq!(sandbox.state, i32::from(SandboxState::Acquired));
    assert_eq!((sandbox.template.as_str(), sandbox.user_id.as_str()), ("host", "alice"));
    assert_eq!(sandbox.metadata["team"], "a");
    let lease = sandbox.expire_time.unwrap().seconds - sandbox.create_time.unwrap().seconds;
    assert!((59..=61).contains(&lease), "{lease}");
    assert_eq!(world.get(id).await.unwrap(), sandbox);

    let entry = world.in_directory(id).await.unwrap();
    assert_eq!((entry.tenant.as_str(), entry.user.as_str()), ("default", "alice"));
    assert_eq!((entry.node_address.as_str(), entry.paused), ("http://node:9093", false));
    assert_eq!(entry.metadata["team"], "a");
}

#[tokio::test(start_paused = true)]
async fn every_bad_field_is_named() {
    let world = World::start(0, 5).await;
    let request = AcquireSandboxRequest {
        timeout_seconds: 86_401,
        env: [("1A".to_owned(), String::new())].into(),
        metadata: [(String::new(), String::new())].into(),
        limits: Some(ResourceLimits { pids: 1, ..Default::default() }),
        request_id: "a b".into(),
        ..Default::default()
    };
    let owner = Some(node::Owner { tenant: String::new(), user_id: "a b".into() });
    let request = node::AcquireSandboxRequest { owner, request: Some(request) };
    let status = world.client().acquire_sandbox(request).await.unwrap_err();
    let failure = Failure::of(&status);
    assert_eq!(failure.words(), ("INVALID_ARGUMENT", "INVALID_REQUEST"));
    let fields = ["owner.tenant", "owner.user_id", "timeout_seconds", "env", "metadata", "request_id", "limits.pids"];
    assert_eq!(failure.fields, fields);
}

#[tokio::test(start_paused = true)]
async fn unknown_template_is_not_found() {
    let world = World::start(0, 5).await;
    let request = AcquireSandboxRequest { template: "nope".into(), ..Default::default() };
    let failure = world.try_acquire(request).await.unwrap_err();
    assert_eq!(failure.words(), ("NOT_FOUND", "TEMPLATE_NOT_FOUND"));
    assert!(failure.message.contains("nope"));
}

#[tokio::test(start_paused = true)]
async fn repeated_request_id_gets_the_same_sandbox_while_it_lives() {
    let world = World::start(1, 5).await;
    let first = id_of(&world.try_acquire(named("r1")).await.unwrap());
    assert_eq!(id_of(&world.try_acquire(named("r1")).await.unwrap()), first);
    assert_ne!(id_of(&world.try_acquire(named("r2")).await.unwrap()), first);

    world.release(first).await.unwrap();
    assert_ne!(id_of(&world.try_acquire(named("r1")).await.unwrap()), first);
}

#[tokio::test(start_paused = true)]
async fn repeats_at_the_same_time_get_one_sandbox() {
    let world = World::start(0, 10).await;
    let answers = futures::future::join_all((0..8).map(|_| world.try_acquire(named("r1")))).await;
    let ids: std::collections::HashSet<_> = answers.iter().map(|answer| id_of(answer.as_ref().unwrap())).collect();
    assert_eq!((ids.len(), world.runtime.created()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn request_id_with_other_content_is_refused() {
    let world = World::start(1, 5).await;
    world.try_acquire(named("r1")).await.unwrap();
    let other = AcquireSandboxRequest { timeout_seconds: 9, ..named("r1") };
    let failure = world.try_acquire(other).await.unwrap_err();
    assert_eq!(failure.words(), ("ALREADY_EXISTS", "REQUEST_ID_REUSED"));
}

#[tokio::test(start_paused = true)]
async fn request_ids_of_two_users_are_not_the_same() {
    let world = World::start(1, 5).await;
    let first = id_of(&world.try_acquire(named("r1")).await.unwrap());
    let owner = Some(node::Owner { tenant: "default".into(), user_id: "bob".into() });
    let request = node::AcquireSandboxRequest { owner, request: Some(named("r1")) };
    let second = world.client().acquire_sandbox(request).await.unwrap().into_inner();
    assert_ne!(id_of(&second), first);
}

#[tokio::test(start_paused = true)]
async fn failed_acquire_is_tried_anew_by_its_repeat() {
    let world = World::start(0, 5).await;
    world.runtime.set_failing("create", true);
    world.try_acquire(named("r1")).await.unwrap_err();
    world.runtime.set_failing("create", false);
    world.try_acquire(named("r1")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn repeat_finds_the_sandbox_of_a_caller_who_hung_up() {
    let world = World::start(0, 5).await;
    hang_up(world.try_acquire(named("r1"))).await;
    let id = id_of(&world.try_acquire(named("r1")).await.unwrap());
    assert_eq!((world.runtime.created(), world.runtime.sandboxes()), (1, vec![id]));
}

#[tokio::test(start_paused = true)]
async fn sandbox_of_a_caller_who_hung_up_is_destroyed() {
    let world = World::start(0, 5).await;
    hang_up(world.try_acquire(AcquireSandboxRequest::default())).await;
    sleep(Duration::from_millis(200)).await;
    assert_eq!(world.runtime.created(), 1);
    assert!(world.runtime.sandboxes().is_empty());
}

#[tokio::test(start_paused = true)]
async fn acquire_without_a_directory_fails_and_leaves_nothing() {
    let world = World::start(1, 5).await;
    world.directory.failing.store(true, Ordering::SeqCst);
    let failure = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err();
    assert_eq!(failure.words(), ("UNAVAILABLE", "STORE_UNAVAILABLE"));
    world.directory.failing.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(1)).await;
    assert_eq!((world.runtime.created(), world.runtime.sandboxes().len()), (2, 1));
    assert_eq!(world.entry().await.acquired, 0);
}

#[tokio::test(start_paused = true)]
async fn draining_node_refuses_new_callers_and_keeps_its_sandboxes() {
    let world = World::start(1, 5).await;
    let answer = world.try_acquire(named("r1")).await.unwrap();
    world.node.set_draining();
    world.settle().await;
    let failure = world.try_acquire(AcquireSandboxRequest::default()).await.unwrap_err();
    assert_eq!(failure.words(), ("UNAVAILABLE", "DRAINING"));
    assert!(world.entry().await.draining);
    assert_eq!(id_of(&world.try_acquire(named("r1")).await.unwrap()), id_of(&answer));
    world.execute(argv(id_of(&answer), &["echo", "a"])).await.unwrap();
}
