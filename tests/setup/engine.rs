//! How tests find the Docker Engine that `tests/setup/docker.py` starts.

/// Whether whoever runs the tests has asked to leave out what needs Docker.
pub fn left_out() -> bool {
    let skipped = std::env::var("CLOUD_SANDBOX_TEST_SKIP").unwrap_or_default();
    let skipped = skipped.split(',').any(|name| name.trim() == "docker");
    if skipped {
        eprintln!("skipped: CLOUD_SANDBOX_TEST_SKIP names docker");
    }
    skipped
}

/// What it says of the engine, or of something that it has.
pub fn variable(name: &str) -> String {
    let name = format!("CLOUD_SANDBOX_TEST_{name}");
    std::env::var(&name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: run this as `tests/setup/docker.py cargo nextest run …`, which starts a Docker Engine \
             (CLOUD_SANDBOX_TEST_SKIP=docker leaves out what needs one)"
        )
    })
}
