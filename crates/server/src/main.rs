//! `cloud-sandbox`: one program, several roles. It reads the settings, wires the services together and hears signals;
//! everything else is done elsewhere.

mod cli;
mod client;
mod crash;
mod data_dir;
mod doctor;
mod limits;
mod listener;
mod machine;
mod operational;
mod run;
mod serve;
mod server;
mod settings;
mod signals;
mod system;
mod template;
mod token;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use cloud_sandbox_telemetry::{Metrics, logs, metrics::UPKEEP_EVERY};

use cli::Action;
use settings::Resolved;

/// The exit code of a command line or settings that cannot be used, as clap has it.
const EXIT_USAGE: u8 = 2;
/// How long what still runs may hold up the end: a thread that waits for standard input cannot be ended.
const EXIT_PATIENCE: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    let invocation = match cli::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(error) => error.exit(),
    };
    let env = |name: &str| std::env::var(name).ok();
    let config = invocation.cli.config.clone();
    let given = settings::Given { flags: invocation.flags.clone(), env: &env, config };
    let resolved = match settings::resolve(invocation.mode(), &settings::Host::of_this_process(), &given) {
        Ok(resolved) => resolved,
        Err(faults) => {
            eprintln!("error: {faults}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if invocation.cli.print_config {
        print!("{}", settings::print(&resolved));
        return ExitCode::SUCCESS;
    }
    let Some(action) = invocation.cli.action else { return ExitCode::from(EXIT_USAGE) };
    match act(&action, &resolved) {
        Ok(code) => code,
        Err(error) => {
            // the whole chain, once
            eprintln!("error: {error:#}");
            if matches!(action, Action::Run(_)) { ExitCode::from(run::EXIT_NOT_RUN) } else { ExitCode::FAILURE }
        }
    }
}

fn act(action: &Action, resolved: &Resolved) -> anyhow::Result<ExitCode> {
    let settings = &resolved.settings;
    logs::init(&settings.log_level, settings.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("failed to start the async runtime")?;
    let code = runtime.block_on(async {
        match action {
            Action::Run(arguments) => run::run(settings, arguments).await,
            Action::Doctor(arguments) => doctor::doctor(arguments).await,
            Action::Token(arguments) => token::mint(settings, arguments).map(|()| ExitCode::SUCCESS),
            Action::Template(arguments) => template::template(settings, arguments).await,
            _ => {
                let metrics = Metrics::install(env!("CARGO_PKG_VERSION")).context("failed to install metrics")?;
                tokio::spawn(upkeep(metrics.clone()));
                serve::serve(resolved, metrics).await.map(|()| ExitCode::SUCCESS)
            }
        }
    });
    runtime.shutdown_timeout(EXIT_PATIENCE);
    code
}

/// Keeps the memory of the histograms bounded. It ends with the process.
async fn upkeep(metrics: Metrics) {
    let mut interval = tokio::time::interval(UPKEEP_EVERY);
    loop {
        interval.tick().await;
        metrics.upkeep();
    }
}
