//! What the operator decides: flags, then environment, then the file, then the defaults.
//!
//! Invariant: every fault is reported, not only the first, each with the setting's name, where it was set and the rule
//! that it broke; and no fault, log line or print-out holds a secret.

mod defaults;
mod file;
mod print;
mod rules;
mod s3;
mod table;
mod values;

use std::{collections::HashMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use cloud_sandbox_auth::ApiKey;
use cloud_sandbox_model::Limits;
use cloud_sandbox_telemetry::LogFormat;

pub use defaults::Host;
pub use print::{print, write_default};
pub use rules::is_well_known;
pub use s3::S3Settings;
pub use table::{Kind, Row, TABLE};
pub use values::{Secret, bytes as parse_bytes};

/// The environment variable that names the file.
pub const CONFIG_ENV: &str = "CLOUD_SANDBOX_CONFIG";

/// What the process is started as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Serve,
    Gateway,
    Scheduler,
    SessionManager,
    Exec,
    Node,
    Run,
    Doctor,
    Token,
    Template,
}

impl Mode {
    /// Every mode.
    pub const ALL: &'static [Self] = &[
        Self::Serve,
        Self::Gateway,
        Self::Scheduler,
        Self::SessionManager,
        Self::Exec,
        Self::Node,
        Self::Run,
        Self::Doctor,
        Self::Token,
        Self::Template,
    ];

    /// The command's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Gateway => "gateway",
            Self::Scheduler => "scheduler",
            Self::SessionManager => "session-manager",
            Self::Exec => "exec",
            Self::Node => "node",
            Self::Run => "run",
            Self::Doctor => "doctor",
            Self::Token => "token",
            Self::Template => "template",
        }
    }
}

/// The effective settings. The table says what each means.
#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    pub grpc_listen: SocketAddr,
    pub advertise_address: Option<String>,
    pub data_dir: PathBuf,
    pub jwt_secret: Option<Secret<String>>,
    pub api_keys: Secret<Vec<ApiKey>>,
    pub token_ttl_seconds: u32,
    pub pool_min_size: u32,
    pub pool_max_size: u32,
    pub sandbox_limits: Limits,
    /// the most that a caller may ask for; `output_bytes` is `journal_execution_bytes`
    pub sandbox_limits_max: Limits,
    pub sandbox_runtimes: Vec<String>,
    pub docker_host: Option<String>,
    pub sandbox_image: String,
    pub default_template: String,
    pub require_isolation: bool,
    pub warm_contexts: Vec<String>,
    pub journal_retention_seconds: u32,
    pub journal_execution_bytes: u64,
    pub journal_total_bytes: u64,
    pub session_frozen_seconds: u32,
    pub checkpoints_kept: u32,
    pub checkpoints_kept_days: u32,
    pub rate_limit_per_second: u32,
    pub rate_limit_burst: u32,
    pub max_body_bytes: u64,
    pub drain_timeout_seconds: u32,
    pub redis_url: Option<String>,
    pub database_url: Option<Secret<String>>,
    pub s3: S3Settings,
    pub scheduler_url: String,
    pub session_url: String,
    pub exec_url: String,
    pub log_level: String,
    pub log_format: LogFormat,
}

impl Settings {
    /// The settings where nobody says otherwise.
    #[must_use]
    pub fn defaults(mode: Mode, host: &Host) -> Self {
        defaults::settings(mode, host)
    }

    /// How long calls may go on once the process is told to stop.
    #[must_use]
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_secs(self.drain_timeout_seconds.into())
    }
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Flag(String),
    Environment(String),
    File(PathBuf),
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag --{flag}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting that broke a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub setting: String,
    pub source: Source,
    pub rule: String,
}

/// Every setting that broke a rule; never empty.
#[derive(Debug, thiserror::Error)]
pub struct Faults(pub Vec<Fault>);

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used:")?;
        for Fault { setting, source, rule } in &self.0 {
            write!(f, "\n  {setting} ({source}) {rule}")?;
        }
        Ok(())
    }
}

/// What was given to a process.
pub struct Given<'a> {
    /// flags by their settings' names
    pub flags: HashMap<&'static str, String>,
    /// reads the environment; an empty variable counts as none
    pub env: &'a dyn Fn(&str) -> Option<String>,
    /// the file named on the command line
    pub config: Option<PathBuf>,
}

/// Variables that people know for this service and that this version does not heed, with what holds instead.
const UNHEEDED: [(&str, &str); 1] = [("SANDBOX_RUNTIME", "SANDBOX_RUNTIMES lists what isolates the sandboxes")];

/// The effective settings and where each came from.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub settings: Settings,
    pub mode: Mode,
    /// what was given in the environment without effect, and what holds instead
    pub unheeded: Vec<(&'static str, &'static str)>,
    sources: HashMap<&'static str, Source>,
}

impl Resolved {
    /// Where the value of the setting called `name` came from.
    #[must_use]
    pub fn source(&self, name: &str) -> Source {
        self.sources.get(name).cloned().unwrap_or(Source::Default)
    }
}

/// Puts the settings for `mode` together, or names everything that is wrong with them.
pub fn resolve(mode: Mode, host: &Host, given: &Given<'_>) -> Result<Resolved, Faults> {
    let mut faults = Vec::new();
    let env = |name: &str| (given.env)(name).filter(|value| !value.is_empty());
    let file = given.config.clone().or_else(|| env(CONFIG_ENV).map(PathBuf::from));
    let file = file.map(|path| file::read(&path, &mut faults)).unwrap_or_default();

    let unheeded = UNHEEDED.into_iter().filter(|(name, _)| env(name).is_some()).collect();
    let settings = Settings::defaults(mode, host);
    let mut resolved = Resolved { settings, mode, unheeded, sources: HashMap::new() };
    for row in TABLE.iter().filter(|row| row.is_for(mode)) {
        let flag = || Some((given.flags.get(row.name)?.clone(), Source::Flag(row.flag()?)));
        let variable = |name: String| Some((env(&name)?, Source::Environment(name)));
        let found = flag()
            .or_else(|| variable(row.env()))
            .or_else(|| variable(row.env_alias?.to_owned()))
            .or_else(|| file.get(row.name).cloned());
        let Some((text, source)) = found else { continue };
        match (row.set)(&mut resolved.settings, &text) {
            Ok(()) => _ = resolved.sources.insert(row.name, source),
            Err(rule) => faults.push(Fault { setting: row.name.to_owned(), source, rule }),
        }
    }
    if resolved.source("sandbox_disk_bytes") == Source::Default {
        // whoever asks for less memory alone wants a sandbox that fits into it
        resolved.settings.sandbox_limits = resolved.settings.sandbox_limits.with_disk_within_memory();
    }
    if resolved.source("default_template") == Source::Default {
        resolved.settings.default_template = defaults::template(&resolved.settings.sandbox_runtimes).to_owned();
    }
    let kept = resolved.settings.journal_execution_bytes;
    resolved.settings.sandbox_limits_max.output_bytes = kept;
    if resolved.source("sandbox_output_bytes") == Source::Default {
        resolved.settings.sandbox_limits.output_bytes = kept;
    }
    // what is broken by itself would only be reported a second time
    let broken: Vec<_> = faults.iter().map(|fault| fault.setting.clone()).collect();
    faults.extend(rules::check(&resolved).into_iter().filter(|fault| !broken.contains(&fault.setting)));
    if faults.is_empty() { Ok(resolved) } else { Err(Faults(faults)) }
}

#[cfg(test)]
mod tests;
