//! Starting, stopping, being killed, and what is left.

use std::{net::TcpListener, process::Stdio, time::Instant};

use serde_json::json;

use crate::harness::{SOON, Server, command, eventually};
use crate::wire::wires;

#[tokio::test]
async fn sigterm_and_ctrl_c_leave_nothing_and_exit_cleanly() {
    for signal in ["TERM", "INT"] {
        let mut server = Server::start().await;
        let api = server.user("ada").await;
        let id = api.acquire().await;
        api.shell(&id, "setsid sleep 600 >/dev/null 2>&1 &").await;
        let traces = server.traces();
        assert!(!traces.is_empty());
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "{}", server.log());
        traces.assert_gone();
    }
}

#[tokio::test]
async fn calls_under_way_end_before_the_server_does() {
    let mut server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let body = json!({"sandbox_id": id, "command": "echo begun > flag; sleep 1; echo done"});
    let call = tokio::spawn({
        let api = api.clone();
        async move { api.post("/api/v1/execute", body).await }
    });
    eventually("it runs", || async { api.shell(&id, "cat flag 2>/dev/null").await == "begun\n" }).await;
    server.signal("TERM");
    let (status, answer) = call.await.unwrap();
    assert_eq!((status, &answer["stdout"]), (200, &json!("done\n")), "{answer}");
    assert_eq!(server.wait().code(), Some(0));
}

#[tokio::test]
async fn kill_9_takes_all_sandboxes_along_and_the_next_start_reclaims_the_rest() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    api.shell(&id, "setsid sleep 600 >/dev/null 2>&1 &").await;
    let traces = server.traces();
    let folder = server.kill();
    traces.assert_processes_gone();
    let server = Server::in_folder(folder, &[]).await;
    traces.assert_gone();
    let api = server.user("ada").await;
    let stats = api.get("/api/v1/sandbox/stats").await.1;
    assert_eq!(stats["acquired"], 0, "{stats}");
    let next = api.acquire().await;
    assert_eq!(api.shell(&next, "echo again").await, "again\n");
}

#[tokio::test]
async fn killed_agent_is_noticed_and_its_sandbox_replaced() {
    let server = Server::start().await;
    let api = server.user("ada").await;
    let id = api.acquire().await;
    let cgroup = crate::harness::left_of(&id);
    let pids = std::fs::read_to_string(format!("{}/cgroup.procs", cgroup[0])).unwrap();
    for pid in pids.lines() {
        assert!(std::process::Command::new("kill").args(["-9", pid]).status().unwrap().success());
    }
    eventually("it is gone", || async { api.get(&format!("/api/v1/sandbox/{id}")).await.0 == 404 }).await;
    eventually("nothing is left", || async { crate::harness::left_of(&id).is_empty() }).await;
    assert_eq!(api.shell(&api.acquire().await, "echo fine").await, "fine\n");
}

#[tokio::test]
async fn taken_port_is_named_and_nothing_is_left() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let failed = command(&["serve", "--listen", &address, "--data-dir"]).arg(data.path()).output().unwrap();
    let said = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
    assert!(start.elapsed() < SOON);
}

#[tokio::test]
async fn two_servers_do_not_share_a_data_folder() {
    let server = Server::start().await;
    let second = command(&["serve", "--listen", "127.0.0.1:0", "--grpc-listen", "127.0.0.1:0", "--data-dir"])
        .arg(&server.data_dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains(server.data_dir.to_str().unwrap()), "{said}");
    assert_eq!(reqwest::get(format!("{}/health", server.url)).await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn streams_that_outlast_the_drain_are_told_why_they_end() {
    let mut server = Server::with(&[("DRAIN_TIMEOUT_SECONDS", "1")]).await;
    let mut streams = Vec::new();
    for wire in wires(&server, "ada").await {
        let sandbox = wire.acquire().await;
        let quiet = json!({"request": {"sandbox_id": sandbox, "command": "echo here; sleep 60"}});
        let loud = json!({"request": {"sandbox_id": sandbox, "command": "while :; do echo x; sleep 0.01; done"}});
        for request in [quiet, loud] {
            let mut stream = wire.stream("ExecService.ExecuteStream", request).await;
            while stream.next().await.unwrap().unwrap()["event"]["stdout"].is_null() {}
            streams.push(stream);
        }
    }
    server.signal("TERM");
    for stream in streams {
        let failure = stream.rest().await.1.expect("no stream just stops");
        assert_eq!((failure.status.as_str(), failure.reason.as_str()), ("UNAVAILABLE", "DRAINING"), "{failure:?}");
    }
    assert!(server.wait().success());
}

#[tokio::test]
async fn idle_agent_is_small() {
    let server = Server::with(&[("POOL_MIN_SIZE", "3")]).await;
    let api = server.user("ada").await;
    eventually("the pool is full", || async { api.get("/api/v1/sandbox/stats").await.1["ready"] == 3 }).await;
    let sizes = server.traces().resident_kib();
    assert!(sizes.len() == 3 && sizes.iter().all(|kib| *kib < 3 * 1024), "KiB: {sizes:?}");
}
