//! The kernel that all sandboxes share: what changes it, and what reaches code of it that no sandbox needs.

use std::{fs, time::SystemTime};

use crate::{attempt::attempts, target::Target};

attempts![
    #[proved]
    writes_sysctls,
    registers_a_program_for_cores,
    registers_a_binary_format,
    registers_a_program_for_device_events,
    has_a_program_run_when_a_cgroup_empties,
    leaves_its_cgroup,
    presses_the_magic_key,
    #[proved]
    makes_device_nodes,
    #[proved]
    opens_the_hosts_devices,
    #[proved]
    reads_the_kernels_log,
    loads_a_module,
    loads_another_kernel,
    loads_a_program_into_the_kernel,
    queues_calls_around_the_filter,
    counts_events_of_the_host,
    handles_page_faults_itself,
    reaches_keyrings,
    #[proved]
    sets_the_clock,
    #[proved]
    renames_the_host,
    restarts_the_host,
    swaps_and_counts_quotas,
    #[proved]
    watches_all_files,
    touches_ports_of_the_machine,
    types_into_the_hosts_terminal,
    calls_what_no_program_needs,
    takes_contexts_that_the_host_has_few_of,
    takes_watches_that_the_host_has_few_of,
    takes_signals_that_the_host_has_few_of,
    takes_descriptors_in_flight_that_its_user_has_few_of,
];

const WALL: &[&str] = &["EPERM", "ENOSYS"];

fn writes_sysctls(target: &Target) {
    target.refused(
        "tried = 0\nfor folder, _, names in os.walk('/proc/sys'):\n    for name in names:\n        \
         path = os.path.join(folder, name)\n        \
         try: writable = os.stat(path).st_mode & 0o222\n        except OSError: continue\n        \
         if writable and tried < 400:\n            tried += 1\n            attempt(path, opened, path)",
    );
}

/// The kernel runs what core_pattern and modprobe name, as root, outside of all sandboxes.
fn registers_a_program_for_cores(target: &Target) {
    let pattern = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    target.refused(
        "def write(path, text):\n    fd = os.open(path, os.O_WRONLY)\n    os.write(fd, text)\n\
         attempt('core_pattern', write, '/proc/sys/kernel/core_pattern', b'|/workspace/x')\n\
         attempt('modprobe', write, '/proc/sys/kernel/modprobe', b'/workspace/x')\n\
         attempt('through the first process', write, '/proc/1/root/proc/sys/kernel/core_pattern', b'|/workspace/x')",
    );
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), pattern);
}

fn registers_a_binary_format(target: &Target) {
    target.refused(
        "attempt('register', opened, '/proc/sys/fs/binfmt_misc/register')\nattempt('status', opened, '/proc/sys/fs/binfmt_misc/status')\n\
         attempt('mount', call, 'mount', b'x\\0', b'/tmp\\0', b'binfmt_misc\\0', 0, 0)",
    );
}

fn registers_a_program_for_device_events(target: &Target) {
    let helper = fs::read("/sys/kernel/uevent_helper").ok();
    target.refused(
        "for path in ('/sys/kernel/uevent_helper', '/proc/sys/kernel/hotplug', '/sys/class/mem/null/uevent', '/sys/kernel/mm/ksm/run'):\n    \
         attempt(path, opened, path)\nattempt('mount', call, 'mount', b'x\\0', b'/tmp\\0', b'sysfs\\0', 0, 0)",
    );
    assert_eq!(fs::read("/sys/kernel/uevent_helper").ok(), helper);
}

/// As root on the host, with the release agents of cgroup v1.
fn has_a_program_run_when_a_cgroup_empties(target: &Target) {
    let agents = || -> Vec<_> {
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        hierarchies.filter_map(|hierarchy| fs::read_to_string(hierarchy.path().join("release_agent")).ok()).collect()
    };
    let before = agents();
    target.refused(
        "os.mkdir('/tmp/cg')\n\
         for options in (b'memory', b'rdma', b'none,name=x'): attempt(options, call, 'mount', b'cgroup\\0', b'/tmp/cg\\0', b'cgroup\\0', 0, options + b'\\0')\n\
         attempt('v2', call, 'mount', b'cgroup\\0', b'/tmp/cg\\0', b'cgroup2\\0', 0, 0)\n\
         for name in ('release_agent', 'notify_on_release', 'cgroup.procs', 'memory/release_agent'):\n    \
         for folder in ('/sys/fs/cgroup', '/tmp/cg', '/proc/1/root/sys/fs/cgroup'): attempt(f'{folder}/{name}', opened, f'{folder}/{name}')",
    );
    assert_eq!(agents(), before);
}

fn leaves_its_cgroup(target: &Target) {
    let seen = target.shell("cat /proc/self/cgroup /proc/1/cgroup");
    assert!(!seen.contains("cloud-sandbox") && !seen.contains(target.walled().id()), "{seen}");
    target.refused(
        "for folder in ('/sys/fs/cgroup', '/sys/fs/cgroup/memory', '/sys/fs/cgroup/pids', '/sys/fs/cgroup/unified'):\n    \
         attempt(folder, opened, f'{folder}/cgroup.procs')\n    attempt('a new one', os.mkdir, f'{folder}/x')",
    );
}

fn presses_the_magic_key(target: &Target) {
    target.refused(
        "attempt('trigger', opened, '/proc/sysrq-trigger')\nattempt('which', opened, '/proc/sys/kernel/sysrq')",
    );
}

fn makes_device_nodes(target: &Target) {
    target.refused(
        "import tempfile\nfor folder in {'/tmp', '/dev/shm', tempfile.mkdtemp()}:\n    \
         for what, mode, device in (('disk', stat.S_IFBLK, os.makedev(8, 0)), ('memory', stat.S_IFCHR, os.makedev(1, 1)), ('null', stat.S_IFCHR, os.makedev(1, 3))):\n        \
         path = f'{folder}/attack-{os.getpid()}-{what}'\n        attempt(path, os.mknod, path, mode | 0o666, device)\n        \
         if os.path.lexists(path): os.unlink(path)",
    );
}

fn opens_the_hosts_devices(target: &Target) {
    target.refused(
        "disks = ['sda', 'vda', 'nvme0n1', 'loop0', 'loop-control', 'mapper/control', 'btrfs-control']\n\
         for name in (*disks, 'mem', 'kmem', 'port', 'kmsg', 'kvm', 'fuse', 'net/tun', 'vhost-net', 'vhost-vsock', 'userfaultfd', 'console', 'tty0', 'rtc0', 'uinput', 'dri/card0', 'snapshot', 'cpu/0/msr', 'hpet', 'watchdog', 'uhid', 'ppp'):\n    \
         attempt(name, opened, f'/dev/{name}', os.O_RDONLY | os.O_NONBLOCK) if name != 'watchdog' or not os.access('/dev/watchdog', os.R_OK) else None",
    );
    if target.has_walls() {
        let devices = target.shell("find /dev -type b -o -type c | sort | tr '\\n' ' '; ls /dev/pts");
        for name in devices.split_whitespace() {
            let usual = ["full", "null", "ptmx", "pts/ptmx", "random", "tty", "urandom", "zero"];
            assert!(usual.iter().any(|usual| name == *usual || name == format!("/dev/{usual}")), "{devices}");
        }
    }
}

fn reads_the_kernels_log(target: &Target) {
    target.refused(
        "text = ctypes.create_string_buffer(4096)\nattempt('read', call, 'syslog', 3, text, 4096)\nattempt('size', call, 'syslog', 10, 0, 0)\n\
         attempt('device', opened, '/dev/kmsg', os.O_RDONLY)",
    );
}

fn loads_a_module(target: &Target) {
    target
        .tries(
            "attempt('init', call, 'init_module', b'\\x7fELF', 4, b'\\0')\n\
             attempt('finit', call, 'finit_module', os.memfd_create('x'), b'\\0', 0)\nattempt('delete', call, 'delete_module', b'ext4\\0', 0o4000)",
        )
        .all_refused_with(WALL);
}

fn loads_another_kernel(target: &Target) {
    target
        .tries(
            "attempt('load', call, 'kexec_load', 0, 0, 0, 0)\n\
             attempt('file', call, 'kexec_file_load', os.memfd_create('x'), -1, 1, b'\\0', 4)",
        )
        .all_refused_with(WALL);
}

fn loads_a_program_into_the_kernel(target: &Target) {
    target
        .tries(
            "import struct\nattempt('map', call, 'bpf', 0, struct.pack('4I', 2, 4, 4, 1) + bytes(112), 128)\n\
             attempt('program', call, 'bpf', 5, bytes(128), 128)\nattempt('next', call, 'bpf', 11, bytes(128), 128)",
        )
        .all_refused_with(WALL);
}

/// What is queued is done by the kernel itself, where no filter looks.
fn queues_calls_around_the_filter(target: &Target) {
    target
        .tries(
            "attempt('io_uring', call, 'io_uring_setup', 4, ctypes.create_string_buffer(120))\n\
             attempt('enter', call, 'io_uring_enter', -1, 0, 0, 0, 0)\nattempt('register', call, 'io_uring_register', -1, 0, 0, 0)",
        )
        .all_refused_with(WALL);
}

fn counts_events_of_the_host(target: &Target) {
    target
        .tries(
            "import struct\nevent = struct.pack('IIQ', 1, 128, 0) + bytes(112)\n\
             for pid, cpu in ((-1, 0), (0, -1), (1, -1)): attempt(f'{pid} {cpu}', call, 'perf_event_open', event, pid, cpu, -1, 0)",
        )
        .all_refused_with(WALL);
}

/// It holds the kernel where an attack wants it.
fn handles_page_faults_itself(target: &Target) {
    target
        .tries("for flags in (0, 1, os.O_NONBLOCK): attempt(flags, call, 'userfaultfd', flags)")
        .all_refused_with(WALL);
}

fn reaches_keyrings(target: &Target) {
    target
        .tries(
            "attempt('add', call, 'add_key', b'user\\0', b'x\\0', b'y', 1, -3)\nattempt('request', call, 'request_key', b'user\\0', b'x\\0', 0, -3)\n\
             for operation in (0, 1, 6, 11, 22): attempt(operation, call, 'keyctl', operation, -4, 0, 0, 0)",
        )
        .all_refused_with(WALL);
}

/// To what it shows: where there is no wall, nothing changes.
fn sets_the_clock(target: &Target) {
    let before = SystemTime::now();
    target.refused(
        "import struct, time\n\
         attempt('clock_settime', lambda: time.clock_settime_ns(time.CLOCK_REALTIME, time.clock_gettime_ns(time.CLOCK_REALTIME)))\n\
         attempt('settimeofday', lambda: call('settimeofday', struct.pack('2q', int(time.time()) , int(time.time() % 1 * 1e6)), 0))",
    );
    if target.has_walls() {
        target.refused(
            "import struct\nattempt('the year 2001', call, 'clock_settime', 0, struct.pack('2q', 10**9, 0))\n\
             attempt('faster', call, 'adjtimex', struct.pack('I4xq', 0x4000, 11000) + bytes(192))\n\
             attempt('another clock', call, 'clock_adjtime', 0, struct.pack('I4xq', 1, 10**6) + bytes(192))",
        );
    }
    assert!(SystemTime::now() >= before, "the clock went back");
}

fn renames_the_host(target: &Target) {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    target.refused(
        "name = socket.gethostname().encode()\nattempt('host', call, 'sethostname', name, len(name))\n\
         attempt('domain', call, 'setdomainname', b'(none)', 6)\nattempt('file', opened, '/proc/sys/kernel/hostname')",
    );
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), name);
}

/// With the command that only says what Ctrl-Alt-Del does.
fn restarts_the_host(target: &Target) {
    target
        .tries(
            "for command in (0, 0x89abcdef): attempt(hex(command), call, 'reboot', 0xfee1dead, 672274793, command, 0)",
        )
        .all_refused_with(WALL);
}

fn swaps_and_counts_quotas(target: &Target) {
    target
        .tries(
            "attempt('swapon', call, 'swapon', b'/tmp/swap\\0', 0)\nattempt('swapoff', call, 'swapoff', b'/dev/vdb\\0')\n\
             attempt('quotactl', call, 'quotactl', 0x80000200, b'/dev/vda\\0', 0, 0)\nattempt('quotactl_fd', call, 'quotactl_fd', 0, 0x80000200, 0, 0)\n\
             attempt('acct', call, 'acct', b'/tmp/acct\\0')",
        )
        .all_refused_with(WALL);
}

fn watches_all_files(target: &Target) {
    target.refused("attempt('fanotify', call, 'fanotify_init', 0, 0)\nattempt('content', call, 'fanotify_init', 4, 0)");
}

fn touches_ports_of_the_machine(target: &Target) {
    target
        .tries("attempt('iopl', call, 'iopl', 3)\nattempt('ioperm', call, 'ioperm', 0x80, 1, 1)")
        .all_refused_with(WALL);
}

fn types_into_the_hosts_terminal(target: &Target) {
    target.refused(
        "import fcntl, termios\ndef push(path):\n    fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)\n    fcntl.ioctl(fd, termios.TIOCSTI, b'x')\n\
         for path in ('/dev/tty', '/dev/console', '/dev/tty0', '/dev/tty1', '/dev/pts/0', '/dev/pts/1', '/proc/1/fd/0', '/dev/ttyS0', '/dev/hvc0'):\n    attempt(path, push, path)\n\
         for fd in (0, 1, 2): attempt(fd, fcntl.ioctl, fd, termios.TIOCSTI, b'x')",
    );
}

fn calls_what_no_program_needs(target: &Target) {
    target
        .tries(
            "for name in ('nfsservctl', 'vhangup', 'uselib', '_sysctl', 'lookup_dcookie', 'pivot_root', 'afs_syscall', 'create_module', 'get_kernel_syms', 'query_module', 'open_by_handle_at', 'kexec_load', 'migrate_pages', 'move_pages', 'set_mempolicy_home_node', 'landlock_nothing'):\n    \
             attempt(name, call, name, 0, 0, 0, 0, 0)",
        )
        .all_refused_with(&["EPERM", "ENOSYS"]);
}

/// fs.aio-max-nr is counted for the whole host.
fn takes_contexts_that_the_host_has_few_of(target: &Target) {
    let before = fs::read_to_string("/proc/sys/fs/aio-nr").unwrap_or_default();
    target.refused("context = ctypes.c_long(0)\nattempt('aio', call, 'io_setup', 65536, ctypes.byref(context))");
    let printed = target.python(
        "many = []\ntry:\n    while len(many) < 200: many.append(os.openpty())\nexcept OSError: pass\nprint(len(many), 'terminals')",
    );
    let terminals: usize = printed.split(' ').next().unwrap().parse().unwrap();
    assert!(terminals <= 64, "{terminals} terminals, before {before} contexts");
}

/// Runs something that takes all it can get and keeps it, and gives how much that was.
fn hoard(target: &Target, sandbox: &str, code: &str) -> u64 {
    let walled = target.walled();
    let program = crate::inside::program(&format!(
        "import struct, time\nready, tell = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n    for fd in (0, 1, 2): os.close(fd)\n    taken = 0\n    \
         try:\n        while taken < 400000:\n            {}\n            taken += 1\n    except OSError: pass\n    \
         os.write(tell, str(taken).encode())\n    time.sleep(3600)\nprint(os.read(ready, 9).decode())",
        code.replace('\n', "\n            ")
    ));
    let printed = walled.wait(walled.api.python(sandbox, &program));
    printed.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| panic!("{printed}"))
}

/// What is taken is charged to whoever made the sandbox's user namespace, too.
fn takes_watches_that_the_host_has_few_of(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let taken = hoard(target, walled.id(), "call('inotify_init1', 0)");
    assert!(taken > 4, "{taken}: programs watch files");
    assert!(neighbour.python("print('watching', call('inotify_init1', 0))").contains("watching"), "after {taken}");
    assert!(taken <= 64, "{taken} instances of the 128 that the host's user has");
}

fn takes_signals_that_the_host_has_few_of(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let queue = "if taken == 0: import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [40])\n\
                 call('rt_sigqueueinfo', os.getpid(), 40, struct.pack('iii', 40, 0, -1) + bytes(116))";
    let taken = hoard(target, walled.id(), queue);
    let timer = "print('ticking', call('timer_create', 1, 0, ctypes.byref(ctypes.c_int())))";
    assert!(neighbour.python(timer).contains("ticking"), "after {taken}");
    assert!(taken <= 4096, "{taken} signals");
}

/// With as many in flight as a process may have open, nobody of the user's may send more (unix(7)). The node sends some to
/// whatever builds a sandbox.
fn takes_descriptors_in_flight_that_its_user_has_few_of(target: &Target) {
    let walled = target.walled();
    let id = walled.acquire(serde_json::json!({"limits": {"open_files": 65536}}));
    let send = "if taken == 0: import array; kept = []\n\
                kept.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))\n\
                kept[-1][0].setblocking(False)\n\
                try:\n    while True: kept[-1][0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [kept[-1][1].fileno()] * 250))])\n\
                except BlockingIOError: pass";
    hoard(target, &id, send);
    walled.neighbour().assert_answers();
}
