//! A `request_id` runs once at most, whatever happens to callers, connections, sandboxes and nodes.

use std::{path::Path, sync::atomic::Ordering, time::Duration};

use cloud_sandbox_model::SandboxId;
use cloud_sandbox_proto::v1::{
    AcquireSandboxRequest, ExecuteRequest, ExecutionState, ListExecutionsRequest, exec_event::Event,
    exec_output::Content,
};
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

use super::{follow::*, harness::*};
use crate::Options;

fn named(request: ExecuteRequest) -> ExecuteRequest {
    ExecuteRequest { request_id: "r1".into(), ..request }
}

async fn world() -> (World, SandboxId) {
    let world = World::start(1, 5).await;
    let id = world.acquire().await;
    (world, id)
}

fn starts(world: &World) -> usize {
    world.script.starts.lock().unwrap().len()
}

/// What is told of a sandbox's end to a call that has not begun, in order.
fn ended_by(cause: &str) -> Vec<(String, String)> {
    vec![("begun".into(), "false".into()), ("cause".into(), cause.into())]
}

fn sorted(mut metadata: Vec<(String, String)>) -> Vec<(String, String)> {
    metadata.sort();
    metadata
}

#[tokio::test(start_paused = true)]
async fn every_way_to_start_attaches_to_the_first() {
    let (world, id) = world().await;
    let request = named(argv(id, &["wait", "3000"]));
    let started = world.begin(request.clone()).await.unwrap();
    assert_eq!(world.begin(request.clone()).await.unwrap().execution_id, started.execution_id);
    let answer = world.execute(request.clone()).await.unwrap();
    assert_eq!((answer.stdout.as_str(), &answer.execution_id), ("waiting\ndone\n", &started.execution_id));
    assert!(world.stream(request.clone()).await.is_ok());
    assert_eq!(world.begin(request.clone()).await.unwrap().state(), ExecutionState::Exited);
    assert_eq!(starts(&world), 1);
    for other in [
        ExecuteRequest { tag: "t".into(), ..request.clone() },
        ExecuteRequest { terminal: Some(SIZE), ..request.clone() },
        ExecuteRequest { changes: true, ..request.clone() },
    ] {
        assert_eq!(world.execute(other).await.unwrap_err().words(), ("ALREADY_EXISTS", "REQUEST_ID_REUSED"));
    }
}

#[tokio::test(start_paused = true)]
async fn finished_one_answers_also_while_the_sandbox_is_paused() {
    let (world, id) = world().await;
    let request = named(argv(id, &["echo", "a"]));
    let answer = world.execute(request.clone()).await.unwrap();
    world.pause(id).await.unwrap();
    assert_eq!(world.execute(request.clone()).await.unwrap(), answer);
    let other = ExecuteRequest { request_id: "r2".into(), ..request };
    assert_eq!(world.execute(other).await.unwrap_err().reason, "SANDBOX_PAUSED");
}

#[tokio::test(start_paused = true)]
async fn start_that_may_have_happened_is_unknown_and_not_repeated() {
    let (world, id) = world().await;
    world.script.loses_starts.store(true, Ordering::SeqCst);
    let request = named(argv(id, &["echo", "a"]));
    let failure = world.execute(request.clone()).await.unwrap_err();
    assert_eq!(failure.words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
    world.script.loses_starts.store(false, Ordering::SeqCst);
    let failure = world.execute(request.clone()).await.unwrap_err();
    assert_eq!(failure.words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
    let failure = world.begin(request).await.unwrap_err();
    assert_eq!(failure.words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
    let execution = failure.metadata.iter().find(|(key, _)| key == "execution_id").unwrap().1.clone();
    assert_eq!(world.execution(id, &execution).await.unwrap().state(), ExecutionState::Unknown);
    assert_eq!(starts(&world), 1);
}

#[tokio::test(start_paused = true)]
async fn connection_that_breaks_leaves_an_unknown_end_and_what_was_printed() {
    let (world, id) = world().await;
    let failure = world.execute(named(argv(id, &["break"]))).await.unwrap_err();
    assert_eq!(failure.words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
    let list = ListExecutionsRequest { sandbox_id: id.to_string(), ..Default::default() };
    let known = world.list(list).await.unwrap().executions.remove(0);
    assert_eq!(known.state(), ExecutionState::Unknown);
    assert!(known.failure.contains("connection") && known.exit.is_none());
    let (_, end) = world.attach(id, &known.execution_id, (0, 0)).await.unwrap().all().await;
    assert_eq!(end.unwrap_err().reason, "OUTCOME_UNKNOWN");
}

#[tokio::test(start_paused = true)]
async fn result_past_its_time_is_expired_and_not_run_again() {
    let mut options = options(1, 5);
    options.journal.retention = Duration::from_millis(300);
    options.journal.sweep_interval = Duration::from_millis(50);
    let world = World::start_with(options, |_| {}).await;
    let id = world.acquire().await;
    let request = named(argv(id, &["echo", "a"]));
    let execution = world.execute(request.clone()).await.unwrap().execution_id;
    std::thread::sleep(Duration::from_millis(350));
    sleep(Duration::from_millis(200)).await;
    let failure = world.execute(request.clone()).await.unwrap_err();
    assert_eq!(failure.words(), ("FAILED_PRECONDITION", "RESULT_EXPIRED"));
    assert_eq!(world.begin(request).await.unwrap_err().reason, "RESULT_EXPIRED");
    assert_eq!(world.execution(id, &execution).await.unwrap_err().reason, "EXECUTION_NOT_FOUND");
    assert_eq!(starts(&world), 1);
}

#[tokio::test(start_paused = true)]
async fn streams_end_with_the_lease_and_say_so() {
    let world = World::start(0, 5).await;
    let request = AcquireSandboxRequest { timeout_seconds: 10, ..Default::default() };
    let id = id_of(&world.try_acquire(request).await.unwrap());
    let started = world.begin(named(argv(id, &["wait", "60000"]))).await.unwrap();
    let attached = world.attach(id, &started.execution_id, (0, 0)).await.unwrap();
    let (events, end) = timeout(Duration::from_secs(20), attached.all()).await.unwrap();
    assert_eq!(stdout(&events, 0), b"waiting\n");
    assert_eq!(end.unwrap_err().words(), ("NOT_FOUND", "LEASE_ENDED"));

    world.settle().await;
    let known = world.execution(id, &started.execution_id).await.unwrap();
    assert_eq!(known.state(), ExecutionState::Unknown);
    assert!(known.failure.contains("lease ended"), "{}", known.failure);
    let failure = world.execute(named(argv(id, &["wait", "60000"]))).await.unwrap_err();
    assert_eq!(failure.words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
}

#[tokio::test(start_paused = true)]
async fn sandbox_that_ended_can_be_asked_until_it_is_released() {
    let world = World::start(0, 5).await;
    let request = AcquireSandboxRequest { timeout_seconds: 10, ..Default::default() };
    let id = id_of(&world.try_acquire(request).await.unwrap());
    let request = named(argv(id, &["lines", "100"]));
    let answer = world.execute(request.clone()).await.unwrap();
    sleep(Duration::from_secs(11)).await;
    assert!(world.runtime.sandboxes().is_empty());

    let entry = world.in_directory(id).await.unwrap();
    assert!(entry.ended && entry.tenant == "default" && entry.user == "alice" && entry.template == "host");
    assert_eq!(world.execute(request.clone()).await.unwrap(), answer);
    let other = ExecuteRequest { tag: "t".into(), ..request.clone() };
    assert_eq!(world.execute(other).await.unwrap_err().reason, "REQUEST_ID_REUSED");
    let read = world.read(id, &answer.execution_id, 0, 0).await.unwrap();
    assert!(read.end && read.total_bytes == answer.stdout_bytes);
    let (events, exited) = world.attach(id, &answer.execution_id, (0, 0)).await.unwrap().all().await;
    assert_eq!((stdout(&events, 0), exited.unwrap().exit_code), (answer.stdout.clone().into_bytes(), 0));

    let gone = ("NOT_FOUND", "SANDBOX_GONE");
    let failure = world.execute(ExecuteRequest { request_id: "r2".into(), ..request.clone() }).await.unwrap_err();
    assert_eq!((failure.words(), sorted(failure.metadata.clone())), (gone, ended_by("lease")));
    assert_eq!(world.get(id).await.unwrap_err().words(), gone);
    assert_eq!(world.keep_alive(id, 0).await.unwrap_err().words(), gone);

    world.release(id).await.unwrap();
    assert!(world.in_directory(id).await.is_none());
    let not_found = ("NOT_FOUND", "SANDBOX_NOT_FOUND");
    assert_eq!(world.execute(request).await.unwrap_err().words(), not_found);
    assert_eq!(world.release(id).await.unwrap_err().words(), not_found);
    assert_eq!(kept(&world.journal()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn release_ends_streams_and_leaves_nothing_on_disk() {
    let (world, id) = world().await;
    let started = world.begin(argv(id, &["wait", "60000"])).await.unwrap();
    let attached = world.attach(id, &started.execution_id, (0, 0)).await.unwrap();
    let (released, (_, end)) = tokio::join!(world.release(id), attached.all());
    released.unwrap();
    let failure = end.unwrap_err();
    assert_eq!(
        (failure.words(), sorted(failure.metadata.clone())),
        (("NOT_FOUND", "SANDBOX_GONE"), vec![("cause".into(), "released".into())])
    );
    assert!(world.in_directory(id).await.is_none());
    assert_eq!(kept(&world.journal()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn ended_sandbox_is_forgotten_with_the_last_of_its_executions() {
    let mut options = options(0, 5);
    options.journal.retention = Duration::from_millis(300);
    options.journal.sweep_interval = Duration::from_millis(50);
    let world = World::start_with(options, |_| {}).await;
    let id = world.acquire().await;
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
    world.runtime.kill(id);
    world.settle().await;
    assert_eq!(world.get(id).await.unwrap_err().reason, "SANDBOX_GONE");
    std::thread::sleep(Duration::from_millis(350));
    sleep(Duration::from_millis(200)).await;
    assert_eq!(world.get(id).await.unwrap_err().reason, "SANDBOX_NOT_FOUND");
    assert!(world.in_directory(id).await.is_none());
    assert_eq!(kept(&world.journal()), Vec::<String>::new());
}

/// The sandboxes that a journal has something of.
fn kept(journal: &Path) -> Vec<String> {
    let names = std::fs::read_dir(journal).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("sb")).collect()
}

/// A copy of a journal, as a process that was killed would have left it: the one copied from goes on.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

async fn start_on(journal: &Path) -> World {
    let script = std::sync::Arc::default();
    World::start_on(options_in(journal, 0, 5), runtime(&script), script).await
}

#[tokio::test(start_paused = true)]
async fn killed_node_leaves_what_was_printed_and_unknown_ends() {
    let (world, id) = world().await;
    let finished = world.execute(named(argv(id, &["lines", "100"]))).await.unwrap();
    let request = ExecuteRequest { request_id: "r2".into(), ..argv(id, &["wait", "60000"]) };
    let running = world.begin(request.clone()).await.unwrap();
    world.settle().await;
    let folder = TempDir::new().unwrap();
    copy(&world.journal(), folder.path());

    let next = start_on(folder.path()).await;
    let entry = next.in_directory(id).await.unwrap();
    next.settle().await;
    assert!(entry.ended && entry.user == "alice" && entry.node == next.entry().await.id);
    assert_eq!(next.execute(named(argv(id, &["lines", "100"]))).await.unwrap(), finished);
    let known = next.execution(id, &running.execution_id).await.unwrap();
    assert_eq!((known.state(), known.summary.as_str()), (ExecutionState::Unknown, "wait 60000"));
    let (events, end) = next.attach(id, &running.execution_id, (0, 0)).await.unwrap().all().await;
    assert_eq!(
        (stdout(&events, 0).as_slice(), end.unwrap_err().reason.as_str()),
        (&b"waiting\n"[..], "OUTCOME_UNKNOWN")
    );
    assert_eq!(next.execute(request).await.unwrap_err().words(), ("DATA_LOSS", "OUTCOME_UNKNOWN"));
    let other = ExecuteRequest { request_id: "r3".into(), ..argv(id, &["echo", "a"]) };
    let failure = next.execute(other).await.unwrap_err();
    assert_eq!((failure.words(), sorted(failure.metadata.clone())), (("NOT_FOUND", "SANDBOX_GONE"), ended_by("node")));
    assert_eq!(starts(&next), 0);
    next.release(id).await.unwrap();
    assert_eq!(kept(folder.path()), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn torn_journal_is_read_up_to_where_it_is_torn() {
    let (world, id) = world().await;
    let name = world.execute(argv(id, &["lines", "100"])).await.unwrap().execution_id;
    let folder = TempDir::new().unwrap();
    copy(&world.journal(), folder.path());
    let segment = folder.path().join(id.to_string()).join(format!("{name}.0"));
    let length = std::fs::metadata(&segment).unwrap().len();
    std::fs::OpenOptions::new().write(true).open(&segment).unwrap().set_len(length - 200).unwrap();

    let next = start_on(folder.path()).await;
    assert_eq!(next.execution(id, &name).await.unwrap().state(), ExecutionState::Unknown);
    let (events, end) = next.attach(id, &name, (0, 0)).await.unwrap().all().await;
    assert!(stdout(&events, 0).starts_with(b"line 0\nline 1\n"));
    assert_eq!(end.unwrap_err().reason, "OUTCOME_UNKNOWN");
}

#[tokio::test(start_paused = true)]
async fn orderly_restart_keeps_everything_and_says_why_it_ended() {
    let folder = TempDir::new().unwrap();
    let (id, running) = {
        let world = start_on(folder.path()).await;
        let id = world.acquire().await;
        let running = world.begin(named(argv(id, &["wait", "60000"]))).await.unwrap();
        assert_eq!(world.node.shutdown(Duration::from_secs(10)).await, 0);
        (id, running.execution_id)
    };
    let next = start_on(folder.path()).await;
    let known = next.execution(id, &running).await.unwrap();
    assert_eq!(known.state(), ExecutionState::Unknown);
    assert!(known.failure.contains("node shut down"), "{}", known.failure);
    assert_eq!(sorted(next.get(id).await.unwrap_err().metadata), ended_by("shutdown"));
}

#[tokio::test(start_paused = true)]
async fn ended_sandbox_is_listed_once_the_directory_is_back() {
    let mut options = options(0, 5);
    options.journal.sweep_interval = Duration::from_millis(50);
    let world = World::start_with(options, |_| {}).await;
    let id = world.acquire().await;
    world.execute(argv(id, &["echo", "a"])).await.unwrap();
    world.directory.failing.store(true, Ordering::SeqCst);
    world.runtime.kill(id);
    sleep(Duration::from_secs(1)).await;
    assert!(!world.in_directory(id).await.is_some_and(|entry| entry.ended));
    world.directory.failing.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(1)).await;
    assert!(world.in_directory(id).await.unwrap().ended);
}

/// Options with a journal that holds little of each execution.
fn small_logs() -> Options {
    let mut options = options(1, 5);
    options.journal.execution_bytes = 256 * 1024;
    options.journal.total_bytes = 16 * 1024 * 1024;
    options
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_of_200_mebibytes_is_bounded_on_disk_and_paced_to_its_reader() {
    const LENGTH: usize = 200 * 1024 * 1024;
    let world = World::start_with(small_logs(), |_| {}).await;
    let id = world.acquire().await;
    let request =
        ExecuteRequest { max_output_bytes: 1000, output_strategy: 3, ..argv(id, &["flood", &LENGTH.to_string()]) };
    let answer = world.execute(request).await.unwrap();
    assert_eq!((answer.stdout_bytes, answer.stdout_truncated), (LENGTH as u64, true));
    assert!(answer.stdout.len() <= 1000 && answer.stdout.contains("omitted"));
    let taken = disk(&world.journal());
    assert!(taken <= 400 * 1024, "{taken}");

    // a reader that is there from the beginning gets every byte
    let name = world.begin(argv(id, &["flood", "20000000"])).await.unwrap().execution_id;
    let (events, exited) = world.attach(id, &name, (0, 0)).await.unwrap().all().await;
    assert_eq!(exited.unwrap().stdout_bytes, 20_000_000);
    let gaps: u64 = events.iter().map(|event| if let Event::Gap(gap) = event { gap.length } else { 0 }).sum();
    let read: usize = if gaps == 0 { stdout(&events, 0).len() } else { 0 };
    assert!(gaps > 0 || read == 20_000_000);

    // one that comes late is told what it has missed
    let (events, _) = world.attach(id, &name, (0, 0)).await.unwrap().all().await;
    assert_eq!(told(&events), 20_000_000);
}

/// How much of standard output there was, or is said to be missing.
fn told(events: &[Event]) -> u64 {
    let length = |event: &Event| match event {
        Event::Gap(gap) => gap.length,
        Event::Stdout(output) => match output.content.as_ref().unwrap() {
            Content::Text(text) => text.len() as u64,
            Content::Data(data) => data.len() as u64,
        },
        _ => 0,
    };
    events.iter().map(length).sum()
}

fn disk(folder: &Path) -> u64 {
    let size = |entry: std::fs::DirEntry| {
        if entry.file_type().unwrap().is_dir() { disk(&entry.path()) } else { entry.metadata().unwrap().len() }
    };
    std::fs::read_dir(folder).unwrap().map(|entry| size(entry.unwrap())).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reader_that_stands_still_slows_its_process_and_nobody_else() {
    let world = World::start_with(small_logs(), |_| {}).await;
    let id = world.acquire().await;
    let mut stuck = Vec::new();
    for _ in 0..20 {
        let name = world.begin(argv(id, &["yes"])).await.unwrap().execution_id;
        let mut attached = world.attach(id, &name, (0, 0)).await.unwrap();
        attached.next().await.unwrap();
        stuck.push((name, attached));
    }
    sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        let answer = timeout(Duration::from_secs(30), world.execute(argv(id, &["echo", "a"]))).await;
        assert_eq!(answer.expect("others hold it up").unwrap().stdout, "a");
    }
    assert!(disk(&world.journal()) < 20 * 512 * 1024);
    // and they all end with their sandbox
    world.release(id).await.unwrap();
    for (_, attached) in stuck {
        let (_, end) = timeout(Duration::from_secs(30), attached.all()).await.expect("a stream hangs");
        assert_eq!(end.unwrap_err().reason, "SANDBOX_GONE");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_is_whole_while_readers_that_stand_still_fill_the_journal() {
    let mut options = small_logs();
    options.journal.total_bytes = 1024 * 1024;
    let world = World::start_with(options, |_| {}).await;
    let (id, other) = (world.acquire().await, world.acquire().await);
    let mut stuck = Vec::new();
    for _ in 0..64 {
        let name = world.begin(argv(id, &["flood", "2000000"])).await.unwrap().execution_id;
        let mut attached = world.attach(id, &name, (0, 0)).await.unwrap();
        attached.next().await.unwrap();
        stuck.push(attached);
    }
    sleep(Duration::from_millis(300)).await;
    for _ in 0..20 {
        for sandbox in [id, other] {
            let answer = timeout(Duration::from_secs(30), world.execute(argv(sandbox, &["echo", "a"]))).await;
            assert_eq!(answer.expect("others hold it up").unwrap().stdout, "a");
        }
    }
    // each has its floor of 64 KiB, and what a file is longer than that
    assert!(disk(&world.journal()) < 1024 * 1024 + 66 * 80 * 1024);
    // those who read on get everything since they came, and are told what was dropped before
    for attached in stuck.drain(..8) {
        let (events, exited) = timeout(Duration::from_secs(30), attached.all()).await.expect("a stream hangs");
        assert_eq!((told(&events), exited.unwrap().stdout_bytes), (2_000_000, 2_000_000));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn timeout_holds_while_a_reader_stands_still() {
    let mut options = small_logs();
    options.kill_grace = Duration::from_millis(300);
    let world = World::start_with(options, |_| {}).await;
    let id = world.acquire().await;
    let name = world.begin(ExecuteRequest { timeout_ms: 500, ..argv(id, &["yes"]) }).await.unwrap().execution_id;
    let mut attached = world.attach(id, &name, (0, 0)).await.unwrap();
    attached.next().await.unwrap();
    let ended = timeout(Duration::from_secs(30), world.until_exited(id, &name)).await.expect("it goes on");
    assert!(ended.exit.unwrap().timed_out);
    let (_, exited) = timeout(Duration::from_secs(30), attached.all()).await.expect("its stream hangs");
    assert!(exited.unwrap().timed_out);
    let ended = async {
        while world.script.running() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), ended).await.expect("its process goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_processes_at_once_are_streamed_in_order() {
    let world = World::start(1, 2).await;
    let id = world.acquire().await;
    let one = |_| async {
        let name = world.begin(argv(id, &["lines", "200"])).await.unwrap().execution_id;
        world.attach(id, &name, (0, 0)).await.unwrap().all().await
    };
    let all = futures::future::join_all((0..200).map(one)).await;
    let expected: String = (0..200).map(|number| format!("line {number}\n")).collect();
    for (events, exited) in all {
        assert_eq!(exited.unwrap().exit_code, 0);
        assert_eq!(stdout(&events, 0), expected.as_bytes());
    }
}
