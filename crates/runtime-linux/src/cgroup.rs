//! Limits and accounts of sandboxes, in whichever hierarchy the host has.
//!
//! ```text
//! v2:      <base>/cloud-sandbox-<instance>/<sandbox>
//! v1:      /sys/fs/cgroup/<controller>/cloud-sandbox-<instance>/<sandbox>, for each controller
//! hybrid:  v1 wherever the unified hierarchy has not got the memory controller
//! ```
//! Invariant: a living server holds a lock on each folder of its instance, so whoever gets the lock of another instance
//! knows that its server is dead and may remove it.

mod instance;
mod v1;
mod v2;

use std::{fmt, fs, io, path::Path, time::Duration};

use cloud_sandbox_model::{Limits, SandboxId};
use cloud_sandbox_runtime::Usage;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

pub use instance::reclaim;

/// The share of all sandboxes together against the server and everything else on the host, 100 being the default: when
/// there is too little CPU, those who are to answer come first.
const WEIGHT_OF_ALL: u32 = 50;

/// What the kernel can limit or do for a group of processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    Memory,
    Pids,
    Cpu,
    CpuAccount,
    Freezer,
}

impl Controller {
    pub const ALL: [Self; 5] = [Self::Memory, Self::Pids, Self::Cpu, Self::CpuAccount, Self::Freezer];
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
            Self::CpuAccount => "cpuacct",
            Self::Freezer => "freezer",
        })
    }
}

/// One hierarchy of cgroups, in which each sandbox has a group.
pub trait Hierarchy: Send + Sync {
    /// Which version it is, and where: `v2 at /sys/fs/cgroup/…`.
    fn describe(&self) -> String;
    /// What it cannot do here.
    fn missing(&self) -> Vec<Controller>;
    /// Makes a sandbox's group with its limits; on an error nothing of it is left.
    fn create(&self, id: SandboxId, limits: &Limits) -> io::Result<()>;
    /// The files through which a process joins the group.
    fn procs(&self, id: SandboxId) -> Vec<std::path::PathBuf>;
    /// Changes the limits.
    fn set_limits(&self, id: SandboxId, limits: &Limits) -> io::Result<()>;
    /// Stops or continues all processes of the group, and returns when they have.
    fn set_frozen(&self, id: SandboxId, frozen: bool) -> io::Result<()>;
    /// Sends SIGKILL to every process of the group. Ones that are being forked may be missed: repeat until all ended.
    fn kill_all(&self, id: SandboxId);
    /// What the group uses.
    fn usage(&self, id: SandboxId) -> Usage;
    /// Removes the group, whose processes have ended.
    fn remove(&self, id: SandboxId) -> io::Result<()>;
}

/// Opens the best hierarchy that this process may write. Where there is none, sandboxes are not limited by cgroups, and
/// the error says why.
pub fn open() -> Result<Box<dyn Hierarchy>, String> {
    let v2 = match v2::Unified::open() {
        Ok(unified) => return Ok(Box::new(unified)),
        Err(why) => why,
    };
    match v1::Split::open() {
        Ok(split) => Ok(Box::new(split)),
        Err(v1) => Err(format!("v2: {v2}; v1: {v1}")),
    }
}

/// What is used in the groups of a process that somebody else has put there; `None` where they cannot be read.
#[must_use]
pub fn usage_of(pid: i32) -> Option<Usage> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let split = v1::groups_of(&text);
    let usage = if split.contains_key(&Controller::Memory) {
        v1::usage(|controller| split.get(&controller).cloned())
    } else {
        v2::usage(&v2::group_of(&text)?)
    };
    usage.memory_bytes.map(|_| usage)
}

/// How long the kernel may take to stop the processes of a group, or to let go of one whose processes have ended.
const PATIENCE: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_micros(500);

/// Tries until `attempt` says that it is done.
fn patiently(what: &str, mut attempt: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    let start = std::time::Instant::now();
    while !attempt()? {
        if start.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("{what} took more than {PATIENCE:?}")));
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// Sends SIGKILL to every process of a group that is there to be seen; false when there was none.
fn kill_group(group: &Path) -> io::Result<bool> {
    // Linux 5.14; all at once, also those that are being forked
    let _ = write(group, "cgroup.kill", 1);
    let pids = fs::read_to_string(group.join("cgroup.procs"))?;
    for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    Ok(!pids.is_empty())
}

/// Removes a group's folder. The kernel is busy with it for a moment after its last process has ended.
fn remove_folder(path: &Path) -> io::Result<()> {
    patiently("removing a cgroup", || match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error),
    })
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind `key` in a file of `key number` lines.
fn read_key(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Writes without creating: a file that a kernel does not have is an error, not a new file.
fn write(folder: &Path, file: &str, text: impl fmt::Display) -> io::Result<()> {
    let path = folder.join(file);
    let mut options = fs::OpenOptions::new();
    let write = |mut file: fs::File| io::Write::write_all(&mut file, text.to_string().as_bytes());
    options
        .write(true)
        .open(&path)
        .and_then(write)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
