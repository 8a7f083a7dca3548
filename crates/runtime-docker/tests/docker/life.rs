//! How sandboxes are made, what they are given, and how they end.

use cloud_sandbox_proto::agent::v1::ProveWallsRequest;
use cloud_sandbox_runtime::{End, Prepared, Runtime, RuntimeError, conformance};
use tokio::time::timeout;

use crate::{
    rig::{Rig, SOON, docker, eventually, name},
    setup::left_out,
};

#[tokio::test(flavor = "multi_thread")]
async fn runc_conforms() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let template = rig.prepared("docker+runc").await;
    conformance::check_all(rig.runtime.clone(), template).await;
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn gvisor_conforms() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let template = rig.prepared("docker+runsc").await;
    conformance::check_all(rig.runtime.clone(), template).await;
    rig.assert_nothing_is_left();
}

/// The walls that a runtime claims hold against an agent inside; they are given.
pub async fn walls_hold(rig: &Rig, template: Prepared) -> Vec<&'static str> {
    let claimed = rig.runtime.walls(&template);
    let id = rig.create_of(template, cloud_sandbox_model::Limits::DEFAULT).await;
    let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let request = ProveWallsRequest {
        path: rig.state.path().display().to_string(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        machine_id: line("/etc/machine-id"),
        writable_root: false,
    };
    let proofs = rig.agent(id).await.prove_walls(request).await.unwrap().into_inner().proofs;
    for wall in &claimed {
        let proof = proofs.iter().find(|proof| proof.wall == *wall).unwrap();
        assert!(proof.held, "{wall}: {}", proof.detail);
    }
    assert!(claimed.len() >= 5, "{claimed:?}");
    rig.runtime.destroy(id).await.unwrap();
    claimed
}

#[tokio::test(flavor = "multi_thread")]
async fn walls_of_runc_hold_from_inside() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    walls_hold(&rig, rig.prepared("docker+runc").await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn walls_of_gvisor_hold_from_inside() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    walls_hold(&rig, rig.prepared("docker+runsc").await).await;
}

async fn ends_by(act: impl Fn(&str)) -> End {
    let rig = Rig::new();
    let id = rig.create("docker+runc").await;
    rig.agent(id).await;
    act(&name(id));
    let end = timeout(SOON, rig.runtime.ended(id)).await.unwrap();
    assert!(matches!(rig.runtime.connect(id).await.map(drop), Err(RuntimeError::Gone(_))));
    rig.runtime.destroy(id).await.unwrap();
    rig.assert_nothing_is_left();
    end
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_is_killed_or_removed_ends_its_sandbox_with_that_reason() {
    if left_out() {
        return;
    }
    let killed = Some("was killed from outside (exit code 137)".to_owned());
    assert_eq!(ends_by(|name| drop(docker(&["kill", name]))).await.from_outside, killed);
    assert_eq!(ends_by(|name| drop(docker(&["rm", "--force", name]))).await.from_outside, killed);
}

#[tokio::test(flavor = "multi_thread")]
async fn container_that_is_paused_from_outside_is_seen_to_be_and_can_be_let_go_on() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    let id = rig.create("docker+runc").await;
    rig.agent(id).await;
    docker(&["pause", &name(id)]);
    assert!(timeout(SOON, rig.runtime.frozen_by_others(id, false)).await.unwrap());
    docker(&["unpause", &name(id)]);
    assert!(!timeout(SOON, rig.runtime.frozen_by_others(id, true)).await.unwrap());
    rig.agent(id).await;
    docker(&["pause", &name(id)]);
    rig.runtime.thaw(id).await.unwrap();
    rig.agent(id).await;
    docker(&["pause", &name(id)]);
    rig.runtime.destroy(id).await.unwrap();
    rig.assert_nothing_is_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_left_is_removed_and_nothing_of_another() {
    if left_out() {
        return;
    }
    let (rig, other) = (Rig::new(), Rig::new());
    let (left, frozen) = (rig.create("docker+runc").await, rig.create("docker+runc").await);
    let others = other.create("docker+runc").await;
    rig.runtime.freeze(frozen).await.unwrap();
    let next = rig.again();
    let found = next.runtime.reclaim().await.unwrap();
    assert!(found.contains(&left) && found.contains(&frozen) && !found.contains(&others), "{found:?}");
    next.assert_nothing_is_left();
    assert_eq!(other.containers(), [others.to_string()]);
    other.agent(others).await;
    other.runtime.destroy(others).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sandbox_of_a_killed_server_ends_by_itself() {
    if left_out() {
        return;
    }
    let rig = Rig::new();
    for runtime in ["docker+runc", "docker+runsc"] {
        let id = rig.create(runtime).await;
        rig.agent(id).await;
    }
    let watched = rig.again();
    // its sockets close with it
    drop(rig);
    eventually("nobody serves them, so they end", || watched.containers().is_empty()).await;
}
