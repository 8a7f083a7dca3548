//! Everything taken at once. The sandbox is at its limit; the neighbour's and the API answer all the while.

use std::time::Instant;

use serde_json::{Value, json};

use crate::{
    attempt::{Need, attempts},
    target::{PROMPTLY, Target, text},
};

attempts![
    forks_without_end,
    forks_away_from_its_parent,
    starts_threads_without_end,
    leaves_zombies_without_end,
    #[needs(Need::MemoryLimit)]
    takes_all_memory,
    #[needs(Need::MemoryLimit)]
    takes_all_memory_by_files_without_names,
    #[needs(Need::MemoryLimit)]
    takes_all_memory_with_many_processes,
    takes_more_memory_than_one_process_may,
    fills_the_disk,
    fills_the_disk_with_files_that_hold_nothing,
    makes_files_larger_than_everything,
    opens_descriptors_without_end,
    sends_descriptors_into_sockets_that_nobody_reads,
    fills_pipes_that_nobody_reads,
    prints_without_end,
    prints_one_line_without_end,
    prints_to_a_terminal_without_end,
    burns_the_processors,
    ignores_every_signal,
    stops_itself,
    starts_executions_without_end,
    opens_connections_without_end,
    maps_memory_without_end,
];

/// The timeout in milliseconds of what never ends by itself.
const ENDLESS: u32 = 1000;
/// The timeout of what must come to its own end, on a busy machine too.
const ENDS: u32 = 30_000;

/// A bomb in a small sandbox of its own, beside which a neighbour and the API go on. Gives the answer; the sandbox is
/// released afterwards, and nothing of it is left.
fn explode(target: &Target, limits: &Value, timeout_ms: u32, mut bomb: Value) -> Value {
    let walled = target.walled();
    let id = walled.acquire(json!({"limits": limits}));
    let neighbour = walled.neighbour();
    bomb["timeout_ms"] = timeout_ms.into();
    bomb["sandbox_id"] = id.as_str().into();
    let (status, answer) = neighbour.answers_during(|| walled.wait(walled.api.post("/api/v1/execute", bomb)));
    assert_eq!(status, 200, "a bomb ends in a clean result: {answer:.2000}");
    target.told_nothing(&answer.to_string());
    walled.release(&id);
    neighbour.assert_answers();
    answer
}

fn forks_without_end(target: &Target) {
    let answer = explode(target, &json!({"pids": 64}), ENDLESS, json!({"command": "b() { b | b & b; }; b"}));
    assert_ne!(answer["exit_code"], 0, "{answer:.2000}");
}

fn forks_away_from_its_parent(target: &Target) {
    let code = "import os\nwhile True:\n    try:\n        if os.fork() == 0: os.setsid()\n    except OSError: pass";
    let answer = explode(target, &json!({"pids": 64}), ENDLESS, json!({"code": code}));
    assert_eq!(answer["timed_out"], true, "{answer:.2000}");
}

fn starts_threads_without_end(target: &Target) {
    let code = "import threading, time\nn = 0\ntry:\n    while True:\n        threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); n += 1\n\
                except RuntimeError: print('stopped after', n, flush=True)\nimport os\nos._exit(0)";
    let answer = explode(target, &json!({"pids": 64}), ENDS, json!({"code": code}));
    assert!(text(&answer).contains("stopped after"), "{answer:.2000}");
}

fn leaves_zombies_without_end(target: &Target) {
    let code = "import os\nn = 0\ntry:\n    while n < 5000:\n        if os.fork() == 0: os._exit(0)\n        n += 1\nexcept OSError: print('stopped after', n)";
    let answer = explode(target, &json!({"pids": 64}), ENDS, json!({"code": code}));
    assert!(text(&answer).contains("stopped after"), "{answer:.2000}");
}

fn assert_killed_for_memory(answer: &Value) {
    assert_eq!(answer["oom_killed"], true, "{answer:.2000}");
}

fn takes_all_memory(target: &Target) {
    let code = "many = []\nwhile True: many.append(bytearray(8 << 20))";
    assert_killed_for_memory(&explode(target, &json!({"memory_bytes": 64 << 20}), ENDS, json!({"code": code})));
}

fn takes_all_memory_by_files_without_names(target: &Target) {
    let code = "import os\nfd = os.memfd_create('x')\nwhile True: os.write(fd, bytes(8 << 20))";
    assert_killed_for_memory(&explode(target, &json!({"memory_bytes": 64 << 20}), ENDS, json!({"code": code})));
}

fn takes_all_memory_with_many_processes(target: &Target) {
    let code = "import os, time\nfor n in range(20):\n    if os.fork() == 0:\n        some = bytearray(16 << 20)\n        time.sleep(60)\nos.wait()";
    assert_killed_for_memory(&explode(target, &json!({"memory_bytes": 64 << 20}), ENDS, json!({"code": code})));
}

fn takes_more_memory_than_one_process_may(target: &Target) {
    let code = "try:\n    some = bytearray(1 << 30)\n    print('took it')\nexcept MemoryError: print('refused')";
    let answer = explode(target, &json!({"memory_bytes": 64 << 20}), ENDS, json!({"code": code}));
    assert!(!text(&answer).contains("took it"), "{answer:.2000}");
}

fn fills_the_disk(target: &Target) {
    let limits = json!({"memory_bytes": 64 << 20, "disk_bytes": 16 << 20});
    let answer = explode(
        target,
        &limits,
        ENDS,
        json!({"command": "for d in /workspace /tmp /dev/shm /run /var/tmp; do cat /dev/zero > $d/x; done; du -cm /workspace /tmp /dev/shm /run /var/tmp | tail -1"}),
    );
    assert!(text(&answer).contains("No space left") && text(&answer).contains("16\ttotal"), "{answer:.2000}");
}

fn fills_the_disk_with_files_that_hold_nothing(target: &Target) {
    let limits = json!({"memory_bytes": 64 << 20, "disk_bytes": 4 << 20});
    let code = "n = 0\ntry:\n    while n < 200000: open(f'/tmp/{n}', 'w').close(); n += 1\nexcept OSError as error: print(error.strerror, n)";
    let answer = explode(target, &limits, ENDS, json!({"code": code}));
    assert!(text(&answer).contains("No space left"), "{answer:.2000}");
}

fn makes_files_larger_than_everything(target: &Target) {
    let limits = json!({"memory_bytes": 64 << 20, "disk_bytes": 4 << 20});
    let code = "import os\nfor n in range(50):\n    with open(f'/tmp/{n}', 'wb') as f:\n        try: os.truncate(f.fileno(), 1 << 50)\n        except OSError: pass\n\
                try: os.posix_fallocate(os.open('/tmp/a', os.O_RDWR | os.O_CREAT), 0, 1 << 30); print('took it')\nexcept OSError as error: print(error.strerror)";
    let answer = explode(target, &limits, ENDS, json!({"code": code}));
    assert!(text(&answer).contains("No space left"), "{answer:.2000}");
}

fn opens_descriptors_without_end(target: &Target) {
    let code = "import os\nn = 0\nfor child in range(8):\n    if os.fork() == 0: break\n\
                try:\n    while True: os.dup(0); n += 1\nexcept OSError as error: print(error.strerror, n, flush=True)";
    let answer = explode(target, &json!({"open_files": 256}), ENDS, json!({"code": code}));
    assert!(text(&answer).contains("Too many open files 25"), "{answer:.2000}");
}

fn sends_descriptors_into_sockets_that_nobody_reads(target: &Target) {
    let code = "import array, socket\npairs, n = [], 0\n\
                try:\n    while n < 100000:\n        pairs.append(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))\n        pairs[-1][0].setblocking(False)\n        \
                try:\n            while True: pairs[-1][0].sendmsg([b'x'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [pairs[-1][1].fileno()] * 200))]); n += 200\n        \
                except BlockingIOError: pass\nexcept OSError as error: print(error.strerror, n)";
    let answer = explode(target, &json!({"open_files": 256}), ENDS, json!({"code": code}));
    assert!(text(&answer).contains("Too many"), "{answer:.2000}");
}

fn fills_pipes_that_nobody_reads(target: &Target) {
    let code = "import fcntl, os\nn = 0\ntry:\n    while True:\n        r, w = os.pipe(); os.set_blocking(w, False)\n        \
                try: fcntl.fcntl(w, fcntl.F_SETPIPE_SZ, 1 << 20)\n        except OSError: pass\n        n += os.write(w, bytes(1 << 20))\n\
                except OSError as error: print(error.strerror, n)";
    explode(target, &json!({"memory_bytes": 64 << 20, "open_files": 1024}), ENDLESS, json!({"code": code}));
}

fn prints_without_end(target: &Target) {
    // long enough to have printed something
    let bomb = json!({"command": "yes & yes >&2", "max_output_bytes": 65536});
    let answer = explode(target, &json!({}), 5 * ENDLESS, bomb);
    assert_eq!(answer["timed_out"], true, "{answer:.300}");
    assert!(text(&answer).len() < 300_000 && answer["stdout_truncated"] == true, "{}", text(&answer).len());
    assert!(answer["stdout_bytes"].as_u64().unwrap() > 1 << 20, "{answer:.300}");
}

fn prints_one_line_without_end(target: &Target) {
    let answer = explode(
        target,
        &json!({}),
        ENDLESS,
        json!({"command": "cat /dev/zero | tr '\\0' '\\377'", "max_output_bytes": 65536}),
    );
    assert_eq!(answer["timed_out"], true, "{answer:.300}");
    assert!(text(&answer).len() < 1 << 20, "{}", text(&answer).len());
}

fn prints_to_a_terminal_without_end(target: &Target) {
    let answer = explode(
        target,
        &json!({}),
        ENDLESS,
        json!({"command": "yes", "terminal": {"rows": 24, "cols": 80}, "max_output_bytes": 65536}),
    );
    assert_eq!(answer["timed_out"], true, "{answer:.300}");
}

fn burns_the_processors(target: &Target) {
    let code = "import os\nfor n in range(30):\n    if os.fork() == 0:\n        while True: pass\nwhile True: pass";
    let answer = explode(target, &json!({"pids": 64}), ENDLESS, json!({"code": code}));
    assert_eq!(answer["timed_out"], true, "{answer:.300}");
}

fn ignores_every_signal(target: &Target) {
    let code = "import os, signal, time\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n\
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nos.setsid() if os.getpid() != os.getsid(0) else None\nwhile True: time.sleep(1)";
    let answer = explode(target, &json!({}), ENDLESS, json!({"code": code}));
    assert_eq!((&answer["timed_out"], &answer["signal"]), (&json!(true), &json!("SIGKILL")), "{answer:.300}");
}

fn stops_itself(target: &Target) {
    let answer = explode(target, &json!({}), ENDLESS, json!({"command": "sleep 600 & kill -STOP $! $$"}));
    assert_eq!(answer["timed_out"], true, "{answer:.300}");
}

fn starts_executions_without_end(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let id = walled.id();
    let refused = neighbour.answers_during(|| {
        walled.wait(async {
            let start = || walled.api.post("/api/v1/executions", json!({"sandbox_id": id, "command": "sleep 600"}));
            let mut refused = 0;
            for _ in 0..30 {
                let answers = futures::future::join_all((0..20).map(|_| start())).await;
                for (status, answer) in answers {
                    assert!([200, 400, 429].contains(&status), "{status} {answer}");
                    refused += usize::from(status != 200);
                }
            }
            refused
        })
    });
    assert!(refused > 0, "600 executions at once in a sandbox with fewer processes");
    walled.release(id);
    neighbour.assert_answers();
}

fn opens_connections_without_end(target: &Target) {
    let walled = target.walled();
    let neighbour = walled.neighbour();
    let address = walled.server.url.trim_start_matches("http://").to_owned();
    let idle: Vec<_> = (0..400).map_while(|_| std::net::TcpStream::connect(&address).ok()).collect();
    let slow = idle.iter();
    neighbour.answers_during(|| {
        use std::io::Write as _;
        for mut stream in slow {
            let _ = stream.write_all(b"POST /api/v1/execute HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n{");
        }
    });
    drop(idle);
    walled.assert_answers();
}

fn maps_memory_without_end(target: &Target) {
    let code = "import mmap\nmany = []\ntry:\n    while len(many) < 70000: many.append(mmap.mmap(-1, 4096, prot=1 + len(many) % 2 * 2))\nexcept (OSError, MemoryError) as error: print('stopped', len(many))";
    let begun = Instant::now();
    explode(target, &json!({"memory_bytes": 128 << 20}), ENDLESS, json!({"code": code}));
    assert!(begun.elapsed() < 3 * PROMPTLY);
}
