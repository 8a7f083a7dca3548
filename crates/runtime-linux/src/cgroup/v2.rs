//! The unified hierarchy. Source: Documentation/admin-guide/cgroup-v2.rst of the kernel.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_sandbox_model::{Limits, SandboxId};
use cloud_sandbox_runtime::Usage;
use nix::{errno::Errno, unistd::Uid};

use super::{
    Controller, Hierarchy, WEIGHT_OF_ALL,
    instance::{Instance, new_name},
    kill_group, patiently, read_key, read_number, remove_folder, write,
};

const MOUNT: &str = "/sys/fs/cgroup";
/// The controllers that limit sandboxes. Without memory, as on hybrid hosts, the hierarchy is of no use here.
const WANTED: [(&str, Controller); 3] =
    [("memory", Controller::Memory), ("pids", Controller::Pids), ("cpu", Controller::Cpu)];
/// cpu.max: so many microseconds of each period.
const PERIOD_US: u64 = 100_000;
/// Where a server that lives in its own delegated group moves itself: a group with controllers has no processes.
const SUPERVISOR: &str = "supervisor";
/// How often that is tried: while others are moved, they may start more.
const ATTEMPTS: usize = 10;

/// The unified hierarchy.
pub struct Unified {
    instance: Instance,
    missing: Vec<Controller>,
}

/// The folders in which instances may be.
pub fn bases() -> Vec<PathBuf> {
    let root = PathBuf::from(MOUNT);
    if !root.join("cgroup.controllers").exists() {
        return Vec::new();
    }
    let own = own_group().map(|own| root.join(own.trim_start_matches('/')));
    if Uid::effective().is_root() {
        // the root first: it has no rule against processes, and nobody else's limits hold there
        let own = own.filter(|own| *own != root);
        std::iter::once(root).chain(own).collect()
    } else {
        own.map(|own| leave_supervisor(&own)).into_iter().collect()
    }
}

/// The group in which this process is, as `/proc/self/cgroup` says: `0::/path`.
fn own_group() -> Option<String> {
    let text = fs::read_to_string("/proc/self/cgroup").ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::").map(str::to_owned))
}

/// The group that was delegated, also when this process has moved into its supervisor's group before.
fn leave_supervisor(own: &Path) -> PathBuf {
    if own.ends_with(SUPERVISOR) { own.parent().unwrap_or(own).to_path_buf() } else { own.to_path_buf() }
}

impl Unified {
    pub fn open() -> Result<Self, String> {
        let bases = bases();
        if bases.is_empty() {
            return Err("not mounted at /sys/fs/cgroup".into());
        }
        let mut why = String::new();
        for base in bases {
            match Self::open_below(&base) {
                Ok(unified) => return Ok(unified),
                Err(error) => why = format!("{}: {error}", base.display()),
            }
        }
        Err(why)
    }

    fn open_below(base: &Path) -> io::Result<Self> {
        let offered = fs::read_to_string(base.join("cgroup.controllers"))?;
        let (mut missing, mut enabled) = (Vec::new(), String::new());
        for (name, controller) in WANTED {
            if offered.split_whitespace().any(|word| word == name) {
                enabled.push_str(&format!("+{name} "));
            } else {
                missing.push(controller);
            }
        }
        if missing.contains(&Controller::Memory) {
            return Err(io::Error::other("the memory controller is not there"));
        }
        enable(base, &enabled)?;
        let instance = Instance::create(base, &new_name())?;
        write(instance.path(), "cgroup.subtree_control", &enabled)?;
        // best effort: it is no limit
        let _ = write(instance.path(), "cpu.weight", WEIGHT_OF_ALL);
        Ok(Self { instance, missing })
    }
}

/// Lets children of `base` use controllers.
fn enable(base: &Path, controllers: &str) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        match write(base, "cgroup.subtree_control", controllers) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => evacuate(base)?,
            other => return other,
        }
    }
    write(base, "cgroup.subtree_control", controllers)
}

/// "No internal processes": what is in the group itself, this server among it, moves into a child.
fn evacuate(base: &Path) -> io::Result<()> {
    let child = base.join(SUPERVISOR);
    fs::create_dir_all(&child)?;
    for pid in fs::read_to_string(base.join("cgroup.procs"))?.lines() {
        match fs::write(child.join("cgroup.procs"), pid) {
            // it has ended since the list was read
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            other => other?,
        }
    }
    Ok(())
}

fn apply(group: &Path, limits: &Limits, missing: &[Controller]) -> io::Result<()> {
    write(group, "memory.max", limits.memory_bytes)?;
    // swap counts as memory; a kernel without swap accounting has no such file
    if group.join("memory.swap.max").exists() {
        write(group, "memory.swap.max", 0)?;
    }
    if !missing.contains(&Controller::Pids) {
        write(group, "pids.max", limits.pids)?;
    }
    if !missing.contains(&Controller::Cpu) {
        let quota = u64::from(limits.cpu_millis) * PERIOD_US / 1000;
        write(group, "cpu.max", format!("{quota} {PERIOD_US}"))?;
        write(group, "cpu.weight", limits.cpu_weight)?;
    }
    Ok(())
}

/// What is used in a group.
pub fn usage(group: &Path) -> Usage {
    Usage {
        memory_bytes: read_number(&group.join("memory.current")),
        pids: read_number(&group.join("pids.current")),
        cpu_time: read_key(&group.join("cpu.stat"), "usage_usec").map(Duration::from_micros),
        oom_kills: read_key(&group.join("memory.events"), "oom_kill"),
        pids_refused: read_key(&group.join("pids.events"), "max"),
    }
}

/// The group of a process, as `/proc/PID/cgroup` says: `0::/path`.
pub fn group_of(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(MOUNT).join(path.trim_start_matches('/')))
}

impl Hierarchy for Unified {
    fn describe(&self) -> String {
        format!("v2 at {}", self.instance.path().display())
    }

    fn missing(&self) -> Vec<Controller> {
        self.missing.clone()
    }

    fn create(&self, id: SandboxId, limits: &Limits) -> io::Result<()> {
        let group = self.instance.group(id);
        fs::create_dir(&group)?;
        apply(&group, limits, &self.missing).inspect_err(|_| {
            let _ = fs::remove_dir(&group);
        })
    }

    fn procs(&self, id: SandboxId) -> Vec<PathBuf> {
        vec![self.instance.group(id).join("cgroup.procs")]
    }

    fn set_limits(&self, id: SandboxId, limits: &Limits) -> io::Result<()> {
        apply(&self.instance.group(id), limits, &self.missing)
    }

    fn set_frozen(&self, id: SandboxId, frozen: bool) -> io::Result<()> {
        let group = self.instance.group(id);
        write(&group, "cgroup.freeze", u8::from(frozen))?;
        let events = group.join("cgroup.events");
        patiently("freezing a sandbox", || Ok(read_key(&events, "frozen") == Some(u64::from(frozen))))
    }

    fn kill_all(&self, id: SandboxId) {
        let _ = kill_group(&self.instance.group(id));
    }

    fn usage(&self, id: SandboxId) -> Usage {
        usage(&self.instance.group(id))
    }

    fn remove(&self, id: SandboxId) -> io::Result<()> {
        remove_folder(&self.instance.group(id))
    }
}
