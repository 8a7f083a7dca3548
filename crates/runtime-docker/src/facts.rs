//! What an engine is: which one, what it runs containers with, and whether it can limit them.

use std::{collections::BTreeMap, env, io, path::Path};

use bollard::models::{SystemInfo, SystemInfoCgroupDriverEnum, SystemInfoCgroupVersionEnum};
use cloud_sandbox_model::RuntimeName;
use cloud_sandbox_runtime::RuntimeError;
use serde_json::Value;

/// Whose kernel a container's processes call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// the host's: runc, crun
    Hosts,
    /// one of its own: gVisor, a virtual machine
    Own,
}

/// In whose words an engine wants to be told of a container: Podman speaks Docker's language, but for a few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    Docker,
    Podman,
}

/// What an engine says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub dialect: Dialect,
    pub version: String,
    pub architecture: String,
    /// the storage driver, and the file system that it is on
    pub driver: String,
    pub backing: String,
    pub cgroups: String,
    /// the OCI runtimes that it lists, and the program of each
    pub runtimes: BTreeMap<String, String>,
    pub default_runtime: String,
    /// ids in a container are others than on the host
    pub user_namespaces: bool,
    /// it is run by an ordinary user
    pub rootless: bool,
    /// it tells files of containers apart by labels
    pub selinux: bool,
}

/// How the names of those begin that bring a kernel of their own.
const OWN_KERNELS: [&str; 4] = ["runsc", "gvisor", "kata", "krun"];

impl Facts {
    /// From its answer to `/info`. An error says why there can be no sandboxes.
    pub fn of(info: Value) -> Result<Self, RuntimeError> {
        // what Podman alone says: in `/version` it is said more plainly, but that takes it half a second
        let (is_podman, rootless) = (info.get("BuildahVersion").is_some(), info["Rootless"] == true);
        let program = |(name, runtime): (&String, &Value)| {
            // a shim of containerd has a type in place of a path
            let told = [&runtime["path"], &runtime["runtimeType"]].into_iter().filter_map(Value::as_str);
            (name.clone(), told.into_iter().find(|told| !told.is_empty()).unwrap_or_default().to_owned())
        };
        let runtimes = info["Runtimes"].as_object().into_iter().flatten().map(program).collect();
        let info: SystemInfo = serde_json::from_value(info)
            .map_err(|error| RuntimeError::host("ask the Docker Engine", io::Error::other(error)))?;
        if info.os_type.as_deref() == Some("windows") {
            let why = "the Docker Engine runs Windows containers: switch it to Linux containers";
            return Err(RuntimeError::Unavailable(why.into()));
        }
        let architecture = usual_name(info.architecture.as_deref().unwrap_or_default()).to_owned();
        let own = usual_name(env::consts::ARCH);
        if architecture != own {
            let why = format!("the Docker Engine runs {architecture}, this program was built for {own}");
            return Err(RuntimeError::Unavailable(why));
        }
        let options = info.security_options.clone().unwrap_or_default();
        let has =
            |name: &str| options.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")));
        let rootless = rootless || has("rootless");
        let unlimited = unlimited(&info, rootless);
        if !unlimited.is_empty() {
            return Err(RuntimeError::Unavailable(format!(
                "the Docker Engine cannot limit its containers' {}: {}",
                unlimited.join(", "),
                if rootless {
                    "run by an ordinary user, it needs cgroup v2 and these controllers delegated to that user"
                } else {
                    "its machine needs the cgroup controllers for that"
                }
            )));
        }
        let default_runtime = info.default_runtime.filter(|name| !name.is_empty()).unwrap_or_else(|| "runc".into());
        let mut status = info.driver_status.unwrap_or_default().into_iter();
        Ok(Self {
            dialect: if is_podman { Dialect::Podman } else { Dialect::Docker },
            version: info.server_version.unwrap_or_default(),
            driver: info.driver.unwrap_or_default(),
            backing: status
                .find(|row| row.first().is_some_and(|name| name == "Backing Filesystem"))
                .and_then(|row| row.into_iter().nth(1))
                .unwrap_or_default(),
            cgroups: match info.cgroup_version {
                Some(SystemInfoCgroupVersionEnum::_2) => "v2".into(),
                _ => "v1".into(),
            },
            runtimes: those_there(runtimes, &default_runtime),
            default_runtime,
            user_namespaces: has("userns") || rootless,
            rootless,
            selinux: has("selinux"),
            architecture,
        })
    }

    /// The OCI runtime of a name, which is the default one where none is named.
    pub fn oci_runtime(&self, name: &RuntimeName) -> Result<String, RuntimeError> {
        let name = name.oci_runtime().unwrap_or(&self.default_runtime);
        // shims of containerd need not be listed
        if self.runtimes.contains_key(name) || name.starts_with("io.containerd.") || self.runtimes.is_empty() {
            return Ok(name.to_owned());
        }
        let there: Vec<_> = self.runtimes.keys().map(String::as_str).collect();
        Err(RuntimeError::Unavailable(format!(
            "the Docker Engine has no OCI runtime {name}, it has {}: install it and name it in the daemon's settings",
            there.join(", ")
        )))
    }

    /// Whose kernel the containers of an OCI runtime call, told by its program. One that nobody knows is not trusted to bring one:
    /// its sandboxes have to show the walls that the host's kernel needs.
    pub fn kernel(&self, oci_runtime: &str) -> Kernel {
        let program = self.runtimes.get(oci_runtime).filter(|program| !program.is_empty());
        let program = program.map_or(oci_runtime, String::as_str);
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let name = name.trim_start_matches("io.containerd.").trim_start_matches("containerd-shim-");
        if OWN_KERNELS.iter().any(|own| name.starts_with(own)) { Kernel::Own } else { Kernel::Hosts }
    }
}

/// What an engine has no cgroups to limit by. Such a limit it ignores, some with a warning.
fn unlimited(info: &SystemInfo, rootless: bool) -> Vec<&'static str> {
    let is_v2 = info.cgroup_version == Some(SystemInfoCgroupVersionEnum::_2);
    // whatever it says of each: they are for root alone
    let nothing = info.cgroup_driver == Some(SystemInfoCgroupDriverEnum::NONE) || rootless && !is_v2;
    let told = [("memory", info.memory_limit), ("CPU", info.cpu_cfs_quota), ("processes", info.pids_limit)];
    let missing = told.into_iter().filter(|(_, told)| nothing || *told == Some(false));
    missing.map(|(name, _)| name).collect()
}

/// The runtimes without those that are named only: Podman lists all that it knows of. A program is looked for where this one
/// sees the default's.
fn those_there(mut runtimes: BTreeMap<String, String>, default: &str) -> BTreeMap<String, String> {
    let names_one = |program: &String| program.starts_with('/');
    let is_there = |program: &String| Path::new(program).exists();
    if runtimes.get(default).is_some_and(|program| names_one(program) && is_there(program)) {
        runtimes.retain(|_, program| !names_one(program) || is_there(program));
    }
    runtimes
}

/// The name of an architecture as images have it.
pub fn usual_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is made of an engine that says this beside what all do.
    fn facts_of(more: &Value) -> Result<Facts, RuntimeError> {
        Facts::of(merged(json!({"OSType": "linux", "Architecture": env::consts::ARCH, "CgroupVersion": "2"}), more))
    }

    fn merged(mut info: Value, more: &Value) -> Value {
        info.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        info
    }

    fn facts() -> Facts {
        let runtimes = json!({
            "runc": {"path": "runc"},
            "runsc": {"path": "/usr/bin/runsc"},
            "fast": {"path": "/opt/bin/crun"},
            "kata": {"path": ""},
            "vm": {"path": "", "runtimeType": "io.containerd.kata-qemu.v2"},
            "nvidia": {"path": "nvidia-container-runtime"},
        });
        let options = json!(["name=seccomp,profile=default", "name=rootless"]);
        let more = json!({"Runtimes": runtimes, "DefaultRuntime": "runc", "SecurityOptions": options});
        facts_of(&more).unwrap()
    }

    #[test]
    fn kernels_are_told_by_the_program_of_a_runtime() {
        let kernel = |name: &str| facts().kernel(name);
        let hosts = ["runc", "fast", "io.containerd.runc.v2", "nvidia", "unknown"];
        assert_eq!(hosts.map(kernel), [Kernel::Hosts; 5]);
        let own = ["runsc", "kata", "kata-fc", "vm", "io.containerd.kata.v2", "io.containerd.runsc.v1"];
        assert_eq!(own.map(kernel), [Kernel::Own; 6]);
    }

    #[test]
    fn runtime_that_is_not_there_is_named_with_those_that_are() {
        assert_eq!(facts().oci_runtime(&RuntimeName::DOCKER).unwrap(), "runc");
        assert_eq!(facts().oci_runtime(&"docker+runsc".parse().unwrap()).unwrap(), "runsc");
        let error = facts().oci_runtime(&"docker+crun".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no OCI runtime crun, it has fast, kata, nvidia, runc, runsc, vm"), "{error}");
    }

    #[test]
    fn engine_of_another_machine_is_refused() {
        let error =
            |os: &str, arch: &str| facts_of(&json!({"OSType": os, "Architecture": arch})).unwrap_err().to_string();
        assert!(error("windows", "x86_64").contains("Windows containers"));
        assert!(error("linux", "s390x").contains("runs s390x"));
        assert!(facts().user_namespaces && facts().rootless && !facts().selinux);
    }

    #[test]
    fn podman_is_told_by_what_it_alone_says_and_lists_what_is_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let [there, absent] = ["runc", "kata"].map(|name| folder.path().join(name));
        std::fs::write(&there, "").unwrap();
        let of = |default: &str| {
            let runtimes = json!({"runc": {"path": there}, "kata": {"path": absent}, "other": {"path": "other"}});
            let more = json!({"Runtimes": runtimes, "DefaultRuntime": default});
            let podman = json!({"BuildahVersion": "1.28.2", "Rootless": true});
            facts_of(&merged(more, &podman)).unwrap()
        };
        let podman = of("runc");
        assert_eq!((podman.dialect, podman.rootless, podman.user_namespaces), (Dialect::Podman, true, true));
        assert_eq!(podman.runtimes.keys().collect::<Vec<_>>(), ["other", "runc"]);
        assert_eq!(of("other").runtimes.len(), 3, "its programs may not be seen from here");
        assert_eq!(facts().dialect, Dialect::Docker);
    }

    #[test]
    fn engine_that_ignores_limits_is_refused() {
        let told = |more: Value| facts_of(&more).map(drop).map_err(|error| error.to_string());
        let all = "cannot limit its containers' memory, CPU, processes";
        let rootless = told(json!({"Rootless": true, "CgroupVersion": "1", "MemoryLimit": true})).unwrap_err();
        assert!(rootless.contains(all) && rootless.contains("it needs cgroup v2"), "{rootless}");
        let none = told(json!({"SecurityOptions": ["name=rootless"], "CgroupDriver": "none"})).unwrap_err();
        assert!(none.contains(all), "{none}");
        let one = told(json!({"MemoryLimit": true, "PidsLimit": false})).unwrap_err();
        assert!(one.contains("containers' processes: its machine needs"), "{one}");
        assert_eq!(told(json!({"MemoryLimit": true, "CgroupVersion": "1"})), Ok(()));
        assert_eq!(told(json!({"Rootless": true, "CpuCfsQuota": true})), Ok(()));
    }
}
