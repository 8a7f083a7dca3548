//! `cloud-sandbox doctor`: whether sandboxes can be made on this host, and what is missing.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    sync::Arc,
};

use anyhow::Context as _;
use cloud_sandbox_model::error::chain;
use cloud_sandbox_runtime::Prepared;
use cloud_sandbox_runtime_docker::DockerRuntime;
use cloud_sandbox_runtime_linux::{
    LinuxRuntime,
    doctor::{Check, Status, examine},
};
use serde_json::json;

use crate::{
    cli::DoctorArgs,
    machine::{docker_options, linux_options},
};

/// Examines the host and prints what it found. Fails where no sandbox can be made.
pub async fn doctor(arguments: &DoctorArgs) -> anyhow::Result<ExitCode> {
    let folder = tempfile::tempdir().context("failed to make a temporary folder")?;
    let options = linux_options(folder.path(), None);
    let mut checks = examine(&options).await;
    if is_able(&checks)
        && let Ok(runtime) = LinuxRuntime::new(&options)
    {
        let tried = cloud_sandbox_node::try_walls(Arc::new(runtime), &Prepared::host(), folder.path()).await;
        let tried = tried.unwrap_or_else(|error| vec![("a sandbox", chain(&error))]);
        note(&mut checks, tried);
    }
    let docker = docker_options(None, folder.path().to_owned(), "doctor".to_owned());
    checks.extend(DockerRuntime::new(docker).examine().await);
    let able = is_able(&checks);
    let text = if arguments.json { as_json(&checks, able) } else { as_table(&checks, able) };
    io::stdout().write_all(text.as_bytes()).context("failed to print")?;
    Ok(if able { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn is_able(checks: &[Check]) -> bool {
    checks.iter().all(|check| check.status != Status::Missing)
}

/// Notes which walls do not hold, though this host should have them: what was tried from inside got through.
fn note(checks: &mut [Check], breaches: Vec<(&'static str, String)>) {
    for (wall, detail) in breaches {
        for check in checks.iter_mut().filter(|check| check.name == wall) {
            check.status = Status::Missing;
            check.detail = format!("does not hold: {detail}");
        }
    }
}

const fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Degraded => "degraded",
        Status::Missing => "missing",
    }
}

fn as_json(checks: &[Check], able: bool) -> String {
    let row = |check: &Check| {
        json!({
            "name": check.name,
            "status": word(check.status),
            "detail": check.detail,
            "remedy": check.remedy,
        })
    };
    let rows: Vec<_> = checks.iter().map(row).collect();
    format!("{:#}\n", json!({"sandboxes": able, "checks": rows}))
}

fn as_table(checks: &[Check], able: bool) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut text = String::new();
    for Check { name, status, detail, remedy } in checks {
        // writing to a String does not fail
        _ = writeln!(text, "{:<8}  {name:<width$}  {detail}", word(*status));
        if !remedy.is_empty() {
            _ = writeln!(text, "{:<8}  {:<width$}  -> {remedy}", "", "");
        }
    }
    let degraded = checks.iter().any(|check| check.status == Status::Degraded);
    text.push_str(match (able, degraded) {
        (true, false) => "\nSandboxes can be made here.\n",
        (true, true) => "\nSandboxes can be made here, without what is degraded.\n",
        (false, _) => "\nNo sandbox can be made here until what is missing is there.\n",
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, status: Status, remedy: &str) -> Check {
        Check { name: name.into(), status, detail: "seen".into(), remedy: remedy.into() }
    }

    #[test]
    fn table_lines_up_and_shows_each_remedy_below_its_row() {
        let checks = [check("kernel", Status::Ok, ""), check("memory limit", Status::Degraded, "run as root")];
        insta::assert_snapshot!(as_table(&checks, true), @r"
        ok        kernel        seen
        degraded  memory limit  seen
                                -> run as root

        Sandboxes can be made here, without what is degraded.
        ");
    }

    #[test]
    fn wall_that_does_not_hold_is_missing() {
        let mut checks = [check("files", Status::Ok, ""), check("network", Status::Ok, "")];
        note(&mut checks, vec![("network", "interface eth0 is there".into())]);
        assert_eq!((checks[0].status, checks[1].status), (Status::Ok, Status::Missing));
        assert_eq!(checks[1].detail, "does not hold: interface eth0 is there");
        assert!(!is_able(&checks));
    }

    #[test]
    fn json_says_whether_sandboxes_can_be_made() {
        let text = as_json(&[check("kernel", Status::Missing, "a newer one")], false);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["sandboxes"], false);
        assert_eq!(read["checks"][0]["status"], "missing");
        assert_eq!(read["checks"][0]["remedy"], "a newer one");
    }
}
