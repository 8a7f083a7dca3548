//! What the Docker Engine offers, row by row.

use cloud_sandbox_images::host::Address;
use cloud_sandbox_model::RuntimeName;
use cloud_sandbox_runtime::RuntimeError;
use cloud_sandbox_runtime_linux::doctor::{Check, Status};

use crate::{
    facts::{Dialect, Facts, Kernel},
    runtime::DockerRuntime,
};

const ENGINE: &str = "Docker Engine";
/// Storage drivers that limit what a container writes, whatever they are on.
const LIMITING: [&str; 3] = ["btrfs", "devicemapper", "zfs"];

impl DockerRuntime {
    /// Looks at the daemon.
    pub async fn examine(&self) -> Vec<Check> {
        let looked = async { Ok((self.engine().address()?, self.engine().ask().await?)) };
        match looked.await {
            Ok((address, facts)) => rows(&address, &facts),
            Err(error) => vec![absent(&error)],
        }
    }
}

/// Without a daemon there are no containers; other runtimes miss nothing.
fn absent(error: &RuntimeError) -> Check {
    let why = match error {
        RuntimeError::Unavailable(why) => why.clone(),
        error => error.to_string(),
    };
    let (detail, remedy) = why.split_once(": ").unwrap_or((&why, ""));
    Check::bad(ENGINE, Status::Degraded, format!("{detail}: no sandboxes that are containers"), remedy)
}

fn rows(address: &Address, facts: &Facts) -> Vec<Check> {
    let who = if facts.rootless { ", run by an ordinary user" } else { "" };
    let podman = match facts.dialect {
        Dialect::Docker => "",
        Dialect::Podman => "Podman, ",
    };
    let engine = format!("{podman}version {} at {address}, {}{who}", facts.version, facts.architecture);
    let mut rows = vec![Check::ok(ENGINE, engine)];
    rows.extend(facts.runtimes.keys().map(|name| oci_runtime(facts, name)));
    rows.extend([storage(facts), Check::ok("container cgroups", &facts.cgroups), ids(facts)]);
    rows
}

fn oci_runtime(facts: &Facts, name: &str) -> Check {
    let kernel = match facts.kernel(name) {
        Kernel::Hosts => "shares the host's kernel",
        Kernel::Own => "a kernel of its own",
    };
    let default = if name == facts.default_runtime { ", the default" } else { "" };
    let runtime = RuntimeName::Docker { oci_runtime: Some(name.to_owned()) };
    Check::ok(&format!("OCI runtime {name}"), format!("{kernel}{default}; templates name it {runtime}"))
}

/// Folders of a fixed size are limited by themselves; this is what a template with a writable root has beside them.
fn storage(facts: &Facts) -> Check {
    const NAME: &str = "container disk limit";
    let driver = &facts.driver;
    let on = if facts.backing.is_empty() { String::new() } else { format!(" on {}", facts.backing) };
    if LIMITING.contains(&driver.as_str()) {
        return Check::ok(NAME, format!("by the storage driver {driver}{on}"));
    }
    let overlay = driver.starts_with("overlay");
    if overlay && facts.backing == "xfs" {
        return Check::ok(NAME, format!("by the storage driver {driver}{on}, where that is mounted with pquota"));
    }
    let detail = format!("the storage driver {driver}{on} limits none: a root that is writable can fill the disk");
    let remedy =
        if overlay { "the daemon's data on xfs that is mounted with pquota" } else { "the driver overlay2 on xfs" };
    Check::bad(NAME, Status::Degraded, detail, remedy)
}

fn ids(facts: &Facts) -> Check {
    const NAME: &str = "container ids";
    if facts.user_namespaces {
        return Check::ok(NAME, "a user namespace: root inside is nobody outside");
    }
    let detail = "the host's: all sandboxes run as user 1000 unless their template says otherwise";
    Check::bad(
        NAME,
        Status::Degraded,
        detail,
        "\"userns-remap\": \"default\" in the daemon's settings, or a rootless daemon",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(driver: &str, backing: &str) -> Facts {
        Facts {
            dialect: Dialect::Docker,
            version: "20.10".into(),
            architecture: "amd64".into(),
            driver: driver.into(),
            backing: backing.into(),
            cgroups: "v2".into(),
            runtimes: [("runc".into(), "runc".into()), ("runsc".into(), "/usr/bin/runsc".into())].into(),
            default_runtime: "runc".into(),
            user_namespaces: false,
            rootless: false,
            selinux: false,
        }
    }

    #[test]
    fn runtimes_are_told_with_whose_kernel_they_use() {
        let rows = rows(&Address::Socket("/d.sock".into()), &facts("overlay2", "xfs"));
        let row = |name: &str| rows.iter().find(|row| row.name == name).unwrap();
        assert_eq!(
            row("OCI runtime runc").detail,
            "shares the host's kernel, the default; templates name it docker+runc"
        );
        assert_eq!(row("OCI runtime runsc").detail, "a kernel of its own; templates name it docker+runsc");
        assert_eq!(row(ENGINE).detail, "version 20.10 at unix:///d.sock, amd64");
        assert_eq!(row("container ids").status, Status::Degraded);
    }

    #[test]
    fn disk_limits_depend_on_driver_and_file_system() {
        let status = |driver, backing| storage(&facts(driver, backing)).status;
        assert_eq!(status("overlay2", "xfs"), Status::Ok);
        assert_eq!(status("btrfs", ""), Status::Ok);
        assert_eq!(status("overlay2", "extfs"), Status::Degraded);
        assert_eq!(status("vfs", "xfs"), Status::Degraded);
    }

    #[test]
    fn absent_daemon_takes_only_containers_away() {
        let error =
            RuntimeError::Unavailable("no Docker Engine listens at /d.sock: start it, or set DOCKER_HOST".into());
        let row = absent(&error);
        assert_eq!((row.status, &*row.remedy), (Status::Degraded, "start it, or set DOCKER_HOST"));
    }
}
