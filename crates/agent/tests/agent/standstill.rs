//! Processes that are stopped and go on.

use std::{collections::HashSet, fs, time::Duration};

use cloud_sandbox_proto::agent::v1::{ContinueProcessesRequest, ProcessInfo, StopProcessesRequest, run_request::Input};
use tonic::{Code, Status};

use crate::rig::{Agent, eventually, left_out, program, sh};

async fn stop(agent: &Agent) -> Result<Vec<ProcessInfo>, Status> {
    let answer = agent.client.clone().stop_processes(StopProcessesRequest {}).await?;
    Ok(answer.into_inner().processes)
}

async fn go_on(agent: &Agent) {
    agent.client.clone().continue_processes(ContinueProcessesRequest {}).await.unwrap();
}

/// All that came from a process, with their states.
fn descendants(agent: &Agent) -> Vec<(u32, char)> {
    let ancestor = agent.pid();
    let mut all = Vec::new();
    for (name, _) in agent.proc_names("") {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let Some(stat) = agent.proc(&format!("{pid}/stat")) else { continue };
        let mut fields = stat.rsplit(") ").next().unwrap().split(' ');
        let state = fields.next().unwrap().chars().next().unwrap();
        all.push((pid, fields.next().unwrap().parse::<u32>().unwrap(), state));
    }
    let mut family = HashSet::from([ancestor]);
    while all.iter().any(|(pid, parent, _)| family.contains(parent) && family.insert(*pid)) {}
    all.iter()
        .filter(|(pid, ..)| *pid != ancestor && family.contains(pid))
        .map(|(pid, _, state)| (*pid, *state))
        .collect()
}

#[tokio::test]
async fn everything_stands_still_until_it_goes_on() {
    let agent = Agent::start().await;
    let mut running =
        agent.open(sh("sleep 30 & echo $!; while read line; do echo $line; done; kill $!")).await.unwrap();
    let child: u32 = running.read_until("\n").await.trim().parse().unwrap();
    let processes = stop(&agent).await.unwrap();
    let mut pids: Vec<u32> = processes.iter().map(|process| process.pid).collect();
    pids.sort_unstable();
    let mut wanted = vec![running.pid, child];
    wanted.sort_unstable();
    assert_eq!(pids, wanted);
    let shell = processes.iter().find(|process| process.pid == running.pid).unwrap();
    assert!(shell.command.starts_with("/bin/sh -c sleep 30 &"), "{}", shell.command);
    assert_eq!([running.pid, child].map(|pid| agent.state(pid)), [Some('T'); 2]);
    assert_eq!(stop(&agent).await.unwrap().len(), 2, "stopping twice is once");

    running.send(Input::Stdin("heard\n".into())).await;
    go_on(&agent).await;
    go_on(&agent).await;
    assert_eq!(running.read_until("\n").await, "heard\n");
    running.send(Input::CloseStdin(Default::default())).await;
    assert_eq!(running.outcome().await.exited.exit_code, 0);
}

#[tokio::test]
async fn what_was_stopped_before_stays_stopped() {
    let agent = Agent::start().await;
    let mut running =
        agent.open(sh("sleep 30 & kill -STOP $!; echo $!; read line; kill -KILL $!; echo end")).await.unwrap();
    let child: u32 = running.read_until("\n").await.trim().parse().unwrap();
    eventually("the stop", || agent.state(child) == Some('T')).await;
    for _ in 0..2 {
        stop(&agent).await.unwrap();
        stop(&agent).await.unwrap();
        go_on(&agent).await;
    }
    let shell = running.pid;
    eventually("the shell goes on", || agent.state(shell) == Some('S')).await;
    assert_eq!(agent.state(child), Some('T'));
    running.send(Input::Stdin("\n".into())).await;
    running.read_until("end\n").await;
}

#[tokio::test]
async fn whatever_forks_all_the_time_is_stopped_whole_and_loses_nothing() {
    if left_out() {
        return;
    }
    let agent = Agent::start().await;
    let script = "echo ready; i=0; while [ $i -lt 400 ]; do (sh -c 'sleep 0.01' &) ; sh -c : ; i=$((i+1)); done; wait; echo done";
    let mut running = agent.open(sh(script)).await.unwrap();
    running.read_until("ready\n").await;
    for _ in 0..5 {
        let processes = stop(&agent).await.unwrap();
        let still = descendants(&agent);
        assert!(still.iter().all(|(_, state)| matches!(state, 'T' | 'Z')), "{still:?}");
        let alive = still.iter().filter(|(_, state)| *state == 'T').count();
        assert_eq!(alive, processes.len(), "{still:?} and {processes:?}");
        go_on(&agent).await;
    }
    let outcome = running.outcome().await;
    assert_eq!((outcome.text(), outcome.exited.exit_code), ("done\n", 0), "{outcome:?}");
}

#[tokio::test]
async fn all_threads_are_stopped() {
    let agent = Agent::start().await;
    let script = "import threading, time
for _ in range(4): threading.Thread(target=lambda: all(True for _ in iter(int, 1)), daemon=True).start()
print('ready', flush=True)
time.sleep(60)";
    let mut running = agent.open(program(&["python3", "-c", script])).await.unwrap();
    running.read_until("ready\n").await;
    stop(&agent).await.unwrap();
    let tasks = agent.proc_names(&format!("{}/task", running.pid));
    assert_eq!(tasks.len(), 5);
    for (task, _) in tasks {
        let stat = agent.proc(&format!("{}/task/{task}/stat", running.pid)).unwrap();
        assert!(stat.contains(") T "), "{stat}");
    }
    go_on(&agent).await;
    // it would outlive the agent, and take a processor
    assert!(running.signal(9).await.unwrap());
}

#[tokio::test]
async fn a_standstill_is_not_broken_but_a_kill_works() {
    let agent = Agent::start().await;
    let running = agent.open(program(&["sleep", "60"])).await.unwrap();
    stop(&agent).await.unwrap();
    let refused = agent.open(sh("true")).await.err().unwrap();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(running.signal(libc::SIGCONT).await.unwrap_err().code(), Code::FailedPrecondition);
    assert_eq!(agent.state(running.pid), Some('T'));
    assert!(running.signal(9).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
    assert_eq!(stop(&agent).await.unwrap(), []);
    go_on(&agent).await;
    assert_eq!(agent.sh("echo again").await.text(), "again\n");
}

#[tokio::test]
async fn sockets_are_counted() {
    let agent = Agent::start().await;
    let script = "import socket, time
a = socket.socketpair(); b = socket.socket()
print('ready', flush=True)
time.sleep(60)";
    let mut running = agent.open(program(&["python3", "-c", script])).await.unwrap();
    running.read_until("ready\n").await;
    let processes = stop(&agent).await.unwrap();
    assert_eq!(processes.iter().map(|process| process.sockets).collect::<Vec<_>>(), [3]);
    go_on(&agent).await;
}

#[tokio::test]
async fn the_first_process_of_a_namespace_stops_all_others_at_once() {
    if left_out() {
        return;
    }
    let Some(agent) = Agent::start_as_init().await else { panic!("the tests need a PID namespace") };
    let counted = agent.path("counted");
    // it waits for children all the time, in whose place gVisor may send it SIGHUP: see docs/runtimes.md
    let script = format!("trap '' HUP; echo ready; while :; do echo x >> {counted}; (sh -c : &); done");
    let mut running = agent.open(sh(&script)).await.unwrap();
    running.read_until("ready\n").await;
    let length = || fs::metadata(&counted).map_or(0, |metadata| metadata.len());
    eventually("the first line", || length() > 0).await;
    for _ in 0..5 {
        let processes = stop(&agent).await.unwrap();
        let listed = processes.iter().any(|process| process.pid == running.pid);
        assert!(listed, "{} in {processes:?}", running.pid);
        assert!(processes.iter().all(|process| process.pid != 1));
        let before = length();
        tokio::time::sleep(Duration::from_millis(30)).await;
        assert_eq!(length(), before);
        go_on(&agent).await;
        eventually("more lines", || length() > before).await;
    }
}
