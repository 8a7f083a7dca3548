//! The Docker Engine, or Podman's service that speaks as one: how it is asked, and what its errors mean.
//!
//! A client holds no connection: each call makes one. So nothing has to be made again after a daemon was restarted.

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use bollard::{Docker, errors::Error};
use cloud_sandbox_images::host::{Address, Host};
use cloud_sandbox_model::error::chain;
use cloud_sandbox_runtime::RuntimeError;

use crate::{
    facts::Facts,
    seen::{self, Seen},
};

/// How long an answer may take to begin, in seconds. A daemon that is short of CPU starts dozens of containers at once.
const PATIENCE: u64 = 120;
/// The same for a mere sign of life. An engine that is not there is known at once not to be.
const PING_PATIENCE: Duration = Duration::from_secs(1);
/// The same for what a daemon answers when it has unpacked an archive.
pub const LONG: u64 = 3600;

/// A Docker Engine, which need not be there.
pub struct Engine {
    host: Host,
    /// where the first answer came from: what another one says of this one's containers means nothing
    address: OnceLock<Address>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    facts: Option<Arc<Facts>>,
    /// it may be another one by now
    stale: bool,
}

impl Engine {
    /// The engine at `host`.
    pub fn new(host: Host) -> Self {
        Self { host, address: OnceLock::new(), known: Mutex::default() }
    }

    /// Where it is. It stays the one that has answered first, also where another one comes to listen at a usual place.
    pub fn address(&self) -> Result<Address, RuntimeError> {
        match self.address.get() {
            Some(address) => Ok(address.clone()),
            None => self.host.address().map_err(RuntimeError::Unavailable),
        }
    }

    /// A client.
    pub fn client(&self) -> Result<Docker, RuntimeError> {
        let address = self.address()?;
        address.client(PATIENCE).map_err(|error| unavailable(&address, &error))
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
        let address = self.address()?;
        let info = seen::get(&address, "/info", Duration::from_secs(PATIENCE)).await;
        let facts = Arc::new(Facts::of(info.map_err(|error| self.error("ask the Docker Engine", error))?)?);
        if self.address.get_or_init(|| address.clone()) != &address {
            // two asked at once, of two engines
            return Err(RuntimeError::Unavailable(format!(
                "the Docker Engine at {address} was not the first to answer"
            )));
        }
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

    /// A container, by its name or id; `None` where there is none.
    pub async fn container(&self, container: &str) -> Result<Option<Seen>, RuntimeError> {
        match seen::one(&self.address()?, container, Duration::from_secs(PATIENCE)).await {
            Ok(seen) => Ok(Some(seen)),
            Err(error) if has_status(&error, 404) => Ok(None),
            Err(error) => Err(self.error(format!("look at the container {container}"), error)),
        }
    }

    /// The containers of a server, in whatever state.
    pub async fn containers(&self, instance: &str) -> Result<Vec<Seen>, RuntimeError> {
        let listed = seen::all(&self.address()?, instance, Duration::from_secs(PATIENCE)).await;
        listed.map_err(|error| self.error("list the containers", error))
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
            error => match self.address() {
                Ok(address) => unavailable(&address, &error),
                Err(rule) => rule,
            },
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
fn unavailable(address: &Address, error: &Error) -> RuntimeError {
    let kind = match error {
        Error::SocketNotFoundError(_) => Some(io::ErrorKind::NotFound),
        Error::IOError { err } => Some(err.kind()),
        error => io_kind(error),
    };
    RuntimeError::Unavailable(match (address, kind) {
        (Address::Socket(path), Some(io::ErrorKind::NotFound)) => {
            format!("no Docker Engine listens at {}: start it, or set DOCKER_HOST", path.display())
        }
        (Address::Socket(path), Some(io::ErrorKind::ConnectionRefused)) => {
            format!("no Docker Engine answers at {}: it has stopped; start it, or set DOCKER_HOST", path.display())
        }
        (Address::Socket(path), Some(io::ErrorKind::PermissionDenied)) => {
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_is_wrong_with_a_socket_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker.sock");
        let address = format!("unix://{}", path.display());
        let told = || async { Engine::new(Host::new(Some(&address))).ask().await.unwrap_err().to_string() };
        let nothing = told().await;
        assert!(nothing.contains(&format!("no Docker Engine listens at {}", path.display())), "{nothing}");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let stopped = told().await;
        assert!(stopped.contains("it has stopped"), "{stopped}");
        let error = Engine::new(Host::new(Some("ssh://host"))).ask().await.unwrap_err().to_string();
        assert!(error.contains("DOCKER_HOST must be unix:///PATH or tcp://HOST:PORT, not \"ssh://host\""), "{error}");
        let denied = Error::IOError { err: io::ErrorKind::PermissionDenied.into() };
        let denied = unavailable(&Address::Socket(path), &denied).to_string();
        assert!(denied.contains("no permission to use") && denied.contains("docker.sock"), "{denied}");
    }

    #[tokio::test]
    async fn first_engine_that_answers_stays_the_one_that_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = ["docker.sock", "podman.sock"].map(|name| folder.path().join(name));
        let listener = UnixListener::bind(&second).unwrap();
        let engine = Engine::new(Host::among(vec![first.clone(), second.clone()]));
        let serving = async {
            let mut stream = listener.accept().await.unwrap().0;
            let _ = stream.read(&mut [0; 4096]).await.unwrap();
            let info =
                serde_json::json!({"OSType": "linux", "Architecture": std::env::consts::ARCH, "CgroupVersion": "2"});
            stream.write_all(format!("HTTP/1.0 200 OK\r\n\r\n{info}").as_bytes()).await.unwrap();
        };
        let (answered, ()) = tokio::join!(engine.ask(), serving);
        answered.unwrap();
        // another one is installed, and this one stopped
        std::fs::write(&first, "").unwrap();
        std::fs::remove_file(&second).unwrap();
        assert_eq!(engine.address().unwrap(), Address::Socket(second));
    }

    #[test]
    fn what_there_is_no_room_for_is_told_apart() {
        assert!(matches!(refused("start it", "write: No space left on device"), RuntimeError::Exhausted(_)));
        assert!(matches!(refused("start it", "exec format error"), RuntimeError::Host { .. }));
    }
}
