//! The proof of a fresh sandbox's walls, from inside, before anybody may have it.

use std::{fs, path::Path, sync::Arc, time::Duration};

use cloud_sandbox_model::{
    Limits, SandboxId,
    error::{Error, Result},
};
use cloud_sandbox_proto::agent::v1::{ProveWallsRequest, WallProof};
use cloud_sandbox_runtime::{Prepared, Runtime, SandboxSpec, walls::PROVED};
use tokio::time::timeout;

use crate::{
    agent::Agent,
    node::Shared,
    options::AGENT_DEADLINE,
    sandbox::{Sandbox, runtime_error},
};

/// What of the host no sandbox may see.
pub(crate) struct Secrets {
    path: String,
    boot_id: String,
    machine_id: String,
}

impl Secrets {
    /// A path that is the node's own, and the host's ids.
    pub(crate) fn of_host(path: &Path) -> Self {
        let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
        Self {
            path: std::path::absolute(path).unwrap_or_default().to_string_lossy().into_owned(),
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            machine_id: line("/etc/machine-id"),
        }
    }
}

/// Has the agent of a node's fresh sandbox try every wall that the runtime says is there. One that does not hold is an error.
pub(crate) async fn prove(node: &Shared, sandbox: &Sandbox) -> Result<()> {
    let tried = tried(
        &sandbox.origin.runtime,
        &sandbox.origin.prepared,
        &sandbox.agent,
        &node.secrets,
        node.options.agent_deadline,
    );
    let breaches = tried.await?;
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

/// Makes a sandbox of a template on a runtime, tries its walls from inside, and destroys it. The walls that do not hold although the
/// runtime says that they are there, and what got through. `path` is one of the host's.
///
/// # Errors
/// When no sandbox can be made, or its agent does not answer.
pub async fn try_walls(
    runtime: Arc<dyn Runtime>,
    template: &Prepared,
    path: &Path,
) -> Result<Vec<(&'static str, String)>> {
    let id = SandboxId::generate();
    let spec = SandboxSpec { template: template.clone(), limits: Limits::DEFAULT };
    runtime.create(id, &spec).await.map_err(runtime_error)?;
    let agent = Agent::new(Arc::clone(&runtime), id);
    let found = match agent.wait_ready(AGENT_DEADLINE).await {
        Ok(()) => tried(&runtime, template, &agent, &Secrets::of_host(path), AGENT_DEADLINE).await,
        Err(error) => Err(error),
    };
    runtime.destroy(id).await.map_err(runtime_error)?;
    found
}

/// What got through, by wall.
async fn tried(
    runtime: &Arc<dyn Runtime>,
    template: &Prepared,
    agent: &Agent,
    secrets: &Secrets,
    within: Duration,
) -> Result<Vec<(&'static str, String)>> {
    let Secrets { path, boot_id, machine_id } = secrets;
    let request = ProveWallsRequest {
        path: path.clone(),
        boot_id: boot_id.clone(),
        machine_id: machine_id.clone(),
        writable_root: template.writable_root,
    };
    let answer = timeout(within, agent.prove_walls(request)).await;
    let proofs = answer.map_err(|elapsed| unproven(elapsed.to_string()))?;
    let proofs = proofs.map_err(|status| unproven(status.to_string()))?;
    Ok(breaches(&runtime.walls(template), &proofs))
}

fn unproven(cause: String) -> Error {
    Error::internal("prove the walls of a new sandbox", cause)
}

/// The walls that should hold and do not, or of which there is no proof.
fn breaches(walls: &[&'static str], proofs: &[WallProof]) -> Vec<(&'static str, String)> {
    let claimed = walls.iter().filter(|wall| PROVED.contains(wall));
    let breach = |wall: &&'static str| match proofs.iter().find(|proof| proof.wall == **wall) {
        Some(proof) if proof.held => None,
        Some(proof) => Some((*wall, proof.detail.clone())),
        None => Some((*wall, "it was not tried".to_owned())),
    };
    claimed.filter_map(breach).collect()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_runtime::{
        SCRATCH,
        walls::{FILES, NETWORK, UNIQUE_IDS},
    };

    use super::*;

    #[test]
    fn what_should_hold_must_have_been_tried() {
        let proof =
            |wall: &str, detail: &str| WallProof { wall: wall.into(), held: detail.is_empty(), detail: detail.into() };
        let proofs = [proof(FILES, ""), proof(NETWORK, "eth0 is there")];
        assert_eq!(breaches(&[FILES, UNIQUE_IDS], &proofs), []);
        assert_eq!(breaches(&[NETWORK], &proofs), [(NETWORK, "eth0 is there".to_owned())]);
        assert_eq!(breaches(&[FILES], &proofs[1..]), [(FILES, "it was not tried".to_owned())]);
    }

    #[test]
    fn agent_looks_at_every_folder_that_can_be_written() {
        let agents = include_str!("../../agent/src/disk.rs");
        for (folder, _) in SCRATCH {
            assert!(agents.contains(&format!("\"{folder}\"")), "{folder}");
        }
    }

    #[test]
    fn agent_tries_every_wall_by_the_name_that_it_has_here() {
        let agents = include_str!("../../agent/src/walls.rs");
        for wall in PROVED {
            assert!(agents.contains(&format!("(\"{wall}\", ")), "{wall}");
        }
    }
}
