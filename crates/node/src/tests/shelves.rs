//! Warm sandboxes of several templates in one pool.

use std::{sync::Arc, time::Duration};

use cloud_sandbox_proto::v1;
use cloud_sandbox_runtime::FakeRuntime;
use tokio::time::sleep;

use super::{
    harness::*,
    templates::{of, template},
};

/// How many sandboxes there are of a template.
fn count(runtime: &FakeRuntime, template: &str) -> usize {
    let ids = runtime.sandboxes();
    ids.into_iter().filter(|id| runtime.template_of(*id).as_deref() == Some(template)).count()
}

async fn start(pool_min: usize, pool_max: usize, warm: u32) -> (World, Arc<FakeRuntime>) {
    let (world, docker) = World::start_on_two(options(pool_min, pool_max), |_| {}).await;
    let python = v1::Template { warm_size: warm, ..template("python", 1, &["docker"]) };
    world.set_templates(1, vec![python]).await;
    (world, docker)
}

#[tokio::test(start_paused = true)]
async fn each_template_has_warm_sandboxes_of_its_own() {
    let (world, docker) = start(2, 9, 3).await;
    assert_eq!((world.runtime.sandboxes().len(), count(&docker, "python@1")), (2, 3));
    assert_eq!(count(&docker, "docker"), 0, "no size was given for it");
    for _ in 0..3 {
        let answer = world.try_acquire(of("python@1")).await.unwrap();
        assert!(answer.warm);
        assert_eq!(docker.template_of(id_of(&answer)).as_deref(), Some("python@1"));
    }
    assert!(!world.try_acquire(of("docker")).await.unwrap().warm);
    assert!(world.try_acquire(of("")).await.unwrap().warm);
}

#[tokio::test(start_paused = true)]
async fn room_is_shared_by_what_each_is_to_have() {
    let (world, docker) = World::start_on_two(options(0, 6), |_| {}).await;
    let of = |version, warm_size| v1::Template { warm_size, ..template("python", version, &["docker"]) };
    world.set_templates(1, vec![of(1, 4), of(2, 8)]).await;
    assert_eq!((count(&docker, "python@1"), count(&docker, "python@2")), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn warm_sandbox_of_another_template_makes_room_first() {
    let (world, docker) = start(2, 4, 2).await;
    let disk = v1::ResourceLimits { disk_bytes: 8 << 20, ..Default::default() };
    let request = v1::AcquireSandboxRequest { limits: Some(disk), ..of("python@1") };
    let id = id_of(&world.try_acquire(request).await.unwrap());
    assert!(docker.sandboxes().contains(&id));
    assert_eq!((world.runtime.sandboxes().len(), docker.sandboxes().len()), (1, 3));
    for _ in 0..2 {
        assert!(world.try_acquire(of("python@1")).await.unwrap().warm);
    }
    world.acquire_of("python@1").await;
    let refusal = world.try_acquire(of("python@1")).await.unwrap_err();
    assert_eq!(refusal.reason, "CAPACITY");
    assert_eq!(world.runtime.sandboxes(), []);
}

#[tokio::test(start_paused = true)]
async fn template_whose_sandboxes_cannot_be_made_does_not_keep_others_from_it() {
    let (world, docker) = start(1, 9, 1).await;
    docker.set_failing("create", true);
    world.acquire_of("python@1").await;
    for _ in 0..5 {
        assert!(world.try_acquire(of("host")).await.unwrap().warm);
        world.settle().await;
    }
    let made = docker.created();
    docker.set_failing("create", false);
    sleep(Duration::from_secs(31)).await;
    assert_eq!(docker.created(), made + 1);
}

#[tokio::test(start_paused = true)]
async fn size_can_be_changed_while_sandboxes_are_warm() {
    let (world, docker) = start(0, 9, 3).await;
    let python = template("python", 1, &["docker"]);
    world.set_templates(2, vec![v1::Template { warm_size: 1, ..python.clone() }]).await;
    assert_eq!(count(&docker, "python@1"), 1);
    world.set_templates(3, vec![v1::Template { warm_size: 4, ..python }]).await;
    assert_eq!(count(&docker, "python@1"), 4);
}
