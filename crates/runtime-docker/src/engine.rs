//! The Docker Engine, or Podman's service that speaks as one: where it is, what it is, and what its errors mean.
//!
//! A client holds no connection: each call makes one. So nothing has to be made again after a daemon was restarted.

use std::{
    collections::BTreeMap,
    env, fmt, fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bollard::{
    API_DEFAULT_VERSION, Docker,
    errors::Error,
    models::{SystemInfo, SystemInfoCgroupVersionEnum},
};
use cloud_sandbox_model::{RuntimeName, error::chain};
use cloud_sandbox_runtime::RuntimeError;

/// Where engines listen that are not told otherwise.
const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// Podman's of an ordinary user, below `XDG_RUNTIME_DIR`.
const USERS_SOCKET: &str = "podman/podman.sock";
/// How long an answer may take to begin, in seconds. A daemon that is short of CPU starts dozens of containers at once.
const PATIENCE: u64 = 120;
/// The same for a mere sign of life. An engine that is not there is known at once not to be.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// The same for what a daemon answers when it has unpacked an archive.
pub const LONG: u64 = 3600;

/// A Docker Engine, which need not be there.
pub struct Engine {
    /// what was asked for; where engines usually are, when it is not
    host: Option<String>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    facts: Option<Arc<Facts>>,
    /// it may be another one by now
    stale: bool,
}

/// Whose kernel a container's processes call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// the host's: runc, crun
    Hosts,
    /// one of its own: gVisor, a virtual machine
    Own,
}

/// What an engine says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
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

impl Engine {
    /// The engine at `host`, which is written as in `DOCKER_HOST`; that is looked at where there is none.
    pub fn new(host: Option<&str>) -> Self {
        let of_environment = || env::var("DOCKER_HOST").ok().filter(|host| !host.is_empty());
        Self { host: host.map(ToOwned::to_owned).or_else(of_environment), known: Mutex::default() }
    }

    /// Where it is: `unix:///var/run/docker.sock`.
    pub fn address(&self) -> String {
        self.host.clone().unwrap_or_else(|| format!("unix://{}", usual_socket().display()))
    }

    /// A client.
    pub fn client(&self) -> Result<Docker, RuntimeError> {
        let address = self.address();
        let unavailable = |error: Error| unavailable(&address, &error);
        if let Some(path) = socket_of(&address) {
            let path = path.to_string_lossy();
            Docker::connect_with_unix(&path, PATIENCE, API_DEFAULT_VERSION).map_err(unavailable)
        } else if address.starts_with("tcp://") || address.starts_with("http://") {
            Docker::connect_with_http(&address, PATIENCE, API_DEFAULT_VERSION).map_err(unavailable)
        } else {
            let rule = format!("DOCKER_HOST must be unix:///PATH or tcp://HOST:PORT, not {address:?}");
            Err(RuntimeError::Unavailable(rule))
        }
    }

    /// What it says about itself, asked once until [`forget`](Self::forget).
    pub async fn facts(&self) -> Result<Arc<Facts>, RuntimeError> {
        let known = Some(self.known()).filter(|known| !known.stale).and_then(|known| known.facts.clone());
        match known {
            Some(facts) => Ok(facts),
            None => self.ask().await,
        }
    }

    /// What it says about itself now.
    pub async fn ask(&self) -> Result<Arc<Facts>, RuntimeError> {
        let info = self.client()?.info().await.map_err(|error| self.error("ask the Docker Engine", error))?;
        let facts = Arc::new(Facts::of(info)?);
        *self.known() = Known { facts: Some(Arc::clone(&facts)), stale: false };
        Ok(facts)
    }

    /// Whether it is seen to be away; one that is slow is there.
    pub async fn is_away(&self) -> bool {
        let Ok(client) = self.client() else { return true };
        matches!(tokio::time::timeout(PING_PATIENCE, client.ping()).await, Ok(Err(_)))
    }

    /// What it said last.
    pub fn last_known(&self) -> Option<Arc<Facts>> {
        self.known().facts.clone()
    }

    /// It may be another one by now.
    pub fn forget(&self) {
        self.known().stale = true;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a failed call means.
    pub fn error(&self, operation: impl fmt::Display, error: Error) -> RuntimeError {
        match error {
            Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message } => {
                refused(operation, &message)
            }
            Error::JsonDataError { message, .. } => RuntimeError::host(operation, io::Error::other(message)),
            error => unavailable(&self.address(), &error),
        }
    }
}

/// What a daemon says it could not do: told apart is what it has no room for.
pub fn refused(operation: impl fmt::Display, message: &str) -> RuntimeError {
    const NO_ROOM: [&str; 4] =
        ["no space left on device", "cannot allocate memory", "too many open files", "disk quota exceeded"];
    let lower = message.to_lowercase();
    if NO_ROOM.iter().any(|words| lower.contains(words)) {
        return RuntimeError::Exhausted(format!("failed to {operation}: {message}"));
    }
    RuntimeError::host(operation, io::Error::other(message.to_owned()))
}

/// Whether a call failed with this HTTP status.
pub fn has_status(error: &Error, status: u16) -> bool {
    matches!(error, Error::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// Why an engine does not answer, and what helps.
fn unavailable(address: &str, error: &Error) -> RuntimeError {
    let kind = match error {
        Error::SocketNotFoundError(_) => Some(io::ErrorKind::NotFound),
        Error::IOError { err } => Some(err.kind()),
        error => io_kind(error),
    };
    let socket = socket_of(address);
    RuntimeError::Unavailable(match (socket, kind) {
        (Some(path), Some(io::ErrorKind::NotFound)) => {
            format!("no Docker Engine listens at {}: start it, or set DOCKER_HOST", path.display())
        }
        (Some(path), Some(io::ErrorKind::ConnectionRefused)) => {
            format!("no Docker Engine answers at {}: it has stopped; start it, or set DOCKER_HOST", path.display())
        }
        (Some(path), Some(io::ErrorKind::PermissionDenied)) => {
            let path = path.display();
            format!("no permission to use {path}: let this user join the group that owns it, or run as root")
        }
        _ => format!("the Docker Engine at {address} does not answer: {}", chain(error)),
    })
}

/// The error of the operating system that is behind another one.
fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = error.source();
    }
    None
}

/// The path of a Unix socket's address.
fn socket_of(address: &str) -> Option<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    path.starts_with('/').then(|| path.into())
}

/// The first of the usual sockets that is there; the first of all where none is.
fn usual_socket() -> PathBuf {
    let users = env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join(USERS_SOCKET));
    let mut usual = SOCKETS.iter().map(PathBuf::from).chain(users);
    // a socket that may not be seen is there
    let there = |path: &PathBuf| !matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    usual.find(there).unwrap_or_else(|| SOCKETS[0].into())
}

impl Facts {
    fn of(info: SystemInfo) -> Result<Self, RuntimeError> {
        if info.os_type.as_deref() == Some("windows") {
            let why = "the Docker Engine runs Windows containers: switch it to Linux containers";
            return Err(RuntimeError::Unavailable(why.into()));
        }
        let architecture = usual_name(&info.architecture.unwrap_or_default()).to_owned();
        let own = usual_name(env::consts::ARCH);
        if architecture != own {
            let why = format!("the Docker Engine runs {architecture}, this program was built for {own}");
            return Err(RuntimeError::Unavailable(why));
        }
        let options = info.security_options.unwrap_or_default();
        let has =
            |name: &str| options.iter().any(|option| option.split(',').any(|part| part == format!("name={name}")));
        let program = |runtime: bollard::models::Runtime| runtime.path.unwrap_or_default();
        let runtimes = info.runtimes.unwrap_or_default().into_iter();
        let mut status = info.driver_status.unwrap_or_default().into_iter();
        Ok(Self {
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
            runtimes: runtimes.map(|(name, runtime)| (name, program(runtime))).collect(),
            default_runtime: info.default_runtime.filter(|name| !name.is_empty()).unwrap_or_else(|| "runc".into()),
            user_namespaces: has("userns") || has("rootless"),
            rootless: has("rootless"),
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

    /// Whose kernel the containers of an OCI runtime call, told by its program.
    pub fn kernel(&self, oci_runtime: &str) -> Kernel {
        let program = self.runtimes.get(oci_runtime).filter(|program| !program.is_empty());
        let program = program.map_or(oci_runtime, String::as_str);
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let hosts = ["runc", "crun", "youki"].contains(&&*name) || name.starts_with("io.containerd.runc.");
        if hosts { Kernel::Hosts } else { Kernel::Own }
    }
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
    use bollard::models::Runtime;

    use super::*;

    fn facts() -> Facts {
        let runtime = |path: &str| Runtime { path: Some(path.into()), ..Runtime::default() };
        let runtimes = [("runc", "runc"), ("runsc", "/usr/bin/runsc"), ("fast", "/opt/bin/crun"), ("kata", "")];
        Facts::of(SystemInfo {
            os_type: Some("linux".into()),
            architecture: Some(env::consts::ARCH.into()),
            runtimes: Some(runtimes.map(|(name, path)| (name.into(), runtime(path))).into()),
            default_runtime: Some("runc".into()),
            security_options: Some(vec!["name=seccomp,profile=default".into(), "name=rootless".into()]),
            ..SystemInfo::default()
        })
        .unwrap()
    }

    #[test]
    fn kernels_are_told_by_the_program_of_a_runtime() {
        let kernel = |name: &str| facts().kernel(name);
        assert_eq!(["runc", "fast", "io.containerd.runc.v2"].map(kernel), [Kernel::Hosts; 3]);
        assert_eq!(["runsc", "kata", "io.containerd.kata.v2", "unknown"].map(kernel), [Kernel::Own; 4]);
    }

    #[test]
    fn runtime_that_is_not_there_is_named_with_those_that_are() {
        assert_eq!(facts().oci_runtime(&RuntimeName::DOCKER).unwrap(), "runc");
        assert_eq!(facts().oci_runtime(&"docker+runsc".parse().unwrap()).unwrap(), "runsc");
        let error = facts().oci_runtime(&"docker+crun".parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("no OCI runtime crun, it has fast, kata, runc, runsc"), "{error}");
    }

    #[test]
    fn engine_of_another_machine_is_refused() {
        let info = |os: &str, arch: &str| SystemInfo {
            os_type: Some(os.into()),
            architecture: Some(arch.into()),
            ..SystemInfo::default()
        };
        let error = |info| Facts::of(info).unwrap_err().to_string();
        assert!(error(info("windows", "x86_64")).contains("Windows containers"));
        assert!(error(info("linux", "s390x")).contains("runs s390x"));
        assert!(facts().user_namespaces && facts().rootless && !facts().selinux);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_socket_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let address = format!("unix://{}", path.display());
        let told = || async { Engine::new(Some(&address)).ask().await.unwrap_err().to_string() };
        let nothing = told().await;
        assert!(nothing.contains(&format!("no Docker Engine listens at {}", path.display())), "{nothing}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let stopped = told().await;
        assert!(stopped.contains("it has stopped"), "{stopped}");
        let error = Engine::new(Some("ssh://host")).ask().await.unwrap_err().to_string();
        assert!(error.contains("DOCKER_HOST must be unix:///PATH or tcp://HOST:PORT, not \"ssh://host\""), "{error}");
        let denied = Error::IOError { err: io::ErrorKind::PermissionDenied.into() };
        let denied = unavailable(&address, &denied).to_string();
        assert!(denied.contains("no permission to use") && denied.contains("docker.sock"), "{denied}");
    }

    #[test]
    fn what_there_is_no_room_for_is_told_apart() {
        assert!(matches!(refused("start it", "write: No space left on device"), RuntimeError::Exhausted(_)));
        assert!(matches!(refused("start it", "exec format error"), RuntimeError::Host { .. }));
    }
}
