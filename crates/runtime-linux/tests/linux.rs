//! The Linux runtime on this host's kernel.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Command, sync::Arc};

use cloud_sandbox_images::{ImageStore, Options as ImageOptions};
use cloud_sandbox_model::{Limits, RuntimeName, SandboxId, Template, template::Source};
use cloud_sandbox_runtime::{INTERFACE, Prepared, Root, Runtime, RuntimeError, SandboxSpec, conformance};
use cloud_sandbox_runtime_linux::{LinuxRuntime, Options};

fn options(state_dir: &Path) -> Options {
    Options {
        state_dir: state_dir.into(),
        agent: cloud_sandbox_embedded::AGENT,
        jailer: cloud_sandbox_embedded::JAILER,
        images: None,
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

/// A root file system with nothing in it, below a folder that its owner alone may enter.
fn bare_root(folder: &Path) -> Prepared {
    let root = folder.join("root");
    for place in ["etc", "home/user", "usr/bin", "var/tmp"] {
        fs::create_dir_all(root.join(place)).unwrap();
    }
    for file in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/machine-id"] {
        fs::write(root.join(file), "").unwrap();
    }
    std::os::unix::fs::symlink("usr/bin", root.join("bin")).unwrap();
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).unwrap();
    Prepared { template: "bare@1".into(), root: Root::Folder(root), ..Prepared::host() }
}

#[tokio::test]
async fn linux_conforms_with_a_root_file_system_in_a_folder() {
    let state = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    conformance::check_all(Arc::new(runtime), bare_root(folder.path())).await;
}

#[tokio::test]
async fn linux_conforms_with_what_it_has_prepared() {
    let state = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("usr")).unwrap();
    let images = ImageStore::open(ImageOptions::new(state.path().join("images"), INTERFACE.gateway)).await.unwrap();
    let options = Options { images: Some(images), ..options(&state.path().join("run")) };
    let runtime = Arc::new(LinuxRuntime::new(&options).unwrap());
    let source = Source::Folder { path: folder.path().into() };
    let template = Template { name: "bare".into(), version: 1, source, ..Template::host() };
    let prepared = runtime.prepare(&template, &RuntimeName::Linux, &Arc::default()).await.unwrap();
    conformance::check_all(Arc::clone(&runtime) as Arc<dyn Runtime>, prepared).await;
    assert_eq!(runtime.prepared_templates().await.unwrap(), ["bare@1"]);
    runtime.discard("bare@1").await.unwrap();
    assert!(runtime.prepared_templates().await.unwrap().is_empty());
    assert_eq!(fs::read_dir(state.path().join("images/trees")).unwrap().count(), 0, "nothing of it is left");
}

#[tokio::test]
async fn root_file_system_that_is_gone_is_told() {
    let state = tempfile::tempdir().unwrap();
    let runtime = LinuxRuntime::new(&options(state.path())).unwrap();
    let template = Prepared { root: Root::Folder(state.path().join("gone")), ..Prepared::host() };
    let made = runtime.create(SandboxId::generate(), &SandboxSpec { template, limits: Limits::DEFAULT }).await;
    assert!(matches!(made, Err(RuntimeError::Template { .. })), "{made:?}");
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
