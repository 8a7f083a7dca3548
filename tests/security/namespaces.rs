//! Namespaces of its own, in which a process would have rights over code of the kernel that ordinary users never reach.

use std::fmt::Write as _;

use crate::{attempt::attempts, target::Target};

attempts![
    #[proved]
    unshares_each_kind,
    #[proved]
    clones_into_each_kind,
    #[proved]
    clones_with_flags_behind_a_pointer,
    #[proved]
    enters_namespaces_by_their_files,
    enters_namespaces_by_a_process,
    maps_more_ids,
    allows_groups_again,
    reads_the_number_of_host_ids_by_the_map,
    #[proved]
    learns_which_machine_it_is_on,
    finds_the_agent_among_the_processes,
];

/// Each kind with its flag, CLONE_NEWTIME the last.
const KINDS: &str = "KINDS = {'mount': 0x20000, 'cgroup': 0x2000000, 'uts': 0x4000000, 'ipc': 0x8000000, 'user': 0x10000000, 'pid': 0x20000000, 'net': 0x40000000, 'time': 0x80}\n";
/// What seccomp answers to what is forbidden, and to what is absent.
const WALL: &[&str] = &["EPERM", "ENOSYS"];

fn unshares_each_kind(target: &Target) {
    let attack = "for name, flag in KINDS.items(): attempt(name, in_child, lambda: call('unshare', flag))\n\
                  attempt('user and all', in_child, lambda: call('unshare', 0x10000000 | 0x7c020000))";
    target.tries(&format!("{KINDS}{attack}")).all_refused_with(WALL);
}

fn clones_into_each_kind(target: &Target) {
    let attack = "def clone(flag):\n    \
                  if call('clone', flag | 17, 0, 0, 0, 0) == 0: os._exit(0)\n    os.wait()\n\
                  for name, flag in KINDS.items():\n    if flag > 0xff: attempt(name, clone, flag)";
    target.tries(&format!("{KINDS}{attack}")).all_refused_with(WALL);
}

fn clones_with_flags_behind_a_pointer(target: &Target) {
    let attack = "import struct\ndef clone(flag):\n    \
                  if call('clone3', struct.pack('8Q', flag, 0, 0, 0, 17, 0, 0, 0), 64) == 0: os._exit(0)\n    os.wait()\n\
                  for name, flag in KINDS.items(): attempt(name, clone, flag)";
    target.tries(&format!("{KINDS}{attack}")).all_refused_with(WALL);
}

fn enters_namespaces_by_their_files(target: &Target) {
    target.refused(
        "for pid in ('1', 'self'):\n    for kind in ('mnt', 'net', 'uts', 'ipc', 'cgroup', 'user', 'pid'):\n        \
         attempt(f'{pid} {kind}', in_child, lambda: call('setns', os.open(f'/proc/{pid}/ns/{kind}', os.O_RDONLY), 0))",
    );
}

fn enters_namespaces_by_a_process(target: &Target) {
    target.refused(
        "for flag in (0x20000, 0x40000000, 0x4000000, 0x10000000):\n    \
         attempt(hex(flag), in_child, lambda: call('setns', call('pidfd_open', 1, 0), flag))",
    );
}

fn maps_more_ids(target: &Target) {
    target.refused(
        "def write(path, text):\n    fd = os.open(path, os.O_WRONLY)\n    os.write(fd, text)\n\
         for pid in ('self', '1'):\n    for name in ('uid_map', 'gid_map'):\n        \
         attempt(f'{pid} {name}', write, f'/proc/{pid}/{name}', b'0 0 1\\n')",
    );
}

/// Groups that deny something would be left (user_namespaces(7)).
fn allows_groups_again(target: &Target) {
    target.refused(
        "def write(path, text):\n    fd = os.open(path, os.O_WRONLY)\n    os.write(fd, text)\n\
         attempt('setgroups', write, '/proc/self/setgroups', b'allow')\n\
         attempt('leave', os.setgroups, [])\nattempt('join', os.setgroups, [0, 6, 999])",
    );
}

/// As root, ids that no user and no other sandbox has; as an ordinary user, that user alone. Root is never mapped.
fn reads_the_number_of_host_ids_by_the_map(target: &Target) {
    let map = target.shell("cat /proc/self/uid_map");
    let outside: Vec<u32> = map.split_whitespace().skip(1).step_by(3).map(|id| id.parse().unwrap()).collect();
    let own = target.host.uid;
    assert!(!outside.is_empty() && outside.iter().all(|id| *id >= 0x7000_0000 || (own != 0 && *id == own)), "{map}");
}

/// The ids by which a machine is known again.
fn learns_which_machine_it_is_on(target: &Target) {
    let mut attack = String::from(
        "def same(path, hosts):\n    return hosts if read(path).decode().strip() == hosts else failed(errno.ENODATA, path)\n",
    );
    for path in ["/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/var/lib/dbus/machine-id"] {
        let Ok(id) = std::fs::read_to_string(path) else { continue };
        let _ = writeln!(attack, "attempt({path:?}, same, {path:?}, {:?})", id.trim());
    }
    target.refused(&attack);
}

/// The agent is the first process. What is not there cannot be attacked by its number either.
fn finds_the_agent_among_the_processes(target: &Target) {
    target.refused(
        "attempt('listed', lambda: '1' in os.listdir('/proc') or failed(errno.ENOENT, '1'))\n\
         for name in ('', '/status', '/cmdline', '/environ', '/maps', '/fd', '/root', '/exe', '/cwd', '/task'):\n    \
         attempt(name, os.stat, '/proc/1' + name)",
    );
}
