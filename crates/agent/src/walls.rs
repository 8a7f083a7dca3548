//! Tries, from inside of a sandbox, what must not be possible there.
//!
//! The agent has the rights of the user's code, so what it cannot do that cannot either. Each attempt is one that harms
//! nothing where it succeeds: system calls get arguments which no kernel accepts, files are opened and not written.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs::{self, OpenOptions},
    io,
    net::UdpSocket,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use cloud_sandbox_proto::agent::v1::{ProveWallsRequest, WallProof};
use nix::{
    errno::Errno,
    sys::{
        prctl,
        statfs::{TMPFS_MAGIC, statfs},
    },
    unistd::AccessFlags,
};

use crate::kernel;

/// Tries all walls. A few dozen system calls, well under a millisecond.
pub(crate) fn prove(request: &ProveWallsRequest) -> Vec<WallProof> {
    let proofs: [(&str, Breaches); 10] = [
        ("user namespace", user_namespace()),
        ("no privileges", no_privileges()),
        ("seccomp", seccomp()),
        ("landlock", landlock()),
        ("files", files(&request.path, request.writable_root)),
        ("processes", processes()),
        ("network", network()),
        ("proc", proc()),
        ("devices", devices()),
        ("identity", identity(&request.boot_id, &request.machine_id)),
    ];
    let proof = |(wall, Breaches(found)): (&str, Breaches)| WallProof {
        wall: wall.to_owned(),
        held: found.is_empty(),
        detail: found.join("; "),
    };
    proofs.into_iter().map(proof).collect()
}

/// What got through.
#[derive(Default)]
struct Breaches(Vec<String>);

impl Breaches {
    fn add_if(&mut self, breached: bool, what: impl FnOnce() -> String) {
        if breached {
            self.0.push(what());
        }
    }
}

fn user_namespace() -> Breaches {
    let mut breaches = Breaches::default();
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let numbers: Vec<_> = map.split_whitespace().collect();
    // the first namespace maps every id to itself
    breaches
        .add_if(numbers.len() < 3 || numbers == ["0", "0", "4294967295"], || format!("ids are the host's: {map:?}"));
    breaches
}

fn no_privileges() -> Breaches {
    let mut breaches = Breaches::default();
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let value = value(set);
        // what a kernel without ambient capabilities does not list, nobody has
        let none = value == Some("0000000000000000") || set == "CapAmb" && value.is_none();
        breaches.add_if(!none, || format!("{set} is {:?}", value.unwrap_or_default()));
    }
    // asked, since not every kernel lists it
    let gains = !prctl::get_no_new_privs().unwrap_or(false);
    breaches.add_if(gains, || "programs may gain privileges".into());
    breaches
}

/// What each call must be refused with, whatever it is called with. Without a filter these arguments have it fail
/// otherwise, and nothing happens either.
fn seccomp() -> Breaches {
    const NOWHERE: libc::c_long = 0;
    let calls: [(&str, libc::c_long, [libc::c_long; 2]); 11] = [
        ("add_key", libc::SYS_add_key, [NOWHERE, NOWHERE]),
        ("bpf", libc::SYS_bpf, [-1, NOWHERE]),
        ("clone3", libc::SYS_clone3, [NOWHERE, 0]),
        ("io_uring_setup", libc::SYS_io_uring_setup, [0, NOWHERE]),
        ("keyctl", libc::SYS_keyctl, [-1, 0]),
        ("mount", libc::SYS_mount, [NOWHERE, NOWHERE]),
        ("perf_event_open", libc::SYS_perf_event_open, [NOWHERE, 0]),
        ("setns", libc::SYS_setns, [-1, 0]),
        ("umount2", libc::SYS_umount2, [NOWHERE, 0]),
        ("unshare", libc::SYS_unshare, [1, 0]),
        ("userfaultfd", libc::SYS_userfaultfd, [-1, 0]),
    ];
    let mut breaches = Breaches::default();
    for (name, number, [first, second]) in calls {
        // SAFETY: no call of the list accepts these arguments: null pointers, descriptor -1, flags that do not exist.
        let done = unsafe { libc::syscall(number, first, second, 0, 0, 0, 0) };
        let refused = done == -1 && matches!(Errno::last(), Errno::EPERM | Errno::ENOSYS);
        breaches.add_if(!refused, || format!("{name} reaches the kernel"));
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    breaches.add_if(!status.lines().any(|line| line == "Seccomp:\t2"), || "no filter is installed".into());
    breaches
}

/// Under this wall nobody makes devices, which is told (EACCES) before the lack of a capability is (EPERM).
fn landlock() -> Breaches {
    let mut breaches = Breaches::default();
    let path = format!("/tmp/.wall-{}", std::process::id());
    let refused = CString::new(path.clone()).is_ok_and(|name| {
        // /dev/null once more: harmless where it is made
        let device = libc::makedev(1, 3);
        // SAFETY: the name lives beyond the call.
        let made = unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o600, device) };
        made == -1 && Errno::last() == Errno::EACCES
    });
    breaches.add_if(!refused, || "making a device is not refused by it".into());
    // it may have been made
    let _ = fs::remove_file(path);
    breaches
}

fn files(host_path: &str, writable_root: bool) -> Breaches {
    let mut breaches = Breaches::default();
    for path in [host_path.to_owned(), format!("/proc/1/root{host_path}")] {
        breaches.add_if(!host_path.is_empty() && Path::new(&path).exists(), || format!("{path} of the host is there"));
    }
    for path in ["/", "/etc", "/usr", "/usr/bin", "/bin", "/lib"] {
        breaches.add_if(!writable_root && takes_files(Path::new(path)), || format!("{path} can be written"));
    }
    let devices = Path::new("/dev");
    breaches.add_if(!is_own_memory(devices) && takes_files(devices), || "/dev can be written".into());
    breaches
}

/// Whether a folder is a file system of its own that lies in memory, as containers have one at `/dev`.
fn is_own_memory(folder: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|metadata| metadata.dev()).ok();
    statfs(folder).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC) && device(folder) != device(Path::new("/"))
}

/// Whether a file can be made in a folder: one without a name, or where the file system has no such files, one that is
/// removed at once.
fn takes_files(folder: &Path) -> bool {
    let mut file = OpenOptions::new();
    file.write(true).mode(0o600);
    let unnamed = file.clone().custom_flags(libc::O_TMPFILE).open(folder).map_err(|error| error.raw_os_error());
    if !matches!(unnamed, Err(Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL | libc::ENOENT))) {
        return unnamed.is_ok();
    }
    let path = folder.join(format!(".wall-{}", std::process::id()));
    let made = file.create_new(true).open(&path).is_ok();
    if made {
        // of what could be made, everything can be removed
        let _ = fs::remove_file(path);
    }
    made
}

/// Before anything was run in it, a sandbox has one process.
fn processes() -> Breaches {
    let mut breaches = Breaches::default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let found: BTreeSet<u32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    breaches.add_if(std::process::id() != 1, || "the agent is not the first process".into());
    let others = found.iter().filter(|pid| **pid != std::process::id()).count();
    breaches.add_if(others > 0, || format!("{others} other processes are there"));
    breaches
}

fn network() -> Breaches {
    let mut breaches = Breaches::default();
    let table = fs::read_to_string("/proc/self/net/dev").unwrap_or_default();
    // two lines of titles
    let names = table.lines().skip(2).filter_map(|line| line.split(':').next()).map(str::trim);
    for name in names.filter(|name| *name != "lo" && !is_fallback(name)) {
        breaches.0.push(format!("interface {name} is there"));
    }
    for address in ["169.254.169.254:80", "1.1.1.1:53"] {
        // connects a socket of datagrams, which sends nothing
        let reached = UdpSocket::bind("0.0.0.0:0").is_ok_and(|socket| socket.connect(address).is_ok());
        breaches.add_if(reached, || format!("{address} has a route"));
    }
    breaches
}

/// Tunnels that some kernels put into every network namespace, down and without an address.
fn is_fallback(interface: &str) -> bool {
    const FALLBACKS: [&str; 9] =
        ["tunl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "sit0", "ip6tnl0", "ip6gre0"];
    FALLBACKS.contains(&interface)
}

fn proc() -> Breaches {
    const CLOSED: [&str; 8] = [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/modprobe",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/drop_caches",
        "/proc/sysrq-trigger",
        "/sys/kernel/uevent_helper",
        "/sys/fs/cgroup/cgroup.procs",
        "/sys/power/state",
    ];
    const SILENT: [&str; 5] = ["/proc/kcore", "/proc/kmsg", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"];
    let mut breaches = Breaches::default();
    for path in CLOSED {
        breaches.add_if(OpenOptions::new().write(true).open(path).is_ok(), || format!("{path} can be written"));
    }
    for path in SILENT {
        breaches.add_if(tells(path), || format!("{path} can be read"));
    }
    breaches
}

/// Whether a file can be opened and has something to read. It is not waited for.
fn tells(path: &str) -> bool {
    let Ok(mut file) = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path) else { return false };
    io::Read::read(&mut file, &mut [0]).is_ok_and(|read| read > 0)
}

fn devices() -> Breaches {
    // full, null, zero, random, urandom, tty, ptmx
    const HARMLESS: [(u64, u64); 7] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)];
    const FIRST_PTS: u64 = 136;
    // fuse, tun: its own, which reach nothing of the host's
    const OF_GVISOR: [(u64, u64); 2] = [(10, 229), (10, 200)];
    let gvisor = kernel::is_gvisor();
    let mut breaches = Breaches::default();
    let mut folders = vec![PathBuf::from("/dev")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let kind = metadata.file_type();
            if kind.is_dir() {
                folders.push(path);
                continue;
            }
            let (major, minor) = (libc::major(metadata.rdev()).into(), libc::minor(metadata.rdev()).into());
            let harmless = HARMLESS.contains(&(major, minor))
                || major == FIRST_PTS
                || gvisor && OF_GVISOR.contains(&(major, minor));
            let device = kind.is_block_device() || kind.is_char_device();
            // opening one may do something by itself
            let usable =
                [AccessFlags::R_OK, AccessFlags::W_OK].into_iter().any(|use_| kernel::may(&path, use_).is_ok());
            let breached = device && usable && (kind.is_block_device() || !harmless);
            breaches.add_if(breached, || format!("{} is device {major}:{minor}", path.display()));
        }
    }
    breaches
}

fn identity(boot_id: &str, machine_id: &str) -> Breaches {
    let mut breaches = Breaches::default();
    for (path, hosts) in [("/proc/sys/kernel/random/boot_id", boot_id), ("/etc/machine-id", machine_id)] {
        let own = fs::read_to_string(path).unwrap_or_default();
        breaches.add_if(!hosts.is_empty() && own.trim() == hosts, || format!("{path} is the host's"));
    }
    breaches
}
