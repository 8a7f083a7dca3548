//! The Docker Engine that `tests/setup/docker.py` starts for a run of tests, with its images.

use std::path::PathBuf;

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

/// Whether whoever runs the tests has asked to leave out what needs Docker.
pub fn left_out() -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    let skipped = skipped.split(',').any(|name| name.trim() == "docker");
    if skipped {
        eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names docker");
    }
    skipped
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
}

fn variable(name: &str) -> String {
    let name = format!("CLOUD_SANDBOX_TEST_{name}");
    std::env::var(&name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run this as `tests/setup/docker.py cargo nextest run …`, which starts a Docker Engine \
             (CLOUD_SANDBOX_TEST_SKIP=docker leaves out what needs one)"
        )
    })
}
