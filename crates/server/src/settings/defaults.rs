//! Every default, each with its reason.

use std::{net::Ipv4Addr, net::SocketAddr, path::PathBuf};

use super::{Mode, S3Settings, Settings, values::Secret};
use cloud_sandbox_model::{
    Limits,
    template::{DOCKER, HOST},
};
use cloud_sandbox_telemetry::LogFormat;

/// Loopback: nobody is let in from outside before the operator says so.
const LISTEN_PORT: u16 = 8080;
/// The ports of the roles by their places in the picture of the whole, so that they run side by side on one machine.
const SCHEDULER_PORT: u16 = 9090;
const SESSION_PORT: u16 = 9091;
const EXEC_PORT: u16 = 9092;
const NODE_PORT: u16 = 9093;

/// Enough for a burst of callers while new ones are made; together they idle below 25 MiB.
pub const POOL_MIN_SIZE: u32 = 5;
/// What a laptop can hold with most of them at work.
pub const POOL_MAX_SIZE: u32 = 50;
/// A day: an agent's working session without a renewal.
pub const TOKEN_TTL_SECONDS: u32 = 86_400;
/// One caller may keep a laptop busy, not drown it.
pub const RATE_LIMIT_PER_SECOND: u32 = 100;
/// Two seconds' worth at once: a start-up's worth of calls passes without waiting.
pub const RATE_LIMIT_BURST: u32 = 200;
/// The largest file piece (8 MiB) in base64, with room for its envelope.
pub const MAX_BODY_BYTES: u64 = 16 * 1024 * 1024;
/// Shorter than the 30 s after which orchestrators kill, with room for destroying the sandboxes.
pub const DRAIN_TIMEOUT_SECONDS: u32 = 10;
/// What an operator reads through; `debug` has a line for each call between services.
pub const LOG_LEVEL: &str = "info";
/// What a program prints in `run` is not mixed with what the server has to say, unless that went wrong.
const COMMAND_LOG_LEVEL: &str = "error";
/// Where the state lies when the server runs as root (FHS 3.0, section 5.8).
const ROOT_DATA_DIR: &str = "/var/lib/cloud-sandbox";
const USER_DATA_DIR: &str = "cloud-sandbox";
/// Long enough to come back after a break, short enough for a disk that nobody looks after.
pub const JOURNAL_RETENTION_SECONDS: u32 = 3600;
/// A pause over a coffee keeps its processes; a longer one gives the memory back.
pub const SESSION_FROZEN_SECONDS: u32 = 600;
/// What was right an hour ago is still there after a few more pauses.
pub const CHECKPOINTS_KEPT: u32 = 5;
pub const CHECKPOINTS_KEPT_DAYS: u32 = 30;
/// A build's whole log; what prints more is rarely read in the middle.
pub const JOURNAL_EXECUTION_BYTES: u64 = 64 * 1024 * 1024;
/// What a laptop's disk does not miss.
pub const JOURNAL_TOTAL_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// What servers that know no regions expect.
pub const S3_REGION: &str = "us-east-1";
/// All that there are: one that cannot be used on a host is said in its log, and the others are used.
pub const SANDBOX_RUNTIMES: [&str; 2] = ["linux", "docker"];
/// Small, and it has what most agents run.
pub const SANDBOX_IMAGE: &str = "python:3.11-slim";

/// What the defaults depend on besides the mode.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// whether this process is root
    pub is_root: bool,
    /// `$HOME`
    pub home: Option<PathBuf>,
    /// `$XDG_STATE_HOME`
    pub state_home: Option<PathBuf>,
    /// its memory in bytes, if it tells
    pub memory_bytes: Option<u64>,
    /// its cores
    pub cores: u32,
}

impl Host {
    /// Of this process.
    #[must_use]
    pub fn of_this_process() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cores =
            std::thread::available_parallelism().map_or(1, |cores| u32::try_from(cores.get()).unwrap_or(u32::MAX));
        Self {
            is_root: nix::unistd::geteuid().is_root(),
            home: path("HOME"),
            state_home: path("XDG_STATE_HOME"),
            memory_bytes: memory_bytes(),
            cores,
        }
    }

    /// What one sandbox may ask for at most: no more memory and CPU than there is.
    fn most(&self) -> Limits {
        let memory = self.memory_bytes.unwrap_or(Limits::MAX.memory_bytes);
        Limits {
            // a small machine still takes what a sandbox has by default
            memory_bytes: memory.clamp(Limits::DEFAULT.memory_bytes, Limits::MAX.memory_bytes),
            cpu_millis: self.cores.saturating_mul(1000).clamp(Limits::DEFAULT.cpu_millis, Limits::MAX.cpu_millis),
            disk_bytes: memory.clamp(Limits::DEFAULT.disk_bytes, Limits::MAX.disk_bytes),
            ..Limits::MAX
        }
    }

    /// Where state lies by default; empty when nobody says where this user's files are.
    fn data_dir(&self) -> PathBuf {
        if self.is_root {
            return ROOT_DATA_DIR.into();
        }
        let state = self.state_home.clone().or_else(|| Some(self.home.as_ref()?.join(".local/state")));
        state.map(|folder| folder.join(USER_DATA_DIR)).unwrap_or_default()
    }
}

/// The machine's memory, from `MemTotal` in kB (proc_meminfo(5)).
fn memory_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// The settings where nobody says otherwise.
pub(super) fn settings(mode: Mode, host: &Host) -> Settings {
    Settings {
        listen: loopback(LISTEN_PORT),
        grpc_listen: loopback(match mode {
            Mode::SessionManager => SESSION_PORT,
            Mode::Exec => EXEC_PORT,
            Mode::Node => NODE_PORT,
            _ => SCHEDULER_PORT,
        }),
        advertise_address: None,
        data_dir: host.data_dir(),
        jwt_secret: None,
        api_keys: Secret::default(),
        token_ttl_seconds: TOKEN_TTL_SECONDS,
        pool_min_size: POOL_MIN_SIZE,
        pool_max_size: POOL_MAX_SIZE,
        sandbox_limits: Limits::DEFAULT,
        sandbox_limits_max: host.most(),
        sandbox_runtimes: SANDBOX_RUNTIMES.map(str::to_owned).to_vec(),
        // what Docker's own tools call
        docker_host: None,
        sandbox_image: SANDBOX_IMAGE.to_owned(),
        default_template: template(&SANDBOX_RUNTIMES.map(str::to_owned)).to_owned(),
        require_isolation: false,
        // each costs its memory in every warm sandbox, about 8 MiB for Python
        warm_contexts: Vec::new(),
        session_frozen_seconds: SESSION_FROZEN_SECONDS,
        checkpoints_kept: CHECKPOINTS_KEPT,
        checkpoints_kept_days: CHECKPOINTS_KEPT_DAYS,
        journal_retention_seconds: JOURNAL_RETENTION_SECONDS,
        journal_execution_bytes: JOURNAL_EXECUTION_BYTES,
        journal_total_bytes: JOURNAL_TOTAL_BYTES,
        rate_limit_per_second: RATE_LIMIT_PER_SECOND,
        rate_limit_burst: RATE_LIMIT_BURST,
        max_body_bytes: MAX_BODY_BYTES,
        drain_timeout_seconds: DRAIN_TIMEOUT_SECONDS,
        redis_url: None,
        database_url: None,
        s3: S3Settings::default(),
        scheduler_url: url(SCHEDULER_PORT),
        session_url: url(SESSION_PORT),
        exec_url: url(EXEC_PORT),
        log_level: match mode {
            Mode::Run | Mode::Doctor | Mode::Token | Mode::Template => COMMAND_LOG_LEVEL.to_owned(),
            _ => LOG_LEVEL.to_owned(),
        },
        log_format: LogFormat::default(),
    }
}

/// The template of callers who name none: that of the first runtime in the order in which they are made.
pub(super) fn template(runtimes: &[String]) -> &'static str {
    if runtimes.iter().any(|runtime| runtime == "linux") { HOST } else { DOCKER }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

fn url(port: u16) -> String {
    format!("http://{}", loopback(port))
}
