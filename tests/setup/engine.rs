//! How tests find the engines that `tests/setup/docker.py` starts.

/// Whether whoever runs the tests has asked to leave out what needs Docker.
pub fn left_out() -> bool {
    is_left_out("docker")
}

/// The same of a part by its name.
pub fn is_left_out(part: &str) -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    let skipped = skipped.split(',').any(|name| name.trim() == part);
    if skipped {
        eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names {part}");
    }
    skipped
}

/// What it says of the engine, or of something that it has.
pub fn variable(name: &str) -> String {
    let name = format!("CLOUD_SANDBOX_TEST_{name}");
    std::env::var(&name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run this as `tests/setup/docker.py cargo nextest run …`, which starts a Docker Engine \
             and Podman (CLOUD_SANDBOX_TEST_SKIP=docker,podman leaves out what needs them)"
        )
    })
}
