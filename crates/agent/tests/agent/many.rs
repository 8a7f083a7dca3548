//! Many runs at once, and what some of them may do to the others.

use std::time::Duration;

use cloud_sandbox_proto::agent::v1::run_response::Event;
use futures::future::join_all;

use crate::rig::{Agent, Running, program, sh};

#[tokio::test]
async fn two_hundred_processes_are_streamed_whole_and_in_order() {
    let agent = Agent::start().await;
    let client = agent.client_of_node().await;
    let script = "i=0; while [ $i -lt 200 ]; do echo $i; echo $i >&2; i=$((i+1)); done; exit 3";
    let runs = (0..200).map(|_| Running::open(client.clone(), sh(script)));
    let expected: String = (0..200).map(|number| format!("{number}\n")).collect();
    let runs = join_all(runs).await.into_iter().map(|running| running.unwrap().outcome());
    for outcome in join_all(runs).await {
        assert_eq!((outcome.text(), outcome.exited.exit_code), (expected.as_str(), 3));
        assert_eq!(outcome.stderr, expected.as_bytes());
    }
}

#[tokio::test]
async fn runs_that_do_not_read_their_input_stop_nobody() {
    let agent = Agent::start().await;
    let sleepers = join_all((0..8).map(|_| agent.open(program(&["sleep", "60"])))).await;
    let sleepers: Vec<Running> = sleepers.into_iter().map(Result::unwrap).collect();
    join_all(sleepers.iter().map(|sleeper| sleeper.fill(64 * 1024, 0))).await;

    let other = agent.open(sh("read line; echo $line")).await.unwrap();
    other.send(cloud_sandbox_proto::agent::v1::run_request::Input::Stdin("heard\n".into())).await;
    assert_eq!(other.outcome().await.text(), "heard\n");
    for sleeper in sleepers {
        assert!(sleeper.signal(0).await.unwrap());
        assert_eq!(sleeper.outcome().await.exited.signal, 9);
    }
}

#[tokio::test]
async fn streams_that_nobody_reads_stop_nobody() {
    let agent = Agent::start().await;
    let client = agent.client_of_node().await;
    agent.sh("head -c 1048576 /dev/zero").await;
    let before = agent.memory_kib();
    let floods = join_all((0..40).map(|_| Running::open(client.clone(), sh("exec cat /dev/zero")))).await;
    let mut floods: Vec<Running> = floods.into_iter().map(Result::unwrap).collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let held = agent.memory_kib().saturating_sub(before);
    assert!(held < 40 * 320, "the agent holds {held} KiB");

    let other = Running::open(client, sh("head -c 4000000 /dev/zero")).await.unwrap();
    assert_eq!(other.count(0).await, 4_000_000);
    for flood in &mut floods {
        assert!(matches!(flood.next().await.unwrap(), Event::Stdout(_)));
    }
}
