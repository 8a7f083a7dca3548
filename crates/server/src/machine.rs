//! The runtimes of this machine.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use cloud_sandbox_images::{ImageStore, Options as ImageOptions};
use cloud_sandbox_model::RuntimeName;
use cloud_sandbox_node::Runtimes;
use cloud_sandbox_runtime::{INTERFACE, Runtime};
use cloud_sandbox_runtime_docker::{DockerRuntime, Options as DockerOptions};
use cloud_sandbox_runtime_linux::{LinuxRuntime, Options as LinuxOptions};

use crate::settings::Settings;

/// The folder of what belongs to one life of the process, in the data folder.
const RUN_DIR: &str = "run";
/// The folder of root file systems.
const IMAGES_DIR: &str = "images";
/// The file with the name by which containers of this data folder are told from those of others.
const INSTANCE_FILE: &str = "instance";

/// What makes the sandboxes of a node.
pub struct Machine {
    pub runtimes: Runtimes,
    /// the native one, if it is among them
    linux: Option<Arc<LinuxRuntime>>,
}

impl Machine {
    /// The runtimes that the settings name, with what they keep in `folder`. One that needs a daemon connects to it when that is
    /// first needed.
    pub async fn open(settings: &Settings, folder: &Path) -> anyhow::Result<Self> {
        let mut runtimes: Vec<Arc<dyn Runtime>> = Vec::new();
        let mut linux = None;
        for name in &settings.sandbox_runtimes {
            if name == RuntimeName::Linux.family() {
                let native = native(settings, folder).await?;
                runtimes.push(Arc::<LinuxRuntime>::clone(&native));
                linux = Some(native);
            } else {
                runtimes.push(Arc::new(docker(settings, folder)?));
            }
        }
        Ok(Self { runtimes: Runtimes::new(runtimes), linux })
    }

    /// Where the native runtime sets limits, in words.
    pub fn cgroups(&self) -> String {
        let cgroups = self.linux.as_ref().and_then(|runtime| runtime.cgroups());
        cgroups.unwrap_or_else(|| "none".to_owned())
    }
}

/// The native runtime, prepared. Each protection that this host does not offer is logged, or ends the start where the
/// settings require all.
async fn native(settings: &Settings, folder: &Path) -> anyhow::Result<Arc<LinuxRuntime>> {
    let options = ImageOptions {
        docker_host: settings.docker_host.clone(),
        ..ImageOptions::new(folder.join(IMAGES_DIR), INTERFACE.gateway)
    };
    let images = ImageStore::open(options).await.context("failed to open the root file systems of templates")?;
    let runtime = LinuxRuntime::new(&linux_options(&folder.join(RUN_DIR), Some(images)));
    let runtime = runtime.context("failed to prepare the sandbox runtime")?;
    for loss in runtime.losses() {
        tracing::warn!(protection = loss.protection, remedy = loss.remedy, "not protected: {}", loss.detail);
    }
    if settings.require_isolation && !runtime.losses().is_empty() {
        let lost: Vec<_> = runtime.losses().iter().map(|loss| loss.protection).collect();
        bail!("this host lacks {} (setting require_isolation); see cloud-sandbox doctor", lost.join(", "));
    }
    Ok(Arc::new(runtime))
}

/// The native runtime with the programs that this one carries.
pub fn linux_options(state_dir: &Path, images: Option<ImageStore>) -> LinuxOptions {
    LinuxOptions {
        state_dir: state_dir.into(),
        agent: cloud_sandbox_embedded::AGENT,
        jailer: cloud_sandbox_embedded::JAILER,
        images,
    }
}

fn docker(settings: &Settings, folder: &Path) -> anyhow::Result<DockerRuntime> {
    // the daemon has to find it, wherever that was started
    let state_dir = std::path::absolute(folder.join(RUN_DIR))?;
    let instance = instance(folder).context("failed to name this server for its containers")?;
    Ok(DockerRuntime::new(docker_options(settings.docker_host.clone(), state_dir, instance)))
}

/// The Docker runtime with the same programs.
pub fn docker_options(docker_host: Option<String>, state_dir: PathBuf, instance: String) -> DockerOptions {
    let (agent, jailer) = (cloud_sandbox_embedded::AGENT, cloud_sandbox_embedded::JAILER);
    DockerOptions { docker_host, state_dir, instance, agent, jailer }
}

/// The name that was given to this folder; given now if it has none.
fn instance(folder: &Path) -> io::Result<String> {
    let path = folder.join(INSTANCE_FILE);
    match std::fs::read_to_string(&path) {
        Ok(name) if !name.is_empty() => return Ok(name),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // one that is empty was being written when the disk was full
        Ok(_) | Err(_) => {}
    }
    let name = format!("{:016x}", rand::random::<u64>());
    std::fs::write(&path, &name)?;
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_keeps_its_name() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = instance(one.path()).unwrap();
        assert_eq!(instance(one.path()).unwrap(), name);
        assert_ne!(instance(other.path()).unwrap(), name);
    }
}
