//! The Linux runtime on this host's kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, path::Path, process::Command, sync::Arc};

use cloud_sandbox_model::{Limits, SandboxId};
use cloud_sandbox_runtime::{Prepared, Runtime, SandboxSpec, conformance};
use cloud_sandbox_runtime_linux::{LinuxRuntime, Options};

fn options(state_dir: &Path) -> Options {
    Options {
        state_dir: state_dir.into(),
        agent: cloud_sandbox_embedded::AGENT,
        jailer: cloud_sandbox_embedded::JAILER,
    }
}

fn spec() -> SandboxSpec {
    SandboxSpec { template: Prepared::host(), limits: Limits::DEFAULT }
}

#[tokio::test]
async fn linux_conforms() {
    let state = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    conformance::check_all(Arc::new(runtime), Prepared::host()).await;
    assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0, "sockets have no name");
}

#[tokio::test]
async fn destroyed_sandbox_leaves_no_process_and_no_cgroup() {
    let state = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    let id = SandboxId::generate();
    runtime.create(id, &spec()).await.unwrap();
    assert!(!groups_of(id).is_empty() || runtime.cgroups().is_none());
    runtime.destroy(id).await.unwrap();
    assert_eq!(groups_of(id), Vec::<String>::new());
}

/// The cgroups of a sandbox in any hierarchy.
fn groups_of(id: SandboxId) -> Vec<String> {
    let found = Command::new("find").args(["/sys/fs/cgroup", "-name", &id.to_string()]).output().unwrap();
    String::from_utf8_lossy(&found.stdout).lines().map(str::to_owned).collect()
}
