//! Outside of a sandbox there are no walls, and the proof says so.

use std::fs;

use cloud_sandbox_proto::agent::v1::ProveWallsRequest;

use crate::rig::{Agent, is_gvisor, left_out};

#[tokio::test]
async fn missing_walls_are_found() {
    if left_out() {
        return;
    }
    let agent = Agent::start().await;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let request = ProveWallsRequest { path: agent.path(""), boot_id, machine_id: String::new(), writable_root: false };
    let proofs = agent.client.clone().prove_walls(request).await.unwrap().into_inner().proofs;
    let open: Vec<_> = proofs.iter().filter(|proof| !proof.held).map(|proof| proof.wall.as_str()).collect();
    for wall in ["user namespace", "no privileges", "seccomp", "landlock", "files", "processes", "identity"] {
        assert!(open.contains(&wall), "{wall} in {proofs:?}");
    }
    assert!(proofs.iter().all(|proof| proof.held == proof.detail.is_empty()), "{proofs:?}");
}

/// As the runtime for containers makes them: an ordinary user, nothing to gain, and a root that nobody writes.
const OF_SANDBOXES: [&str; 4] =
    ["--user=1000:1000", "--cap-drop=ALL", "--read-only", "--tmpfs=/workspace:rw,nosuid,nodev,uid=1000,gid=1000"];

#[tokio::test]
async fn containers_have_the_walls_that_their_runtime_claims() {
    if left_out() {
        return;
    }
    let agent = Agent::start_in_container(&OF_SANDBOXES).await;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let machine_id = fs::read_to_string("/etc/machine-id").unwrap_or_default().trim().to_owned();
    // the target folder of the tests stands for one of the node
    let path = env!("CARGO_TARGET_TMPDIR").to_owned();
    let request = ProveWallsRequest { path, boot_id, machine_id, writable_root: false };
    let proofs = agent.client.clone().prove_walls(request).await.unwrap().into_inner().proofs;
    let mut claimed = vec!["no privileges", "files", "processes", "network", "proc", "devices"];
    // the other has a kernel of its own, which has an identity of its own, and no filters
    claimed.push(if is_gvisor() { "identity" } else { "seccomp" });
    for wall in claimed {
        let proof = proofs.iter().find(|proof| proof.wall == wall).unwrap();
        assert!(proof.held, "{proof:?}");
    }
    for left in ["/workspace", "/tmp", "/dev/shm"] {
        let found = agent.sh(&format!("find {left} -name '.wall-*'")).await;
        assert_eq!(found.text(), "", "of what was tried nothing is left");
    }
}
