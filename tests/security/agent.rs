//! The agent: the sandbox's first process, which has the same user as the attacker.

use std::fs;

use serde_json::json;

use crate::{attempt::attempts, harness::children, target::Target};

attempts![
    kills_it,
    stops_it,
    kills_everything_it_sees,
    sends_it_signals_of_another_sender,
    #[proved]
    traces_it,
    #[proved]
    reads_its_memory,
    #[proved]
    reads_where_its_memory_is,
    writes_its_memory,
    #[proved]
    compares_itself_with_it,
    #[proved]
    takes_its_descriptors,
    overwrites_its_program,
    runs_its_program_once_more,
    #[proved]
    starves_it,
    #[proved]
    changes_its_limits,
    makes_it_the_first_to_die,
    finds_its_socket,
    speaks_in_its_place_on_a_contexts_channel,
    answers_for_a_process_that_has_ended,
    becomes_its_child_and_stays,
];

/// A process that must not be touched: the agent inside, the host's own where there is no wall.
fn victim(target: &Target) -> String {
    let pid = if target.has_walls() { 1 } else { target.host.process() };
    format!("VICTIM = {pid}\n")
}

fn kills_it(target: &Target) {
    target.shell("for s in KILL TERM INT QUIT SEGV ABRT HUP USR1 PIPE ALRM; do kill -$s 1; done; kill -KILL $PPID");
    target.walled().assert_answers();
}

fn stops_it(target: &Target) {
    target.shell("for s in STOP TSTP TTIN TTOU; do kill -$s 1 $PPID; done");
    target.walled().assert_answers();
}

fn kills_everything_it_sees(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    neighbour.python("if os.fork() == 0:\n    os.setsid()\n    for fd in (0, 1, 2): os.close(fd)\n    os.execvp('sleep', ['sleep', '600'])");
    target.tries(
        "import signal\nfor pid in range(1, 70000):\n    \
         if pid != os.getpid():\n        \
         try: os.kill(pid, signal.SIGKILL)\n        except OSError: pass",
    );
    walled.execute(json!({"command": "kill -9 -1"}));
    walled.assert_answers();
    assert!(
        neighbour.python("print([read(f'/proc/{pid}/cmdline') for pid in processes()])").contains("600"),
        "the neighbour's process lives"
    );
}

fn sends_it_signals_of_another_sender(target: &Target) {
    target.tries(
        "import struct\nfor number in (9, 15, 19):\n    info = struct.pack('iii', number, 0, -1) + bytes(116)\n    \
         attempt(f'queue {number}', call, 'rt_sigqueueinfo', 1, number, info)\n    attempt(f'thread {number}', call, 'rt_tgsigqueueinfo', 1, 1, number, info)\n    \
         attempt(f'descriptor {number}', lambda: call('pidfd_send_signal', call('pidfd_open', 1, 0), number, 0, 0))",
    );
    target.walled().assert_answers();
}

fn traces_it(target: &Target) {
    // PTRACE_SEIZE stops nothing, so that it does no harm where there is no wall
    target.refused(&format!(
        "{}attempt('seize', in_child, lambda: call('ptrace', 0x4206, VICTIM, 0, 0))\nif VICTIM == 1: attempt('attach', call, 'ptrace', 16, VICTIM, 0, 0)",
        victim(target)
    ));
}

fn reads_its_memory(target: &Target) {
    target.refused(&format!(
        "{}for name in ('stack', 'syscall', 'pagemap', 'mem'): attempt(name, read, f'/proc/{{VICTIM}}/{{name}}')\n\
         import struct\nhere = ctypes.create_string_buffer(16)\nlocal = struct.pack('2Q', ctypes.addressof(here), 16)\n\
         for address in (0x400000, 0x200000, 0x7ffff7dd0000): attempt(hex(address), call, 'process_vm_readv', VICTIM, local, 1, struct.pack('2Q', address, 16), 1, 0)\n\
         attempt('exe', os.readlink, f'/proc/{{VICTIM}}/exe')",
        victim(target)
    ));
}

fn reads_where_its_memory_is(target: &Target) {
    target.refused(&format!(
        "{}for name in ('maps', 'smaps', 'auxv', 'environ'): attempt(name, read, f'/proc/{{VICTIM}}/{{name}}')",
        victim(target)
    ));
}

fn writes_its_memory(target: &Target) {
    target.refused(
        "import struct\nhere = ctypes.create_string_buffer(16)\nlocal = struct.pack('2Q', ctypes.addressof(here), 16)\n\
         for address in (0x400000, 0x200000, 0x1000000): attempt(hex(address), call, 'process_vm_writev', 1, local, 1, struct.pack('2Q', address, 16), 1, 0)\n\
         for name in ('mem', 'clear_refs', 'coredump_filter', 'comm'): attempt(name, opened, f'/proc/1/{name}')\n\
         attempt('madvise', lambda: call('process_madvise', call('pidfd_open', 1, 0), struct.pack('2Q', 0x400000, 4096), 1, 21, 0))",
    );
    target.walled().assert_answers();
}

fn compares_itself_with_it(target: &Target) {
    target.refused(&format!(
        "{}for kind in range(7): attempt(kind, call, 'kcmp', VICTIM, os.getpid(), kind, 0, 0)",
        victim(target)
    ));
}

fn takes_its_descriptors(target: &Target) {
    target.refused(&format!(
        "{}for fd in range(8): attempt(fd, lambda: call('pidfd_getfd', call('pidfd_open', VICTIM, 0), fd, 0))",
        victim(target)
    ));
}

/// As against runc: the program that starts the user's processes, through /proc.
fn overwrites_its_program(target: &Target) {
    target.refused(
        "for pid in ('1', os.getppid()):\n    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC): attempt(f'{pid} {flags}', opened, f'/proc/{pid}/exe', flags)\n\
         attempt('list', os.listdir, '/proc/1/map_files')\nattempt('truncate', os.truncate, '/proc/1/exe', 0)",
    );
    target.walled().assert_answers();
}

fn runs_its_program_once_more(target: &Target) {
    target.refused(
        "for path in ('/proc/1/exe', '/proc/1/root/agent', '/agent'): attempt(path, in_child, lambda: os.execv(path, ['agent', '--listen-fd', '0']))",
    );
}

fn starves_it(target: &Target) {
    target.refused(&format!(
        "{}attempt('affinity', lambda: os.sched_setaffinity(VICTIM, os.sched_getaffinity(VICTIM)))\nattempt('priority', os.setpriority, os.PRIO_PROCESS, VICTIM, 0 if VICTIM > 1 else 19)\n\
         attempt('io priority', call, 'ioprio_set', 1, VICTIM, 0 if VICTIM > 1 else 3 << 13)\n\
         if VICTIM == 1:\n    attempt('scheduler', os.sched_setscheduler, 1, os.SCHED_IDLE, os.sched_param(0))\n    attempt('user', os.setpriority, os.PRIO_USER, 0, 19)\n    attempt('autogroup', opened, '/proc/1/autogroup')",
        victim(target)
    ));
}

fn changes_its_limits(target: &Target) {
    target.refused(&format!(
        "{}import resource\nattempt('limits', lambda: resource.prlimit(VICTIM, resource.RLIMIT_NOFILE, resource.prlimit(VICTIM, resource.RLIMIT_NOFILE)) if VICTIM > 1 else resource.prlimit(1, resource.RLIMIT_NOFILE, (3, 3)))",
        victim(target)
    ));
}

fn makes_it_the_first_to_die(target: &Target) {
    let walled = target.walled();
    walled.assert_answers();
    // as the host sees them: inside, the agent may not be there to be looked at
    let scores = || {
        let agents = children(walled.server.pid()).into_iter();
        agents.map(|pid| fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap()).collect::<Vec<_>>()
    };
    let before = scores();
    assert!(!before.is_empty());
    target.tries("for name in ('oom_score_adj', 'oom_adj'):\n    def write():\n        fd = os.open(f'/proc/1/{name}', os.O_WRONLY)\n        os.write(fd, b'1000')\n    attempt(name, write)").all_refused();
    assert_eq!(scores(), before);
}

fn finds_its_socket(target: &Target) {
    let printed = target.python(
        "def knock(name):\n    s = socket.socket(socket.AF_UNIX)\n    s.settimeout(2)\n    s.connect(name)\n\
         names = {line.split()[7] for line in open('/proc/net/unix').readlines()[1:] if len(line.split()) > 7}\n\
         for folder, _, files in os.walk('/'):\n    if folder.startswith(('/proc', '/usr')): continue\n    names |= {os.path.join(folder, f) for f in files if stat.S_ISSOCK(os.lstat(os.path.join(folder, f)).st_mode)}\n\
         for name in names: attempt(name, knock, name.replace('@', '\\0', 1))",
    );
    assert!(!printed.contains("THROUGH"), "{printed}");
    assert!(!printed.contains(target.host.folder().to_str().unwrap()), "the host's folder is told: {printed}");
}

/// A context's interpreter talks to the node over descriptor 3.
fn speaks_in_its_place_on_a_contexts_channel(target: &Target) {
    let walled = target.walled();
    let nonsense = "import os\nfor text in (b'{}\\n', b'\\xff\\xfe\\n', b'[' * 100000 + b'\\n', b'{\"id\": 99, \"kind\": \"done\"}\\n', b'x' * 3000000):\n    try: os.write(3, text)\n    except OSError: break";
    walled.execute(json!({"code": nonsense, "context_id": "default", "timeout_ms": 20000}));
    let after = walled.execute(json!({"code": "print(6 * 7)", "context_id": "default"}));
    assert_eq!(after["stdout"], "42\n", "{after}");
    walled.assert_answers();
}

/// A daemon that keeps the streams of what has ended may print on, and is believed to be nobody else.
fn answers_for_a_process_that_has_ended(target: &Target) {
    let walled = target.walled();
    let first = walled.execute(json!({"command": "setsid sh -c 'for i in $(seq 200); do echo forged; done' & exit 3"}));
    assert_eq!(first["exit_code"], 3, "{first}");
    let second = walled.execute(json!({"command": "echo mine"}));
    assert_eq!((&second["stdout"], &second["exit_code"]), (&json!("mine\n"), &json!(0)), "{second}");
}

fn becomes_its_child_and_stays(target: &Target) {
    let walled = target.walled();
    let id = walled.acquire(json!({}));
    let line = "for i in 1 2 3 4 5; do (setsid nohup sh -c 'trap \"\" TERM HUP INT; while :; do sleep 1; done' >/dev/null 2>&1 &); done; echo left";
    assert_eq!(walled.wait(walled.api.shell(&id, line)), "left\n");
    walled.release(&id);
}
