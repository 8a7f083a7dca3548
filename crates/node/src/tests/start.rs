//! What templates start, and what else they say of how things run in their sandboxes.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use cloud_sandbox_proto::{
    node::v1::RestoreSandboxRequest,
    v1::{self, AcquireSandboxRequest, CreateContextRequest, ExecuteRequest, StartCommand},
};
use tokio::time::{Instant, sleep};

use super::{
    agent::Script,
    checkpoints::Bench,
    harness::*,
    templates::{of, template},
};
use crate::Options;

/// A world with a template that starts something.
async fn start(command: &str, ready: &str, seconds: u32) -> World {
    let (world, _docker) = World::start_on_two(options(0, 5), |_| {}).await;
    let start = StartCommand { command: command.into(), ready_command: ready.into(), ready_seconds: seconds };
    let env = [("A".to_owned(), "template".to_owned()), ("B".to_owned(), "template".to_owned())].into();
    let started = v1::Template { start: Some(start), env, ..template("server", 1, &["docker"]) };
    world.set_templates(1, vec![started]).await;
    world
}

const FOREVER: &str = "run wait 100000000";

#[tokio::test(start_paused = true)]
async fn sandbox_is_given_when_what_its_template_starts_is_ready() {
    let world = start(FOREVER, "run ready 4", 10).await;
    let id = world.acquire_of("server@1").await;
    let starts: Vec<_> = world.script.starts.lock().unwrap().iter().map(|start| start.argv[2].clone()).collect();
    assert_eq!(starts, [FOREVER, "run ready 4", "run ready 4", "run ready 4", "run ready 4"]);
    let first = world.script.starts.lock().unwrap()[0].clone();
    assert_eq!((first.env["A"].as_str(), first.cwd.as_str()), ("template", "/workspace"));
    assert_eq!(world.script.running(), 1, "it goes on");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(world.script.running(), 1);
    world.release(id).await.unwrap();
    world.settle().await;
    assert_eq!(world.script.running(), 0);
}

#[tokio::test(start_paused = true)]
async fn starting_is_enough_without_a_ready_command() {
    let world = start(FOREVER, "", 10).await;
    world.acquire_of("server@1").await;
    assert_eq!(world.script.starts.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn start_command_that_fails_fails_the_sandbox_with_what_it_printed() {
    let world = start("run fail 3 no-such-port", "run ready 1000", 60).await;
    let began = Instant::now();
    let failure = world.try_acquire(of("server@1")).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "TEMPLATE_FAILED"));
    let expected = "template server@1 ended with exit code 3 before it was ready; it printed: no-such-port";
    assert!(failure.message.ends_with(expected), "{}", failure.message);
    world.settle().await;
    assert_eq!(world.entry().await.creating, 0);
}

#[tokio::test(start_paused = true)]
async fn start_command_that_ends_well_may_still_become_ready() {
    let world = start("run fail 0 forked", "run ready 3", 60).await;
    world.acquire_of("server@1").await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ready_in_time_fails_the_sandbox() {
    for (ready, word) in [
        ("run ready 1000", "its ready command ended with exit code 1; it printed: not yet"),
        ("run stubborn", "did not end"),
    ] {
        let world = start("run wait 100000000", ready, 5).await;
        let began = Instant::now();
        let failure = world.try_acquire(of("server@1")).await.unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
        assert_eq!(failure.words(), ("FAILED_PRECONDITION", "TEMPLATE_FAILED"));
        assert!(failure.message.contains("was not ready within 5 s"), "{}", failure.message);
        assert!(failure.message.contains(word) && failure.message.contains("waiting"), "{}", failure.message);
        world.settle().await;
        assert_eq!(world.script.running(), 0, "nothing of it goes on");
    }
}

#[tokio::test(start_paused = true)]
async fn slow_start_does_not_keep_other_sandboxes_from_being_made() {
    let world = start(FOREVER, "run ready 1000", 3600).await;
    let slow: Vec<_> = (0..4).map(|_| world.client()).collect();
    let mut waiting = Vec::new();
    for mut client in slow {
        let owner = Some(cloud_sandbox_proto::node::v1::Owner { tenant: "default".into(), user_id: "bob".into() });
        let request = cloud_sandbox_proto::node::v1::AcquireSandboxRequest { owner, request: Some(of("server@1")) };
        waiting.push(tokio::spawn(async move { client.acquire_sandbox(request).await }));
    }
    world.settle().await;
    let began = Instant::now();
    world.acquire_of("host").await;
    assert!(began.elapsed() < Duration::from_secs(1));
    // callers that hang up leave nothing that goes on for an hour
    for task in waiting {
        task.abort();
    }
    sleep(Duration::from_secs(2)).await;
    assert_eq!(world.entry().await.creating, 0);
}

#[tokio::test(start_paused = true)]
async fn environment_of_the_template_is_below_that_of_the_sandbox_and_of_the_call() {
    let world = start(FOREVER, "", 10).await;
    let env = HashMap::from([("B".to_owned(), "sandbox".to_owned()), ("C".to_owned(), "sandbox".to_owned())]);
    let request = AcquireSandboxRequest { env, ..of("server@1") };
    let id = id_of(&world.try_acquire(request).await.unwrap());
    let env = HashMap::from([("C".to_owned(), "call".to_owned())]);
    world.execute(ExecuteRequest { env, ..argv(id, &["echo", "a"]) }).await.unwrap();
    let env = world.script.last_start().env;
    let told = ["A", "B", "C", "HOME"].map(|name| env[name].as_str());
    assert_eq!(told, ["template", "sandbox", "call", "/home/user"]);
}

#[tokio::test(start_paused = true)]
async fn languages_that_a_template_does_not_list_are_refused() {
    let (world, _docker) = World::start_on_two(options(0, 5), |_| {}).await;
    let listed = v1::Template { languages: vec!["js".into(), "bash".into()], ..template("some", 1, &["docker"]) };
    world.set_templates(1, vec![listed]).await;
    let id = world.acquire_of("some@1").await;
    world.execute(code(id, "node", "1")).await.unwrap();
    let refused = world.execute(code(id, "", "1")).await.unwrap_err();
    assert_eq!(refused.words(), ("FAILED_PRECONDITION", "LANGUAGE_UNAVAILABLE"));
    assert_eq!(refused.message, "language python is not available: template some@1 allows js, bash");
    let context = ExecuteRequest { context_id: "default".into(), ..code(id, "python", "1") };
    let refused = world.execute(context).await.unwrap_err();
    assert_eq!(refused.reason, "LANGUAGE_UNAVAILABLE");
    let node = world.node.shared();
    let request = CreateContextRequest { language: "python".into(), ..Default::default() };
    let refused = crate::contexts::create(node, &node.sandbox(id).unwrap(), request).await.unwrap_err();
    assert_eq!(refused.reason(), "LANGUAGE_UNAVAILABLE");
}

#[tokio::test(start_paused = true)]
async fn template_without_a_shell_runs_programs_and_says_why_no_lines() {
    let world = World::start(0, 5).await;
    world.script.missing.lock().unwrap().extend(["bash", "sh"]);
    let id = world.acquire().await;
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
    let line = ExecuteRequest { command: Some("ls".into()), argv: Vec::new(), ..argv(id, &[]) };
    let refused = world.execute(line).await.unwrap_err();
    assert_eq!(refused.words(), ("FAILED_PRECONDITION", "PROGRAM_NOT_FOUND"));
    assert!(refused.message.starts_with("template host has no shell for command"), "{}", refused.message);
}

#[tokio::test(start_paused = true)]
async fn start_command_without_a_shell_fails_clearly() {
    let world = start(FOREVER, "", 10).await;
    world.script.missing.lock().unwrap().extend(["bash", "sh"]);
    let failure = world.try_acquire(of("server@1")).await.unwrap_err();
    assert_eq!(failure.reason, "TEMPLATE_FAILED");
    assert!(failure.message.contains("has neither bash nor sh"), "{}", failure.message);
}

#[tokio::test(start_paused = true)]
async fn language_that_a_template_lacks_is_warmed_in_its_first_sandbox_only() {
    let warm = Options { warm_contexts: vec!["python".into()], ..options(0, 5) };
    let (world, _docker) = World::start_on_two(warm, |_| {}).await;
    world.script.missing.lock().unwrap().insert("python3");
    world.set_templates(1, vec![v1::Template { warm_size: 1, ..template("bare", 1, &["docker"]) }]).await;
    let origin = world.node.shared().templates.find("bare@1").unwrap();
    assert!(!origin.may_have("python") && origin.may_have("javascript"));
    assert!(world.try_acquire(of("bare@1")).await.unwrap().warm);
}

#[tokio::test(start_paused = true)]
async fn home_of_another_user_is_left_to_the_agent() {
    let world = World::start(0, 5).await;
    let id = world.acquire().await;
    let home = async |user: &str, env: &[(&str, &str)]| {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        world.execute(ExecuteRequest { user: user.to_owned(), env, ..argv(id, &["echo", "a"]) }).await.unwrap();
        world.script.last_start().env.get("HOME").cloned()
    };
    assert_eq!(home("root", &[]).await, None);
    assert_eq!(home("root", &[("HOME", "/mine")]).await.as_deref(), Some("/mine"));
    for own in ["", "user", "1000"] {
        assert_eq!(home(own, &[]).await.as_deref(), Some("/home/user"));
    }
}

#[tokio::test]
async fn what_a_template_starts_is_started_anew_over_files_that_are_restored() {
    let bench = Bench::start().await;
    let saved = bench.checkpoint(bench.acquire().await, None, false).await.unwrap().checkpoint;
    for lost in [0, 1] {
        let script = Arc::new(Script::default());
        let folder = tempfile::tempdir().unwrap();
        let (options, linux) = (options_in(&folder.path().join("journal"), 0, 5), runtime(&script));
        let store = Arc::clone(&bench.store) as _;
        let world = World::start_with_all(options, [&linux, &linux], script, Arc::default(), store, Some(folder)).await;
        let start = StartCommand { command: FOREVER.into(), ready_command: "run ready 1".into(), ready_seconds: 5 };
        world.set_templates(1, vec![v1::Template { start: Some(start), ..template("server", 1, &["linux"]) }]).await;
        let id = world.acquire_of("server@1").await;
        if lost > 0 {
            world.script.missing.lock().unwrap().extend(["bash", "sh"]);
        }
        let request =
            RestoreSandboxRequest { sandbox_id: id.to_string(), checkpoint: saved.clone(), restart_commands: false };
        let manifest = world.client().restore_sandbox(request).await.unwrap().into_inner().manifest.unwrap();
        assert_eq!(world.script.running_at_restore.load(Ordering::SeqCst), 0, "it was ended before");
        assert_eq!(manifest.lost.len(), lost, "{:?}", manifest.lost);
        assert_eq!(world.script.running(), 1 - lost);
        if let Some(lost) = manifest.lost.first() {
            assert!(lost.what == FOREVER && lost.reason.contains("neither bash nor sh"), "{lost:?}");
        }
    }
}
