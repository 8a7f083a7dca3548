//! The walls, tried from inside.

use serde_json::json;

use crate::harness::{Api, Server};

async fn inside() -> (Server, Api, String) {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    (server, api, id)
}

/// Python that makes one system call and prints the error's name.
fn syscall(number: i64, arguments: &str) -> String {
    format!(
        "import ctypes, errno\nlibc = ctypes.CDLL(None, use_errno=True)\n\
         r = libc.syscall({number}, {arguments})\n\
         print(errno.errorcode[ctypes.get_errno()] if r == -1 else f'allowed {{r}}')"
    )
}

#[tokio::test]
async fn user_has_no_root_no_capabilities_and_cannot_gain_any() {
    let (_server, api, id) = inside().await;
    assert_eq!(api.shell(&id, "id -u; id -g").await, "1000\n1000\n");
    let status = api.shell(&id, "cat /proc/self/status").await;
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(status.contains(&format!("{set}:\t0000000000000000")), "{status}");
    }
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let sudo = api.shell(&id, "su -c id; mount -t tmpfs x /tmp; echo done").await;
    assert!(!sudo.contains("uid=0"), "{sudo}");
}

#[tokio::test]
async fn ids_on_the_host_are_of_no_user_and_of_no_other_sandbox() {
    let (server, api, id) = inside().await;
    let other = api.acquire().await;
    let map = |id: String| {
        let api = api.clone();
        async move { api.shell(&id, "cat /proc/self/uid_map").await }
    };
    let (first, second) = (map(id).await, map(other).await);
    assert_ne!(first, second);
    for text in [first, second] {
        let fields: Vec<u64> = text.split_whitespace().map(|word| word.parse().unwrap()).collect();
        assert!(fields[0] == 0 && fields[1] >= 0x7000_0000 && fields[2] == 65_536, "{text}");
    }
    drop(server);
}

#[tokio::test]
async fn nothing_of_the_host_is_to_be_seen_but_usr() {
    let (server, api, id) = inside().await;
    let root = api.shell(&id, "ls -A /").await;
    let expected = ["bin", "dev", "etc", "home", "lib", "proc", "run", "sbin", "tmp", "usr", "var", "workspace"];
    for name in root.split_whitespace() {
        assert!(expected.contains(&name) || name.starts_with("lib"), "{root}");
    }
    let data = server.data_dir.display();
    let peek = format!(
        "ls -A /root /home {data} /sys /var /mnt 2>&1; cat /etc/shadow /etc/passwd; ls /proc/1/root /proc/1/fd"
    );
    let seen = api.shell(&id, &peek).await;
    assert!(!seen.contains("jwt") && !seen.contains("daemon:x"), "{seen}");
    assert!(seen.contains("Permission denied") || seen.contains("No such file"), "{seen}");
    assert_eq!(api.shell(&id, "hostname; ls -A /workspace /home/user /tmp").await.lines().next(), Some("sandbox"));
}

#[tokio::test]
async fn environment_and_descriptors_of_the_server_do_not_leak() {
    let (_server, api, id) = inside().await;
    let environment = api.shell(&id, "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'").await;
    assert!(!environment.contains("must-not-leak") && !environment.contains("JWT"), "{environment}");
    let open = api.shell(&id, "ls -l /proc/self/fd | grep -v /proc/ | awk 'NR>1 {print $9, $11}'").await;
    assert!(open.lines().count() <= 3, "{open}");
    assert!(!open.contains("socket"), "{open}");
}

#[tokio::test]
async fn system_is_read_only_and_only_scratch_is_writable() {
    let (_server, api, id) = inside().await;
    let tried = "for f in /x /usr/x /etc/x /usr/bin/x /proc/sys/kernel/hostname /proc/sysrq-trigger /dev/x; do \
                 (echo 1 > $f) 2>/dev/null && echo wrote $f; done; \
                 for f in /workspace/x /tmp/x /home/user/x /var/tmp/x /dev/shm/x /run/x; do echo 1 > $f || echo no $f; done";
    assert_eq!(api.shell(&id, tried).await, "");
}

#[tokio::test]
async fn there_is_no_network_but_loopback() {
    let (server, api, id) = inside().await;
    let port = server.url.rsplit(':').next().unwrap();
    let code = format!(
        "import socket\n\
         print([name for _, name in socket.if_nameindex()])\n\
         for target in (('127.0.0.1', {port}), ('1.1.1.1', 53), ('169.254.169.254', 80)):\n\
         \x20   try:\n        socket.create_connection(target, 1); print('reached', target)\n\
         \x20   except OSError as error: print(type(error).__name__)\n\
         s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname(), 1); print('own loopback')"
    );
    let seen = api.python(&id, &code).await;
    assert!(seen.starts_with("['lo']") && !seen.contains("reached") && seen.contains("own loopback"), "{seen}");
}

#[tokio::test]
async fn processes_of_others_are_invisible() {
    let (_server, api, id) = inside().await;
    let other = api.acquire().await;
    api.shell(&other, "setsid sleep 4242 >/dev/null 2>&1 &").await;
    let seen = api.shell(&id, "cat /proc/*/cmdline | tr '\\0' ' '").await;
    assert!(!seen.contains("4242") && !seen.contains("cloud-sandbox"), "{seen}");
    assert!(api.shell(&id, "ls -d /proc/[0-9]* | wc -l").await.trim().parse::<u32>().unwrap() < 6);
}

#[tokio::test]
async fn files_of_one_sandbox_are_not_in_another() {
    let (_server, api, id) = inside().await;
    api.shell(&id, "for d in /tmp /workspace /dev/shm /var/tmp /home/user; do echo mine > $d/mine; done").await;
    let other = api.acquire().await;
    assert_eq!(api.shell(&other, "ls /tmp /workspace /dev/shm /var/tmp /home/user | grep mine").await, "");
}

#[tokio::test]
async fn system_calls_that_break_out_are_refused() {
    let (_server, api, id) = inside().await;
    let (numbers, clone_newuser) = (
        [
            ("unshare", 272, "0x10000000", "EPERM"),
            ("mount", 165, "0, 0, 0, 0, 0", "EPERM"),
            ("setns", 308, "0, 0", "EPERM"),
            ("bpf", 321, "0, 0, 0", "EPERM"),
            ("keyctl", 250, "0, 0, 0, 0, 0", "EPERM"),
            ("init_module", 175, "0, 0, 0", "EPERM"),
            ("perf_event_open", 298, "0, 0, 0, 0, 0", "EPERM"),
            ("io_uring_setup", 425, "1, 0", "ENOSYS"),
            ("clone3", 435, "0, 0", "ENOSYS"),
        ],
        ("clone with CLONE_NEWUSER", 56, "0x10000011, 0, 0, 0, 0", "EPERM"),
    );
    if std::env::consts::ARCH != "x86_64" {
        return;
    }
    for (name, number, arguments, expected) in numbers.into_iter().chain([clone_newuser]) {
        assert_eq!(api.python(&id, &syscall(number, arguments)).await.trim(), expected, "{name}");
    }
}

#[tokio::test]
async fn agent_cannot_be_traced_read_or_reached() {
    let (_server, api, id) = inside().await;
    let tried =
        api.shell(&id, "cat /proc/1/mem /proc/1/maps /proc/1/environ; ls -l /proc/1/fd /proc/1/exe; ss -xl").await;
    assert!(!tried.contains("agent.sock") && !tried.contains("heap"), "{tried}");
    // PTRACE_ATTACH of the first process
    assert_eq!(api.python(&id, &syscall(101, "16, 1, 0, 0")).await.trim(), "EPERM");
    let sockets = api.shell(&id, "find / -xdev -type s 2>/dev/null; cut -c1-200 /proc/net/unix | wc -l").await;
    assert_eq!(sockets.lines().filter(|line| line.starts_with('/')).count(), 0, "{sockets}");
}

#[tokio::test]
async fn what_the_whole_host_has_few_of_is_not_one_sandboxs_to_take() {
    let (_server, api, id) = inside().await;
    let terminals = "import os\nn = 0\ntry:\n    while True: os.openpty(); n += 1\nexcept OSError: print(n <= 64)";
    assert_eq!(api.python(&id, terminals).await, "True\n");
    if std::env::consts::ARCH == "x86_64" {
        assert_eq!(api.python(&id, &syscall(206, "1, 0")).await.trim(), "ENOSYS", "io_setup");
    }
}

#[tokio::test]
async fn devices_are_the_usual_few() {
    let (_server, api, id) = inside().await;
    // asked of each file itself: a folder's list does not know what is bound over its entries
    let line = "for f in /dev/* /dev/pts/*; do { test -c $f || test -b $f; } && echo $f; done";
    let devices = api.shell(&id, line).await;
    let known = ["full", "null", "ptmx", "pts/ptmx", "random", "stdin", "tty", "urandom", "zero"];
    for path in devices.lines() {
        assert!(known.iter().any(|name| path == format!("/dev/{name}")), "{devices}");
    }
    assert!(devices.contains("/dev/null\n") && devices.contains("/dev/urandom\n"), "{devices}");
    let made = api.shell(&id, "mknod /tmp/m b 8 0 && echo made").await;
    assert!(made.contains("not permitted") || made.contains("Permission denied"), "{made}");
}

/// Under Landlock nobody makes a device, also not the device 0:0, which is none and else anybody's to make.
#[tokio::test]
async fn second_wall_around_files_stands_where_the_first_has_a_door() {
    let (_server, api, id) = inside().await;
    let code = "import os, stat\n\
                for folder in ('/tmp', '/workspace', '/dev/shm', '/run'):\n\
                \x20   try: os.mknod(folder + '/none', 0o600 | stat.S_IFCHR, 0); print('made in', folder)\n\
                \x20   except OSError as error: print(error.strerror)";
    assert_eq!(api.python(&id, code).await, "Permission denied\n".repeat(4));
}

/// What programs do with files, devices, `/proc` and sockets goes on behind Landlock.
#[tokio::test]
async fn second_wall_is_in_nobodys_way() {
    let (_server, api, id) = inside().await;
    let files = "set -e; cd /tmp; mkdir a b; echo 1 > a/x; mv a/x b/y; ln b/y a/z; mv a /workspace/; mkfifo f; ln -s f g; \
                 mv b c; truncate -s 0 c/y; cat /workspace/a/z; echo 7 > /dev/null; echo 300 > /proc/self/oom_score_adj; \
                 cat /proc/self/oom_score_adj; echo hidden | cat /dev/stdin > /proc/self/fd/1; \
                 cp /bin/echo ./own; ./own run; kill -0 $$; rm -r c f g own; echo done";
    assert_eq!(api.shell(&id, files).await, "1\n300\nhidden\nrun\ndone\n");
    let code = "import os, pty, socket, subprocess, termios, fcntl, multiprocessing.shared_memory as shared\n\
                ours, theirs = pty.openpty()\n\
                fcntl.ioctl(theirs, termios.TIOCSWINSZ, bytes(8))\n\
                print(os.isatty(theirs), os.ttyname(theirs).startswith('/dev/pts/'))\n\
                for name in ('\\0abstract', '/tmp/named'):\n\
                \x20   server = socket.socket(socket.AF_UNIX); server.bind(name); server.listen()\n\
                \x20   client = socket.socket(socket.AF_UNIX); client.connect(name)\n\
                memory = shared.SharedMemory(create=True, size=4096); memory.unlink()\n\
                child = subprocess.Popen(['sleep', '60']); child.terminate(); print(child.wait())";
    assert_eq!(api.python(&id, code).await, "True True\n-15\n");
}

#[tokio::test]
async fn machine_and_boot_have_ids_of_each_sandbox_alone() {
    let (_server, api, id) = inside().await;
    let other = api.acquire().await;
    let line = "cat /etc/machine-id /proc/sys/kernel/random/boot_id; hostname";
    let (first, second) = (api.shell(&id, line).await, api.shell(&other, line).await);
    let ids = |text: &str| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let (first, second) = (ids(&first), ids(&second));
    let hosts = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!((first.len(), first[0].len(), first[1].len()), (3, 32, 36), "{first:?}");
    assert!(first[0] != second[0] && first[1] != second[1] && first[1] != hosts.trim(), "{first:?} {second:?}");
    assert_eq!(api.shell(&id, "cat /proc/sys/kernel/random/boot_id").await.trim(), first[1], "it stays the same");
    let changed = api.shell(&id, "echo x > /proc/sys/kernel/random/boot_id; echo x > /etc/machine-id; echo $?").await;
    assert_ne!(changed.lines().last(), Some("0"), "{changed}");
}

#[tokio::test]
async fn proc_tells_nothing_of_the_hosts_disks_modules_and_command_line() {
    let (_server, api, id) = inside().await;
    let silent = "cat /proc/cmdline /proc/modules /proc/partitions /proc/diskstats /proc/key-users /proc/keys \
                  /proc/interrupts /proc/kcore /proc/sched_debug 2>/dev/null; \
                  ls /proc/acpi /proc/driver /proc/dynamic_debug /proc/pressure /proc/scsi 2>/dev/null | grep -v :$ | grep .; true";
    assert_eq!(api.shell(&id, silent).await, "");
    let code = "import os\nprint(os.cpu_count() >= len(os.sched_getaffinity(0)) > 0, os.getloadavg()[0] >= 0)";
    assert_eq!(api.python(&id, code).await, "True True\n", "what programs ask for is there");
}

#[tokio::test]
async fn used_sandbox_is_never_handed_out_again() {
    let (_server, api, id) = inside().await;
    api.shell(&id, "echo secret > /workspace/left").await;
    api.release(&id).await;
    for _ in 0..4 {
        let next = api.acquire().await;
        assert_ne!(next, id);
        let listed = api.execute(&next, json!({"command": "ls -A /workspace"})).await;
        assert_eq!(listed["stdout"], "");
        api.release(&next).await;
    }
}
