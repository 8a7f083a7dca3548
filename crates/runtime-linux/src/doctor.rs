//! What this host offers: which protections sandboxes have here, which are missing, and how to get them.

use std::{fs, path::Path};

use cloud_sandbox_model::error::chain;
use cloud_sandbox_runtime::{Prepared, Runtime as _, RuntimeError, walls};
use nix::unistd::Uid;

use crate::{
    cgroup::Controller,
    runtime::{LinuxRuntime, Options},
};

/// A protection that sandboxes on this host do not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loss {
    /// the protection: `memory limit`
    pub protection: &'static str,
    /// what holds instead, and why
    pub detail: String,
    /// how to get it
    pub remedy: &'static str,
}

const DELEGATE: &str =
    "run as root, or in a delegated group: systemd-run --user --scope -p Delegate=yes cloud-sandbox serve";

impl Loss {
    /// What is lost without some controllers, without ids of its own for each sandbox, and without Landlock.
    pub(crate) fn of(missing: &[Controller], why: Option<&str>, unique_ids: bool, landlock: u32) -> Vec<Self> {
        let because = why.map_or_else(|| "the controller is not available".to_owned(), ToOwned::to_owned);
        let mut losses = Vec::new();
        for controller in missing {
            let instead = match controller {
                Controller::Memory => "limited for each process only, by RLIMIT_DATA",
                Controller::Pids => "limited by RLIMIT_NPROC in the sandbox's user namespace",
                Controller::Cpu => "sandboxes share the CPU without a bound",
                Controller::CpuAccount => "the CPU time of a whole sandbox is not known",
                Controller::Freezer => "sandboxes cannot be paused",
            };
            let detail = format!("{instead} ({because})");
            losses.push(Self { protection: protection(*controller), detail, remedy: DELEGATE });
        }
        if !unique_ids {
            losses.push(Self {
                protection: walls::UNIQUE_IDS,
                detail: "all sandboxes run with this user's id on the host, apart by namespaces only".into(),
                remedy: "run as root",
            });
        }
        if landlock == 0 {
            losses.push(Self {
                protection: walls::LANDLOCK,
                detail: "files are apart by mounts alone".into(),
                remedy: "Linux 5.19 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the boot parameter lsm=",
            });
        }
        losses
    }
}

/// What a controller is for.
fn protection(controller: Controller) -> &'static str {
    match controller {
        Controller::Memory => "memory limit",
        Controller::Pids => "process limit",
        Controller::Cpu => "CPU limit",
        Controller::CpuAccount => "CPU accounting",
        Controller::Freezer => "freezer",
    }
}

/// What became of a sandbox that was made to see whether one can be.
pub(crate) struct Proof {
    /// made, reached and destroyed
    pub(crate) made: Result<(), RuntimeError>,
    /// a port of its loopback was served
    pub(crate) listens: Result<(), RuntimeError>,
    /// it was given an interface
    pub(crate) attaches: Result<(), RuntimeError>,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// it is there
    Ok,
    /// sandboxes work without it, less protected or less able
    Degraded,
    /// sandboxes do not work without it
    Missing,
}

/// One row of the examination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// what was looked at
    pub name: String,
    /// how it went
    pub status: Status,
    /// what was seen
    pub detail: String,
    /// what to do; empty when it is there
    pub remedy: String,
}

impl Check {
    /// A row of what is there.
    pub fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self { name: name.into(), status: Status::Ok, detail: detail.into(), remedy: String::new() }
    }

    /// A row of what is not, or not all of it.
    pub fn bad(name: &str, status: Status, detail: impl Into<String>, remedy: &str) -> Self {
        Self { name: name.into(), status, detail: detail.into(), remedy: remedy.into() }
    }

    fn lost(loss: &Loss) -> Self {
        Self::bad(loss.protection, Status::Degraded, &loss.detail, loss.remedy)
    }

    /// The last word: whether a sandbox could really be made.
    fn proof(made: &Result<(), RuntimeError>) -> Self {
        match made {
            Ok(()) => Self::ok("a sandbox", "made, reached and destroyed"),
            Err(error) => {
                let remedy = "see the rows above; in a container, allow user namespaces and mounts in them";
                Self::bad("a sandbox", Status::Missing, chain(error), remedy)
            }
        }
    }
}

/// Looks at the host, and makes a sandbox to prove it.
pub async fn examine(options: &Options) -> Vec<Check> {
    let mut checks = vec![kernel(), user_namespaces(), seccomp()];
    match LinuxRuntime::new(options) {
        Ok(runtime) => {
            let proof = runtime.prove().await;
            if proof.made.is_ok() {
                checks.extend(walls(&runtime));
                checks.extend(modes(&proof));
            }
            checks.extend(limits(&runtime));
            checks.push(Check::proof(&proof.made));
        }
        Err(error) => checks.push(Check::bad("the runtime", Status::Missing, chain(&error), "")),
    }
    checks.extend(languages());
    checks.push(kvm());
    checks
}

/// The walls of sandboxes that can be made here. Two have a row of their own before.
fn walls(runtime: &LinuxRuntime) -> impl Iterator<Item = Check> {
    let landlock = format!("version {}", runtime.landlock());
    let rows = [
        (walls::UNIQUE_IDS, "each sandbox has 65,536 ids that nobody else has"),
        (walls::NO_PRIVILEGES, "no capabilities, and no_new_privs"),
        (walls::LANDLOCK, &landlock),
        (walls::FILES, "a root of its own, the host's /usr read-only"),
        (walls::PROCESSES, "a PID namespace"),
        (walls::NETWORK, "a network namespace with nothing but loopback"),
        (walls::PROC, "masked and read-only where it tells or writes"),
        (walls::DEVICES, "the usual seven"),
        (walls::IDENTITY, "host name, machine id and boot id of its own"),
    ];
    let there = runtime.walls(&Prepared::host());
    let row = move |(name, detail): (&str, &str)| match runtime.losses().iter().find(|loss| loss.protection == name) {
        Some(loss) => Check::lost(loss),
        None if there.contains(&name) => Check::ok(name, detail),
        None => Check::bad(name, Status::Missing, "sandboxes do not have it", ""),
    };
    rows.map(row).into_iter()
}

/// What sandboxes may be given of the network beyond their loopback.
fn modes(proof: &Proof) -> [Check; 2] {
    let row = |name: &str, tried: &Result<(), RuntimeError>, detail: &str| match tried {
        Ok(()) => Check::ok(name, detail),
        Err(RuntimeError::Unsupported(what)) => {
            let (what, remedy) = what.rsplit_once("; ").unwrap_or((what, ""));
            Check::bad(name, Status::Degraded, format!("the host cannot {what}"), remedy)
        }
        Err(error) => Check::bad(name, Status::Degraded, chain(error), ""),
    };
    [
        row("network egress", &proof.listens, "by a proxy on the sandbox's own loopback"),
        row("network open", &proof.attaches, "by an interface of the sandbox's own"),
    ]
}

/// The limits of sandboxes, each by what sets it.
fn limits(runtime: &LinuxRuntime) -> Vec<Check> {
    let groups = match runtime.cgroups() {
        Some(place) => Check::ok("cgroups", place),
        None => Check::bad("cgroups", Status::Degraded, "none that may be written", DELEGATE),
    };
    let by_controller = Controller::ALL.into_iter().map(|controller| {
        let name = protection(controller);
        let lost = runtime.losses().iter().find(|loss| loss.protection == name);
        lost.map_or_else(|| Check::ok(name, format!("by the controller {controller}")), Check::lost)
    });
    let disk = Check::ok("disk limit", "everything writable is on one tmpfs of a fixed size");
    std::iter::once(groups).chain(by_controller).chain([disk]).collect()
}

fn kernel() -> Check {
    const NEEDED: (u32, u32) = (5, 12);
    let text = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = text.trim().split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= NEEDED {
        Check::ok("kernel", text.trim())
    } else {
        Check::bad("kernel", Status::Missing, text.trim(), "Linux 5.12 or newer is needed, for mount_setattr(2)")
    }
}

fn user_namespaces() -> Check {
    const NAME: &str = walls::USER_NAMESPACE;
    let number = |path: &str| fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
    let root = Uid::effective().is_root();
    if number("/proc/sys/user/max_user_namespaces") == Some(0) {
        return Check::bad(NAME, Status::Missing, "none are allowed", "sysctl user.max_user_namespaces=65536");
    }
    if !root && number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        let remedy = "sysctl kernel.unprivileged_userns_clone=1, or run as root";
        return Check::bad(NAME, Status::Missing, "not for ordinary users", remedy);
    }
    if !root && number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        let remedy = "sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root";
        return Check::bad(NAME, Status::Missing, "AppArmor keeps them from ordinary users", remedy);
    }
    Check::ok(NAME, if root { "as root, a range of ids for each sandbox" } else { "as an ordinary user, one id" })
}

fn seccomp() -> Check {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.contains("errno") {
        Check::ok(walls::SECCOMP, actions.trim())
    } else {
        Check::bad(walls::SECCOMP, Status::Missing, "no filters", "a kernel with CONFIG_SECCOMP_FILTER")
    }
}

/// Which languages the template `host` holds.
fn languages() -> impl Iterator<Item = Check> {
    let programs = [
        ("python", "python3", "apt-get install python3"),
        ("javascript", "node", "apt-get install nodejs"),
        ("go", "go", "apt-get install golang-go"),
        ("bash", "bash", "apt-get install bash"),
        ("ruby", "ruby", "apt-get install ruby"),
        ("perl", "perl", "apt-get install perl"),
        ("php", "php", "apt-get install php-cli"),
        ("lua", "lua", "apt-get install lua5.4"),
    ];
    programs.into_iter().map(|(language, program, remedy)| {
        let name = format!("language {language}");
        let folders = ["/usr/local/bin", "/usr/bin", "/bin"];
        match folders.iter().map(|folder| Path::new(folder).join(program)).find(|path| path.exists()) {
            Some(path) => Check::ok(&name, path.display().to_string()),
            None => Check::bad(&name, Status::Degraded, format!("no {program} in /usr"), remedy),
        }
    })
}

/// What virtual machines would need. Its absence takes nothing from this runtime.
fn kvm() -> Check {
    const KVM: &str = "/dev/kvm";
    let seen = if Path::new(KVM).exists() { "is there" } else { "is not there" };
    Check::ok("KVM", format!("{KVM} {seen} (not used by this runtime)"))
}
