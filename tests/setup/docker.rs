//! The Docker Engine that `tests/setup/docker.py` starts for a run of tests, with its images.

use std::{path::PathBuf, process::Command};

use serde_json::Value;

#[path = "engine.rs"]
mod engine;

pub use self::engine::left_out;
use self::engine::{is_left_out, variable};

/// Where the engine and what it has is found.
#[derive(Debug, Clone)]
pub struct Docker {
    /// the engine's socket, as a `unix://` URL
    pub url: String,
    /// Debian with Python, Node.js and Perl
    pub image: String,
    /// one static program, `/busybox`, and nothing else: no shell, no libraries, no users
    pub bare_image: String,
    /// the same for a machine of another kind
    pub foreign_image: String,
    /// the root file system of `image` as a tar file
    pub rootfs: PathBuf,
}

/// Whether whoever runs the tests has asked to leave out what needs Podman.
pub fn podman_left_out() -> bool {
    is_left_out("podman")
}

impl Docker {
    /// The engine of this run. A test that has no engine fails, and says how it gets one.
    pub fn of_this_run() -> Self {
        Self {
            url: variable("DOCKER"),
            image: variable("IMAGE"),
            bare_image: variable("IMAGE_BARE"),
            foreign_image: variable("IMAGE_FOREIGN"),
            rootfs: variable("ROOTFS").into(),
        }
    }

    /// The Podman service of this run, which has the small images alone.
    pub fn podman_of_this_run() -> Self {
        let bare_image = variable("IMAGE_BARE");
        Self {
            url: variable("PODMAN"),
            image: bare_image.clone(),
            bare_image,
            foreign_image: variable("IMAGE_FOREIGN"),
            rootfs: PathBuf::new(),
        }
    }

    /// The engine of this run, where it has one.
    pub fn if_there() -> Option<Self> {
        std::env::var_os("CLOUD_SANDBOX_TEST_DOCKER").map(|_| Self::of_this_run())
    }

    /// Asks the engine's API: the status and the answer.
    pub fn ask(&self, method: &str, path: &str) -> (u16, Value) {
        let socket = self.url.strip_prefix("unix://").expect("a socket is what docker.py gives");
        let asked = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "30", "--unix-socket", socket, "--request", method])
            .args(["--write-out", "\n%{http_code}", &format!("http://docker{path}")])
            .output()
            .expect("curl runs");
        let text = String::from_utf8_lossy(&asked.stdout).into_owned();
        let (answer, status) = text.rsplit_once('\n').expect("curl writes the status last");
        assert!(asked.status.success(), "{method} {path}: {}", String::from_utf8_lossy(&asked.stderr));
        (status.parse().expect("a status is a number"), serde_json::from_str(answer).unwrap_or_default())
    }

    /// The same, which must be agreed to.
    pub fn told(&self, method: &str, path: &str) -> Value {
        let (status, answer) = self.ask(method, path);
        assert!(status < 300, "{method} {path}: {status} {answer}");
        answer
    }

    /// Kills a container that is removed when it ends. Podman looks at it once more after that, and may find it gone already.
    pub fn kill(&self, container: &str) {
        let (status, answer) = self.ask("POST", &format!("/containers/{container}/kill"));
        let is_gone = answer["cause"] == "no such container";
        assert!(status < 300 || is_gone, "kill {container}: {status} {answer}");
    }

    /// The names of all containers, in whatever state.
    pub fn containers(&self) -> Vec<String> {
        let containers = self.told("GET", "/containers/json?all=true");
        let containers = containers.as_array().expect("a list").iter();
        let name = |container: &Value| Some(container["Names"][0].as_str()?.trim_start_matches('/').to_owned());
        containers.filter_map(name).collect()
    }
}
