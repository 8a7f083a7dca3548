//! Outside of a sandbox there are no walls, and the proof says so.

use std::fs;

use cloud_sandbox_proto::agent::v1::ProveWallsRequest;

use crate::rig::{Agent, left_out};

#[tokio::test]
async fn missing_walls_are_found() {
    if left_out() {
        return;
    }
    let agent = Agent::start().await;
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim().to_owned();
    let request = ProveWallsRequest { path: agent.path(""), boot_id, machine_id: String::new() };
    let proofs = agent.client.clone().prove_walls(request).await.unwrap().into_inner().proofs;
    let open: Vec<_> = proofs.iter().filter(|proof| !proof.held).map(|proof| proof.wall.as_str()).collect();
    for wall in ["user namespace", "no privileges", "seccomp", "landlock", "files", "processes", "identity"] {
        assert!(open.contains(&wall), "{wall} in {proofs:?}");
    }
    assert!(proofs.iter().all(|proof| proof.held == proof.detail.is_empty()), "{proofs:?}");
}
