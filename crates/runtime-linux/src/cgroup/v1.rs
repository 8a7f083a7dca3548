//! Hierarchies of one controller each, on older and on hybrid hosts.
//! Source: Documentation/admin-guide/cgroup-v1 of the kernel.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use cloud_sandbox_model::{Limits, SandboxId};
use cloud_sandbox_runtime::Usage;

use super::{
    Controller, Hierarchy, WEIGHT_OF_ALL,
    instance::{Instance, new_name},
    kill_group, patiently, read_key, read_number, remove_folder, write,
};

/// cpu.cfs_quota_us: so many microseconds of each period.
const PERIOD_US: u64 = 100_000;
/// cpu.shares of a group that says nothing; the kernel takes 2 to 262144 (kernel/sched/sched.h).
const SHARES_DEFAULT: u64 = 1024;
/// cpu.weight of one, in the unified hierarchy.
const WEIGHT_DEFAULT: u64 = 100;
const STATE: &str = "freezer.state";
const FROZEN: &str = "FROZEN";
const THAWED: &str = "THAWED";
/// So many attempts to freeze before the group is let go for a moment.
const LET_GO_EVERY: u32 = 20;

/// The hierarchies that this process may write. Some may be mounted together (`cpu,cpuacct`): then they share one.
pub struct Split {
    homes: Vec<(Vec<Controller>, Instance)>,
}

/// Where each controller is mounted, for reading `/proc/self/mountinfo`'s lines (proc_pid_mountinfo(5)).
pub fn bases() -> BTreeMap<Controller, PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut bases = BTreeMap::new();
    for line in text.lines() {
        let Some((front, back)) = line.split_once(" - ") else { continue };
        let mut back = back.split(' ');
        if back.next() != Some("cgroup") {
            continue;
        }
        let (Some(path), Some(options)) = (front.split(' ').nth(4), back.nth(1)) else { continue };
        for controller in Controller::ALL {
            if options.split(',').any(|option| option == controller.to_string()) {
                bases.entry(controller).or_insert_with(|| PathBuf::from(path));
            }
        }
    }
    bases
}

impl Split {
    pub fn open() -> Result<Self, String> {
        let mut by_path: BTreeMap<PathBuf, Vec<Controller>> = BTreeMap::new();
        for (controller, path) in bases() {
            by_path.entry(path).or_default().push(controller);
        }
        let name = new_name();
        let (mut homes, mut why) = (Vec::new(), "no controller is mounted".to_owned());
        for (base, controllers) in by_path {
            match Instance::create(&base, &name) {
                Ok(instance) => {
                    if controllers.contains(&Controller::Cpu) {
                        // best effort: it is no limit
                        let _ = write(instance.path(), "cpu.shares", shares(WEIGHT_OF_ALL));
                    }
                    homes.push((controllers, instance));
                }
                Err(error) => why = format!("{}: {error}", base.display()),
            }
        }
        if homes.is_empty() { Err(why) } else { Ok(Self { homes }) }
    }

    /// The sandbox's group in the hierarchy of `controller`.
    fn group(&self, controller: Controller, id: SandboxId) -> Option<PathBuf> {
        let home = self.homes.iter().find(|(controllers, _)| controllers.contains(&controller))?;
        Some(home.1.group(id))
    }

    fn groups(&self, id: SandboxId) -> impl Iterator<Item = PathBuf> {
        self.homes.iter().map(move |(_, instance)| instance.group(id))
    }

    fn apply(&self, id: SandboxId, limits: &Limits) -> io::Result<()> {
        if let Some(group) = self.group(Controller::Memory, id) {
            limit_memory(&group, limits.memory_bytes)?;
        }
        if let Some(group) = self.group(Controller::Pids, id) {
            write(&group, "pids.max", limits.pids)?;
        }
        if let Some(group) = self.group(Controller::Cpu, id) {
            write(&group, "cpu.cfs_period_us", PERIOD_US)?;
            write(&group, "cpu.cfs_quota_us", u64::from(limits.cpu_millis) * PERIOD_US / 1000)?;
            write(&group, "cpu.shares", shares(limits.cpu_weight))?;
        }
        Ok(())
    }
}

/// What stands here for a weight of the unified hierarchy: 1024 is the default as 100 is there.
fn shares(weight: u32) -> u64 {
    u64::from(weight) * SHARES_DEFAULT / WEIGHT_DEFAULT
}

/// A group in which processes keep appearing may stay at FREEZING for good: it is told again and again, and now and then
/// let go for a moment, which is what helps. Half frozen is no state to be left in: a failure thaws.
fn freeze(group: &Path) -> io::Result<()> {
    let mut attempt = 0_u32;
    let frozen = patiently("freezing a sandbox", || {
        attempt += 1;
        if attempt.is_multiple_of(LET_GO_EVERY) {
            write(group, STATE, THAWED)?;
        }
        write(group, STATE, FROZEN)?;
        Ok(fs::read_to_string(group.join(STATE))?.trim() == FROZEN)
    });
    frozen.inspect_err(|_| drop(write(group, STATE, THAWED)))
}

/// Memory, and memory with swap where the kernel counts it. The second is never below the first, so what is set first
/// depends on the direction.
fn limit_memory(group: &Path, bytes: u64) -> io::Result<()> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    if !group.join(WITH_SWAP).exists() {
        return write(group, MEMORY, bytes);
    }
    let raised = read_number(&group.join(WITH_SWAP)).is_some_and(|now| bytes > now);
    let (first, second) = if raised { (WITH_SWAP, MEMORY) } else { (MEMORY, WITH_SWAP) };
    write(group, first, bytes)?;
    write(group, second, bytes)
}

/// What is used in the groups of something, one for each controller that it has.
pub fn usage(group: impl Fn(Controller) -> Option<PathBuf>) -> Usage {
    let file = |controller, name: &str| Some(group(controller)?.join(name));
    let number = |controller, name| file(controller, name).and_then(|path| read_number(&path));
    let oom = file(Controller::Memory, "memory.oom_control");
    let refused = file(Controller::Pids, "pids.events");
    Usage {
        memory_bytes: number(Controller::Memory, "memory.usage_in_bytes"),
        pids: number(Controller::Pids, "pids.current"),
        cpu_time: number(Controller::CpuAccount, "cpuacct.usage").map(Duration::from_nanos),
        oom_kills: oom.and_then(|path| read_key(&path, "oom_kill")),
        pids_refused: refused.and_then(|path| read_key(&path, "max")),
    }
}

/// The groups of a process in the hierarchies that are mounted, as `/proc/PID/cgroup` says: `4:memory:/path`.
pub fn groups_of(text: &str) -> BTreeMap<Controller, PathBuf> {
    let mut groups = BTreeMap::new();
    for (controller, base) in bases() {
        let named = |list: &str| list.split(',').any(|name| name == controller.to_string());
        let mut lines = text.lines().filter_map(|line| line.split_once(':')?.1.split_once(':'));
        if let Some((_, path)) = lines.find(|(list, _)| named(list)) {
            groups.insert(controller, base.join(path.trim_start_matches('/')));
        }
    }
    groups
}

impl Hierarchy for Split {
    fn describe(&self) -> String {
        let paths: Vec<_> = self.homes.iter().map(|(_, instance)| instance.path().display().to_string()).collect();
        format!("v1 at {}", paths.join(", "))
    }

    fn missing(&self) -> Vec<Controller> {
        let has = |controller: &Controller| self.homes.iter().any(|(own, _)| own.contains(controller));
        Controller::ALL.into_iter().filter(|controller| !has(controller)).collect()
    }

    fn create(&self, id: SandboxId, limits: &Limits) -> io::Result<()> {
        let made = self.groups(id).try_for_each(fs::create_dir).and_then(|()| self.apply(id, limits));
        made.inspect_err(|_| self.groups(id).for_each(|group| drop(fs::remove_dir(group))))
    }

    fn procs(&self, id: SandboxId) -> Vec<PathBuf> {
        self.groups(id).map(|group| group.join("cgroup.procs")).collect()
    }

    fn set_limits(&self, id: SandboxId, limits: &Limits) -> io::Result<()> {
        self.apply(id, limits)
    }

    fn set_frozen(&self, id: SandboxId, frozen: bool) -> io::Result<()> {
        let group = self.group(Controller::Freezer, id).ok_or(io::ErrorKind::Unsupported)?;
        if frozen { freeze(&group) } else { write(&group, STATE, THAWED) }
    }

    fn kill_all(&self, id: SandboxId) {
        // a process is in all of its sandbox's groups or in none
        if let Some(group) = self.groups(id).next() {
            let _ = kill_group(&group);
        }
    }

    fn usage(&self, id: SandboxId) -> Usage {
        usage(|controller| self.group(controller, id))
    }

    fn remove(&self, id: SandboxId) -> io::Result<()> {
        let mut result = Ok(());
        for group in self.groups(id) {
            result = remove_folder(&group).and(result);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_stand_for_weights_within_what_the_kernel_takes() {
        assert_eq!([1, 100, 10_000].map(shares), [10, 1024, 102_400]);
    }
}
