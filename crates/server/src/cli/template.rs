//! `cloud-sandbox template`, as it is written.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::{client::SERVER_ENV, settings::parse_bytes};

#[derive(Debug, Args)]
pub struct TemplateArgs {
    #[command(subcommand)]
    pub action: TemplateAction,
    /// The server to ask
    #[arg(long, global = true, value_name = "URL", env = SERVER_ENV, hide_env_values = true, default_value = "http://127.0.0.1:8080")]
    pub server: String,
    /// The bearer token for the server; by default the one in the environment (CLOUD_SANDBOX_TOKEN), or one made with the
    /// secret in the data folder
    #[arg(long, global = true)]
    pub token: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum TemplateAction {
    /// Create a template, or the next version of one, and wait until it can be used
    Add(Box<AddArgs>),
    /// List the newest version of each template, or all versions of one
    List(ListArgs),
    /// Show a template and how far each node is with it
    Show(ShowArgs),
    /// Remove templates, or versions of them
    Remove(RemoveArgs),
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Its name
    pub name: String,
    #[command(flatten)]
    pub source: SourceArgs,
    /// A runtime that it may run on: linux, docker, docker+runsc; those that are preferred first
    #[arg(long = "runtime", value_name = "RUNTIME")]
    pub runtimes: Vec<String>,
    /// When the image is fetched
    #[arg(long, value_name = "WHEN", value_parser = ["missing", "always", "never"], conflicts_with_all = ["folder", "tarball", "host"])]
    pub pull: Option<String>,
    /// Who asks the registry
    #[arg(long, value_name = "NAME", requires = "password_stdin", conflicts_with_all = ["folder", "tarball", "host"])]
    pub username: Option<String>,
    /// Read the password, or a token, from standard input
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// Speak HTTP without TLS to the registry
    #[arg(long, conflicts_with_all = ["folder", "tarball", "docker_image", "host"])]
    pub plain_http: bool,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// How many sandboxes of it each node keeps warm
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub warm: u32,
    /// A shell line that is started in each of its sandboxes
    #[arg(long, value_name = "COMMAND")]
    pub start: Option<String>,
    /// A shell line that is run until it ends with 0: the sandbox is ready then
    #[arg(long, value_name = "COMMAND", requires = "start")]
    pub ready: Option<String>,
    /// How long that may take, in seconds
    #[arg(long, value_name = "SECONDS", requires = "start")]
    pub ready_seconds: Option<u32>,
    /// A variable in the environment of all that runs in its sandboxes
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// A language that may be run; by default all that it has
    #[arg(long = "language", value_name = "LANGUAGE")]
    pub languages: Vec<String>,
    /// The user inside, by name or number; on the runtime docker
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Let everything in it be written; on the runtime docker
    #[arg(long)]
    pub writable_root: bool,
    /// Do not wait until it can be used
    #[arg(long)]
    pub no_wait: bool,
}

/// Where the root file system comes from: one of these.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct SourceArgs {
    /// A folder on the nodes, which is copied
    #[arg(long, value_name = "DIR")]
    pub folder: Option<PathBuf>,
    /// An archive on the nodes: tar, plain or compressed by gzip or zstd
    #[arg(long, value_name = "FILE")]
    pub tarball: Option<PathBuf>,
    /// An image of the nodes' Docker Engine
    #[arg(long, value_name = "IMAGE")]
    pub docker_image: Option<String>,
    /// An image of an OCI registry
    #[arg(long, value_name = "IMAGE")]
    pub registry: Option<String>,
    /// The nodes' own /usr
    #[arg(long)]
    pub host: bool,
}

#[derive(Debug, Args)]
pub struct LimitArgs {
    /// Memory of a sandbox: bytes, or a number of KiB, MiB or GiB
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub memory: Option<u64>,
    /// CPU of a sandbox in thousandths of a core
    #[arg(long, value_name = "N")]
    pub cpu_millis: Option<u32>,
    /// Processes and threads of a sandbox
    #[arg(long, value_name = "N")]
    pub pids: Option<u32>,
    /// Bytes in all writable folders of a sandbox
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub disk: Option<u64>,
    /// Files that one process may have open
    #[arg(long, value_name = "N")]
    pub open_files: Option<u32>,
    /// How much of one execution's output is kept
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub output: Option<u64>,
    /// The longest that one execution in the foreground may take
    #[arg(long, value_name = "SECONDS")]
    pub execution_seconds: Option<u32>,
    /// Share of the CPU against that of other sandboxes
    #[arg(long, value_name = "N")]
    pub cpu_weight: Option<u32>,
}

#[derive(Debug, Args)]
pub struct ListArgs {
    /// The template whose versions are listed
    pub name: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Its name, which means the newest version, or name@version
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Their names, which mean all versions, or name@version
    #[arg(required = true)]
    pub names: Vec<String>,
}

fn bytes(text: &str) -> Result<u64, String> {
    parse_bytes(text, 1, u64::MAX)
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("must be NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
