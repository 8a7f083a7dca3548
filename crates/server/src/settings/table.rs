//! The one table of settings. Flags, environment names, file keys, `--help` and `--print-config` all come from it:
//! `pool_min_size` in the file is `POOL_MIN_SIZE` in the environment and `--pool-min-size` on the command line.

use cloud_sandbox_model::Limits;

use super::{
    Mode, Settings, defaults,
    values::{self, MASK, Secret},
};

/// How a setting's value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Address,
    Bool,
    Bytes,
    Number,
    Path,
    /// never shown, and no flag: the command line of a process can be read by everybody on its machine
    Secret,
    Text,
    Url,
}

impl Kind {
    /// What stands for the value in `--help`.
    pub const fn placeholder(self) -> &'static str {
        match self {
            Self::Address => "ADDRESS:PORT",
            Self::Bool => "BOOL",
            Self::Bytes => "BYTES",
            Self::Number => "N",
            Self::Path => "DIR",
            Self::Secret => "SECRET",
            Self::Text => "TEXT",
            Self::Url => "URL",
        }
    }
}

/// One setting.
pub struct Row {
    /// its key in the file; the other names follow from it
    pub name: &'static str,
    /// another environment variable for it, by which people know it from elsewhere
    pub env_alias: Option<&'static str>,
    /// how its value is written
    pub kind: Kind,
    /// the commands that heed it
    pub modes: &'static [Mode],
    /// what it does
    pub doc: &'static str,
    /// takes a text, or says which rule it broke
    pub set: fn(&mut Settings, &str) -> Result<(), String>,
    /// the value as text, masked where it is secret; `None` when nothing is set
    pub get: fn(&Settings) -> Option<String>,
}

impl Row {
    /// The environment variable.
    pub fn env(&self) -> String {
        self.name.to_ascii_uppercase()
    }

    /// The flag, without its dashes; `None` for a secret.
    pub fn flag(&self) -> Option<String> {
        (self.kind != Kind::Secret).then(|| self.name.replace('_', "-"))
    }

    /// Whether `mode` heeds it.
    pub fn is_for(&self, mode: Mode) -> bool {
        self.modes.contains(&mode)
    }
}

const ALL: &[Mode] = Mode::ALL;
const EDGES: &[Mode] = &[Mode::Serve, Mode::Gateway];
const HOSTS: &[Mode] = &[Mode::Serve, Mode::Node];
const RUNNERS: &[Mode] = &[Mode::Serve, Mode::Node, Mode::Run];
const TEMPLATED: &[Mode] = &[Mode::Serve, Mode::Scheduler, Mode::SessionManager, Mode::Node, Mode::Run];
const TEMPLATED_CALLS: &[Mode] = &[Mode::Serve, Mode::Scheduler, Mode::SessionManager, Mode::Run];
const IMAGED: &[Mode] = &[Mode::Serve, Mode::Scheduler, Mode::Node, Mode::Run];
const SIGNERS: &[Mode] = &[
    Mode::Serve,
    Mode::Gateway,
    Mode::Scheduler,
    Mode::SessionManager,
    Mode::Exec,
    Mode::Node,
    Mode::Token,
    Mode::Template,
];
const SERVERS: &[Mode] = &[Mode::Serve, Mode::Gateway, Mode::Scheduler, Mode::SessionManager, Mode::Exec, Mode::Node];
const SHARERS: &[Mode] = &[Mode::Serve, Mode::Scheduler, Mode::SessionManager, Mode::Exec, Mode::Node];
const KEEPERS: &[Mode] = &[Mode::Serve, Mode::SessionManager];
const RECORDERS: &[Mode] = &[Mode::Serve, Mode::Scheduler, Mode::SessionManager];
const SAVERS: &[Mode] = &[Mode::Serve, Mode::SessionManager, Mode::Node];

/// Beyond these bounds somebody has mistyped.
const POOL_LIMIT: u32 = 10_000;
const RATE_LIMIT: u32 = 1_000_000;
const BODY_MIN: u64 = 64 * 1024;
const BODY_MAX: u64 = 1024 * 1024 * 1024;
const DRAIN_MAX: u32 = 3600;
const JOURNAL_RETENTION_MAX: u32 = 30 * 86_400;
const SESSION_FROZEN_MAX: u32 = 30 * 86_400;
const CHECKPOINTS_MAX: u32 = 1000;
const CHECKPOINTS_DAYS_MAX: u32 = 3650;
const JOURNAL_MIN: u64 = 1024 * 1024;
const JOURNAL_MAX: u64 = 16 * 1024 * 1024 * 1024 * 1024;

macro_rules! row {
    ($name:literal, $kind:ident, $modes:expr, $doc:literal, $set:expr, $get:expr) => {
        Row { name: $name, env_alias: None, kind: Kind::$kind, modes: $modes, doc: $doc, set: $set, get: $get }
    };
}

fn put<T>(place: &mut T, value: Result<T, String>) -> Result<(), String> {
    *place = value?;
    Ok(())
}

fn masked<T>(secret: Option<T>) -> Option<String> {
    secret.map(|_| MASK.to_owned())
}

/// Every setting, in the order in which people read about them.
pub static TABLE: &[Row] = &[
    row!(
        "listen",
        Address,
        EDGES,
        "Where REST, gRPC and gRPC-Web are served",
        |s, text| put(&mut s.listen, values::address(text)),
        |s| Some(s.listen.to_string())
    ),
    row!(
        "grpc_listen",
        Address,
        SHARERS,
        "Where gRPC alone is served",
        |s, text| put(&mut s.grpc_listen, values::address(text)),
        |s| Some(s.grpc_listen.to_string())
    ),
    row!(
        "advertise_address",
        Url,
        HOSTS,
        "Where other processes reach this node's gRPC; by default grpc_listen, unless that is every interface",
        |s, text| put(&mut s.advertise_address, values::url(text, &["http"]).map(Some)),
        |s| s.advertise_address.clone()
    ),
    row!(
        "data_dir",
        Path,
        ALL,
        "The folder of everything that is kept",
        |s, text| put(&mut s.data_dir, values::path(text)),
        |s| Some(s.data_dir.display().to_string())
    ),
    row!(
        "jwt_secret",
        Secret,
        SIGNERS,
        "Signs the tokens, 32 bytes or more; without it a random one is made and kept in data_dir",
        |s, text| put(&mut s.jwt_secret, Ok(Some(Secret::new(text.to_owned())))),
        |s| masked(s.jwt_secret.as_ref())
    ),
    row!(
        "api_keys",
        Secret,
        EDGES,
        "Keys that tokens are handed out for, as key:role pairs with commas between, the role user or admin",
        |s, text| put(&mut s.api_keys, values::api_keys(text).map(Secret::new)),
        |s| masked(s.api_keys.reveal().first())
    ),
    row!(
        "token_ttl_seconds",
        Number,
        EDGES,
        "How long a token is valid unless its caller says otherwise",
        |s, text| put(&mut s.token_ttl_seconds, values::whole(text, 60, 604_800)),
        |s| Some(s.token_ttl_seconds.to_string())
    ),
    row!(
        "pool_min_size",
        Number,
        HOSTS,
        "How many warm sandboxes are kept ready",
        |s, text| put(&mut s.pool_min_size, values::whole(text, 0, POOL_LIMIT)),
        |s| Some(s.pool_min_size.to_string())
    ),
    row!(
        "pool_max_size",
        Number,
        HOSTS,
        "How many sandboxes may exist at once, warm and acquired",
        |s, text| put(&mut s.pool_max_size, values::whole(text, 1, POOL_LIMIT)),
        |s| Some(s.pool_max_size.to_string())
    ),
    row!(
        "sandbox_memory_bytes",
        Bytes,
        RUNNERS,
        "Memory of one sandbox, its files included, unless its caller says otherwise",
        |s, text| put(
            &mut s.sandbox_limits.memory_bytes,
            values::bytes(text, Limits::MIN.memory_bytes, Limits::MAX.memory_bytes)
        ),
        |s| Some(s.sandbox_limits.memory_bytes.to_string())
    ),
    row!(
        "sandbox_cpu_millis",
        Number,
        RUNNERS,
        "CPU of one sandbox in thousandths of a core, unless its caller says otherwise",
        |s, text| put(
            &mut s.sandbox_limits.cpu_millis,
            values::whole(text, Limits::MIN.cpu_millis, Limits::MAX.cpu_millis)
        ),
        |s| Some(s.sandbox_limits.cpu_millis.to_string())
    ),
    row!(
        "sandbox_pids",
        Number,
        RUNNERS,
        "Processes and threads of one sandbox, unless its caller says otherwise",
        |s, text| put(&mut s.sandbox_limits.pids, values::whole(text, Limits::MIN.pids, Limits::MAX.pids)),
        |s| Some(s.sandbox_limits.pids.to_string())
    ),
    row!(
        "sandbox_disk_bytes",
        Bytes,
        RUNNERS,
        "Bytes in all writable folders of one sandbox, unless its caller says otherwise",
        |s, text| put(
            &mut s.sandbox_limits.disk_bytes,
            values::bytes(text, Limits::MIN.disk_bytes, Limits::MAX.disk_bytes)
        ),
        |s| Some(s.sandbox_limits.disk_bytes.to_string())
    ),
    row!(
        "sandbox_open_files",
        Number,
        RUNNERS,
        "Files that one process of a sandbox may have open, unless its caller says otherwise",
        |s, text| put(
            &mut s.sandbox_limits.open_files,
            values::whole(text, Limits::MIN.open_files, Limits::MAX.open_files)
        ),
        |s| Some(s.sandbox_limits.open_files.to_string())
    ),
    row!(
        "sandbox_output_bytes",
        Bytes,
        RUNNERS,
        "How much of one execution's output is kept in a sandbox whose caller does not say; by default journal_execution_bytes",
        |s, text| put(
            &mut s.sandbox_limits.output_bytes,
            values::bytes(text, Limits::MIN.output_bytes, Limits::MAX.output_bytes)
        ),
        |s| Some(s.sandbox_limits.output_bytes.to_string())
    ),
    row!(
        "sandbox_execution_seconds",
        Number,
        RUNNERS,
        "The longest that an execution in the foreground may take in a sandbox whose caller does not say",
        |s, text| put(
            &mut s.sandbox_limits.execution_seconds,
            values::whole(text, Limits::MIN.execution_seconds, Limits::MAX.execution_seconds)
        ),
        |s| Some(s.sandbox_limits.execution_seconds.to_string())
    ),
    row!(
        "sandbox_cpu_weight",
        Number,
        RUNNERS,
        "Share of the CPU of one sandbox against that of others when there is too little, unless its caller says otherwise",
        |s, text| put(
            &mut s.sandbox_limits.cpu_weight,
            values::whole(text, Limits::MIN.cpu_weight, Limits::MAX.cpu_weight)
        ),
        |s| Some(s.sandbox_limits.cpu_weight.to_string())
    ),
    row!(
        "sandbox_memory_bytes_max",
        Bytes,
        RUNNERS,
        "The most memory that a caller may ask for; by default the host's",
        |s, text| put(
            &mut s.sandbox_limits_max.memory_bytes,
            values::bytes(text, Limits::MIN.memory_bytes, Limits::MAX.memory_bytes)
        ),
        |s| Some(s.sandbox_limits_max.memory_bytes.to_string())
    ),
    row!(
        "sandbox_cpu_millis_max",
        Number,
        RUNNERS,
        "The most CPU that a caller may ask for, in thousandths of a core; by default the host's",
        |s, text| put(
            &mut s.sandbox_limits_max.cpu_millis,
            values::whole(text, Limits::MIN.cpu_millis, Limits::MAX.cpu_millis)
        ),
        |s| Some(s.sandbox_limits_max.cpu_millis.to_string())
    ),
    row!(
        "sandbox_pids_max",
        Number,
        RUNNERS,
        "The most processes and threads that a caller may ask for",
        |s, text| put(&mut s.sandbox_limits_max.pids, values::whole(text, Limits::MIN.pids, Limits::MAX.pids)),
        |s| Some(s.sandbox_limits_max.pids.to_string())
    ),
    row!(
        "sandbox_disk_bytes_max",
        Bytes,
        RUNNERS,
        "The most bytes in writable folders that a caller may ask for; by default the host's memory",
        |s, text| put(
            &mut s.sandbox_limits_max.disk_bytes,
            values::bytes(text, Limits::MIN.disk_bytes, Limits::MAX.disk_bytes)
        ),
        |s| Some(s.sandbox_limits_max.disk_bytes.to_string())
    ),
    row!(
        "sandbox_open_files_max",
        Number,
        RUNNERS,
        "The most open files of a process that a caller may ask for",
        |s, text| put(
            &mut s.sandbox_limits_max.open_files,
            values::whole(text, Limits::MIN.open_files, Limits::MAX.open_files)
        ),
        |s| Some(s.sandbox_limits_max.open_files.to_string())
    ),
    row!(
        "sandbox_execution_seconds_max",
        Number,
        RUNNERS,
        "The longest that a caller may allow an execution in the foreground to take",
        |s, text| put(
            &mut s.sandbox_limits_max.execution_seconds,
            values::whole(text, Limits::MIN.execution_seconds, Limits::MAX.execution_seconds)
        ),
        |s| Some(s.sandbox_limits_max.execution_seconds.to_string())
    ),
    row!(
        "sandbox_cpu_weight_max",
        Number,
        RUNNERS,
        "The largest share of the CPU that a caller may ask for",
        |s, text| put(
            &mut s.sandbox_limits_max.cpu_weight,
            values::whole(text, Limits::MIN.cpu_weight, Limits::MAX.cpu_weight)
        ),
        |s| Some(s.sandbox_limits_max.cpu_weight.to_string())
    ),
    row!(
        "sandbox_runtimes",
        Text,
        TEMPLATED,
        "What isolates sandboxes on a node, as far as its host has it: linux, docker",
        |s, text| put(&mut s.sandbox_runtimes, values::some_words(text, &defaults::SANDBOX_RUNTIMES)),
        |s| Some(s.sandbox_runtimes.join(","))
    ),
    row!(
        "docker_host",
        Text,
        RUNNERS,
        "Where the Docker Engine is: unix:///path or tcp://host:port; by default its usual socket",
        |s, text| put(&mut s.docker_host, values::docker_host(text).map(Some)),
        |s| s.docker_host.clone()
    ),
    row!(
        "sandbox_image",
        Text,
        IMAGED,
        "The image of the built-in template docker",
        |s, text| put(&mut s.sandbox_image, values::image(text)),
        |s| Some(s.sandbox_image.clone())
    ),
    row!(
        "default_template",
        Text,
        TEMPLATED_CALLS,
        "The template of callers who name none; by default host where sandbox_runtimes has linux, else docker",
        |s, text| put(&mut s.default_template, values::template(text)),
        |s| Some(s.default_template.clone())
    ),
    row!(
        "require_isolation",
        Bool,
        RUNNERS,
        "Refuse to start when the host lacks one of the protections, instead of saying so in the log",
        |s, text| put(&mut s.require_isolation, values::boolean(text)),
        |s| Some(s.require_isolation.to_string())
    ),
    row!(
        "warm_contexts",
        Text,
        HOSTS,
        "Languages whose default code context is ready in every warm sandbox: python, javascript",
        |s, text| put(&mut s.warm_contexts, values::words(text, &["python", "javascript"])),
        |s| Some(s.warm_contexts.join(","))
    ),
    row!(
        "journal_retention_seconds",
        Number,
        HOSTS,
        "How long what an execution printed can be read again after its end",
        |s, text| put(&mut s.journal_retention_seconds, values::whole(text, 1, JOURNAL_RETENTION_MAX)),
        |s| Some(s.journal_retention_seconds.to_string())
    ),
    row!(
        "journal_execution_bytes",
        Bytes,
        HOSTS,
        "How much of one execution's output is kept; of more, the beginning and the end",
        |s, text| put(&mut s.journal_execution_bytes, values::bytes(text, JOURNAL_MIN, JOURNAL_MAX)),
        |s| Some(s.journal_execution_bytes.to_string())
    ),
    row!(
        "journal_total_bytes",
        Bytes,
        HOSTS,
        "How much of all executions' output is kept; the oldest goes first",
        |s, text| put(&mut s.journal_total_bytes, values::bytes(text, JOURNAL_MIN, JOURNAL_MAX)),
        |s| Some(s.journal_total_bytes.to_string())
    ),
    row!(
        "session_frozen_seconds",
        Number,
        KEEPERS,
        "How long a session that is paused auto stays frozen before it is checkpointed",
        |s, text| put(&mut s.session_frozen_seconds, values::whole(text, 0, SESSION_FROZEN_MAX)),
        |s| Some(s.session_frozen_seconds.to_string())
    ),
    row!(
        "checkpoints_kept",
        Number,
        KEEPERS,
        "How many checkpoints of a session are kept",
        |s, text| put(&mut s.checkpoints_kept, values::whole(text, 1, CHECKPOINTS_MAX)),
        |s| Some(s.checkpoints_kept.to_string())
    ),
    row!(
        "checkpoints_kept_days",
        Number,
        KEEPERS,
        "How long checkpoints are kept; the last one of a session always is",
        |s, text| put(&mut s.checkpoints_kept_days, values::whole(text, 1, CHECKPOINTS_DAYS_MAX)),
        |s| Some(s.checkpoints_kept_days.to_string())
    ),
    row!(
        "rate_limit_per_second",
        Number,
        EDGES,
        "Calls that one caller may make in a second, for long; 0 for any number",
        |s, text| put(&mut s.rate_limit_per_second, values::whole(text, 0, RATE_LIMIT)),
        |s| Some(s.rate_limit_per_second.to_string())
    ),
    row!(
        "rate_limit_burst",
        Number,
        EDGES,
        "Calls that one caller may make at once",
        |s, text| put(&mut s.rate_limit_burst, values::whole(text, 1, RATE_LIMIT)),
        |s| Some(s.rate_limit_burst.to_string())
    ),
    row!(
        "max_body_bytes",
        Bytes,
        EDGES,
        "The largest request body that is read",
        |s, text| put(&mut s.max_body_bytes, values::bytes(text, BODY_MIN, BODY_MAX)),
        |s| Some(s.max_body_bytes.to_string())
    ),
    row!(
        "drain_timeout_seconds",
        Number,
        SERVERS,
        "How long calls may go on after SIGTERM or Ctrl-C",
        |s, text| put(&mut s.drain_timeout_seconds, values::whole(text, 0, DRAIN_MAX)),
        |s| Some(s.drain_timeout_seconds.to_string())
    ),
    row!(
        "redis_url",
        Url,
        SERVERS,
        "The Redis that the roles share their directory in, and edges their rate limits; without it both are in memory",
        |s, text| put(&mut s.redis_url, values::url(text, &["redis", "redis-cluster", "redis-sentinel"]).map(Some)),
        |s| s.redis_url.as_deref().map(values::masked_url)
    ),
    row!(
        "database_url",
        Url,
        RECORDERS,
        "The PostgreSQL that keeps sessions and templates, for several replicas at once; without it a file in data_dir does",
        |s, text| put(&mut s.database_url, values::database_url(text).map(Some)),
        |s| s.database_url.as_ref().map(|url| values::masked_url(url.reveal()))
    ),
    row!(
        "s3_bucket",
        Text,
        SAVERS,
        "The bucket that keeps what sessions hold while they are paused; without it a folder in data_dir does",
        |s, text| put(&mut s.s3.bucket, values::bucket(text).map(Some)),
        |s| s.s3.bucket.clone()
    ),
    row!(
        "s3_endpoint",
        Url,
        SAVERS,
        "The server of the bucket, unless it is Amazon's",
        |s, text| put(&mut s.s3.endpoint, values::endpoint(text).map(Some)),
        |s| s.s3.endpoint.clone()
    ),
    row!(
        "s3_region",
        Text,
        SAVERS,
        "The region of the bucket; by default us-east-1",
        |s, text| put(&mut s.s3.region, values::region(text).map(Some)),
        |s| s.s3.region.clone()
    ),
    row!(
        "s3_prefix",
        Text,
        SAVERS,
        "The folder in the bucket; by default the bucket itself",
        |s, text| put(&mut s.s3.prefix, values::prefix(text).map(Some)),
        |s| s.s3.prefix.clone()
    ),
    Row {
        env_alias: Some("AWS_ACCESS_KEY_ID"),
        ..row!(
            "s3_access_key_id",
            Secret,
            SAVERS,
            "The id of the key to the bucket",
            |s, text| put(&mut s.s3.access_key_id, Ok(Some(Secret::new(text.to_owned())))),
            |s| masked(s.s3.access_key_id.as_ref())
        )
    },
    Row {
        env_alias: Some("AWS_SECRET_ACCESS_KEY"),
        ..row!(
            "s3_secret_access_key",
            Secret,
            SAVERS,
            "The key to the bucket",
            |s, text| put(&mut s.s3.secret_access_key, Ok(Some(Secret::new(text.to_owned())))),
            |s| masked(s.s3.secret_access_key.as_ref())
        )
    },
    row!(
        "s3_force_path_style",
        Bool,
        SAVERS,
        "Name the bucket in the path rather than in the host's name; by default where s3_endpoint is set",
        |s, text| put(&mut s.s3.force_path_style, values::boolean(text).map(Some)),
        |s| s.s3.force_path_style.map(|force| force.to_string())
    ),
    row!(
        "scheduler_url",
        Url,
        &[Mode::Gateway, Mode::SessionManager],
        "Where the scheduler is",
        |s, text| put(&mut s.scheduler_url, values::url(text, &["http"])),
        |s| Some(s.scheduler_url.clone())
    ),
    row!(
        "session_url",
        Url,
        &[Mode::Gateway, Mode::Exec],
        "Where the session manager is",
        |s, text| put(&mut s.session_url, values::url(text, &["http"])),
        |s| Some(s.session_url.clone())
    ),
    row!(
        "exec_url",
        Url,
        &[Mode::Gateway],
        "Where the exec service is",
        |s, text| put(&mut s.exec_url, values::url(text, &["http"])),
        |s| Some(s.exec_url.clone())
    ),
    Row {
        env_alias: Some("RUST_LOG"),
        ..row!(
            "log_level",
            Text,
            ALL,
            "What is logged: error, warn, info, debug or trace, or target=level pairs with commas between",
            |s, text| match cloud_sandbox_telemetry::logs::check_filter(text) {
                Ok(()) => put(&mut s.log_level, Ok(text.to_owned())),
                Err(_) => Err(format!("must be a level or target=level pairs, not {text:?}")),
            },
            |s| Some(s.log_level.clone())
        )
    },
    row!(
        "log_format",
        Text,
        ALL,
        "How log lines are written: text or json",
        |s, text| put(&mut s.log_format, text.parse()),
        |s| Some(s.log_format.to_string())
    ),
];

/// The row called `name`.
pub fn row(name: &str) -> Option<&'static Row> {
    TABLE.iter().find(|row| row.name == name)
}
