//! `cloud-sandbox run`: a file, or standard input, in a fresh sandbox; what it prints is printed, its exit code is ours.
//!
//! Invariant: the sandbox is released however the run ends, by a signal too. Without `--server` the node lives in this
//! process, on a temporary folder and without a socket.

mod console;
mod language;
mod local;
mod remote;

use std::{io, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use cloud_sandbox_model::error::reason;
use cloud_sandbox_proto::v1::{
    AcquireSandboxRequest, AcquireSandboxResponse, ExecExited, ExecuteRequest, ReleaseSandboxRequest,
    exec_service_client::ExecServiceClient, scheduler_service_client::SchedulerServiceClient,
};
use cloud_sandbox_rpc::{Upstream, from_status, upstream::MESSAGE_MAX};
use tokio::io::AsyncReadExt;

use crate::{
    cli::RunArgs,
    client::{self, failure},
    settings::Settings,
    signals::Signals,
};

/// The exit code when the program could not be run at all, as container tools have it.
pub const EXIT_NOT_RUN: u8 = 125;
/// The largest program (as ExecuteRequest has it), so that a wrong file is noticed before it is sent.
const CODE_MAX: u64 = 1024 * 1024;
/// The sandbox outlives the program by this much, should this process be killed in between.
const LEASE_MARGIN: u32 = 60;
const LEASE_MAX: u32 = 86_400;
/// How often is looked whether a template is prepared.
const TEMPLATE_POLL: Duration = Duration::from_millis(500);
/// How long giving the sandbox back may take.
const RELEASE_PATIENCE: Duration = Duration::from_secs(20);

/// The services that a run needs, wherever they are.
struct Api {
    scheduler: SchedulerServiceClient<Upstream>,
    exec: ExecServiceClient<Upstream>,
}

impl Api {
    fn new(scheduler: Upstream, exec: Upstream, token: &str) -> anyhow::Result<Self> {
        let exec = client::authorized(exec, token)?;
        let exec = ExecServiceClient::new(exec).max_decoding_message_size(MESSAGE_MAX);
        Ok(Self { scheduler: SchedulerServiceClient::new(client::authorized(scheduler, token)?), exec })
    }
}

/// How a run ended.
enum Outcome {
    Exited(ExecExited),
    /// nobody reads what the program prints
    NoReader,
    /// by a signal to this process
    Signalled(u8),
}

/// Runs the program. An error means that it could not be run, or not to its end.
pub async fn run(settings: &Settings, arguments: &RunArgs) -> anyhow::Result<ExitCode> {
    let language = language::of(arguments.language.as_deref(), &arguments.file)?;
    let code = read(&arguments.file).await?;
    // from here on there is something to clean up
    let mut signals = Signals::listen()?;
    let request = ExecuteRequest {
        code: Some(code),
        language,
        timeout_ms: arguments.timeout * 1000,
        ..ExecuteRequest::default()
    };

    let (api, node) = match &arguments.server {
        Some(server) => tokio::select! {
            api = remote::api(server, arguments.token.as_deref()) => (api?, None),
            (_, code) = signals.next() => return Ok(ExitCode::from(code)),
        },
        None => {
            let (api, node) = local::start(settings).await?;
            (api, Some(node))
        }
    };
    let forward_input = arguments.file != "-" && !io::IsTerminal::is_terminal(&io::stdin());
    let outcome = in_sandbox(api, request, arguments.timeout, forward_input, signals).await;
    if let Some(node) = node {
        node.stop().await?;
    }
    Ok(ExitCode::from(match outcome? {
        Outcome::Exited(exited) => report(&exited, arguments.timeout),
        Outcome::NoReader => 141, // 128 + SIGPIPE
        Outcome::Signalled(code) => code,
    }))
}

/// Acquires a sandbox, runs the program in it, and releases it whatever happens.
async fn in_sandbox(
    mut api: Api,
    request: ExecuteRequest,
    timeout: u32,
    forward_input: bool,
    mut signals: Signals,
) -> anyhow::Result<Outcome> {
    let lease = (timeout + LEASE_MARGIN).min(LEASE_MAX);
    let wanted = AcquireSandboxRequest { timeout_seconds: lease, ..AcquireSandboxRequest::default() };
    let acquired = tokio::select! {
        acquired = acquire(&mut api.scheduler, wanted) => acquired?,
        // the call ends with this, and whoever makes a sandbox for nobody destroys it
        (_, code) = signals.next() => return Ok(Outcome::Signalled(code)),
    };
    let Some(sandbox) = acquired.sandbox else { bail!("the server acquired no sandbox") };

    let request = ExecuteRequest { sandbox_id: sandbox.sandbox_id.clone(), ..request };
    let outcome = tokio::select! {
        outcome = console::attach(&mut api.exec, request, forward_input) => outcome,
        (_, code) = signals.next() => Ok(Outcome::Signalled(code)),
    };
    signals.exit_at_the_next();
    let release = api.scheduler.release_sandbox(ReleaseSandboxRequest { sandbox_id: sandbox.sandbox_id });
    match tokio::time::timeout(RELEASE_PATIENCE, release).await {
        Ok(Ok(_)) => {}
        Ok(Err(status)) => tracing::warn!(status = status.message(), "failed to release the sandbox; its lease ends"),
        Err(_) => tracing::warn!("the release did not end in time; the sandbox's lease ends"),
    }
    outcome
}

/// Acquires a sandbox, once its template is prepared.
async fn acquire(
    scheduler: &mut SchedulerServiceClient<Upstream>,
    wanted: AcquireSandboxRequest,
) -> anyhow::Result<AcquireSandboxResponse> {
    let mut waiting = false;
    loop {
        let status = match scheduler.acquire_sandbox(wanted.clone()).await {
            Ok(acquired) => return Ok(acquired.into_inner()),
            Err(status) => status,
        };
        let error = from_status(&status);
        if error.reason() != reason::TEMPLATE_NOT_READY {
            return Err(failure(status));
        }
        if !waiting {
            eprintln!("cloud-sandbox: {}; waiting", error.message());
        }
        waiting = true;
        tokio::time::sleep(TEMPLATE_POLL).await;
    }
}

/// Says on standard error what the program itself could not, and gives its exit code.
fn report(exited: &ExecExited, timeout: u32) -> u8 {
    if exited.timed_out {
        eprintln!("cloud-sandbox: ended after {timeout} s (see --timeout)");
    }
    if exited.oom_killed {
        eprintln!("cloud-sandbox: killed for reaching the sandbox's memory limit");
    }
    if exited.disk_limit {
        eprintln!("cloud-sandbox: the sandbox's disk is full");
    }
    if exited.pids_limit {
        eprintln!("cloud-sandbox: a process could not be started: the sandbox's limit of processes is reached");
    }
    // what a shell makes of a wider code
    (exited.exit_code & 0xff) as u8
}

async fn read(file: &str) -> anyhow::Result<String> {
    let mut code = Vec::new();
    let read = if file == "-" {
        tokio::io::stdin().take(CODE_MAX + 1).read_to_end(&mut code).await
    } else {
        match tokio::fs::File::open(file).await {
            Ok(opened) => opened.take(CODE_MAX + 1).read_to_end(&mut code).await,
            Err(error) => Err(error),
        }
    };
    let name = if file == "-" { "standard input" } else { file };
    read.with_context(|| format!("failed to read {name}"))?;
    if code.len() as u64 > CODE_MAX {
        bail!("{name} is larger than a program may be ({CODE_MAX} bytes)");
    }
    String::from_utf8(code).with_context(|| format!("{name} is not UTF-8 text"))
}
