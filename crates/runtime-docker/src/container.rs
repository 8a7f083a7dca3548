//! What a sandbox is as a container: everything that the daemon is told of it, decided in one place.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig};
use cloud_sandbox_model::{SandboxId, sandbox::USER};
use cloud_sandbox_runtime::{Prepared, SCRATCH, SandboxSpec, inodes};
use cloud_sandbox_runtime_linux::{MASKED, READ_ONLY, own_files};

use crate::{
    facts::{Dialect, Kernel},
    limits::{Resources, ulimits},
};

/// Whose sandbox a container is.
pub const SANDBOX: &str = "cloud-sandbox.sandbox";
/// Which data folder's server made it.
pub const INSTANCE: &str = "cloud-sandbox.instance";
/// What it was made from.
pub const TEMPLATE: &str = "cloud-sandbox.template";

/// What is a sandbox's own inside: where the agent is, and the socket of its node.
const OWN: &str = "/.cloud-sandbox";
pub const AGENT: &str = "/.cloud-sandbox/agent";
pub const SOCKET: &str = "/.cloud-sandbox/node.sock";

/// What a daemon masks by itself. A list of one's own replaces it, so that is part of ours.
const DAEMONS_MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What tells this machine from others. It shows nothing here, since no file can be bound over it.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// What is the same for all sandboxes of a server.
pub struct Common {
    pub instance: String,
    /// the agent on the host
    pub agent: PathBuf,
    /// small files of each sandbox's own: where they are on the host and inside
    pub files: Vec<(PathBuf, PathBuf)>,
    /// the profile of system calls
    pub seccomp: String,
    /// the same as a file of the host
    pub seccomp_file: PathBuf,
    /// files of the host have to be given labels
    pub selinux: bool,
}

/// How the agent and its node reach each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// the agent dials this socket of the host
    Socket(PathBuf),
    /// by its standard input and output
    Streams,
}

/// A container's name.
pub fn name(id: SandboxId) -> String {
    format!("cloud-sandbox-{id}")
}

/// What is looked at to find the containers of a server.
pub fn filters(instance: &str) -> HashMap<&'static str, Vec<String>> {
    HashMap::from([("label", vec![format!("{INSTANCE}={instance}")])])
}

/// What an image brings that matters to a container of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Brought {
    /// folders that the daemon would make volumes for
    pub volumes: Vec<String>,
    /// names of its environment
    pub env: Vec<String>,
    /// it asks for a program to be run again and again
    pub healthcheck: bool,
}

impl Brought {
    /// An error says why no container can be made of it. A volume's path is given to the daemon as it is, which reads more into
    /// some than a path.
    pub fn check(&self) -> Result<(), String> {
        let is_plain = |path: &str| {
            let parts = || path.trim_end_matches('/').split('/').skip(1);
            path.starts_with('/') && !path.contains([':', ',']) && parts().all(|part| !matches!(part, "" | "." | ".."))
        };
        let is_own = |path: &str| {
            let path = Path::new(path);
            path.starts_with(OWN) || own_files().iter().any(|(own, _)| own == path)
        };
        match self.volumes.iter().find(|path| !is_plain(path) || is_own(path)) {
            Some(path) => Err(format!(
                "its volume {path:?} must be an absolute path, without : , . and .., that no sandbox has for itself"
            )),
            None => Ok(()),
        }
    }
}

/// A sandbox to be made.
pub struct Wanted<'a> {
    pub id: SandboxId,
    pub spec: &'a SandboxSpec,
    pub image: &'a str,
    pub brought: &'a Brought,
    pub oci_runtime: &'a str,
    pub kernel: Kernel,
    pub way: &'a Way,
    pub dialect: Dialect,
    /// a limit for all that is written outside of the writable folders; where the storage driver has one
    pub storage_limit: bool,
}

/// The container of a sandbox.
pub fn body(common: &Common, wanted: &Wanted<'_>) -> ContainerCreateBody {
    let Wanted { id, spec, image, brought, kernel, way, .. } = wanted;
    let template = &spec.template;
    let labels =
        [(SANDBOX, id.to_string()), (INSTANCE, common.instance.clone()), (TEMPLATE, template.template.clone())];
    let mut told = match way {
        Way::Socket(_) => vec!["--dial".to_owned(), SOCKET.to_owned()],
        Way::Streams => vec!["--stdio".to_owned()],
    };
    let mut user = user(template);
    if *kernel == Kernel::Own {
        // not every one keeps a first process from the user's own signals
        let (uid, gid) = owner(template);
        told.extend(["--apart-from".to_owned(), uid.to_string()]);
        user = format!("0:{gid}");
    }
    let streams = Some(**way == Way::Streams);
    ContainerCreateBody {
        image: Some((*image).to_owned()),
        hostname: Some("sandbox".into()),
        user: Some(user),
        entrypoint: Some(vec![AGENT.to_owned()]),
        cmd: Some(told),
        // a name without a value takes it away again: the agent needs none, and gives each process its own
        env: Some(brought.env.clone()),
        working_dir: Some("/".into()),
        labels: Some(labels.map(|(name, value)| (name.to_owned(), value)).into()),
        attach_stdin: streams,
        attach_stdout: streams,
        attach_stderr: streams,
        open_stdin: streams,
        // who served it is gone: its end is the agent's
        stdin_once: streams,
        tty: Some(false),
        // beside the mode `none`: the OCI runtime makes the network, with a loopback, in half the time that the daemon takes
        network_disabled: Some(true),
        stop_timeout: Some(0),
        // told only where there is something to take away: Podman makes a timer for it
        healthcheck: brought
            .healthcheck
            .then(|| HealthConfig { test: Some(vec!["NONE".into()]), ..Default::default() }),
        host_config: Some(host_config(common, wanted)),
        ..ContainerCreateBody::default()
    }
}

fn host_config(common: &Common, wanted: &Wanted<'_>) -> HostConfig {
    let Wanted { spec, oci_runtime, kernel, way, dialect, storage_limit, .. } = wanted;
    let (template, limits) = (&spec.template, &spec.limits);
    let Resources { memory, swap, period, quota, shares, pids } = Resources::of(limits, *kernel);
    let seccomp = match dialect {
        Dialect::Docker => (&*common.seccomp).into(),
        Dialect::Podman => common.seccomp_file.to_string_lossy(),
    };
    let mut security = vec!["no-new-privileges".to_owned(), format!("seccomp={seccomp}")];
    if *dialect == Dialect::Podman {
        // it does not look at a list of paths
        security.push(format!("mask={}", masked().join(":")));
    }
    let size = || HashMap::from([("size".to_owned(), limits.disk_bytes.to_string())]);
    HostConfig {
        memory,
        memory_swap: swap,
        cpu_period: period,
        cpu_quota: quota,
        cpu_shares: shares,
        pids_limit: pids,
        ulimits: Some(ulimits(limits, *dialect)),
        auto_remove: Some(true),
        network_mode: Some("none".into()),
        ipc_mode: Some("private".into()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        cap_drop: Some(vec!["ALL".into()]),
        // its agent keeps an id that is not its user's by the one, and nothing else by the other
        cap_add: (*kernel == Kernel::Own).then(|| vec!["SETUID".into(), "SETPCAP".into()]),
        security_opt: Some(security),
        masked_paths: Some(masked()),
        readonly_paths: Some(READ_ONLY.iter().map(ToString::to_string).collect()),
        readonly_rootfs: Some(!template.writable_root),
        storage_opt: storage_limit.then(size),
        tmpfs: Some(folders(wanted)),
        binds: Some(binds(common, way)),
        init: Some(false),
        runtime: Some((*oci_runtime).to_owned()),
        log_config: Some(HostConfigLogConfig { typ: Some("none".into()), config: None }),
        ..HostConfig::default()
    }
}

/// Who runs in it: a name, or a user's and a group's number.
pub fn user(template: &Prepared) -> String {
    if template.user.is_empty() { format!("{USER}:{USER}") } else { template.user.clone() }
}

/// Whose the writable folders are.
fn owner(template: &Prepared) -> (u32, u32) {
    let user = user(template);
    let (user, group) = user.split_once(':').unwrap_or((&user, &user));
    // a name has become numbers when its template was prepared
    (user.parse().unwrap_or(0), group.parse().unwrap_or(0))
}

/// The folders of a sandbox's own. Volumes that its image asks for are among them: what the daemon would make for those are
/// folders on the host that nothing limits. They are empty, and can be written where the root can.
fn folders(wanted: &Wanted<'_>) -> HashMap<String, String> {
    let Wanted { spec, brought, kernel, dialect, .. } = wanted;
    let (template, bytes) = (&spec.template, spec.limits.disk_bytes);
    let (user, group) = owner(template);
    let of_dialect = match dialect {
        Dialect::Docker => format!("nr_inodes={},uid={user},gid={group}", inodes(bytes)),
        // it takes neither numbers nor a count: U is whoever the agent is, and the image's own files are not to be copied
        Dialect::Podman => "U,notmpcopyup".to_owned(),
    };
    // an agent that stands apart shares but the group with its user
    let by_group = *dialect == Dialect::Podman && *kernel == Kernel::Own;
    let options = |mode: u32, access: &str| {
        let mode = if by_group { mode | (mode & 0o700) >> 3 } else { mode };
        format!("{access},exec,nosuid,nodev,size={bytes},mode={mode:o},{of_dialect}")
    };
    let scratch = SCRATCH.iter().map(|(path, mode)| ((*path).to_owned(), options(*mode, "rw")));
    let access = if template.writable_root { "rw" } else { "ro" };
    let volumes = brought.volumes.iter().map(|path| (path.trim_end_matches('/').to_owned(), options(0o755, access)));
    // where both have one, the sandbox's own counts
    volumes.filter(|(path, _)| !path.is_empty()).chain(scratch).collect()
}

fn binds(common: &Common, way: &Way) -> Vec<String> {
    let options = if common.selinux { "ro,z" } else { "ro" };
    let bind = |from: &Path, to: &Path| format!("{}:{}:{options}", from.display(), to.display());
    let socket = match way {
        Way::Socket(path) => Some(bind(path, Path::new(SOCKET))),
        Way::Streams => None,
    };
    let files = common.files.iter().map(|(from, to)| bind(from, to));
    std::iter::once(bind(&common.agent, Path::new(AGENT))).chain(files).chain(socket).collect()
}

fn masked() -> Vec<String> {
    let mut masked: Vec<_> = MASKED.iter().chain(&DAEMONS_MASKED).chain([&BOOT_ID]).map(ToString::to_string).collect();
    masked.sort_unstable();
    masked.dedup();
    masked
}

/// The environment of an image, as a map.
pub fn env_of(list: &[String]) -> BTreeMap<String, String> {
    let pair = |text: &String| text.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    list.iter().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use cloud_sandbox_model::Limits;
    use cloud_sandbox_runtime::Root;

    use super::*;

    fn common() -> Common {
        let files = vec![("/state/hosts".into(), "/etc/hosts".into())];
        let (agent, seccomp, seccomp_file) = ("/state/agent".into(), "{}".into(), "/state/seccomp.json".into());
        Common { instance: "here".into(), agent, files, seccomp, seccomp_file, selinux: false }
    }

    fn prepared(user: &str) -> Prepared {
        Prepared {
            template: "python@3".into(),
            runtime: "docker+runc".parse().unwrap(),
            root: Root::Image("sha256:1".into()),
            user: user.into(),
            writable_root: false,
            env: BTreeMap::new(),
        }
    }

    fn made(template: Prepared, kernel: Kernel, way: &Way) -> ContainerCreateBody {
        let brought =
            Brought { volumes: vec!["/data".into(), "/tmp/".into()], env: vec!["PATH".into()], healthcheck: true };
        told(Dialect::Docker, &brought, template, kernel, way)
    }

    fn told(dialect: Dialect, brought: &Brought, template: Prepared, kernel: Kernel, way: &Way) -> ContainerCreateBody {
        let spec = SandboxSpec { template, limits: Limits::DEFAULT };
        let wanted = Wanted {
            id: SandboxId::generate(),
            spec: &spec,
            image: "sha256:1",
            brought,
            oci_runtime: "runc",
            kernel,
            way,
            dialect,
            storage_limit: false,
        };
        body(&common(), &wanted)
    }

    #[test]
    fn nothing_of_the_host_is_writable_or_reached() {
        let body = made(prepared(""), Kernel::Hosts, &Way::Socket("/state/a.sock".into()));
        let host = body.host_config.unwrap();
        assert_eq!(host.network_mode.as_deref(), Some("none"));
        assert_eq!(host.cap_drop, Some(vec!["ALL".to_owned()]));
        assert_eq!((host.readonly_rootfs, host.privileged), (Some(true), None));
        let bound = [
            "/state/agent:/.cloud-sandbox/agent:ro",
            "/state/hosts:/etc/hosts:ro",
            "/state/a.sock:/.cloud-sandbox/node.sock:ro",
        ];
        assert_eq!(host.binds.unwrap(), bound);
        let tmpfs = host.tmpfs.unwrap();
        assert_eq!(tmpfs.len(), SCRATCH.len() + 1);
        assert!(tmpfs["/data"].starts_with("ro,"), "a volume of the image");
        assert!(tmpfs["/tmp"].starts_with("rw,"), "which is a writable folder anyway");
        assert!(
            tmpfs["/workspace"].contains("nosuid,nodev,size=536870912,mode=755,nr_inodes=131072,uid=1000,gid=1000")
        );
        assert_eq!(host.memory_swap, host.memory, "no swap");
    }

    #[test]
    fn volumes_that_are_more_than_a_path_are_refused() {
        let check = |path: &str| Brought { volumes: vec!["/data".into(), path.into()], ..Brought::default() }.check();
        for path in ["/", "/srv/www/", "/with space", "/a..b", "/etc"] {
            assert_eq!(check(path), Ok(()));
        }
        for path in ["data", "/x:exec", "/x,rw", "/a//b", "/a/./b", "/a/..", "/etc/hosts", "/.cloud-sandbox/agent"] {
            assert!(check(path).unwrap_err().contains(&format!("its volume {path:?}")), "{path}");
        }
    }

    #[test]
    fn podman_is_told_in_its_own_words() {
        let host = |kernel| {
            let body = told(Dialect::Podman, &Brought::default(), prepared("33:34"), kernel, &Way::Streams);
            assert_eq!(body.healthcheck, None);
            body.host_config.unwrap()
        };
        let hosts = host(Kernel::Hosts);
        let security = hosts.security_opt.unwrap();
        assert!(security.contains(&"seccomp=/state/seccomp.json".to_owned()), "{security:?}");
        let masked = security.iter().find(|option| option.starts_with("mask=")).unwrap();
        assert!(masked.contains(BOOT_ID) && masked.contains("/proc/kcore:"), "{masked}");
        assert_eq!(hosts.tmpfs.unwrap()["/workspace"], "rw,exec,nosuid,nodev,size=536870912,mode=755,U,notmpcopyup");
        let own = host(Kernel::Own).tmpfs.unwrap();
        assert!(own["/workspace"].contains("mode=775,U"), "the user has it by its group");
    }

    #[test]
    fn folders_belong_to_the_user_of_the_template() {
        let owner = |user: &str| owner(&prepared(user));
        assert_eq!([owner(""), owner("0"), owner("7"), owner("7:8")], [(1000, 1000), (0, 0), (7, 7), (7, 8)]);
    }

    #[test]
    fn kernel_of_a_sandboxs_own_has_room_beside_the_sandbox() {
        let host = |kernel| made(prepared(""), kernel, &Way::Streams).host_config.unwrap();
        let (hosts, own) = (host(Kernel::Hosts), host(Kernel::Own));
        assert_eq!((hosts.memory, hosts.pids_limit), (Some(1 << 30), Some(256)));
        assert!(own.memory > hosts.memory && own.pids_limit > hosts.pids_limit);
    }

    #[test]
    fn streams_are_the_agents_alone() {
        let body = made(prepared(""), Kernel::Own, &Way::Streams);
        assert_eq!((body.open_stdin, body.stdin_once, body.tty), (Some(true), Some(true), Some(false)));
        assert_eq!(body.cmd.unwrap()[0], "--stdio");
        assert_eq!(body.host_config.unwrap().binds.unwrap().len(), 2, "no socket is bound");
    }

    #[test]
    fn agent_stands_apart_on_a_kernel_of_its_own() {
        let body = made(prepared("7:8"), Kernel::Own, &Way::Streams);
        assert_eq!(
            (body.user.as_deref(), &body.cmd.unwrap()[1..]),
            (Some("0:8"), &["--apart-from".into(), "7".into()][..])
        );
        assert_eq!(body.host_config.unwrap().cap_add, Some(vec!["SETUID".to_owned(), "SETPCAP".to_owned()]));
        let body = made(prepared(""), Kernel::Hosts, &Way::Streams);
        assert_eq!((body.user.as_deref(), body.host_config.unwrap().cap_add), (Some("1000:1000"), None));
    }

    #[test]
    fn labels_name_the_sandbox_its_server_and_its_template() {
        let labels = made(prepared(""), Kernel::Hosts, &Way::Streams).labels.unwrap();
        assert_eq!((&*labels[INSTANCE], &*labels[TEMPLATE]), ("here", "python@3"));
        assert!(labels[SANDBOX].parse::<SandboxId>().is_ok());
    }
}
