//! Templates on a node with two runtimes.

use std::time::Duration;

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    node::v1::SetTemplatesRequest,
    v1::{self, AcquireSandboxRequest, ResourceLimits, template_source::Source},
};
use cloud_sandbox_runtime::FakeRuntime;
use cloud_sandbox_storage::{NodeTemplate, TemplateState};
use tokio::time::{Instant, sleep};

use super::harness::*;
use crate::Options;

/// A template of an image, for these runtimes.
pub(super) fn template(name: &str, version: u32, runtimes: &[&str]) -> v1::Template {
    let image = v1::DockerImageSource { image: name.to_owned(), ..Default::default() };
    v1::Template {
        name: name.to_owned(),
        version,
        source: Some(v1::TemplateSource { source: Some(Source::DockerImage(image)) }),
        runtimes: runtimes.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

/// A request for a sandbox of a template.
pub(super) fn of(template: &str) -> AcquireSandboxRequest {
    AcquireSandboxRequest { template: template.to_owned(), ..Default::default() }
}

impl World {
    pub(super) async fn set_templates(&self, revision: u64, templates: Vec<v1::Template>) {
        self.try_set_templates(revision, templates).await.unwrap();
        self.settle().await;
    }

    async fn try_set_templates(&self, revision: u64, templates: Vec<v1::Template>) -> Result<(), Failure> {
        let told = self.client().set_templates(SetTemplatesRequest { templates, revision }).await;
        told.map(drop).map_err(|status| Failure::of(&status))
    }

    async fn refusal(&self, template: &str) -> Failure {
        self.try_acquire(of(template)).await.unwrap_err()
    }

    pub(super) async fn acquire_of(&self, template: &str) -> SandboxId {
        id_of(&self.try_acquire(of(template)).await.unwrap())
    }

    async fn state_of(&self, reference: &str) -> Option<NodeTemplate> {
        self.entry().await.templates.into_iter().find(|template| template.reference == reference)
    }
}

async fn start(pool_max: usize) -> (World, std::sync::Arc<FakeRuntime>) {
    let (world, docker) = World::start_on_two(options(0, pool_max), |_| {}).await;
    world.settle().await;
    (world, docker)
}

#[tokio::test(start_paused = true)]
async fn built_in_templates_are_ready_when_the_node_has_started() {
    let (world, docker) = World::start_on_two(options(0, 5), |_| {}).await;
    let host = world.try_acquire(of("")).await.unwrap().sandbox.unwrap();
    assert_eq!((host.template.as_str(), host.runtime.as_str()), ("host", "linux"));
    let id = world.acquire_of("docker").await;
    assert_eq!(docker.template_of(id).as_deref(), Some("docker"));
    world.settle().await;
    let ready = [NodeTemplate::ready("docker", "docker"), NodeTemplate::ready("host", "linux")];
    assert_eq!(world.entry().await.templates, ready);
}

#[tokio::test(start_paused = true)]
async fn start_waits_for_the_default_template_and_less_for_others() {
    for (default, seconds) in [("host", 0.5), ("docker", 5.5)] {
        let default = Options { default_template: default.into(), ..options(0, 5) };
        let began = Instant::now();
        let (world, _docker) = World::start_on_two(default, |docker| docker.hold_preparing(true)).await;
        let taken = began.elapsed().as_secs_f64();
        assert!((seconds..seconds + 0.2).contains(&taken), "{taken}");
        world.acquire_of("host").await;
        assert_eq!(world.refusal("docker").await.reason, "TEMPLATE_NOT_READY");
    }
}

#[tokio::test(start_paused = true)]
async fn listed_template_is_prepared_and_its_sandboxes_are_made_on_its_runtime() {
    let (world, docker) = start(5).await;
    assert_eq!(world.refusal("python@1").await.words(), ("NOT_FOUND", "TEMPLATE_NOT_FOUND"));
    world.set_templates(1, vec![template("python", 1, &["docker+runsc"]), template("python", 2, &["linux"])]).await;
    let sandbox = world.try_acquire(of("python@1")).await.unwrap().sandbox.unwrap();
    assert_eq!((sandbox.template.as_str(), sandbox.runtime.as_str()), ("python@1", "docker+runsc"));
    let id = sandbox.sandbox_id.parse().unwrap();
    assert_eq!(docker.template_of(id).as_deref(), Some("python@1"));
    assert_eq!(world.in_directory(id).await.unwrap().template, "python@1");
    let newest = world.acquire_of("python").await;
    assert_eq!(world.runtime.template_of(newest).as_deref(), Some("python@2"));
}

#[tokio::test(start_paused = true)]
async fn template_that_is_being_prepared_is_not_ready_and_tells_how_far_it_is() {
    let (world, docker) = start(5).await;
    docker.hold_preparing(true);
    world.set_templates(1, vec![template("python", 1, &["docker"])]).await;
    let refusal = world.refusal("python@1").await;
    assert_eq!(refusal.words(), ("UNAVAILABLE", "TEMPLATE_NOT_READY"));
    assert!(refusal.message.contains("pulling"), "{}", refusal.message);
    sleep(Duration::from_millis(600)).await;
    let told = world.state_of("python@1").await.unwrap();
    assert_eq!((told.state, told.detail.as_str()), (TemplateState::Preparing, "pulling"));
    assert_eq!((told.done_bytes, told.total_bytes), (1, 2));
    docker.hold_preparing(false);
    world.settle().await;
    world.acquire_of("python@1").await;
}

#[tokio::test(start_paused = true)]
async fn two_templates_at_most_are_prepared_at_once() {
    let (world, docker) = start(5).await;
    docker.hold_preparing(true);
    let listed = (1..=5).map(|version| template("python", version, &["docker"])).collect();
    world.set_templates(1, listed).await;
    docker.hold_preparing(false);
    world.settle().await;
    assert_eq!(docker.times_prepared(), (6, 2), "five, and the built-in one");
    assert_eq!(docker.prepared().len(), 6);
}

#[tokio::test(start_paused = true)]
async fn templates_of_one_runtime_do_not_wait_for_those_of_another() {
    let (world, docker) = start(5).await;
    docker.hold_preparing(true);
    let pulled = (1..=3).map(|version| template("pulled", version, &["docker"]));
    world.set_templates(1, pulled.chain([template("python", 1, &["linux"])]).collect()).await;
    let id = world.acquire_of("python@1").await;
    assert_eq!(world.runtime.template_of(id).as_deref(), Some("python@1"));
    assert_eq!(world.refusal("pulled@1").await.reason, "TEMPLATE_NOT_READY");
}

#[tokio::test(start_paused = true)]
async fn template_that_breaks_what_prepares_it_has_failed_and_is_tried_again() {
    let (world, docker) = start(5).await;
    docker.set_panicking(true);
    world.set_templates(1, vec![template("python", 1, &["docker"])]).await;
    let refusal = world.refusal("python@1").await;
    assert_eq!(refusal.words(), ("FAILED_PRECONDITION", "TEMPLATE_FAILED"));
    assert!(refusal.message.contains("panicked"), "{}", refusal.message);
    docker.set_panicking(false);
    sleep(Duration::from_secs(6)).await;
    world.acquire_of("python@1").await;
}

#[tokio::test(start_paused = true)]
async fn runtime_that_is_slow_to_answer_is_there_until_it_says_nothing_for_long() {
    let (world, docker) = start(5).await;
    let both = v1::Template { warm_size: 1, ..template("both", 1, &["docker", "linux"]) };
    world.set_templates(1, vec![both]).await;
    sleep(Duration::from_secs(2)).await;
    docker.set_hanging("available", true);
    sleep(Duration::from_secs(18)).await;
    assert!(world.try_acquire(of("both@1")).await.unwrap().warm, "what is warm is of use");
    docker.set_hanging("available", false);
    sleep(Duration::from_secs(6)).await;
    let id = world.acquire_of("both@1").await;
    assert!(docker.template_of(id).is_some());
    docker.set_hanging("available", true);
    sleep(Duration::from_secs(90)).await;
    let id = world.acquire_of("both@1").await;
    assert!(world.runtime.template_of(id).is_some(), "it went over to the next");
}

#[tokio::test(start_paused = true)]
async fn host_that_is_stalled_over_its_sandboxes_does_not_hold_up_another() {
    let (world, docker) = start(20).await;
    docker.set_hanging("create", true);
    let world = std::sync::Arc::new(world);
    let stalled: Vec<_> = (0..crate::CREATE_PARALLELISM)
        .map(|_| {
            let world = std::sync::Arc::clone(&world);
            tokio::spawn(async move { world.acquire_of("docker").await })
        })
        .collect();
    world.settle().await;
    let began = Instant::now();
    world.acquire_of("host").await;
    assert!(began.elapsed() <= Duration::from_secs(10), "{:?}", began.elapsed());
    docker.set_hanging("create", false);
    for acquired in stalled {
        acquired.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn template_that_goes_while_its_sandbox_waits_to_be_made_does_not_exist() {
    let (world, docker) = start(20).await;
    world.set_templates(1, vec![template("python", 1, &["linux"])]).await;
    docker.set_hanging("create", true);
    let world = std::sync::Arc::new(world);
    let acquire = |template: &'static str| {
        let world = std::sync::Arc::clone(&world);
        tokio::spawn(async move { world.try_acquire(of(template)).await })
    };
    let _stalled: Vec<_> = (0..crate::CREATE_PARALLELISM).map(|_| acquire("docker")).collect();
    world.settle().await;
    let waiting = acquire("python@1");
    world.settle().await;
    world.set_templates(2, Vec::new()).await;
    let refusal = waiting.await.unwrap().unwrap_err();
    assert_eq!(refusal.words(), ("NOT_FOUND", "TEMPLATE_NOT_FOUND"));
    assert!(!world.runtime.prepared().contains(&"python@1".to_owned()));
    docker.set_hanging("create", false);
}

#[tokio::test(start_paused = true)]
async fn what_one_runtime_cannot_drop_does_not_keep_what_another_has() {
    let (world, docker) = start(9).await;
    docker.set_failing("prepare", true);
    world.set_templates(1, vec![template("python", 1, &["docker", "linux"])]).await;
    docker.set_failing("discard", true);
    world.set_templates(2, Vec::new()).await;
    assert!(!world.runtime.prepared().contains(&"python@1".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn next_runtime_is_taken_and_what_failed_on_each_is_told() {
    let (world, docker) = start(5).await;
    docker.set_failing("prepare", true);
    let both = template("python", 1, &["docker", "linux"]);
    world.set_templates(1, vec![both.clone(), template("node", 1, &["docker"])]).await;
    let id = world.acquire_of("python@1").await;
    assert_eq!(world.runtime.template_of(id).as_deref(), Some("python@1"));
    let refusal = world.refusal("node@1").await;
    assert_eq!(refusal.words(), ("FAILED_PRECONDITION", "TEMPLATE_FAILED"));
    assert!(refusal.message.contains("docker: failed to prepare"), "{}", refusal.message);

    world.runtime.set_failing("prepare", true);
    world.set_templates(2, vec![v1::Template { version: 2, ..both }]).await;
    let told = world.state_of("python@2").await.unwrap();
    assert_eq!((told.state, told.runtime_unavailable), (TemplateState::Failed, false));
    assert!(told.detail.contains("docker: failed") && told.detail.contains("; linux: failed"), "{}", told.detail);
}

#[tokio::test(start_paused = true)]
async fn failed_template_is_tried_again_with_pauses_and_at_once_when_it_is_changed() {
    let (world, docker) = start(5).await;
    docker.set_failing("prepare", true);
    let python = template("python", 1, &["docker"]);
    world.set_templates(1, vec![python.clone()]).await;
    sleep(Duration::from_secs(100)).await;
    let (times, _) = docker.times_prepared();
    assert!((5..=7).contains(&times), "{times}: at 0, 5, 15, 35 and 75 s, and the built-in one");
    docker.set_failing("prepare", false);
    world.set_templates(2, vec![python.clone()]).await;
    assert_eq!(world.refusal("python@1").await.reason, "TEMPLATE_FAILED", "it is the same");
    world.set_templates(3, vec![v1::Template { warm_size: 1, ..python }]).await;
    world.acquire_of("python@1").await;
}

#[tokio::test(start_paused = true)]
async fn node_starts_without_its_runtime_and_reclaims_when_that_is_there() {
    let leftover = SandboxId::generate();
    let only = Options { default_template: "docker".into(), ..options(1, 5) };
    let (world, docker) = World::start_on_two(only, |docker| {
        docker.set_unavailable(true);
        docker.leave_behind(leftover);
    })
    .await;
    let refusal = world.refusal("").await;
    assert_eq!(refusal.words(), ("UNAVAILABLE", "RUNTIME_UNAVAILABLE"));
    assert!(refusal.message.contains("docker: made to be away"), "{}", refusal.message);
    world.settle().await;
    let told = world.state_of("docker").await.unwrap();
    assert_eq!((told.state, told.runtime_unavailable), (TemplateState::Failed, true));
    world.acquire_of("host").await;

    docker.set_unavailable(false);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(docker.sandboxes().len(), 1, "the pool is filled");
    assert!(cloud_sandbox_runtime::Runtime::reclaim(&*docker).await.unwrap().is_empty());
    world.acquire_of("").await;
}

#[tokio::test(start_paused = true)]
async fn runtime_that_goes_takes_its_templates_along_until_it_is_back() {
    let (world, docker) = start(9).await;
    let both = template("both", 1, &["docker", "linux"]);
    let alone = v1::Template { warm_size: 2, ..template("alone", 1, &["docker"]) };
    world.set_templates(1, vec![both, alone]).await;
    let held = world.acquire_of("alone@1").await;
    docker.set_unavailable(true);
    sleep(Duration::from_secs(6)).await;
    assert_eq!(world.refusal("alone@1").await.words(), ("UNAVAILABLE", "RUNTIME_UNAVAILABLE"));
    assert_eq!(world.state_of("alone@1").await.unwrap().state, TemplateState::Failed);
    let other = world.acquire_of("both@1").await;
    assert_eq!(world.runtime.template_of(other).as_deref(), Some("both@1"), "it went over to the next");
    assert!(world.execute(argv(held, &["echo", "a"])).await.is_ok(), "what is acquired lives on");

    docker.set_unavailable(false);
    sleep(Duration::from_secs(15)).await;
    assert!(world.try_acquire(of("alone@1")).await.unwrap().warm, "what was warm is so still");
    let back = world.acquire_of("both@1").await;
    assert!(docker.template_of(back).is_some(), "the one that is preferred is taken again");
}

#[tokio::test(start_paused = true)]
async fn create_that_finds_no_runtime_is_answered_so_and_noted_at_once() {
    let (world, docker) = start(5).await;
    world.set_templates(1, vec![template("python", 1, &["docker", "linux"])]).await;
    sleep(Duration::from_secs(2)).await;
    docker.set_unavailable(true);
    let first = world.refusal("python@1").await;
    assert_eq!(first.words(), ("UNAVAILABLE", "RUNTIME_UNAVAILABLE"));
    world.settle().await;
    let id = world.acquire_of("python@1").await;
    assert!(world.runtime.template_of(id).is_some());
}

#[tokio::test(start_paused = true)]
async fn template_that_has_left_the_list_is_dropped_when_its_last_sandbox_ends() {
    let (world, docker) = start(9).await;
    let python = v1::Template { warm_size: 2, ..template("python", 1, &["docker"]) };
    world.set_templates(1, vec![python.clone()]).await;
    let held = world.acquire_of("python@1").await;
    world.settle().await;
    assert_eq!(docker.sandboxes().len(), 3);
    world.set_templates(2, Vec::new()).await;
    assert_eq!(docker.sandboxes(), [held], "warm ones end");
    assert_eq!(world.refusal("python@1").await.reason, "TEMPLATE_NOT_FOUND");
    assert_eq!(world.state_of("python@1").await, None);
    assert!(docker.prepared().contains(&"python@1".to_owned()));
    world.set_templates(1, vec![python]).await;
    assert_eq!(world.refusal("python@1").await.reason, "TEMPLATE_NOT_FOUND", "that list was older");
    world.release(held).await.unwrap();
    world.settle().await;
    assert_eq!(docker.prepared(), ["docker"]);
}

#[tokio::test(start_paused = true)]
async fn template_that_comes_back_while_it_is_in_use_is_not_dropped() {
    let (world, docker) = start(9).await;
    let python = template("python", 1, &["docker"]);
    world.set_templates(1, vec![python.clone()]).await;
    let held = world.acquire_of("python@1").await;
    world.set_templates(2, Vec::new()).await;
    world.set_templates(3, vec![python]).await;
    world.acquire_of("python@1").await;
    world.release(held).await.unwrap();
    world.settle().await;
    assert_eq!(docker.prepared(), ["docker", "python@1"]);
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_templates_that_were_deleted_meanwhile_is_dropped_once_the_list_is_told() {
    let (world, docker) = World::start_on_two(options(0, 5), |docker| {
        docker.leave_prepared("kept@1");
        docker.leave_prepared("old@1");
    })
    .await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(docker.prepared(), ["docker", "kept@1", "old@1"]);
    world.set_templates(1, vec![template("kept", 1, &["docker"])]).await;
    assert_eq!(docker.prepared(), ["docker", "kept@1"]);
    assert!(world.state_of("old@1").await.is_none(), "nobody has to hear of it");
    assert_eq!(world.refusal("old@1").await.reason, "TEMPLATE_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_dropped_when_its_runtime_is_there_and_does_so() {
    let (world, docker) = World::start_on_two(options(0, 5), |docker| {
        docker.leave_prepared("old@1");
        docker.leave_prepared("again@1");
        docker.set_unavailable(true);
    })
    .await;
    world.set_templates(1, vec![]).await;
    docker.set_unavailable(false);
    docker.set_failing("discard", true);
    sleep(Duration::from_secs(30)).await;
    assert_eq!(docker.prepared(), ["again@1", "docker", "old@1"]);
    world.set_templates(2, vec![template("again", 1, &["docker"])]).await;
    world.acquire_of("again@1").await;
    docker.set_failing("discard", false);
    sleep(Duration::from_secs(300)).await;
    assert_eq!(docker.prepared(), ["again@1", "docker"]);
    world.acquire_of("again@1").await;
}

#[tokio::test(start_paused = true)]
async fn other_content_under_a_reference_waits_for_the_sandboxes_of_the_first() {
    let (world, docker) = start(9).await;
    world.set_templates(1, vec![template("python", 1, &["docker"])]).await;
    let held = world.acquire_of("python@1").await;
    let other = v1::Template { name: "python".into(), ..template("other", 1, &["docker"]) };
    world.set_templates(2, vec![other]).await;
    assert_eq!(world.refusal("python@1").await.reason, "TEMPLATE_NOT_READY");
    world.release(held).await.unwrap();
    world.settle().await;
    world.acquire_of("python@1").await;
    assert_eq!(docker.times_prepared().0, 3);
}

#[tokio::test(start_paused = true)]
async fn bad_lists_are_refused_with_the_place_of_the_fault() {
    let (world, _docker) = start(5).await;
    let bad =
        vec![template("a", 1, &["vm"]), template("b", 0, &["linux"]), template("c", 1, &[]), template("c", 1, &[])];
    let refusal = world.try_set_templates(1, bad).await.unwrap_err();
    assert_eq!(refusal.fields, ["templates[0]", "templates[1].version", "templates[3]"]);
}

#[tokio::test(start_paused = true)]
async fn limits_of_a_template_are_those_of_its_sandboxes() {
    let (world, _docker) = start(5).await;
    let limits = |limits| Some(limits);
    let small = ResourceLimits { pids: 33, memory_bytes: 64 << 20, ..Default::default() };
    let python = v1::Template { limits: limits(small), ..template("python", 1, &["docker"]) };
    let huge = ResourceLimits { memory_bytes: 1 << 60, ..Default::default() };
    let greedy = v1::Template { limits: limits(huge), ..template("greedy", 1, &["docker"]) };
    world.set_templates(1, vec![python, greedy]).await;
    let wanted = ResourceLimits { memory_bytes: 128 << 20, ..Default::default() };
    let request = AcquireSandboxRequest { limits: Some(wanted), ..of("python@1") };
    let got = world.try_acquire(request).await.unwrap().sandbox.unwrap().limits.unwrap();
    assert_eq!((got.pids, got.memory_bytes, got.disk_bytes), (33, 128 << 20, 32 << 20));
    let refusal = world.refusal("greedy@1").await;
    assert_eq!(refusal.reason, "TEMPLATE_FAILED");
    assert!(refusal.message.contains("limits.memory_bytes must be from"), "{}", refusal.message);
}
