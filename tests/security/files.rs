//! Files of the host, read or written from inside.

use std::fs;

use crate::{
    attempt::attempts,
    target::{PROMPTLY, Target},
};

attempts![
    #[proved]
    reads_a_file_through_the_root_of_any_process,
    #[proved]
    reads_a_file_through_the_folder_of_any_process,
    #[proved]
    reads_the_environment_of_any_process,
    #[proved]
    reads_the_name_of_any_process,
    #[proved]
    reads_shadow,
    #[proved]
    reads_a_file_by_its_path,
    #[proved]
    climbs_out_with_dots,
    #[proved]
    climbs_out_of_a_root_of_its_own,
    #[proved]
    opens_a_file_by_its_handle,
    #[proved]
    lists_the_descriptors_of_the_first_process,
    opens_the_descriptors_of_the_first_process,
    finds_descriptors_that_leaked,
    finds_the_old_root_among_the_mounts,
    #[proved]
    mounts_with_the_new_calls,
    mounts_file_systems,
    #[proved]
    binds_a_folder_over_another,
    remounts_the_root_to_write,
    unmounts_what_hides_the_kernel,
    #[proved]
    makes_a_file_among_the_systems,
    #[proved]
    opens_a_system_program_to_write,
    #[proved]
    changes_the_mode_and_times_of_a_system_program,
    #[proved]
    turns_a_read_only_descriptor_into_one_to_write,
    links_a_system_program_into_a_folder_of_its_own,
    #[proved]
    reads_the_memory_of_the_kernel,
    #[proved]
    writes_the_settings_of_the_network_and_of_programs,
    locks_out_others_with_leases,
    dumps_core_to_the_host,
];

fn reads_a_file_through_the_root_of_any_process(target: &Target) {
    let file = target.host.file();
    target.tries(&format!("for pid in processes(): attempt(pid, read, f'/proc/{{pid}}/root{}')", file.display()));
    target.refused(&format!(
        "attempt('self', read, '/proc/self/root{0}'); attempt('1', read, '/proc/1/root{0}')",
        file.display()
    ));
}

fn reads_a_file_through_the_folder_of_any_process(target: &Target) {
    let file = target.host.file();
    let dots = "../".repeat(12);
    target.refused(&format!(
        "for pid in ['self', '1', {}, *processes()]: attempt(pid, read, f'/proc/{{pid}}/cwd/{dots}{}')",
        target.host.process(),
        file.display()
    ));
}

fn reads_the_environment_of_any_process(target: &Target) {
    target.tries("for pid in ['self', *processes()]: look(f'/proc/{pid}/environ')");
}

fn reads_the_name_of_any_process(target: &Target) {
    target.tries("for pid in ['self', *processes()]: look(f'/proc/{pid}/cmdline')");
}

fn reads_shadow(target: &Target) {
    target.refused("for name in ('shadow', 'gshadow', 'sudoers'): attempt(name, read, f'/etc/{name}')");
}

fn reads_a_file_by_its_path(target: &Target) {
    target.refused(&format!("attempt('file', read, '{}')", target.host.file().display()));
}

fn climbs_out_with_dots(target: &Target) {
    let (file, dots) = (target.host.file(), "/..".repeat(40));
    target.refused(&format!(
        "for start in ('/tmp', '/proc/self/fd', '/dev/shm', '/usr/bin'): attempt(start, read, start + '{dots}{}')",
        file.display()
    ));
}

/// A process whose root is below its working folder climbs out of both (chroot(2)).
fn climbs_out_of_a_root_of_its_own(target: &Target) {
    target.refused(
        "import tempfile\nnew = tempfile.mkdtemp()\n\
         attempt('chroot', in_child, lambda: os.chroot(new))\n\
         attempt('pivot_root', call, 'pivot_root', b'/tmp\\0', b'/tmp\\0') if os.getpid() != 1 else None",
    );
}

/// As the attack called Shocker: the root folder of a file system is inode 2.
fn opens_a_file_by_its_handle(target: &Target) {
    target.refused(
        "import struct\nhandle = ctypes.create_string_buffer(struct.pack('Ii', 128, 0) + bytes(128))\nmount = ctypes.c_int()\n\
         attempt('make', call, 'name_to_handle_at', -100, b'/usr\\0', handle, ctypes.byref(mount), 0)\n\
         root = ctypes.create_string_buffer(struct.pack('IiII', 8, 1, 2, 0))\n\
         for path in ('/usr', '/tmp', '/'):\n    \
         at = os.open(path, os.O_RDONLY)\n    attempt(path, call, 'open_by_handle_at', at, root, os.O_RDONLY)",
    );
}

fn lists_the_descriptors_of_the_first_process(target: &Target) {
    target.refused("attempt('list', os.listdir, '/proc/1/fd')");
}

/// All but what has a name to be opened by, and the other ends of the attacker's own pipes.
fn opens_the_descriptors_of_the_first_process(target: &Target) {
    target.refused(
        "own = {os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2)}\n\
         def foreign(path):\n    try:\n        to = os.readlink(path)\n        return to not in own and not to.startswith('/')\n    except OSError: return True\n\
         for fd in range(12):\n    path = f'/proc/1/fd/{fd}'\n    \
         if foreign(path): [attempt(f'{fd} {way}', opened, path, way | os.O_NONBLOCK) for way in (os.O_RDONLY, os.O_WRONLY)]",
    );
}

fn finds_descriptors_that_leaked(target: &Target) {
    let list = "for n in /proc/$$/fd/*; do readlink $n; done";
    let printed = target.shell(list);
    for line in printed.lines() {
        assert!(line.starts_with("pipe:") || line == "/dev/null" || line.ends_with("/fd"), "leaked: {printed}");
    }
    let walled = target.walled();
    let on_a_terminal = walled.execute(serde_json::json!({"command": list, "terminal": {"rows": 24, "cols": 80}}));
    for line in on_a_terminal["stdout"].as_str().unwrap().lines() {
        assert!(line.starts_with("/dev/pts/"), "leaked: {on_a_terminal}");
    }
}

fn finds_the_old_root_among_the_mounts(target: &Target) {
    let mounts = target.shell("cat /proc/self/mountinfo /proc/self/mounts");
    let folder = target.host.folder().display().to_string();
    for trace in [folder.as_str(), "/.old", "/.scratch", "cgroup", "sysfs", "debugfs"] {
        assert!(!mounts.contains(trace), "{trace} in\n{mounts}");
    }
    target.refused("for path in ('/.old', '/.scratch', '/sys', '/sys/fs/cgroup', '/mnt', '/root'): attempt(path, os.listdir, path)");
}

fn mounts_with_the_new_calls(target: &Target) {
    target
        .tries(
            "attempt('fsopen', call, 'fsopen', b'tmpfs\\0', 0)\n\
             attempt('open_tree', call, 'open_tree', -100, b'/\\0', 0)\n\
             attempt('move_mount', call, 'move_mount', -1, b'\\0', -1, b'\\0', 0)\n\
             attempt('fspick', call, 'fspick', -100, b'/\\0', 0)\n\
             attempt('mount_setattr', call, 'mount_setattr', -1, b'\\0', 0, 0, 0)",
        )
        .all_refused_with(&["EPERM", "ENOSYS"]);
}

fn mounts_file_systems(target: &Target) {
    target.refused(
        "for kind in ('proc', 'sysfs', 'tmpfs', 'cgroup', 'cgroup2', 'devtmpfs', 'devpts', 'mqueue', 'bpf', 'tracefs', 'overlay', 'fuse', 'ext4'):\n    \
         attempt(kind, call, 'mount', b'/dev/vda\\0', b'/tmp\\0', kind.encode() + b'\\0', 0, b'lowerdir=/usr,fd=0\\0')",
    );
    assert_eq!(target.shell("find /tmp -mindepth 1"), "", "nothing was mounted there");
}

fn binds_a_folder_over_another(target: &Target) {
    // in a name space of its own where one can be had, so that it does no harm where there is no wall
    target.refused(
        "import tempfile\nnew = tempfile.mkdtemp().encode() + b'\\0'\n\
         def bind():\n    call('unshare', 0x20000)\n    call('mount', 0, b'/\\0', 0, 0x44000, 0)\n    call('mount', b'/usr\\0', new, 0, 0x1000, 0)\n\
         attempt('after unshare', in_child, bind)",
    );
    if target.has_walls() {
        target.refused("attempt('at once', call, 'mount', b'/usr\\0', b'/tmp\\0', 0, 0x1000, 0)");
    }
}

fn remounts_the_root_to_write(target: &Target) {
    target.refused(
        "for path in (b'/', b'/usr', b'/proc/sys', b'/dev/null'):\n    \
         attempt(path, call, 'mount', 0, path + b'\\0', 0, 0x1020, 0)\n\
         attempt('write', opened, '/usr/.attack', os.O_WRONLY | os.O_CREAT)",
    );
}

fn unmounts_what_hides_the_kernel(target: &Target) {
    target.refused(
        "for path in (b'/proc/kcore', b'/proc/sys', b'/proc/keys', b'/proc/acpi', b'/proc', b'/dev', b'/usr', b'/tmp'):\n    \
         attempt(path, call, 'umount2', path + b'\\0', 2)\n\
         attempt('kcore', read, '/proc/kcore')",
    );
}

fn makes_a_file_among_the_systems(target: &Target) {
    let name = format!(".attack-{}", target.host.process());
    target.refused(&format!(
        "for folder in ('/', '/usr', '/usr/bin', '/usr/lib', '/etc', '/bin', '/lib', '/sbin', '/var'):\n    \
         path = folder + '/{name}'\n    attempt(folder, opened, path, os.O_WRONLY | os.O_CREAT)\n    \
         if os.path.exists(path): os.unlink(path)"
    ));
    assert!(!fs::exists(format!("/usr/bin/{name}")).unwrap());
}

fn opens_a_system_program_to_write(target: &Target) {
    target.refused(
        "for path in ('/usr/bin/env', '/bin/sh', '/lib64/ld-linux-x86-64.so.2', '/etc/ld.so.cache', '/etc/hosts', '/etc/passwd'):\n    \
         attempt(path, opened, path, os.O_RDWR)",
    );
}

fn changes_the_mode_and_times_of_a_system_program(target: &Target) {
    let before = fs::metadata("/usr/bin/env").unwrap();
    target.refused(
        "seen = os.stat('/usr/bin/env')\n\
         attempt('chmod', os.chmod, '/usr/bin/env', stat.S_IMODE(seen.st_mode))\n\
         attempt('chown', os.chown, '/usr/bin/env', -1, seen.st_gid)\n\
         attempt('utime', os.utime, '/usr/bin/env', ns=None) if False else attempt('utime', lambda: os.utime('/usr/bin/env', ns=(seen.st_atime_ns, seen.st_mtime_ns)))",
    );
    let after = fs::metadata("/usr/bin/env").unwrap();
    assert_eq!((before.permissions(), before.modified().unwrap()), (after.permissions(), after.modified().unwrap()));
}

fn turns_a_read_only_descriptor_into_one_to_write(target: &Target) {
    target.refused(
        "for path in ('/usr/bin/env', '/etc/hosts'):\n    \
         fd = os.open(path, os.O_RDONLY)\n    attempt(path, opened, f'/proc/self/fd/{fd}', os.O_RDWR)\n    attempt('/dev/fd', opened, f'/dev/fd/{fd}', os.O_RDWR)",
    );
}

fn links_a_system_program_into_a_folder_of_its_own(target: &Target) {
    target.refused(
        "for path in ('/usr/bin/env', '/etc/hosts', '/proc/self/exe', '/proc/1/exe', '/dev/null'):\n    \
         attempt(path, lambda: os.link(path, '/workspace/linked', follow_symlinks=True))",
    );
}

fn reads_the_memory_of_the_kernel(target: &Target) {
    target.refused(
        "for name in ('kcore', 'kmsg', 'keys', 'timer_list', 'sched_debug', 'interrupts', 'pressure/cpu', 'slabinfo', 'vmallocinfo', '1/stack'):\n    \
         flags = os.O_RDONLY | os.O_NONBLOCK\n    \
         attempt(name, lambda: os.read(os.open(f'/proc/{name}', flags), 64) or failed(errno.ENODATA, name))",
    );
    let addresses = "print(any(int(line.split()[0], 16) for line in open('/proc/kallsyms')))";
    if target.has_walls() {
        assert!(target.python(addresses).starts_with("False\n"), "addresses of the kernel are shown");
    }
}

fn writes_the_settings_of_the_network_and_of_programs(target: &Target) {
    target.refused(
        "for path in ('/proc/sys/net/ipv4/ip_forward', '/proc/sys/kernel/randomize_va_space', '/proc/sys/kernel/yama/ptrace_scope',\n             \
         '/proc/sys/user/max_user_namespaces', '/proc/sys/fs/protected_symlinks', '/proc/sys/kernel/unprivileged_bpf_disabled'):\n    \
         attempt(path, opened, path)",
    );
}

/// A lease on a file of the host would hold up whoever opens it there (fcntl(2)).
fn locks_out_others_with_leases(target: &Target) {
    target.refused(
        "import fcntl\nfor path in ('/usr/bin/env', '/usr/bin/python3'):\n    \
         fd = os.open(path, os.O_RDONLY)\n    attempt(path, fcntl.fcntl, fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)",
    );
    let begun = std::time::Instant::now();
    fs::OpenOptions::new().append(true).open("/usr/bin/env").unwrap();
    assert!(begun.elapsed() < PROMPTLY);
}

/// The kernel starts the program of core_pattern as root on the host, or writes where the process was.
fn dumps_core_to_the_host(target: &Target) {
    let printed = target.shell(
        "ulimit -c unlimited 2>&1; ulimit -c; cd /tmp; sh -c 'kill -SEGV $$'; echo ended with $?; find / -xdev -name 'core*' -newer /proc/1 -type f 2>/dev/null",
    );
    assert!(printed.contains("ended with 139"), "{printed}");
    assert!(printed.starts_with("0\n") || printed.contains("cannot modify"), "cores are dumped: {printed}");
}
