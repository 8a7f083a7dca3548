//! Code that behaves badly: each ends in a clean result, and the sandbox or its neighbours go on.

use std::{
    fs,
    time::{Duration, Instant},
};

use serde_json::json;

use crate::{
    harness::{SOON, Server, left_of},
    left_out::left_out,
};

#[tokio::test]
async fn quarter_of_a_gigabyte_of_output_is_cut_and_counted_without_growing_the_server() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let before = resident_bytes(server.pid());
    let answer = api.execute(&id, json!({"command": "head -c 268435456 /dev/zero | tr '\\0' x"})).await;
    assert_eq!(answer["exit_code"], 0, "{}", answer["stderr"]);
    assert_eq!(answer["stdout"].as_str().unwrap().len(), 1_048_576);
    assert_eq!((&answer["stdout_truncated"], &answer["stdout_bytes"]), (&json!(true), &json!(268_435_456)));
    let grown = resident_bytes(server.pid()).saturating_sub(before);
    assert!(grown < 64 << 20, "the server grew by {grown} bytes");
}

#[tokio::test]
async fn endless_code_ends_at_its_timeout() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let start = Instant::now();
    let code = "import signal\nfor s in (15, 2, 1): signal.signal(s, signal.SIG_IGN)\nprint('going', flush=True)\nwhile True: pass";
    // within which it has begun and printed, on a busy machine too
    let answer = api.execute(&id, json!({"code": code, "timeout_ms": 10_000})).await;
    assert!(start.elapsed() < SOON);
    assert_eq!((&answer["timed_out"], &answer["signal"]), (&json!(true), &json!("SIGKILL")), "{answer}");
    assert_eq!(answer["stdout"], "going\n", "what was printed before is there");
    assert_eq!(api.shell(&id, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn fork_bomb_hits_its_limit_and_dies_at_the_timeout() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire_with(json!({"limits": {"pids": 64}})).await;
    let neighbour = api.acquire().await;
    let bomb = json!({"command": "b() { b | b & }; b; sleep 60", "timeout_ms": 1500, "sandbox_id": id});
    let (bombed, calm) = tokio::join!(api.post("/api/v1/execute", bomb), async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        api.shell(&neighbour, "echo calm").await
    });
    assert_eq!(calm, "calm\n");
    assert_eq!(bombed.0, 200, "{}", bombed.1);
    api.release(&id).await;
    assert_eq!(left_of(&id), Vec::<String>::new());
}

#[tokio::test]
async fn crowd_that_starves_the_agent_is_released_all_the_same() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let code = "import os\n\
                def refused(call):\n    try: call(); print('allowed')\n    except OSError: pass\n\
                refused(lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))\n\
                refused(lambda: os.sched_setaffinity(1, {0}))\n\
                refused(lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))\n\
                refused(lambda: os.setpriority(os.PRIO_USER, 0, 19))\n\
                print('walls hold', flush=True)\n\
                os.sched_setaffinity(0, {0})\n\
                for k in range(200):\n    if os.fork() == 0:\n        os.setsid()\n        while True: pass";
    // with so many beside it, it may not come to its own end in time
    let answer = api.execute(&id, json!({"code": code, "timeout_ms": 3000})).await;
    assert_eq!(answer["stdout"], "walls hold\n", "{answer}");
    let start = Instant::now();
    api.release(&id).await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    assert_eq!(left_of(&id), Vec::<String>::new());
}

#[tokio::test]
async fn full_disk_is_not_full_memory() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire_with(json!({"limits": {"memory_bytes": 64 << 20}})).await;
    let filled = api.execute(&id, json!({"command": "head -c 2G /dev/zero > big"})).await;
    assert!(filled["stderr"].as_str().unwrap().contains("No space left"), "{filled}");
    assert_eq!(api.shell(&id, "rm big; echo fine").await, "fine\n");
    let (status, answer) = api
        .post("/api/v1/sandbox/acquire", json!({"limits": {"memory_bytes": 64 << 20, "disk_bytes": 64 << 20}}))
        .await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer["error"]["details"].to_string().contains("limits.disk_bytes"), "{answer}");
}

#[tokio::test]
async fn memory_hog_is_killed_and_told_so() {
    if left_out() {
        return;
    }
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire_with(json!({"limits": {"memory_bytes": 64 << 20}})).await;
    let answer = api.execute(&id, json!({"code": "x = bytearray(512 << 20)\nprint('survived')"})).await;
    assert_eq!((&answer["oom_killed"], &answer["signal"]), (&json!(true), &json!("SIGKILL")), "{answer}");
    assert_eq!(api.shell(&id, "echo fine").await, "fine\n", "the sandbox goes on");
    let quiet = api.execute(&id, json!({"command": "exit 1"})).await;
    assert_eq!(quiet["oom_killed"], false, "an earlier kill is not blamed on this one");
}

#[tokio::test]
async fn full_disk_is_an_error_inside_and_leaves_nothing_half_written() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire_with(json!({"limits": {"disk_bytes": 4 << 20}})).await;
    let filled = api.shell(&id, "head -c 8M /dev/zero > big; du -m big").await;
    assert!(filled.contains("No space left") && filled.contains("4\tbig"), "{filled}");
    let write = json!({"sandbox_id": id, "path": "/workspace/new", "content": "x".repeat(100_000)});
    let (status, answer) = api.put("/api/v1/files", write).await;
    assert_eq!((status, answer["error"]["status"].as_str()), (429, Some("RESOURCE_EXHAUSTED")), "{answer}");
    assert_eq!(api.shell(&id, "rm big; ls -A").await, "", "nothing half written");
}

#[tokio::test]
async fn killing_the_parent_and_everybody_else_does_nothing_to_the_sandbox() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let line = "setsid sleep 600 & kill -9 $PPID; kill -9 1; kill -9 -1; \
                while pgrep sleep >/dev/null; do sleep 0.05; done; echo alone";
    let answer = api.execute(&id, json!({"command": line})).await;
    assert_eq!(answer["stdout"], "alone\n", "all but the agent are its own to kill: {answer}");
    assert_eq!(api.shell(&id, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn closed_descriptors_do_not_end_the_run_early() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let code = "import os, time\nos.close(0); os.close(1); os.close(2)\ntime.sleep(0.3)\nos._exit(7)";
    let answer = api.execute(&id, json!({"code": code})).await;
    assert_eq!(answer["exit_code"], 7);
    assert!(answer["wall_time_ms"].as_f64().unwrap() >= 300.0, "{answer}");
}

#[tokio::test]
async fn daemon_left_behind_neither_hangs_the_call_nor_survives_the_release() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let start = Instant::now();
    // it keeps the caller's standard output open
    let answer = api.execute(&id, json!({"command": "setsid sleep 600 & echo started"})).await;
    assert_eq!(answer["stdout"], "started\n");
    assert!(start.elapsed() < SOON);
    let traces = server.traces();
    api.release(&id).await;
    assert_eq!(left_of(&id), Vec::<String>::new());
    drop(server);
    traces.assert_gone();
}

#[tokio::test]
async fn many_zombies_are_reaped() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire_with(json!({"limits": {"pids": 64}})).await;
    for _ in 0..4 {
        let line = "for i in $(seq 40); do (setsid true &) ; done; sleep 0.2; echo ok";
        assert_eq!(api.execute(&id, json!({"command": line})).await["stdout"], "ok\n");
    }
}

pub fn resident_bytes(pid: u32) -> u64 {
    let pages: u64 =
        fs::read_to_string(format!("/proc/{pid}/statm")).unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
