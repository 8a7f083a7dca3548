//! Sandboxes of others on the same node.

use serde_json::json;

use crate::{
    attempt::attempts,
    inside::GOT_THROUGH,
    target::{Neighbour, Target},
};

attempts![
    finds_their_processes,
    searches_all_files_for_theirs,
    connects_to_their_ports,
    connects_to_their_abstract_sockets,
    attaches_their_shared_memory,
    reads_their_message_queues,
    opens_their_semaphores_and_files_of_shared_memory,
    finds_what_the_last_tenant_left,
    has_the_same_ids_on_the_host,
    uses_their_sandbox_by_its_id,
    reads_their_output_and_files_by_its_id,
    releases_their_sandbox,
    signs_a_file_of_theirs,
];

/// Leaves something with the secret in the neighbour's sandbox, in a process that stays.
fn plant<'a>(target: &'a Target, daemon: &str) -> Neighbour<'a> {
    let neighbour = target.walled().neighbour();
    let told = neighbour.python(&format!(
        "SECRET = {:?}\nready, tell = os.pipe()\nif os.fork() == 0:\n    os.setsid()\n    for fd in (0, 1, 2): os.close(fd)\n    \
         {}\n    os.write(tell, b'x')\n    import time\n    time.sleep(3600)\nos.close(tell)\nprint(os.read(ready, 1))",
        target.host.secret,
        daemon.replace('\n', "\n    ")
    ));
    assert!(told.starts_with("b'x'"), "{told}");
    neighbour
}

fn finds_their_processes(target: &Target) {
    let neighbour =
        plant(target, "if os.fork() == 0: os.execve('/usr/bin/sleep', [SECRET, '3600'], {'SECRET': SECRET})");
    let printed = target.python("for pid in processes():\n    for name in ('cmdline', 'environ', 'status', 'maps'): look(f'/proc/{pid}/{name}')\nprint('others', len(processes()))");
    // where the agent is to be seen, it is the only one
    let alone = ["others 0\n", "others 1\n"].iter().any(|others| printed.contains(others));
    assert!(alone, "{GOT_THROUGH}: {printed}");
    neighbour.assert_answers();
}

fn searches_all_files_for_theirs(target: &Target) {
    let _neighbour = plant(
        target,
        "for folder in ('/tmp', '/workspace', '/dev/shm', '/var/tmp', '/home/user', '/run'): open(f'{folder}/left', 'w').write(SECRET)",
    );
    let printed = target.python(
        "seen = 0\nfor folder, folders, files in os.walk('/'):\n    folders[:] = [f for f in folders if os.path.join(folder, f) not in ('/proc', '/usr', '/etc')]\n    \
         for name in files:\n        path = os.path.join(folder, name)\n        if stat.S_ISREG(os.lstat(path).st_mode): look(path); seen += name == 'left'\nprint('seen', seen)",
    );
    assert!(printed.contains("seen 0\n"), "{printed}");
}

fn connects_to_their_ports(target: &Target) {
    let neighbour = plant(
        target,
        "s = socket.create_server(('0.0.0.0', 45321))\nif os.fork() == 0:\n    while True: s.accept()[0].sendall(SECRET.encode())",
    );
    target.refused("for host in ('127.0.0.1', '0.0.0.0', socket.gethostname()): attempt(host, lambda: socket.create_connection((host, 45321), 2).recv(64))");
    assert!(
        neighbour
            .python("print(socket.create_connection(('127.0.0.1', 45321), 9).recv(64))")
            .contains(&target.host.secret)
    );
}

fn connects_to_their_abstract_sockets(target: &Target) {
    let neighbour = plant(
        target,
        "s = socket.socket(socket.AF_UNIX)\ns.bind('\\0theirs')\ns.listen()\nif os.fork() == 0:\n    while True: s.accept()[0].sendall(SECRET.encode())",
    );
    let knock = "def knock():\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0theirs')\n    return s.recv(64)\nattempt('knock', knock)";
    target.refused(knock);
    assert!(neighbour.python(knock).contains(&target.host.secret));
}

fn attaches_their_shared_memory(target: &Target) {
    let shared = "libc = ctypes.CDLL(None, use_errno=True)\nlibc.shmat.restype = ctypes.c_void_p\n\
                  def attach(flags):\n    id = libc.shmget(0x5ec2e7, 4096, flags)\n    if id < 0: failed(ctypes.get_errno(), 'shmget')\n    return libc.shmat(id, None, 0)\n";
    let neighbour = plant(target, &format!("{shared}ctypes.memmove(attach(0o1666), SECRET.encode(), len(SECRET))"));
    let look = "attempt('attach', lambda: ctypes.string_at(attach(0), 39))";
    target.refused(&format!("{shared}{look}\nfor id in range(200): attempt(id, lambda: failed(ctypes.get_errno(), 'shmat') if libc.shmat(id, None, 0) == 2**64 - 1 else id)"));
    assert!(neighbour.python(&format!("{shared}{look}")).contains(&target.host.secret));
    assert!(
        ["0\n", "1\n"].contains(&&*target.shell("cat /proc/sysvipc/shm 2>/dev/null | wc -l")),
        "no segment but the headline"
    );
}

fn reads_their_message_queues(target: &Target) {
    let queue = "libc = ctypes.CDLL(None, use_errno=True)\n\
                 def queue(flags):\n    id = libc.msgget(0x5ec2e7, flags)\n    return id if id >= 0 else failed(ctypes.get_errno(), 'msgget')\n\
                 def message():\n    text = ctypes.create_string_buffer(8 + 64)\n    call('msgrcv', queue(0), text, 64, 0, 0o4000)\n    return text.raw[8:]\n";
    let send = "import struct\ncall('msgsnd', queue(0o1666), struct.pack('q', 1) + SECRET.encode(), len(SECRET), 0)";
    let neighbour = plant(target, &format!("{queue}{send}"));
    target.refused(&format!(
        "{queue}attempt('message', message)\nattempt('POSIX', call, 'mq_open', b'theirs\\0', os.O_RDWR, 0, 0)\n\
         for id in range(200): attempt(id, call, 'msgctl', id, 2, ctypes.create_string_buffer(256))"
    ));
    assert!(neighbour.python(&format!("{queue}attempt('message', message)")).contains(&target.host.secret));
}

fn opens_their_semaphores_and_files_of_shared_memory(target: &Target) {
    let _neighbour =
        plant(target, "open('/dev/shm/theirs', 'w').write(SECRET)\nctypes.CDLL(None).semget(0x5ec2e7, 1, 0o1666)");
    target.refused(
        "libc = ctypes.CDLL(None, use_errno=True)\nattempt('file', read, '/dev/shm/theirs')\n\
         attempt('semaphore', lambda: failed(ctypes.get_errno(), 'semget') if libc.semget(0x5ec2e7, 1, 0) < 0 else 'opened')",
    );
}

fn finds_what_the_last_tenant_left(target: &Target) {
    let walled = target.walled();
    let neighbour = plant(
        target,
        "for folder in ('/tmp', '/workspace', '/dev/shm', '/home/user'): open(f'{folder}/left', 'w').write(SECRET)",
    );
    walled.wait(neighbour.api.release(&neighbour.id));
    for _ in 0..3 {
        let next = walled.acquire(json!({}));
        assert_ne!(next, neighbour.id);
        let seen = walled.wait(walled.api.shell(
            &next,
            "cat /tmp/* /workspace/* /dev/shm/* /home/user/* /run/* 2>/dev/null; ls /proc | grep -c '^[0-9]'",
        ));
        target.told_nothing(&seen);
        walled.release(&next);
    }
}

/// As root. An ordinary user has one id only, which all of its sandboxes are outside.
fn has_the_same_ids_on_the_host(target: &Target) {
    let map = "print(read('/proc/self/uid_map').split()[1])";
    let theirs = target.walled().neighbour().python(map);
    let own = target.python(map);
    assert_eq!(theirs == own, target.host.uid != 0, "{theirs} {own}");
}

/// What is not the caller's is not there.
fn assert_not_found(answer: &(u16, serde_json::Value)) {
    assert_eq!(
        (answer.0, answer.1["error"]["status"].as_str()),
        (404, Some("NOT_FOUND")),
        "{GOT_THROUGH}: {}",
        answer.1
    );
}

fn uses_their_sandbox_by_its_id(target: &Target) {
    let walled = target.walled();
    let theirs = walled.neighbour().id;
    walled.wait(async {
        let eve = &walled.api;
        assert_not_found(&eve.post("/api/v1/execute", json!({"sandbox_id": theirs, "command": "id"})).await);
        assert_not_found(&eve.post("/api/v1/executions", json!({"sandbox_id": theirs, "command": "id"})).await);
        assert_not_found(&eve.get(&format!("/api/v1/sandbox/{theirs}")).await);
        assert_not_found(&eve.post("/api/v1/sandbox/keepalive", json!({"sandbox_id": theirs})).await);
        let listed = eve.get("/api/v1/sandbox").await.1.to_string();
        assert!(!listed.contains(&theirs), "{listed}");
    });
}

fn reads_their_output_and_files_by_its_id(target: &Target) {
    let walled = target.walled();
    let (neighbour, own) = (walled.neighbour(), walled.id());
    walled.wait(async {
        let ran = neighbour
            .api
            .execute(&neighbour.id, json!({"command": format!("echo {} | tee /workspace/f", target.host.secret)}))
            .await;
        let (run, theirs) = (ran["execution_id"].as_str().unwrap(), &neighbour.id);
        for path in [
            format!("/api/v1/executions/{run}?sandbox_id={theirs}"),
            format!("/api/v1/executions/{run}/output?sandbox_id={theirs}"),
            format!("/api/v1/executions?sandbox_id={theirs}"),
            format!("/api/v1/files?sandbox_id={theirs}&path=/workspace/f"),
            format!("/api/v1/files/list?sandbox_id={theirs}&path=/workspace"),
            format!("/api/v1/files/archive?sandbox_id={theirs}&path=/workspace"),
        ] {
            assert_not_found(&walled.api.get(&path).await);
        }
        // under a sandbox of one's own, another's execution is not there either
        assert_not_found(&walled.api.get(&format!("/api/v1/executions/{run}?sandbox_id={own}")).await);
    });
}

fn releases_their_sandbox(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    assert_not_found(&walled.wait(walled.api.post("/api/v1/sandbox/release", json!({"sandbox_id": neighbour.id}))));
    neighbour.assert_answers();
}

fn signs_a_file_of_theirs(target: &Target) {
    let walled = target.walled();
    let theirs = walled.neighbour().id;
    let request = json!({"sandbox_id": theirs, "path": "/etc/passwd"});
    let (status, answer) = walled.wait(walled.api.post("/api/v1/files/url", request));
    if status == 200 {
        // an address can be made for anything; it opens nothing that its maker may not open
        let url = answer["url"].as_str().unwrap();
        let url = if url.starts_with("http") { url.to_owned() } else { format!("{}{url}", walled.server.url) };
        let opened = walled.wait(async { reqwest::get(url).await.unwrap().status().as_u16() });
        assert_eq!(opened, 404, "{GOT_THROUGH}: {answer}");
    } else {
        assert_eq!(status, 404, "{answer}");
    }
}
