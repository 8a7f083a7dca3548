//! Rights that the sandbox's user does not have, taken.

use crate::{attempt::attempts, target::Target};

attempts![
    #[proved]
    has_a_capability,
    #[proved]
    raises_its_capabilities,
    keeps_capabilities_through_an_exec,
    #[proved]
    becomes_root,
    runs_programs_that_set_the_user_id,
    makes_a_program_that_sets_the_user_id,
    makes_a_program_in_memory_that_sets_the_user_id,
    #[proved]
    gives_a_program_capabilities,
    #[proved]
    gives_a_file_to_another_user,
    allows_new_privileges_again,
    takes_off_the_filter_of_system_calls,
    makes_system_calls_of_another_machine,
    raises_its_limits,
    #[proved]
    takes_the_processor_for_itself,
    protects_itself_from_the_memory_limit,
    #[proved]
    runs_without_randomised_addresses,
];

fn has_a_capability(target: &Target) {
    target.refused(
        "for line in open('/proc/self/status'):\n    \
         if line.startswith('Cap'): attempt(line[:6], lambda: int(line.split()[1], 16) or failed(errno.EPERM, line))",
    );
}

fn raises_its_capabilities(target: &Target) {
    target.refused(
        "import struct\n\
         attempt('capset', call, 'capset', struct.pack('Ii', 0x20080522, 0), struct.pack('6I', *[0xffffffff, 0xffffffff, 0] * 2))\n\
         seen = ctypes.create_string_buffer(24)\ncall('capget', struct.pack('Ii', 0x20080522, 0), seen)\nwords = struct.unpack('6I', seen.raw)\n\
         attempt('sys_admin', lambda: call('capset', struct.pack('Ii', 0x20080522, 0), struct.pack('6I', words[0] | 1 << 21, words[1] | 1 << 21, *words[2:])))\n\
         attempt('ambient', call, 'prctl', 47, 2, 21, 0, 0)",
    );
}

fn keeps_capabilities_through_an_exec(target: &Target) {
    let printed = target.shell("setpriv --ambient-caps +all --inh-caps +all grep Cap /proc/self/status; capsh --print; grep Cap /proc/self/status");
    let zeros = printed.matches("0000000000000000").count();
    // not every kernel lists the ambient ones
    assert!(zeros >= 4 && !printed.contains("ffffffff"), "{printed}");
}

fn becomes_root(target: &Target) {
    target.refused(
        "for name, arguments in {'setuid': [0], 'setgid': [0], 'setresuid': [0, 0, 0], 'setresgid': [0, 0, 0], 'setreuid': [0, 0], 'setgroups': [0, 0]}.items():\n    \
         attempt(name, in_child, lambda: call(name, *arguments))\n\
         def of_files():\n    call('setfsuid', 0)\n    return failed(errno.EPERM, 'fs') if call('setfsuid', -1) != 0 else 'root'\n\
         attempt('setfsuid', of_files)",
    );
}

fn runs_programs_that_set_the_user_id(target: &Target) {
    let printed = target.shell(
        "su -c id </dev/null; su root -c id </dev/null; sudo -n id; pkexec id </dev/null; mount -t tmpfs none /tmp; newgrp root </dev/null; echo tried",
    );
    assert!(printed.contains("tried") && !printed.contains("uid=0"), "{printed}");
    target.refused(
        "seen = 0\nfor folder in ('/usr/bin', '/usr/sbin', '/usr/lib', '/usr/libexec', '/usr/local/bin'):\n    \
         for top, _, names in os.walk(folder):\n        \
         for path in (os.path.join(top, name) for name in names):\n            \
         if os.path.isfile(path) and os.stat(path).st_mode & 0o6000:\n                \
         attempt(path, lambda: failed(errno.EPERM, path) if os.statvfs(path).f_flag & os.ST_NOSUID else 'may set ids')\n        \
         if folder == '/usr/lib': break\n\
         attempt('usr', lambda: failed(errno.EPERM, 'usr') if os.statvfs('/usr').f_flag & os.ST_NOSUID else 'may set ids')",
    );
}

fn makes_a_program_that_sets_the_user_id(target: &Target) {
    let printed = target.shell(
        "for d in /workspace /tmp /run /dev/shm /var/tmp /home/user; do cp /usr/bin/id $d/own; chown 0:0 $d/own; chmod 6755 $d/own; $d/own; done",
    );
    assert_eq!(printed.matches("uid=1000").count(), 6, "{printed}");
    assert!(!printed.contains("uid=0") && !printed.contains("euid="), "{printed}");
}

fn makes_a_program_in_memory_that_sets_the_user_id(target: &Target) {
    let printed = target.python(
        "fd = os.memfd_create('own')\nos.write(fd, open('/usr/bin/id', 'rb').read())\nos.fchmod(fd, 0o6755)\n\
         attempt('chown', os.fchown, fd, 0, 0)\n\
         if os.fork() == 0: os.execve(f'/proc/self/fd/{fd}', ['id'], {})\nos.wait()",
    );
    assert!(printed.contains("uid=1000") && !printed.contains("uid=0") && !printed.contains("THROUGH"), "{printed}");
}

fn gives_a_program_capabilities(target: &Target) {
    target.refused(
        "import shutil, struct, tempfile\npath = tempfile.mkdtemp() + '/own'\nshutil.copy('/usr/bin/id', path)\n\
         value = struct.pack('5I', 0x02000001, 0xffffffff, 0, 0xffffffff, 0)\n\
         attempt('security.capability', os.setxattr, path, 'security.capability', value)\n\
         attempt('trusted', os.setxattr, path, 'trusted.overlay.opaque', b'y')",
    );
}

fn gives_a_file_to_another_user(target: &Target) {
    target.refused(
        "import tempfile\npath = tempfile.mkdtemp() + '/own'\nopen(path, 'w').close()\n\
         for owner in (0, 1, 65534, 65535): attempt(owner, os.chown, path, owner, owner)",
    );
}

fn allows_new_privileges_again(target: &Target) {
    target.refused(
        "attempt('no_new_privs', call, 'prctl', 38, 0, 0, 0, 0)\nattempt('securebits', call, 'prctl', 28, 0x2f, 0, 0, 0)\n\
         attempt('keepcaps', lambda: call('prctl', 39, 0, 0, 0, 0) or failed(errno.EPERM, 'still 0')) if call('prctl', 39, 0, 0, 0, 0) == 0 else None",
    );
    assert!(target.python("print('gains nothing:', call('prctl', 39, 0, 0, 0, 0))").starts_with("gains nothing: 1\n"));
}

fn takes_off_the_filter_of_system_calls(target: &Target) {
    target.refused(
        "import struct\nattempt('off', call, 'prctl', 22, 0, 0, 0, 0)\n\
         allow = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))\n\
         class Program(ctypes.Structure): _fields_ = [('length', ctypes.c_ushort), ('filter', ctypes.c_void_p)]\n\
         program = Program(1, ctypes.addressof(allow))\n\
         def more():\n    call('seccomp', 1, 0, ctypes.byref(program))\n    call('unshare', 0x10000000)\n\
         attempt('a filter that allows all', in_child, more)",
    );
    assert!(target.shell("grep Seccomp: /proc/self/status").contains('2'));
}

/// System calls have other numbers in the 32-bit and in the x32 convention: a filter that knows its own only is passed by.
fn makes_system_calls_of_another_machine(target: &Target) {
    // mov eax, 310 (unshare); mov ebx, CLONE_NEWUSER; int 0x80; ret, and the same with x32's number
    let attack = "import mmap, platform\n\
         def run(code):\n    memory = mmap.mmap(-1, 4096, prot=7)\n    memory.write(code)\n    \
         address = ctypes.addressof(ctypes.c_char.from_buffer(memory))\n    \
         got = ctypes.CFUNCTYPE(ctypes.c_int)(address)()\n    \
         if got < 0: failed(-got, 'machine code')\n\
         if platform.machine() == 'x86_64':\n    \
         attempt('32 bit', in_child, lambda: run(bytes.fromhex('53b836010000bb00000010cd805bc3')))\n    \
         attempt('x32', in_child, lambda: failed(ctypes.get_errno() or errno.EPERM, 'x32') if _libc.syscall(ctypes.c_long(0x40000000 + NUMBERS['unshare']), ctypes.c_long(0x10000000)) == -1 else None)\n\
         else:\n    attempt('there are no others', failed, errno.ENOSYS, platform.machine())";
    target.refused(attack);
}

fn raises_its_limits(target: &Target) {
    target.refused(
        "import resource\nfor name in ('NPROC', 'NOFILE', 'MEMLOCK', 'CORE', 'NICE', 'RTPRIO', 'MSGQUEUE'):\n    \
         kind = getattr(resource, f'RLIMIT_{name}')\n    soft, hard = resource.getrlimit(kind)\n    \
         if hard != -1: attempt(name, in_child, lambda: resource.setrlimit(kind, (soft, hard + 1)))",
    );
}

fn takes_the_processor_for_itself(target: &Target) {
    target.refused(
        "attempt('nice', in_child, lambda: os.nice(-5))\n\
         for policy in (os.SCHED_FIFO, os.SCHED_RR): attempt(policy, in_child, lambda: os.sched_setscheduler(0, policy, os.sched_param(1)))\n\
         attempt('ioprio', in_child, lambda: call('ioprio_set', 1, 0, 1 << 13))",
    );
}

fn protects_itself_from_the_memory_limit(target: &Target) {
    target.refused(
        "def write(value):\n    fd = os.open('/proc/self/oom_score_adj', os.O_WRONLY)\n    os.write(fd, value)\n\
         attempt('-1000', in_child, lambda: write(b'-1000'))\nattempt('-500', in_child, lambda: write(b'-500'))",
    );
}

fn runs_without_randomised_addresses(target: &Target) {
    target.refused(
        "for flag in (0x40000, 0x400000, 0x100000): attempt(hex(flag), in_child, lambda: call('personality', flag))",
    );
}
