//! Rules between settings.

use std::net::IpAddr;

use cloud_sandbox_auth::token::SECRET_MIN;

use super::{Fault, Mode, Resolved, Settings};

/// Secrets that stand in tutorials and example files: whoever uses one has no secret.
const WELL_KNOWN: [&str; 10] = [
    "change-me",
    "change-me-in-production",
    "changeme",
    "development-secret",
    "dev-secret",
    "jwt-secret",
    "secret",
    "supersecret",
    "your-secret-key",
    "your-secret-key-change-in-production",
];

/// Whether everybody knows this secret.
#[must_use]
pub fn is_well_known(secret: &str) -> bool {
    let plain = secret.trim().to_ascii_lowercase().replace(['_', ' '], "-");
    WELL_KNOWN.contains(&plain.as_str())
}

impl Settings {
    /// Whether nobody outside this machine reaches what `mode` serves.
    #[must_use]
    pub fn is_loopback_only(&self, mode: Mode) -> bool {
        let is_loopback = |address: IpAddr| address.to_canonical().is_loopback();
        match mode {
            Mode::Serve => is_loopback(self.listen.ip()) && is_loopback(self.grpc_listen.ip()),
            Mode::Gateway => is_loopback(self.listen.ip()),
            Mode::Scheduler | Mode::SessionManager | Mode::Exec | Mode::Node => is_loopback(self.grpc_listen.ip()),
            Mode::Run | Mode::Doctor | Mode::Token | Mode::Template => true,
        }
    }
}

/// Every rule that is broken.
pub(super) fn check(resolved: &Resolved) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut require = |holds: bool, setting: &str, rule: String| {
        if !holds {
            faults.push(Fault { setting: setting.to_owned(), source: resolved.source(setting), rule });
        }
    };
    let (settings, mode) = (&resolved.settings, resolved.mode);

    let (min, max) = (settings.pool_min_size, settings.pool_max_size);
    require(min <= max, "pool_min_size", format!("must be at most pool_max_size: {min} is more than {max}"));

    let (one, all) = (settings.journal_execution_bytes, settings.journal_total_bytes);
    let rule = format!("must be at most journal_total_bytes: {one} is more than {all}");
    require(one <= all, "journal_execution_bytes", rule);

    macro_rules! at_most {
        ($($limit:ident: $setting:literal, $bound:literal);*) => {$(
            let (own, most) = (settings.sandbox_limits.$limit, settings.sandbox_limits_max.$limit);
            require(own <= most, $setting, format!("must be at most {}: {own} is more than {most}", $bound));
        )*};
    }
    at_most!(
        memory_bytes: "sandbox_memory_bytes", "sandbox_memory_bytes_max";
        cpu_millis: "sandbox_cpu_millis", "sandbox_cpu_millis_max";
        pids: "sandbox_pids", "sandbox_pids_max";
        disk_bytes: "sandbox_disk_bytes", "sandbox_disk_bytes_max";
        open_files: "sandbox_open_files", "sandbox_open_files_max";
        output_bytes: "sandbox_output_bytes", "journal_execution_bytes";
        execution_seconds: "sandbox_execution_seconds", "sandbox_execution_seconds_max";
        cpu_weight: "sandbox_cpu_weight", "sandbox_cpu_weight_max"
    );

    if let Some(secret) = settings.jwt_secret.as_ref().map(|secret| secret.reveal()) {
        let known = is_well_known(secret);
        let rule = "must not be a value that everybody knows unless the server listens on loopback only";
        require(!known || settings.is_loopback_only(mode), "jwt_secret", rule.to_owned());
        let long = known || secret.len() >= SECRET_MIN;
        require(long, "jwt_secret", format!("must be at least {SECRET_MIN} bytes long"));
    }

    let keeps = !matches!(mode, Mode::Run | Mode::Doctor);
    let placed = !keeps || !settings.data_dir.as_os_str().is_empty();
    require(placed, "data_dir", "must be set: there is no HOME".to_owned());

    let shares = matches!(mode, Mode::Scheduler | Mode::SessionManager | Mode::Exec | Mode::Node);
    let rule = "must be set: roles that run apart share their directory in it";
    require(!shares || settings.redis_url.is_some(), "redis_url", rule.to_owned());

    // a server of everything is called by others only when it shares a directory with them
    let called = mode == Mode::Node || (mode == Mode::Serve && settings.redis_url.is_some());
    let reachable = !called || settings.advertise_address.is_some() || !settings.grpc_listen.ip().is_unspecified();
    let rule = "must be set when grpc_listen is every interface: others need one address";
    require(reachable, "advertise_address", rule.to_owned());

    let s3 = &settings.s3;
    if let Some(name) = s3.without_bucket() {
        require(false, "s3_bucket", format!("must be set: {name} says nothing without it"));
    }
    let rule = || "must be set where s3_bucket is".to_owned();
    require(s3.bucket.is_none() || s3.access_key_id.is_some(), "s3_access_key_id", rule());
    require(s3.bucket.is_none() || s3.secret_access_key.is_some(), "s3_secret_access_key", rule());

    if mode == Mode::Serve {
        let apart = settings.listen != settings.grpc_listen || settings.listen.port() == 0;
        require(apart, "grpc_listen", "must not be the same address as listen".to_owned());
    }
    faults
}
