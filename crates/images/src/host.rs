//! Where a Docker Engine is, or Podman's service that speaks as one: for whoever asks one.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use bollard::{API_DEFAULT_VERSION, Docker, errors::Error};

/// Where engines listen that are not told otherwise.
const SOCKETS: [&str; 2] = ["/var/run/docker.sock", "/run/podman/podman.sock"];
/// Podman's of an ordinary user, below `XDG_RUNTIME_DIR`.
const USERS_SOCKET: &str = "podman/podman.sock";

/// What was told of where an engine is, as in `DOCKER_HOST`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    told: Option<String>,
    /// where one may listen, if nothing was told
    usual: Vec<PathBuf>,
}

/// Where an engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Socket(PathBuf),
    /// `HOST:PORT`
    Tcp(String),
}

impl Host {
    /// `host`; what `DOCKER_HOST` says where there is none.
    #[must_use]
    pub fn new(host: Option<&str>) -> Self {
        let of_environment = || env::var("DOCKER_HOST").ok();
        let told = host.map(ToOwned::to_owned).or_else(of_environment).filter(|host| !host.is_empty());
        let users = env::var_os("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join(USERS_SOCKET));
        Self { told, ..Self::among(SOCKETS.iter().map(PathBuf::from).chain(users).collect()) }
    }

    /// One of these sockets, of which there must be one at least: the first that is there.
    #[must_use]
    pub fn among(sockets: Vec<PathBuf>) -> Self {
        Self { told: None, usual: sockets }
    }

    /// Where the engine is: where engines usually listen, if nobody has said where. An error is the rule that what was said
    /// does not keep.
    pub fn address(&self) -> Result<Address, String> {
        let Some(host) = &self.told else {
            let socket = first_there(&self.usual).or(self.usual.first().map(PathBuf::as_path));
            return socket
                .map(|socket| Address::Socket(socket.to_owned()))
                .ok_or_else(|| "DOCKER_HOST must be set".into());
        };
        let socket = host.strip_prefix("unix://").unwrap_or(host);
        if socket.starts_with('/') {
            return Ok(Address::Socket(socket.into()));
        }
        let tcp = host.strip_prefix("tcp://").or_else(|| host.strip_prefix("http://"));
        let tcp = tcp.map(|tcp| tcp.trim_end_matches('/')).filter(|tcp| !tcp.is_empty());
        tcp.map(|tcp| Address::Tcp(tcp.to_owned()))
            .ok_or_else(|| format!("DOCKER_HOST must be unix:///PATH or tcp://HOST:PORT, not {host:?}"))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address() {
            Ok(address) => address.fmt(f),
            Err(rule) => f.write_str(&rule),
        }
    }
}

impl Address {
    /// A client, for which an answer may take so many seconds to begin.
    pub fn client(&self, patience: u64) -> Result<Docker, Error> {
        match self {
            Self::Socket(path) => Docker::connect_with_unix(&path.to_string_lossy(), patience, API_DEFAULT_VERSION),
            Self::Tcp(_) => Docker::connect_with_http(&self.to_string(), patience, API_DEFAULT_VERSION),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
        }
    }
}

fn first_there(sockets: &[PathBuf]) -> Option<&Path> {
    // a socket that may not be seen is there
    let there = |path: &Path| !matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    sockets.iter().map(PathBuf::as_path).find(|path| there(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_sockets_or_ports_and_nothing_else() {
        let address = |host: &str| Host::new(Some(host)).address();
        for host in ["unix:///run/x.sock", "/run/x.sock"] {
            assert_eq!(address(host).unwrap().to_string(), "unix:///run/x.sock");
        }
        for host in ["tcp://127.0.0.1:2375", "http://127.0.0.1:2375/"] {
            assert_eq!(address(host).unwrap().to_string(), "tcp://127.0.0.1:2375");
        }
        for host in ["unix://run/docker.sock", "ssh://host", "tcp://", "run/docker.sock"] {
            let rule = address(host).unwrap_err();
            assert_eq!(rule, format!("DOCKER_HOST must be unix:///PATH or tcp://HOST:PORT, not {host:?}"));
        }
    }

    #[test]
    fn first_socket_that_is_there_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let [docker, podman] = ["docker.sock", "podman.sock"].map(|name| folder.path().join(name));
        let sockets = [docker.clone(), podman.clone()];
        let taken = || Host::among(sockets.to_vec()).address().unwrap();
        assert_eq!(taken(), Address::Socket(docker.clone()), "to be looked for");
        fs::write(&podman, "").unwrap();
        assert_eq!(taken(), Address::Socket(podman));
        fs::write(&docker, "").unwrap();
        assert_eq!(taken(), Address::Socket(docker));
    }
}
