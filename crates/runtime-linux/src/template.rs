//! What sandboxes see as their root: the host's own `/usr`, read-only, with the little around it that programs expect, or
//! a root file system in a folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use cloud_sandbox_images::{NSSWITCH, about_itself, group, passwd};
use cloud_sandbox_jailer::{Bind, Root};
use cloud_sandbox_runtime::{INTERFACE, SCRATCH};

/// Top-level folders that are part of `/usr` on merged systems and folders of their own on others.
const SYSTEM: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libexec"];

/// What of `/etc` programs cannot do without, and everybody may read anyway.
const SETTINGS: [&str; 11] = [
    "/etc/alternatives",
    "/etc/bash.bashrc",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/matplotlibrc",
    "/etc/mime.types",
    "/etc/perl",
    "/etc/php",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
];

const DEVICES: [&str; 6] = ["full", "null", "random", "tty", "urandom", "zero"];

/// The list of the container engines and more: what tells about the host, or writes to it.
pub const MASKED: [&str; 20] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/driver",
    "/proc/dynamic_debug",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/key-users",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/partitions",
    "/proc/pressure",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
];
/// What can be read there and not written.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Top-level folders of a root file system that sandboxes have of their own.
const OWN: [&str; 6] = ["dev", "proc", "run", "sys", "tmp", "workspace"];

/// What every root has. The scratch size is each sandbox's own.
fn bare() -> Root {
    Root {
        devices: DEVICES.iter().map(ToString::to_string).collect(),
        scratch: SCRATCH.iter().map(|(path, mode)| (PathBuf::from(path), *mode)).collect(),
        masked: paths(&MASKED),
        read_only: paths(&READ_ONLY),
        ..Root::default()
    }
}

/// What a root file system in a folder shows. All places that something is put at are there: a folder for each of the
/// writable ones, and `/etc/machine-id`.
pub fn folder(base: &Path) -> io::Result<Root> {
    let mut root = Root { base: Some(base.into()), ..bare() };
    for entry in fs::read_dir(base)? {
        let entry = entry?;
        let name = entry.file_name();
        if OWN.iter().any(|own| name == *own) {
            continue;
        }
        let (kind, target) = (entry.file_type()?, Path::new("/").join(&name));
        if kind.is_symlink() {
            root.links.push((target, fs::read_link(entry.path())?));
        } else if kind.is_dir() || kind.is_file() {
            root.binds.push(Bind { source: name.into(), target, directory: kind.is_dir() });
        }
    }
    Ok(root)
}

/// What the host template shows, examined once.
pub fn host() -> Root {
    let mut root = Root { files: files(), ..bare() };
    root.binds.push(bind("/usr"));
    for path in SYSTEM.iter().map(Path::new) {
        if let Ok(target) = fs::read_link(path) {
            root.links.push((path.to_path_buf(), target));
        } else if path.is_dir() {
            root.binds.push(bind(path));
        }
    }
    root.binds.extend(SETTINGS.iter().filter(|path| Path::new(path).exists()).map(bind));
    root.binds.extend(versioned_settings().map(bind));
    if let Ok(target) = fs::read_link("/etc/localtime") {
        root.links.push(("/etc/localtime".into(), target));
    }
    root.links.push(("/var/run".into(), "/run".into()));
    root
}

/// The same for languages whose folder has their version in its name: `/etc/python3.11`.
fn versioned_settings() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("python3") || name.starts_with("java-")
    };
    entries.map(|entry| entry.path()).filter(named)
}

fn files() -> Vec<(PathBuf, String)> {
    let files = [("/etc/passwd", passwd("")), ("/etc/group", group("")), ("/etc/nsswitch.conf", NSSWITCH.to_owned())];
    files.into_iter().map(|(path, content)| (path.into(), content)).chain(own_files()).collect()
}

/// The files that tell a sandbox about itself.
pub fn own_files() -> Vec<(PathBuf, String)> {
    about_itself(INTERFACE.gateway).map(|(name, content)| (Path::new("/etc").join(name), content)).into()
}

fn bind(path: impl AsRef<Path>) -> Bind {
    let path = path.as_ref();
    Bind { source: path.into(), target: path.into(), directory: path.is_dir() }
}

fn paths(list: &[&str]) -> Vec<PathBuf> {
    list.iter().map(PathBuf::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_template_shows_usr_and_none_of_the_hosts_secrets() {
        let root = host();
        let shown: Vec<_> = root.binds.iter().map(|bind| bind.source.as_path()).collect();
        assert!(shown.contains(&Path::new("/usr")));
        for secret in ["/", "/etc", "/etc/shadow", "/etc/passwd", "/etc/ssl", "/root", "/home", "/var", "/sys", "/run"]
        {
            assert!(!shown.contains(&Path::new(secret)), "{secret}");
        }
    }
}
