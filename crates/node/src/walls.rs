//! The proof of a fresh sandbox's walls, from inside, before anybody may have it.

use std::{fs, path::Path};

use cloud_sandbox_model::error::{Error, Result};
use cloud_sandbox_proto::agent::v1::{ProveWallsRequest, WallProof};
use cloud_sandbox_runtime::walls::PROVED;
use tokio::time::timeout;

use crate::{node::Shared, options::Options, sandbox::Sandbox};

/// What of the host no sandbox may see.
pub(crate) struct Secrets {
    path: String,
    boot_id: String,
    machine_id: String,
}

impl Secrets {
    /// A path that is the node's own, and the host's ids.
    pub(crate) fn of_host(options: &Options) -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            path: absolute(&options.journal.dir),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            machine_id: line("/etc/machine-id"),
        }
    }
}

fn absolute(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_default().to_string_lossy().into_owned()
}

/// Has the sandbox's agent try every wall that the runtime says is there.
pub(crate) async fn prove(node: &Shared, sandbox: &Sandbox) -> Result<()> {
    let Secrets { path, boot_id, machine_id } = &node.secrets;
    let request = ProveWallsRequest { path: path.clone(), boot_id: boot_id.clone(), machine_id: machine_id.clone() };
    let answer = timeout(node.options.agent_deadline, sandbox.agent.prove_walls(request)).await;
    let unproven = |cause: String| Error::internal("prove the walls of a new sandbox", cause);
    let proofs = answer.map_err(|elapsed| unproven(elapsed.to_string()))?;
    let proofs = proofs.map_err(|status| unproven(status.to_string()))?;
    let breaches = breaches(&node.runtime.walls(), &proofs);
    for (wall, detail) in &breaches {
        metrics::counter!("cloud_sandbox_wall_breaches_total", "wall" => *wall).increment(1);
        tracing::error!(wall, detail, "a wall of a new sandbox does not hold; the sandbox is destroyed");
    }
    if breaches.is_empty() {
        return Ok(());
    }
    let walls: Vec<_> = breaches.iter().map(|(wall, _)| *wall).collect();
    Err(unproven(format!("walls that do not hold: {}", walls.join(", "))))
}

/// The walls that should hold and do not, or of which there is no proof.
fn breaches<'a>(walls: &[&'static str], proofs: &'a [WallProof]) -> Vec<(&'static str, &'a str)> {
    let claimed = walls.iter().filter(|wall| PROVED.contains(wall));
    let breach = |wall: &&'static str| match proofs.iter().find(|proof| proof.wall == **wall) {
        Some(proof) if proof.held => None,
        Some(proof) => Some((*wall, proof.detail.as_str())),
        None => Some((*wall, "it was not tried")),
    };
    claimed.filter_map(breach).collect()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_runtime::walls::{FILES, NETWORK, UNIQUE_IDS};

    use super::*;

    #[test]
    fn what_should_hold_must_have_been_tried() {
        let proof =
            |wall: &str, detail: &str| WallProof { wall: wall.into(), held: detail.is_empty(), detail: detail.into() };
        let proofs = [proof(FILES, ""), proof(NETWORK, "eth0 is there")];
        assert_eq!(breaches(&[FILES, UNIQUE_IDS], &proofs), []);
        assert_eq!(breaches(&[NETWORK], &proofs), [(NETWORK, "eth0 is there")]);
        assert_eq!(breaches(&[FILES], &proofs[1..]), [(FILES, "it was not tried")]);
    }

    #[test]
    fn agent_tries_every_wall_by_the_name_that_it_has_here() {
        let agents = include_str!("../../agent/src/walls.rs");
        for wall in PROVED {
            assert!(agents.contains(&format!("(\"{wall}\", ")), "{wall}");
        }
    }
}
