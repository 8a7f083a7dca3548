//! The command line. The flags of settings come from the table of settings; everything else is said here.

pub mod template;

use std::{collections::HashMap, ffi::OsString, path::PathBuf};

use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::settings::{self, CONFIG_ENV, Host, Kind, Mode, Row};

/// Runs code in isolated sandboxes.
#[derive(Debug, Parser)]
#[command(name = "cloud-sandbox", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// A TOML file of settings
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the effective settings, secrets masked, and exit
    #[arg(long, global = true)]
    pub print_config: bool,
    #[command(subcommand)]
    pub action: Option<Action>,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    /// Run everything in this process: the whole system on one machine
    Serve,
    /// Run the edge alone: REST, gRPC and gRPC-Web in front of the other roles
    Gateway,
    /// Run the scheduler alone
    Scheduler,
    /// Run the session manager alone
    SessionManager,
    /// Run the service that executes code and works with files alone
    Exec,
    /// Run a node alone: the sandboxes of one machine
    Node,
    /// Run a file, or standard input, in a fresh sandbox
    Run(RunArgs),
    /// Tell whether sandboxes can be made on this host, and what is missing
    Doctor(DoctorArgs),
    /// Mint a token with the configured secret
    Token(TokenArgs),
    /// Create, list, show and remove templates of a server that runs
    Template(template::TemplateArgs),
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// The file to run, or - for standard input
    pub file: String,
    /// The language; by default the one that the file's name tells
    #[arg(long, short)]
    pub language: Option<String>,
    /// Run on this server instead of on this machine
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// The bearer token for the server; by default the one in the environment
    #[arg(long)]
    pub token: Option<String>,
    /// Seconds until the program is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub timeout: u32,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print the findings as JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TokenArgs {
    /// Who the token speaks for
    #[arg(long)]
    pub user: String,
    /// What it may do
    #[arg(long, default_value = "user", value_parser = ["user", "admin"])]
    pub role: String,
    /// Seconds until it expires
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    pub ttl: u32,
}

impl Action {
    /// What the process is started as.
    pub const fn mode(&self) -> Mode {
        match self {
            Self::Serve => Mode::Serve,
            Self::Gateway => Mode::Gateway,
            Self::Scheduler => Mode::Scheduler,
            Self::SessionManager => Mode::SessionManager,
            Self::Exec => Mode::Exec,
            Self::Node => Mode::Node,
            Self::Run(_) => Mode::Run,
            Self::Doctor(_) => Mode::Doctor,
            Self::Token(_) => Mode::Token,
            Self::Template(_) => Mode::Template,
        }
    }
}

/// A command line that has been read.
#[derive(Debug)]
pub struct Invocation {
    pub cli: Cli,
    /// flags of settings by the settings' names
    pub flags: HashMap<&'static str, String>,
}

impl Invocation {
    /// What the process is started as; `--print-config` alone speaks of the server.
    pub fn mode(&self) -> Mode {
        self.cli.action.as_ref().map_or(Mode::Serve, Action::mode)
    }
}

/// Roles that the program runs when it is called by their names.
const NAMED_ROLES: [Mode; 3] = [Mode::Gateway, Mode::Scheduler, Mode::SessionManager];

/// Reads the command line. The error prints itself, `--help` and `--version` included.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Invocation, clap::Error> {
    let mut command = command(&Host::of_this_process());
    let mut arguments: Vec<_> = arguments.into_iter().collect();
    if let Some(role) = arguments.first().and_then(role_of) {
        arguments.insert(1, role.name().into());
    }
    let matches = command.try_get_matches_from_mut(arguments)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
    if cli.action.is_none() && !cli.print_config {
        return Err(command.error(clap::error::ErrorKind::MissingSubcommand, "a command is required; try --help"));
    }
    let innermost = matches.subcommand().map_or(&matches, |(_, inner)| inner);
    Ok(Invocation { flags: flags_of_settings(innermost), cli })
}

/// The role that the program's own name says it runs.
fn role_of(program: &OsString) -> Option<Mode> {
    let name = std::path::Path::new(program).file_name()?.to_str()?.to_owned();
    NAMED_ROLES.into_iter().find(|role| role.name() == name)
}

fn flags_of_settings(matches: &ArgMatches) -> HashMap<&'static str, String> {
    let given = |row: &'static Row| {
        let value = matches.try_get_one::<String>(row.name).ok().flatten()?;
        Some((row.name, value.clone()))
    };
    settings::TABLE.iter().filter_map(given).collect()
}

/// The whole command line, with the flags of the settings that each command heeds.
pub fn command(host: &Host) -> Command {
    let after = format!(
        "Settings are read from flags, then from the environment, then from the file that --config or {CONFIG_ENV} \
         names. 'cloud-sandbox COMMAND --help' lists those that a command heeds."
    );
    let mut command = Cli::command().after_help(after).subcommand_required(false);
    for row in settings::TABLE.iter().filter(|row| is_global(row)) {
        command = command.args(flag(row, Mode::Serve, host).map(|flag| flag.global(true)));
    }
    for mode in Mode::ALL {
        command = command.mut_subcommand(mode.name(), |command| {
            let rows = settings::TABLE.iter().filter(|row| row.is_for(*mode));
            let secrets: Vec<_> = rows.clone().filter(|row| row.kind == Kind::Secret).map(secret_help).collect();
            let command = command.args(rows.filter(|row| !is_global(row)).filter_map(|row| flag(row, *mode, host)));
            if secrets.is_empty() { command } else { command.after_help(secrets.join("\n")) }
        });
    }
    command
}

/// Whether every command heeds the setting; its flag may then stand before the command, too.
fn is_global(row: &Row) -> bool {
    row.modes.len() == Mode::ALL.len()
}

fn flag(row: &'static Row, mode: Mode, host: &Host) -> Option<Arg> {
    let mut help = format!("{} [env: {}]", row.doc, row.env());
    if let Some(default) = settings::write_default(row, mode, host) {
        help.push_str(&format!(" [default: {default}]"));
    }
    let order = settings::TABLE.iter().position(|other| other.name == row.name)?;
    let arg = Arg::new(row.name).long(row.flag()?).help(help).help_heading("Settings").display_order(order);
    let arg = arg.value_name(row.kind.placeholder());
    // a bare --flag means true
    Some(if row.kind == Kind::Bool {
        arg.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg
    })
}

/// Secrets have no flags, yet people must find them.
fn secret_help(row: &'static Row) -> String {
    format!("{} (environment or file only): {}", row.env(), row.doc)
}

#[cfg(test)]
mod tests;
