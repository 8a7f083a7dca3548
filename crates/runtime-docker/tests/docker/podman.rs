//! The same with Podman's service, which has words and ways of its own.

use std::{collections::BTreeMap, time::Duration};

use cloud_sandbox_model::{Limits, SandboxId, Template, template::Source};
use cloud_sandbox_runtime::{Prepared, Runtime, RuntimeError, SandboxSpec, conformance, walls};
use tokio::time::timeout;

use crate::{
    engine::Proxy,
    life::walls_hold,
    rig::{Rig, SOON, archive, eventually, name},
    setup::{Docker, podman_left_out},
};

/// A server's runtime over the service.
struct World {
    podman: Docker,
    rig: Rig,
}

impl World {
    fn new() -> Self {
        let podman = Docker::podman_of_this_run();
        Self { rig: Rig::at(&podman.url), podman }
    }

    async fn prepared(&self) -> Prepared {
        self.rig.prepare(&Template::docker(&self.podman.bare_image), "docker").await.unwrap()
    }

    async fn create(&self) -> SandboxId {
        self.rig.create_of(self.prepared().await, Limits::DEFAULT).await
    }

    /// Does something to the container of a sandbox behind its server's back.
    fn act(&self, method: &str, id: SandboxId, what: &str) {
        self.podman.told(method, &format!("/containers/{}{what}", name(id)));
    }

    fn has(&self, id: SandboxId) -> bool {
        self.podman.containers().contains(&name(id))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_conforms() {
    if podman_left_out() {
        return;
    }
    let world = World::new();
    let template = world.prepared().await;
    conformance::check_all(world.rig.runtime.clone(), template).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn walls_of_podman_hold_from_inside() {
    if podman_left_out() {
        return;
    }
    let world = World::new();
    let claimed = walls_hold(&world.rig, world.prepared().await).await;
    assert!(claimed.contains(&walls::SECCOMP) && claimed.contains(&walls::IDENTITY), "{claimed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_done_with_podman_by_others_is_seen() {
    if podman_left_out() {
        return;
    }
    let world = World::new();
    let killed = Some("was killed from outside (exit code 137)".to_owned());
    for kill in [true, false] {
        let id = world.create().await;
        world.rig.agent(id).await;
        if kill {
            world.podman.kill(&name(id));
        } else {
            world.act("DELETE", id, "?force=true");
        }
        let end = timeout(SOON, world.rig.runtime.ended(id)).await.unwrap();
        assert_eq!(end.from_outside, killed, "by kill: {kill}");
        world.rig.runtime.destroy(id).await.unwrap();
        assert!(!world.has(id));
    }
    let id = world.create().await;
    world.act("POST", id, "/pause");
    assert!(timeout(SOON, world.rig.runtime.frozen_by_others(id, false)).await.unwrap());
    world.act("POST", id, "/unpause");
    assert!(!timeout(SOON, world.rig.runtime.frozen_by_others(id, true)).await.unwrap());
    world.rig.agent(id).await;
    world.act("POST", id, "/pause");
    world.rig.runtime.thaw(id).await.unwrap();
    world.rig.agent(id).await;
    world.act("POST", id, "/pause");
    world.rig.runtime.destroy(id).await.unwrap();
    assert!(!world.has(id), "also one that stands still");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_sandboxes_outlive_a_break_of_podmans_service() {
    if podman_left_out() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let podman = Docker::podman_of_this_run();
    let proxy = Proxy::to(&podman.url, folder.path());
    let world = World { rig: Rig::at(&proxy.host()), podman };
    let (paused, seen_late) = (world.create().await, world.create().await);
    let runtime = &world.rig.runtime;
    runtime.freeze(paused).await.unwrap();
    proxy.cut().await;
    world.act("POST", seen_late, "/pause");
    proxy.mend();
    assert!(timeout(SOON, runtime.frozen_by_others(seen_late, false)).await.unwrap(), "what there is was looked at");
    // those that are missed are given up by then
    let ended = async { tokio::join!(runtime.ended(paused), runtime.ended(seen_late)) };
    assert!(timeout(Duration::from_secs(7), ended).await.is_err());
    for id in [paused, seen_late] {
        runtime.thaw(id).await.unwrap();
        world.rig.agent(id).await;
        runtime.destroy(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_with_podman_and_are_counted() {
    if podman_left_out() {
        return;
    }
    let world = World::new();
    let small = Limits { memory_bytes: 64 << 20, disk_bytes: 16 << 20, open_files: 128, pids: 32, ..Limits::DEFAULT };
    let id = world.rig.create_of(world.prepared().await, small).await;
    let run = async |line: &str| world.rig.run_program(id, &["/busybox", "sh", "-c", line]).await;
    assert_eq!(run("/busybox dd if=/dev/zero of=/dev/null bs=100M count=1 2>/dev/null").await.0, 137);
    assert_eq!(run("ulimit -n; ulimit -Hn").await.1, "128\n128");
    let (status, full) = run("/busybox dd if=/dev/zero of=/workspace/big bs=1M count=20").await;
    assert!(status != 0 && full.contains("No space left"), "{full}");
    assert_eq!(run("/busybox stat -c '%u %g %a' /workspace /tmp").await.1, "1000 1000 755\n1000 1000 1777");
    let many = "i=0; while [ $i -lt 40 ]; do /busybox sleep 60 & i=$((i+1)); done; echo all";
    let (_, refused) = run(many).await;
    assert!(refused.contains("can't fork"), "{refused}");
    let usage = world.rig.runtime.usage(id).await.unwrap();
    assert!(usage.oom_kills.is_some_and(|kills| kills > 0), "{usage:?}");
    assert!(usage.pids_refused.is_some_and(|refused| refused > 0) && usage.pids.is_some(), "{usage:?}");
    world.rig.runtime.destroy(id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_living_container_are_changed_or_that_is_refused() {
    if podman_left_out() {
        return;
    }
    let world = World::new();
    let id = world.create().await;
    let more = Limits { memory_bytes: 2 * Limits::DEFAULT.memory_bytes, ..Limits::DEFAULT };
    // that depends on the service's version
    match world.rig.runtime.set_limits(id, more).await {
        Ok(()) | Err(RuntimeError::Unsupported(_)) => {}
        other => panic!("{other:?}"),
    }
    world.rig.agent(id).await;
    world.rig.runtime.destroy(id).await.unwrap();
    assert!(matches!(world.rig.runtime.set_limits(id, more).await, Err(RuntimeError::Gone(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_left_with_podman_is_removed_and_nothing_of_another() {
    if podman_left_out() {
        return;
    }
    let (world, other) = (World::new(), World::new());
    let (left, frozen, others) = (world.create().await, world.create().await, other.create().await);
    world.rig.runtime.freeze(frozen).await.unwrap();
    let next = world.rig.again_at(&world.podman.url);
    let mut found = next.runtime.reclaim().await.unwrap();
    found.sort_unstable();
    let mut wanted = vec![left, frozen];
    wanted.sort_unstable();
    assert_eq!(found, wanted);
    assert!(!world.has(left) && !world.has(frozen) && world.has(others));
    other.rig.agent(others).await;
    other.rig.runtime.destroy(others).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_whose_server_is_gone_ends_with_podman_too() {
    if podman_left_out() {
        return;
    }
    let World { podman, rig } = World::new();
    let world = World { rig: rig.again_at(&podman.url), podman };
    let template = world.prepared().await;
    let id = rig.create_of(template, Limits::DEFAULT).await;
    rig.agent(id).await;
    drop(rig);
    eventually("nobody serves it, so it ends", || !world.has(id)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_is_imported_by_podman_once_and_discarded() {
    if podman_left_out() {
        return;
    }
    let World { podman, rig } = World::new();
    let folder = tempfile::tempdir().unwrap();
    let path = archive(folder.path(), &[("etc/passwd", "root:x:0:0::/:\nweb:x:33:34::/:\n"), ("file", "content")]);
    let source = Source::Tarball { path };
    let template = Template { name: "mine".into(), version: 2, source, user: "web".into(), ..Template::docker("-") };
    let prepared = rig.prepare(&template, "docker").await.unwrap();
    assert_eq!((&*prepared.user, prepared.env.clone()), ("33:34", BTreeMap::new()));
    assert_eq!(rig.prepare(&template, "docker").await.unwrap(), prepared, "it is there already");
    let cloud_sandbox_runtime::Root::Image(image) = prepared.root.clone() else { panic!("{prepared:?}") };
    let id = rig.create_of(prepared.clone(), Limits::DEFAULT).await;
    rig.agent(id).await;
    rig.runtime.destroy(id).await.unwrap();
    assert_eq!(rig.runtime.prepared_templates().await.unwrap(), ["mine@2"]);
    rig.runtime.discard("mine@2").await.unwrap();
    assert!(rig.runtime.prepared_templates().await.unwrap().is_empty());
    assert_eq!(podman.ask("GET", &format!("/images/{image}/json")).0, 404);
    let spec = SandboxSpec { template: prepared, limits: Limits::DEFAULT };
    let gone = rig.runtime.create(SandboxId::generate(), &spec).await.unwrap_err();
    assert!(matches!(gone, RuntimeError::Template { .. }), "{gone}");
}
