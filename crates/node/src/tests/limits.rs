//! What a sandbox may take: asked for, applied, and told where something ran into it.

use std::{sync::atomic::Ordering, time::Duration};

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::{
    node::v1::GetSandboxRequest,
    v1::{AcquireSandboxRequest, ExecuteRequest, ResourceLimits, SandboxUsage},
};
use cloud_sandbox_runtime::Usage;
use tokio::time::{Instant, sleep};

use super::harness::*;

impl World {
    async fn limited(&self, limits: ResourceLimits) -> SandboxId {
        let request = AcquireSandboxRequest { limits: Some(limits), ..Default::default() };
        id_of(&self.try_acquire(request).await.unwrap())
    }

    async fn usage(&self, id: SandboxId) -> SandboxUsage {
        let request = GetSandboxRequest { sandbox_id: id.to_string(), with_usage: true };
        self.client().get_sandbox(request).await.unwrap().into_inner().sandbox.unwrap().usage.unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn every_limit_is_told_as_it_was_asked_for() {
    let world = World::start(1, 5).await;
    let limits = ResourceLimits {
        memory_bytes: 64 << 20,
        cpu_millis: 500,
        pids: 9,
        disk_bytes: 8 << 20,
        open_files: 64,
        output_bytes: 65_536,
        execution_seconds: 5,
        cpu_weight: 7,
    };
    let id = world.limited(limits).await;
    assert_eq!(world.get(id).await.unwrap().limits, Some(limits));
    let entry = world.in_directory(id).await.unwrap().limits;
    assert_eq!((entry.open_files, entry.output_bytes, entry.execution_seconds, entry.cpu_weight), (64, 65_536, 5, 7));
}

#[tokio::test(start_paused = true)]
async fn warm_sandbox_that_cannot_have_them_makes_way_for_a_fresh_one() {
    let world = World::start(1, 5).await;
    world.runtime.set_unsupported("set_limits", true);
    let limits = Some(ResourceLimits { open_files: 8192, ..Default::default() });
    let answer = world.try_acquire(AcquireSandboxRequest { limits, ..Default::default() }).await.unwrap();
    assert!(!answer.warm);
    assert_eq!(answer.sandbox.unwrap().limits.unwrap().open_files, 8192);
}

#[tokio::test(start_paused = true)]
async fn sandbox_in_the_making_that_cannot_have_them_makes_way_as_well() {
    let world = World::start_with(options(1, 5), |runtime| runtime.set_unsupported("set_limits", true)).await;
    let limits = Some(ResourceLimits { open_files: 8192, ..Default::default() });
    let answer = world.try_acquire(AcquireSandboxRequest { limits, ..Default::default() }).await.unwrap();
    assert_eq!(answer.sandbox.unwrap().limits.unwrap().open_files, 8192);
}

#[tokio::test(start_paused = true)]
async fn output_beyond_what_the_journal_keeps_cannot_be_asked_for() {
    let mut options = options(0, 5);
    options.journal.execution_bytes = 1 << 20;
    let world = World::start_with(options, |_| {}).await;
    let kept = world.get(world.acquire().await).await.unwrap().limits.unwrap().output_bytes;
    assert_eq!(kept, 1 << 20, "what is kept by default is what the journal keeps");
    let limits = Some(ResourceLimits { output_bytes: (1 << 20) + 1, ..Default::default() });
    let failure = world.try_acquire(AcquireSandboxRequest { limits, ..Default::default() }).await.unwrap_err();
    assert_eq!(failure.fields, ["limits.output_bytes"]);
    assert!(failure.message.contains("must be from 65536 to 1048576"), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn less_output_is_kept_where_less_was_asked_for() {
    let world = World::start(0, 5).await;
    let id = world.limited(ResourceLimits { output_bytes: 65_536, ..Default::default() }).await;
    let flooded = world.execute(argv(id, &["flood", "1000000"])).await.unwrap();
    assert_eq!((flooded.stdout_bytes, flooded.stdout_truncated), (1_000_000, true));
    assert!(flooded.stdout.len() <= 65_536, "{}", flooded.stdout.len());
    assert_eq!(flooded.stdout.len() as u64 + flooded.stdout_omitted_bytes, 1_000_000);
    let other = world.acquire().await;
    assert!(!world.execute(argv(other, &["flood", "1000000"])).await.unwrap().stdout_truncated);
}

#[tokio::test(start_paused = true)]
async fn timeout_over_the_limit_is_refused_in_the_foreground_and_the_default_is_within_it() {
    let world = World::start(0, 5).await;
    let id = world.limited(ResourceLimits { execution_seconds: 5, ..Default::default() }).await;
    let asked = |timeout_ms| ExecuteRequest { timeout_ms, ..argv(id, &["wait", "30000"]) };
    let failure = world.execute(asked(5001)).await.unwrap_err();
    assert_eq!((failure.kind, failure.fields.as_slice()), ("INVALID_ARGUMENT", &["timeout_ms".to_owned()][..]));
    assert!(failure.message.contains("must be from 0 to 5000: the sandbox's limits.execution_seconds is 5"));

    let began = Instant::now();
    assert!(world.execute(asked(0)).await.unwrap().timed_out);
    let took = began.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(6)).contains(&took), "{took:?}");
    assert!(world.execute(asked(1000)).await.unwrap().timed_out, "less may be asked for");

    let background = world.begin(asked(20_000)).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let execution = world.execution(id, &background.execution_id).await.unwrap();
    assert!(execution.exit.is_none(), "the background is bound by the lease alone");
}

#[tokio::test(start_paused = true)]
async fn refused_processes_are_told_of_the_execution_they_happened_in() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let refused = |refused| world.runtime.set_usage(id, Usage { pids_refused: Some(refused), ..Default::default() });
    assert!(!world.execute(argv(id, &["fail", "1"])).await.unwrap().pids_limit);
    refused(3);
    let answer = world.execute(argv(id, &["fail", "1"])).await.unwrap();
    assert_eq!((answer.pids_limit, answer.oom_killed), (true, false));
    refused(4);
    assert!(!world.execute(argv(id, &["echo", "a"])).await.unwrap().pids_limit, "quick and well: it did not matter");
    assert!(!world.execute(argv(id, &["fail", "1"])).await.unwrap().pids_limit, "nor is the next one blamed");
}

#[tokio::test(start_paused = true)]
async fn full_disk_is_told_of_the_execution_that_met_it_also_later() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    assert!(!world.execute(argv(id, &["echo", "a"])).await.unwrap().disk_limit);
    let full = ExecuteRequest { request_id: "r".into(), ..argv(id, &["fill"]) };
    assert!(world.execute(full.clone()).await.unwrap().disk_limit);
    assert!(world.execute(full).await.unwrap().disk_limit, "and of its repeat");
    let begun = world.begin(argv(id, &["fill"])).await.unwrap();
    world.settle().await;
    assert!(world.execution(id, &begun.execution_id).await.unwrap().exit.unwrap().disk_limit);
}

#[tokio::test(start_paused = true)]
async fn sandbox_whose_agent_was_killed_for_memory_ends_with_that_reason() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let execution = world.execute(argv(id, &["wait", "30000"]));
    let killing = async {
        sleep(Duration::from_secs(1)).await;
        world.runtime.set_usage(id, Usage { oom_kills: Some(1), ..Usage::default() });
        world.runtime.kill(id);
    };
    let (failure, ()) = tokio::join!(execution, killing);
    let failure = failure.unwrap_err();
    assert_eq!(failure.words(), ("NOT_FOUND", "SANDBOX_GONE"));
    assert!(failure.message.contains("at its memory limit"), "{failure:?}");
    assert!(failure.metadata.contains(&("cause".to_owned(), "oom_killed".to_owned())), "{failure:?}");
}

#[tokio::test(start_paused = true)]
async fn usage_is_told_and_what_cannot_be_is_left_out() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    assert!(world.get(id).await.unwrap().usage.is_none(), "only for those who ask");
    let used = Usage {
        memory_bytes: Some(1 << 20),
        pids: Some(3),
        cpu_time: Some(Duration::from_micros(1500)),
        oom_kills: Some(1),
        pids_refused: None,
    };
    world.runtime.set_usage(id, used);
    world.script.disk_used.store(4096, Ordering::SeqCst);
    let usage = world.usage(id).await;
    assert_eq!((usage.memory_bytes, usage.pids, usage.cpu_time_ms), (Some(1 << 20), Some(3), Some(1.5)));
    assert_eq!((usage.oom_kills, usage.pids_refused, usage.disk_bytes), (Some(1), None, Some(4096)));

    world.script.mute.store(true, Ordering::SeqCst);
    let usage = world.usage(id).await;
    assert_eq!(
        (usage.memory_bytes, usage.disk_bytes),
        (Some(1 << 20), None),
        "an agent without time is not waited for"
    );
    world.script.mute.store(false, Ordering::SeqCst);
    world.pause(id).await.unwrap();
    assert_eq!(world.usage(id).await.disk_bytes, None);
}
