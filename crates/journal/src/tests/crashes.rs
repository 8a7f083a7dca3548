//! A process that dies leaves what it had appended, up to a frame it was writing.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use super::*;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn segment(dir: &Path, log: &Log, number: u64) -> PathBuf {
    dir.join(log.sandbox().to_string()).join(format!("{}.{number}", log.execution()))
}

#[tokio::test]
async fn log_of_a_dead_process_is_read_as_before_and_is_interrupted() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let other = place.journal.create(log.sandbox(), ExecutionId::generate(), b"other").unwrap();
    place.journal.describe_sandbox(log.sandbox(), b"owner").unwrap();
    for _ in 0..500 {
        print(&log, Kind::Stdout, 400).await;
        print(&log, Kind::Stderr, 30).await;
        log.append(Kind::Event, b"e").await;
    }
    other.finish(b"tail");
    let items = {
        let mut reader = from_start(&log);
        let mut items = Vec::new();
        while log.totals().stdout > items.last().map_or(0, end_of) {
            items.push(reader.next().await.unwrap());
        }
        items
    };
    let copied = TempDir::new().unwrap();
    copy(place.dir.path(), copied.path());
    let (journal, recovered) = open(copied.path(), SMALL, u64::MAX);
    let [found] = &recovered[..] else { panic!("{recovered:?}") };
    assert_eq!((found.sandbox, found.blob.as_deref()), (log.sandbox(), Some(&b"owner"[..])));
    assert_eq!(found.logs.len(), 2);
    assert_eq!(journal.bytes(), place.journal.bytes());
    let again = journal.log(log.sandbox(), log.execution()).unwrap();
    assert_eq!(again.totals(), crate::Totals { interrupted: true, ..log.totals() });
    assert_eq!(&*again.head(), b"head");
    let read = all(from_start(&again)).await;
    for stream in Stream::BOTH {
        let (now, before) = (stitched(&read, stream, 0), stitched(&items, stream, 0));
        assert_eq!(now.len(), 3, "the same gap");
        assert_eq!(now[..before.len() - 1], before[..before.len() - 1]);
    }
    let other = journal.log(other.sandbox(), other.execution()).unwrap();
    assert!(other.totals().finished && !other.interrupted());
    assert_eq!(all(from_start(&other)).await, [tail()]);
}

fn end_of(item: &Item) -> u64 {
    match item {
        Item::Stdout { offset, bytes } => offset + bytes.len() as u64,
        _ => 0,
    }
}

#[tokio::test]
async fn file_cut_at_every_byte_is_recovered_up_to_there() {
    let place = Place::new();
    let log = place.log();
    let mut ends = vec![(56 + 9 + 4, 0, 0)];
    for (kind, bytes) in
        [(Kind::Stdout, &b"hello "[..]), (Kind::Stderr, b"x"), (Kind::Event, b"ev"), (Kind::Stdout, b"w")]
    {
        log.append(kind, bytes).await;
        let totals = log.totals();
        ends.push((place.journal.bytes(), totals.stdout, totals.stderr));
    }
    log.finish(b"tail");
    let whole = fs::read(segment(place.dir.path(), &log, 0)).unwrap();
    let copied = TempDir::new().unwrap();
    for cut in 0..=whole.len() {
        for garbage in [&b""[..], b"\0\0\0\0", b"\x02\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x02\x02\0\0\0abcdef"]
        {
            let path = segment(copied.path(), &log, 0);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, [&whole[..cut], garbage].concat()).unwrap();
            let (journal, recovered) = open(copied.path(), SMALL, u64::MAX);
            let Some(&(bytes, out, err)) = ends.iter().rev().find(|(bytes, ..)| *bytes <= cut as u64) else {
                assert!(recovered.is_empty() && !path.exists() && journal.bytes() == 0, "{cut}");
                continue;
            };
            let totals = recovered[0].logs[0].log.totals();
            assert_eq!((totals.stdout, totals.stderr, totals.finished), (out, err, cut == whole.len()), "{cut}");
            if !totals.finished {
                assert_eq!(fs::metadata(&path).unwrap().len(), bytes, "cut off");
            }
            let items = all(from_start(&recovered[0].logs[0].log)).await;
            assert_eq!(items.last() == Some(&tail()), totals.finished);
            drop((journal, recovered));
            open(copied.path(), SMALL, u64::MAX);
        }
    }
}

#[tokio::test]
async fn every_changed_byte_is_found_and_nothing_else_is_lost() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    for _ in 0..30 {
        print(&log, Kind::Stdout, 1_000).await;
    }
    log.finish(b"tail");
    let path = segment(place.dir.path(), &log, 2);
    let good = fs::read(&path).unwrap();
    // live: a segment in the middle
    for at in (56..good.len()).step_by(37) {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, bad).unwrap();
        let items = all(from_start(&log)).await;
        assert_eq!(items.last(), Some(&tail()));
        let parts = stitched(&items, Stream::Stdout, 0);
        let [(0, Some(head)), (_, None), (offset, Some(rest))] = &parts[..] else { panic!("{} parts", parts.len()) };
        assert_eq!((head, rest), (&numbered(0, head.len()), &numbered(*offset, rest.len())));
        assert_eq!(offset + rest.len() as u64, 30_000);
        assert!(log.read(Stream::Stdout, head.len() as u64, 10).unwrap().gap.is_some());
    }
}

#[tokio::test]
async fn bad_segments_and_strange_files_do_not_stop_recovery() {
    let place = Place::of(SMALL, u64::MAX);
    let dir = place.dir.path().to_path_buf();
    let log = place.log();
    print(&log, Kind::Stdout, 30_000).await;
    let lost = place.log();
    print(&lost, Kind::Stdout, 30_000).await;
    let empty = place.log();
    fs::write(segment(&dir, &log, 3), b"no header").unwrap();
    let last = (0..).find(|number| !segment(&dir, &log, *number).exists()).unwrap();
    fs::write(segment(&dir, &log, last), b"csj1").unwrap();
    fs::remove_file(segment(&dir, &lost, 0)).unwrap();
    fs::write(segment(&dir, &empty, 0), b"").unwrap();
    fs::write(dir.join("notes.txt"), b"mine").unwrap();
    fs::create_dir(dir.join("folder")).unwrap();
    let folder = dir.join(log.sandbox().to_string());
    std::os::unix::fs::symlink("/etc/passwd", folder.join(format!("{}.0", ExecutionId::generate()))).unwrap();
    fs::write(folder.join("sandbox.new"), b"half").unwrap();
    fs::write(folder.join(format!("{}.01", log.execution())), b"").unwrap();
    let names = [log.sandbox(), lost.sandbox(), empty.sandbox()].map(|id| dir.join(id.to_string()));
    drop((log, lost, empty));
    let (_place, recovered) = place.reopen();
    assert_eq!(recovered.len(), 1);
    let items = all(from_start(&recovered[0].logs[0].log)).await;
    let parts = stitched(&items, Stream::Stdout, 0);
    assert_eq!((parts.len(), parts[1].1.is_none()), (3, true));
    assert_eq!(recovered[0].logs[0].log.totals().stdout, 30_000);
    assert!(names[0].exists() && !names[1].exists() && !names[2].exists());
    assert!(dir.join("notes.txt").exists() && dir.join("folder").exists(), "not ours");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| name.to_str().unwrap().starts_with("ex") && name.len() == 30), "{left:?}");
    assert!(Path::new("/etc/passwd").exists());
}

#[tokio::test]
async fn ten_thousand_small_logs_are_recovered() {
    let place = Place::new();
    let sandboxes: Vec<_> = (0..100).map(|_| SandboxId::generate()).collect();
    for number in 0..10_000_usize {
        let log = place.journal.create(sandboxes[number % 100], ExecutionId::generate(), &[1; 200]).unwrap();
        log.append(Kind::Stdout, &[b'x'; 100]).await;
        log.finish(b"tail");
    }
    let (_place, recovered) = place.reopen();
    assert_eq!(recovered.iter().map(|found| found.logs.len()).sum::<usize>(), 10_000);
}

/// Not a test of its own: the process that the next test kills. It says after each append how far it is.
#[tokio::test]
async fn process_to_be_killed() {
    let Some(dir) = std::env::var_os("JOURNAL_TEST_VICTIM") else { return };
    let (journal, _) = open(Path::new(&dir), 4 << 20, u64::MAX);
    let log = journal.create(SandboxId::generate(), ExecutionId::generate(), b"head").unwrap();
    // past the test harness, which keeps what is printed
    let mut out = fs::OpenOptions::new().append(true).open("/dev/stderr").unwrap();
    for round in 0_usize.. {
        print(&log, Kind::Stdout, 1 + round * 7_919 % 90_000).await;
        writeln!(out, "at {}", log.totals().stdout).unwrap();
    }
}

#[tokio::test]
async fn no_byte_is_lost_from_the_log_of_a_killed_process() {
    for delay in [5, 20, 40, 80, 120] {
        let dir = TempDir::new().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::crashes::process_to_be_killed", "--nocapture"])
            .env("JOURNAL_TEST_VICTIM", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let reading = std::thread::spawn({
            let out = child.stderr.take().unwrap();
            move || std::io::read_to_string(out).unwrap()
        });
        tokio::time::sleep(Duration::from_millis(60 + delay)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let said = reading.join().unwrap();
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let told: u64 = whole.lines().rev().find_map(|line| line.strip_prefix("at ")?.parse().ok()).unwrap_or(0);
        let (_journal, recovered) = open(dir.path(), 4 << 20, u64::MAX);
        let Some(found) = recovered.first() else {
            assert_eq!(told, 0);
            continue;
        };
        let log = &found.logs[0].log;
        assert!(log.interrupted() && log.totals().stdout >= told, "{} of {told}", log.totals().stdout);
        let items = all(from_start(log)).await;
        let parts = stitched(&items, Stream::Stdout, 0);
        assert!(parts.len() == 1 || parts.len() == 3, "{} parts", parts.len());
        for (offset, bytes) in parts {
            assert!(bytes.is_none_or(|bytes| bytes == numbered(offset, bytes.len())), "at {offset}");
        }
    }
}
