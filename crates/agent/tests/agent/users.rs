//! Who processes run as.

use cloud_sandbox_proto::agent::v1::{ContinueProcessesRequest, StagedFile, Start, StopProcessesRequest, WindowSize};
use nix::unistd::{User, geteuid};
use tonic::Code;

use crate::{
    files::Files,
    rig::{Agent, program, sh},
};

fn run_as(user: &str, start: Start) -> Start {
    Start { user: user.to_owned(), ..start }
}

#[tokio::test]
async fn the_agents_own_user_may_be_named() {
    let agent = Agent::start_without_capabilities().await;
    let own = geteuid();
    let name = User::from_uid(own).unwrap().map_or_else(|| own.to_string(), |user| user.name);
    for user in ["", &own.to_string(), &name] {
        let outcome = agent.run(run_as(user, sh("id -u; env | grep -c HOME"))).await;
        assert_eq!(outcome.text(), format!("{own}\n0\n"), "{user:?}");
    }
}

#[tokio::test]
async fn any_other_user_is_refused_by_name() {
    let agent = Agent::start_without_capabilities().await;
    let own = User::from_uid(geteuid()).unwrap().map_or_else(|| geteuid().to_string(), |user| user.name);
    for user in ["nobody", "4321"] {
        let error = agent.open(run_as(user, sh("true"))).await.err().unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition);
        let expected = format!("cannot run as user {user}: this sandbox runs everything as {own}");
        assert_eq!(error.message(), expected);
    }
}

#[tokio::test]
async fn a_user_that_is_not_known_is_refused() {
    let agent = Agent::start().await;
    let long = "n".repeat(100_000);
    for user in ["no-such-user", "-1", "4294967295", "root:x", "a\0b", &long] {
        let error = agent.open(run_as(user, sh("true"))).await.err().unwrap();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(error.message().contains("is not known"), "{}", error.message());
    }
}

/// An agent that may change to others; none where the tests may not themselves.
async fn agent_of_root() -> Option<Agent> {
    if !geteuid().is_root() {
        return None;
    }
    let agent = Agent::start().await;
    agent.open(run_as("1", sh("true"))).await.is_ok().then_some(agent)
}

#[tokio::test]
async fn an_agent_that_may_runs_as_another_with_nothing_of_its_own() {
    let Some(agent) = agent_of_root().await else { return };
    let nobody = User::from_name("nobody").unwrap().unwrap();
    let script = "id -u; id -g; echo $HOME $USER $LOGNAME; grep -E '^(Groups|CapEff)' /proc/self/status";
    let outcome = agent.run(run_as("nobody", sh(script))).await;
    let (uid, gid, home) = (nobody.uid, nobody.gid, nobody.dir.display());
    let none = "0000000000000000";
    let expected = format!("{uid}\n{gid}\n{home} nobody nobody\nGroups:\t{gid} \nCapEff:\t{none}\n");
    // gVisor has another blank before the groups
    assert_eq!(outcome.text().replace("Groups:\t ", "Groups:\t"), expected);

    let mut start = run_as("4321", sh("id -u; echo $HOME"));
    start.env.insert("HOME".to_owned(), "/tmp".to_owned());
    assert_eq!(agent.run(start).await.text(), "4321\n/tmp\n");
}

#[tokio::test]
async fn another_user_reads_its_staged_code_and_owns_its_terminal() {
    let Some(agent) = agent_of_root().await else { return };
    let path = format!("/tmp/.stage-{}/main.sh", agent.pid());
    let staged = Some(StagedFile { path: path.clone(), content: "id -u; find $(tty) -printf '%U\\n'".into() });
    let terminal = Some(WindowSize { rows: 24, cols: 80 });
    let start = Start { staged, terminal, ..run_as("4321", program(&["sh", &path])) };
    assert_eq!(agent.run(start).await.text().replace('\u{4}', ""), "4321\r\n4321\r\n");
}

#[tokio::test]
async fn processes_of_others_end_with_their_session() {
    let Some(agent) = agent_of_root().await else { return };
    let running = agent.open(run_as("4321", sh("sleep 20 & sleep 20"))).await.unwrap();
    assert!(running.signal(0).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
}

/// Fails unless processes are the user alone, without a capability, and cannot signal the agent.
async fn stands_apart(agent: &Agent, user: u32) {
    let script = format!(
        "id -ru; id -u; grep -hE '^Cap(Prm|Eff|Bnd)' /proc/self/status | cut -f 2 | sort -u; \
         for s in 0 HUP STOP KILL; do kill -s $s {} 2>/dev/null && echo through; done; echo end",
        agent.pid()
    );
    assert_eq!(agent.sh(&script).await.text(), format!("{user}\n{user}\n0000000000000000\nend\n"));
}

#[tokio::test]
async fn an_agent_stands_apart_from_root_as_well() {
    if !geteuid().is_root() {
        return;
    }
    let agent = Agent::start_apart_from(0).await.expect("root may");
    stands_apart(&agent, 0).await;
    let running = agent.open(sh("sleep 20 & sleep 20")).await.unwrap();
    assert!(running.signal(0).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
}

#[tokio::test]
async fn an_agent_that_stands_apart_is_not_its_users_to_signal_and_works_as_they_do() {
    const USER: u32 = 54_321;
    if !geteuid().is_root() {
        return;
    }
    let agent = Files::of(Agent::start_apart_from(USER).await.expect("root may")).await;
    stands_apart(&agent, USER).await;
    let told = agent.sh(&format!("echo 1 > /proc/{}/oom_score_adj || echo refused", agent.pid())).await;
    assert_eq!(told.text(), "refused\n");

    let path = agent.path("theirs");
    agent.write(&path, b"x", 0).await.unwrap();
    assert!(agent.write("/etc/ours", b"x", 0).await.is_err(), "root's");
    let owner = agent.sh(&format!("find {path} -printf '%U\n'; echo more >> {path} && echo written")).await;
    assert_eq!(owner.text(), format!("{USER}\nwritten\n"));

    let terminal = Some(WindowSize { rows: 24, cols: 80 });
    let mut start = Start { terminal, ..sh("id -ru; find $(tty) -printf '%U\\n'") };
    start.user = USER.to_string();
    let told = agent.run(start).await;
    assert_eq!(told.text().replace('\u{4}', ""), format!("{USER}\r\n{USER}\r\n"));

    let mut running = agent.open(sh("sleep 20 & echo ready; wait")).await.unwrap();
    running.read_until("ready\n").await;
    let mut client = agent.agent.client.clone();
    let stopped = client.stop_processes(StopProcessesRequest {}).await.unwrap().into_inner().processes;
    assert_eq!(stopped.len(), 2, "{stopped:?}");
    client.continue_processes(ContinueProcessesRequest {}).await.unwrap();
    assert!(running.signal(0).await.unwrap());
    assert_eq!(running.outcome().await.exited.signal, 9);
}
