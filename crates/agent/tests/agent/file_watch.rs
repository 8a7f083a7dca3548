//! Watches.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cloud_sandbox_proto::v1::{FileEvent, FileEventType as Type, FileType, WatchFilesRequest, WatchFilesResponse};
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use crate::{
    files::{Files, code},
    rig::{eventually, left_out},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A watch whose paths are shown from the agent's folder.
struct Watch {
    events: Streaming<WatchFilesResponse>,
    root: String,
}

impl Watch {
    async fn open(agent: &Files, name: &str, recursive: bool) -> Result<Self, Status> {
        let request = WatchFilesRequest { path: agent.path(name), recursive, ..Default::default() };
        let events = agent.client.clone().watch_files(request).await?.into_inner();
        let mut watch = Self { events, root: agent.path("") };
        assert_eq!(watch.next().await.unwrap().r#type(), Type::Started);
        Ok(watch)
    }

    async fn next(&mut self) -> Result<FileEvent, Status> {
        let message = timeout(PATIENCE, self.events.message()).await.expect("an event comes")?;
        Ok(message.expect("the watch goes on").event.unwrap())
    }

    async fn told(&mut self) -> (Type, String) {
        let event = self.next().await.unwrap();
        (event.r#type(), event.path.strip_prefix(&self.root).unwrap().to_owned())
    }

    async fn expect(&mut self, wanted: &[(Type, &str)]) {
        for (happened, path) in wanted {
            assert_eq!(self.told().await, (*happened, (*path).to_owned()));
        }
    }

    async fn silent(&mut self, time: Duration) {
        if let Ok(event) = timeout(time, self.events.message()).await {
            panic!("{event:?}");
        }
    }
}

async fn with_folder() -> Files {
    let agent = Files::start().await;
    fs::create_dir(agent.folder().join("d")).unwrap();
    agent
}

#[tokio::test]
async fn what_happens_to_a_file_is_told() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", false).await.unwrap();
    fs::write(agent.path("d/a"), "x").unwrap();
    watch.expect(&[(Type::Created, "d/a"), (Type::Written, "d/a")]).await;
    fs::rename(agent.path("d/a"), agent.path("d/b")).unwrap();
    let renamed = watch.next().await.unwrap();
    assert_eq!(renamed.file_type(), FileType::File);
    assert_eq!(
        (renamed.r#type(), renamed.old_path, renamed.path),
        (Type::Renamed, agent.path("d/a"), agent.path("d/b"))
    );
    agent.chmod(&agent.path("d/b"), 0o600, false).await.unwrap();
    watch.expect(&[(Type::Changed, "d/b")]).await;
    fs::remove_file(agent.path("d/b")).unwrap();
    watch.expect(&[(Type::Removed, "d/b")]).await;
    watch.silent(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn the_agents_own_writes_are_told_as_what_they_are() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", false).await.unwrap();
    agent.write(&agent.path("d/a"), b"new", 0).await.unwrap();
    watch.expect(&[(Type::Created, "d/a")]).await;
    agent.write(&agent.path("d/a"), b"newer", 0).await.unwrap();
    loop {
        // Whether the first close is told by this name depends on the kernel.
        assert_eq!(watch.told().await, (Type::Written, "d/a".into()));
        if timeout(Duration::from_millis(300), watch.events.message()).await.is_err() {
            break;
        }
    }
}

#[tokio::test]
async fn what_comes_from_or_goes_elsewhere_is_created_or_removed() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    fs::write(agent.path("out"), "").unwrap();
    let mut watch = Watch::open(&agent, "d", true).await.unwrap();
    fs::rename(agent.path("out"), agent.path("d/in")).unwrap();
    watch.expect(&[(Type::Created, "d/in")]).await;
    fs::rename(agent.path("d/in"), agent.path("out")).unwrap();
    watch.expect(&[(Type::Removed, "d/in")]).await;

    fs::create_dir_all(agent.path("tree/sub")).unwrap();
    fs::write(agent.path("tree/sub/file"), "").unwrap();
    fs::rename(agent.path("tree"), agent.path("d/tree")).unwrap();
    watch.expect(&[(Type::Created, "d/tree"), (Type::Created, "d/tree/sub"), (Type::Created, "d/tree/sub/file")]).await;
    fs::rename(agent.path("d/tree"), agent.path("tree")).unwrap();
    watch.expect(&[(Type::Removed, "d/tree")]).await;
    fs::write(agent.path("tree/sub/other"), "").unwrap();
    watch.silent(Duration::from_millis(200)).await;
}

#[tokio::test]
async fn new_folders_are_watched_and_nothing_in_them_is_missed_or_told_twice() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", true).await.unwrap();
    for round in 0..20 {
        fs::create_dir_all(agent.path(&format!("d/{round}/x/y"))).unwrap();
        fs::write(agent.path(&format!("d/{round}/x/y/file")), "").unwrap();
    }
    fs::write(agent.path("d/last"), "").unwrap();
    let mut created = Vec::new();
    loop {
        match watch.told().await {
            (Type::Created, path) if path == "d/last" => break,
            (Type::Created, path) => created.push(path),
            (Type::Written, _) => {}
            other => panic!("{other:?}"),
        }
    }
    // A folder's content may still be told after what came later elsewhere.
    while created.len() < 80 {
        match watch.told().await {
            (Type::Created, path) => created.push(path),
            (Type::Written, _) => {}
            other => panic!("{other:?}"),
        }
    }
    created.sort();
    let count = created.len();
    created.dedup();
    assert_eq!((created.len(), count), (80, 80));
    fs::rename(agent.path("d/7"), agent.path("d/seven")).unwrap();
    fs::write(agent.path("d/seven/x/new"), "").unwrap();
    while watch.told().await != (Type::Created, "d/seven/x/new".into()) {}
}

#[tokio::test]
async fn what_comes_and_goes_in_a_folder_that_was_told_is_told() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", true).await.unwrap();
    let mut folder = "d".to_owned();
    for _ in 0..20 {
        folder.push_str("/e");
        fs::create_dir(agent.path(&folder)).unwrap();
        watch.expect(&[(Type::Created, &folder)]).await;
        let [from, to] = [format!("{folder}/from"), format!("{folder}/to")];
        fs::write(agent.path(&from), "").unwrap();
        fs::rename(agent.path(&from), agent.path(&to)).unwrap();
        fs::remove_file(agent.path(&to)).unwrap();
        while watch.told().await != (Type::Renamed, to.clone()) {}
        watch.expect(&[(Type::Removed, &to)]).await;
    }
}

#[tokio::test]
async fn a_file_that_stays_open_is_told_at_most_once_a_second() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", false).await.unwrap();
    let mut file = fs::File::create(agent.path("d/log")).unwrap();
    watch.expect(&[(Type::Created, "d/log")]).await;
    let enough = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let writer = std::thread::spawn({
        let enough = Arc::clone(&enough);
        move || {
            while !enough.load(Ordering::Relaxed) {
                file.write_all(b"line\n").unwrap();
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    });
    for told in 1..=3 {
        watch.expect(&[(Type::Written, "d/log")]).await;
        assert!(told <= begun.elapsed().as_secs() + 1, "{told} in {:?}", begun.elapsed());
    }
    enough.store(true, Ordering::Relaxed);
    writer.join().unwrap();
}

#[tokio::test]
async fn a_watch_ends_when_its_folder_is_gone() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    fs::write(agent.path("d/a"), "").unwrap();
    let mut watch = Watch::open(&agent, "d", true).await.unwrap();
    fs::remove_dir_all(agent.path("d")).unwrap();
    watch.expect(&[(Type::Removed, "d/a"), (Type::Removed, "d")]).await;
    assert_eq!(code(watch.next().await), Code::NotFound);

    fs::create_dir_all(agent.path("above/d")).unwrap();
    let mut watch = Watch::open(&agent, "above/d", true).await.unwrap();
    fs::rename(agent.path("above"), agent.path("elsewhere")).unwrap();
    watch.expect(&[(Type::Removed, "above/d")]).await;
    assert_eq!(code(watch.next().await), Code::NotFound);
}

#[tokio::test]
async fn what_is_not_there_cannot_be_watched() {
    let agent = with_folder().await;
    assert_eq!(code(Watch::open(&agent, "none", false).await.map(|_| ())), Code::NotFound);
    symlink("loop", agent.folder().join("loop")).unwrap();
    assert_eq!(code(Watch::open(&agent, "loop", false).await.map(|_| ())), Code::FailedPrecondition);
}

#[tokio::test]
async fn one_file_is_watched_until_it_is_gone() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    fs::write(agent.path("d/a"), "").unwrap();
    symlink("d/a", agent.folder().join("link")).unwrap();
    for (name, gone) in [("d/a", "d/a"), ("link", "d/a")] {
        let mut watch = Watch::open(&agent, name, false).await.unwrap();
        fs::write(agent.path("d/other"), "x").unwrap();
        fs::write(agent.path("d/a"), "x").unwrap();
        watch.expect(&[(Type::Written, name)]).await;
        agent.write(&agent.path("d/a"), b"replaced", 0).await.unwrap();
        watch.expect(&[(Type::Written, name)]).await;
        fs::remove_file(agent.path(gone)).unwrap();
        watch.expect(&[(Type::Removed, name)]).await;
        assert_eq!(code(watch.next().await), Code::NotFound);
        fs::write(agent.path("d/a"), "").unwrap();
    }
}

#[tokio::test]
async fn a_slow_reader_is_told_that_it_missed_something() {
    if left_out() {
        return;
    }
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", true).await.unwrap();
    for _ in 0..5 {
        for number in 0..2000 {
            let path = agent.path(&format!("d/a-name-that-is-rather-long-to-fill-the-window-sooner-{number}"));
            fs::write(&path, "").unwrap();
        }
        for number in 0..2000 {
            let path = agent.path(&format!("d/a-name-that-is-rather-long-to-fill-the-window-sooner-{number}"));
            fs::remove_file(&path).unwrap();
        }
    }
    loop {
        if watch.next().await.unwrap().r#type() == Type::Overflow {
            break;
        }
    }
    // The watch goes on.
    fs::create_dir(agent.path("d/new")).unwrap();
    while watch.told().await != (Type::Created, "d/new".into()) {}
    assert!(agent.memory_kib() < 24 * 1024, "{}", agent.memory_kib());
}

#[tokio::test]
async fn too_many_folders_are_refused() {
    let agent = with_folder().await;
    for number in 0..8200 {
        fs::create_dir(agent.path(&format!("d/{number}"))).unwrap();
    }
    assert_eq!(code(Watch::open(&agent, "d", true).await.map(|_| ())), Code::ResourceExhausted);
    Watch::open(&agent, "d", false).await.unwrap();
}

#[tokio::test]
async fn a_dropped_watch_frees_what_it_took() {
    let agent = with_folder().await;
    let watches = || {
        let descriptors = agent.proc_names(&format!("{}/fd", agent.pid()));
        descriptors.iter().filter(|(_, target)| target.contains("inotify")).count()
    };
    let before = watches();
    let mut open = Vec::new();
    for _ in 0..5 {
        open.push(Watch::open(&agent, "d", true).await.unwrap());
    }
    assert_eq!(watches(), before + 5);
    drop(open);
    eventually("the watches are freed", || watches() == before).await;
}

#[tokio::test]
async fn what_programs_do_is_told() {
    let agent = with_folder().await;
    let mut watch = Watch::open(&agent, "d", true).await.unwrap();
    let run = async |script: &str| {
        assert_eq!(agent.sh(&format!("cd {}; {script}", agent.path("d"))).await.exited.exit_code, 0)
    };
    run("echo x > a").await;
    watch.expect(&[(Type::Created, "d/a"), (Type::Written, "d/a")]).await;
    run("mkdir e; rm a").await;
    watch.expect(&[(Type::Created, "d/e"), (Type::Removed, "d/a")]).await;
}
