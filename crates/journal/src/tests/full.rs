use std::{
    io::ErrorKind,
    process::Command,
    sync::atomic::{AtomicU64, Ordering},
};

use super::*;
use crate::{Gap, lock};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn full_log_keeps_its_beginning_and_its_end_and_an_exact_gap() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    for _ in 0..1_000 {
        print(&log, Kind::Stdout, 900).await;
        print(&log, Kind::Stderr, 100).await;
        log.append(Kind::Event, b"e").await;
        assert!(place.journal.bytes() <= SMALL);
    }
    log.finish(b"tail");
    let items = all(from_start(&log)).await;
    let totals = log.totals();
    let mut events = 0;
    for (stream, total, dropped) in
        [(Stream::Stdout, 900_000, totals.stdout_dropped), (Stream::Stderr, 100_000, totals.stderr_dropped)]
    {
        let parts = stitched(&items, stream, 0);
        let [(0, Some(head)), (gap, None), (tail, Some(rest))] = &parts[..] else { panic!("{} parts", parts.len()) };
        assert_eq!(*head, numbered(0, head.len()));
        assert_eq!(*rest, numbered(*tail, rest.len()));
        assert_eq!((*gap, tail + rest.len() as u64), (head.len() as u64, total));
        assert_eq!(tail - gap, dropped);
        assert!(head.len() as u64 > total / 1_000 * 14 && rest.len() as u64 > total / 1_000 * 30);
    }
    for item in &items {
        events += match item {
            Item::Event(_) => 1,
            Item::Gap(gap) => gap.events,
            _ => 0,
        };
    }
    assert_eq!(events, 1_000);
    assert!(totals.events_dropped > 0);
}

#[tokio::test]
async fn log_that_may_take_less_than_others_does() {
    let place = Place::of(u64::MAX, u64::MAX);
    let (sandbox, execution) = (SandboxId::generate(), ExecutionId::generate());
    let log = place.journal.create_within(sandbox, execution, b"head", SMALL).unwrap();
    for _ in 0..1_000 {
        print(&log, Kind::Stdout, 1_000).await;
        assert!(place.journal.bytes() <= SMALL);
    }
    log.finish(b"tail");
    let items = all(from_start(&log)).await;
    let parts = stitched(&items, Stream::Stdout, 0);
    let [(0, Some(head)), (_, None), (tail, Some(rest))] = &parts[..] else { panic!("{} parts", parts.len()) };
    assert_eq!((head, rest), (&numbered(0, head.len()), &numbered(*tail, rest.len())));
    assert!(log.totals().stdout_dropped > 900_000);
}

#[tokio::test]
async fn range_in_a_gap_begins_behind_it() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    print(&log, Kind::Stdout, MIB).await;
    let dropped = log.totals().stdout_dropped;
    let head = log.read(Stream::Stdout, 0, MIB).unwrap();
    assert_eq!((head.offset, head.gap), (0, None));
    let inside = head.next_offset + 1_000;
    let rest = log.read(Stream::Stdout, inside, MIB).unwrap();
    let gap = Gap { stream: Stream::Stdout, offset: inside, length: dropped - 1_000, events: 0 };
    assert_eq!((rest.gap, rest.offset), (Some(gap), head.next_offset + dropped));
    assert_eq!(rest.bytes, numbered(rest.offset, MIB - rest.offset as usize));
    assert_eq!(rest.next_offset, MIB as u64);
}

#[tokio::test]
async fn slow_paced_reader_holds_the_writer_and_misses_nothing() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let mut reader = log.reader(Position::default(), Attach::Paced);
    let written = Arc::new(AtomicU64::new(0));
    let task = tokio::spawn({
        let (log, written) = (Arc::clone(&log), Arc::clone(&written));
        async move {
            for _ in 0..300 {
                print(&log, Kind::Stdout, 1_000).await;
                written.fetch_add(1_000, Ordering::Relaxed);
            }
            log.finish(b"tail");
        }
    });
    let mut items = vec![reader.next().await.unwrap()];
    tokio::time::sleep(Duration::from_millis(50)).await;
    let held_at = written.load(Ordering::Relaxed);
    assert!((40_000..SMALL + 64_000).contains(&held_at), "{held_at}");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(written.load(Ordering::Relaxed), held_at, "waits");
    while let Some(item) = reader.next().await {
        items.push(item);
        tokio::task::yield_now().await;
    }
    task.await.unwrap();
    assert_eq!(stitched(&items, Stream::Stdout, 0), [(0, Some(numbered(0, 300_000)))]);
    assert!(log.totals().stdout_dropped > 0, "the log itself stays small");
}

#[tokio::test]
async fn dropping_a_paced_reader_lets_the_writer_go_on() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let reader = log.reader(Position::default(), Attach::Paced);
    let free = from_start(&log);
    let task = tokio::spawn({
        let log = Arc::clone(&log);
        async move {
            print(&log, Kind::Stdout, MIB).await;
            log.finish(b"tail");
        }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!task.is_finished());
    drop(reader);
    task.await.unwrap();
    let parts = stitched(&all(free).await, Stream::Stdout, 0);
    assert_eq!(parts.len(), 3, "a free reader finds a gap");
}

#[tokio::test]
async fn cancelled_append_leaves_a_readable_log() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let reader = log.reader(Position::default(), Attach::Paced);
    let append = print(&log, Kind::Stdout, MIB);
    assert!(tokio::time::timeout(Duration::from_millis(20), append).await.is_err());
    let total = log.totals().stdout;
    log.finish(b"tail");
    let items = all(reader).await;
    assert_eq!(stitched(&items, Stream::Stdout, 0), [(0, Some(numbered(0, total as usize)))]);
    assert_eq!(items.last(), Some(&tail()));
}

#[tokio::test]
async fn logs_together_stay_within_the_total_and_ended_ones_go_first() {
    let total = 4 * SMALL;
    let place = Place::of(SMALL, total);
    let old = place.log();
    print(&old, Kind::Stdout, 30_000).await;
    old.finish(b"tail");
    let watched = place.log();
    print(&watched, Kind::Stdout, 30_000).await;
    let reader = watched.reader(Position::default(), Attach::Paced);
    watched.finish(b"tail");
    let running: Vec<_> = (0..6).map(|_| place.log()).collect();
    for _ in 0..100 {
        for log in &running {
            print(log, Kind::Stdout, 1_000).await;
        }
        assert!(place.journal.bytes() <= total);
    }
    assert!(old.totals().evicted);
    assert!(!watched.totals().evicted, "somebody reads it");
    assert_eq!(stitched(&all(reader).await, Stream::Stdout, 0), [(0, Some(numbered(0, 30_000)))]);
    for log in &running {
        log.finish(b"tail");
        let parts = stitched(&all(from_start(log)).await, Stream::Stdout, 0);
        let [(0, Some(head)), (_, None), (tail, Some(rest))] = &parts[..] else { panic!("{} parts", parts.len()) };
        assert_eq!((tail + rest.len() as u64, head), (100_000, &numbered(0, head.len())));
    }
    let swept = place.journal.sweep(std::time::SystemTime::now());
    assert!(swept.contains(&(old.sandbox(), old.execution())), "told by the next sweep");
}

#[tokio::test]
async fn log_that_starts_late_takes_room_from_the_longest() {
    let place = Place::of(SMALL, SMALL + 8_000);
    let hog = place.log();
    print(&hog, Kind::Stdout, MIB).await;
    let late = place.log();
    print(&late, Kind::Stdout, 20_000).await;
    assert_eq!(late.totals().stdout_dropped, 0);
    assert!(place.journal.bytes() <= SMALL + 8_000);
}

#[tokio::test]
async fn writer_held_by_the_total_goes_on_when_room_appears_elsewhere() {
    let place = Place::of(SMALL, SMALL + 8_000);
    let other = place.log();
    print(&other, Kind::Stdout, 16_000).await;
    let log = place.log();
    let _reader = log.reader(Position::default(), Attach::Paced);
    let task = tokio::spawn({
        let log = Arc::clone(&log);
        async move { print(&log, Kind::Stdout, 60_000).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!task.is_finished());
    other.finish(b"tail");
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    assert!(other.totals().evicted);
}

#[tokio::test]
async fn failing_writes_become_exact_gaps() {
    for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
        let place = Place::of(SMALL, u64::MAX);
        let fault = |kind| *lock(&place.journal.0.ground.fault) = kind;
        let log = place.log();
        print(&log, Kind::Stdout, 1_000).await;
        fault(Some(kind));
        print(&log, Kind::Stdout, 500).await;
        print(&log, Kind::Stderr, 70).await;
        log.append(Kind::Event, b"e").await;
        let live = all_now(&mut from_start(&log)).await;
        fault(None);
        print(&log, Kind::Stdout, 1_000).await;
        fault(Some(kind));
        // over the end of a segment
        print(&log, Kind::Stdout, 5_000).await;
        fault(None);
        print(&log, Kind::Stderr, 1_000).await;
        fault(Some(kind));
        log.finish(b"tail");
        let totals = log.totals();
        assert_eq!((totals.stdout, totals.stdout_dropped), (7_500, 5_500));
        assert_eq!((totals.stderr, totals.stderr_dropped, totals.events_dropped), (1_070, 70, 1));
        let gap = Gap { stream: Stream::Stdout, offset: 1_000, length: 500, events: 1 };
        assert_eq!(live[1], Item::Gap(gap), "told at once");
        let expected =
            [(0, Some(numbered(0, 1_000))), (1_000, None), (1_500, Some(numbered(1_500, 1_000))), (2_500, None)];
        let items = all(from_start(&log)).await;
        assert_eq!(stitched(&items, Stream::Stdout, 0), expected);
        assert_eq!(items.last(), Some(&tail()), "remembered in memory");
        drop(log);
        let (_place, recovered) = place.reopen();
        let log = &recovered[0].logs[0].log;
        assert!(log.interrupted());
        assert_eq!(log.totals(), crate::Totals { finished: false, interrupted: true, ..totals });
        let items = all(from_start(log)).await;
        assert_eq!(stitched(&items, Stream::Stdout, 0), expected);
        assert_eq!(stitched(&items, Stream::Stderr, 0), [(0, None), (70, Some(numbered(70, 1_000)))]);
    }
}

#[tokio::test]
async fn paced_reader_is_given_what_a_failing_disk_does_not_take() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    print(&log, Kind::Stdout, 10).await;
    *lock(&place.journal.0.ground.fault) = Some(ErrorKind::StorageFull);
    let mut paced = log.reader(Position::default(), Attach::Paced);
    let task = tokio::spawn({
        let log = Arc::clone(&log);
        async move {
            print(&log, Kind::Stdout, 100_000).await;
            log.append(Kind::Event, b"e").await;
            print(&log, Kind::Stderr, 10).await;
            log.finish(b"tail");
        }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert!(log.totals().stdout < 10_000, "one piece in memory at a time");
    assert_eq!(paced.next().await, Some(stdout(0, &numbered(0, 10))));
    let rest = all(paced).await;
    task.await.unwrap();
    assert_eq!(stitched(&rest, Stream::Stdout, 10), [(10, Some(numbered(10, 100_000)))]);
    assert_eq!(stitched(&rest, Stream::Stderr, 0), [(0, Some(numbered(0, 10)))]);
    assert!(rest.contains(&Item::Event(Bytes::from_static(b"e"))) && rest.last() == Some(&tail()));
    assert_eq!(log.totals().stdout_dropped, 100_000, "the log does not have it");
}

#[tokio::test]
async fn reader_that_leaves_frees_a_writer_whose_disk_fails() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    *lock(&place.journal.0.ground.fault) = Some(ErrorKind::StorageFull);
    let paced = log.reader(Position::default(), Attach::Paced);
    let append = print(&log, Kind::Stdout, 10_000);
    tokio::pin!(append);
    assert!(tokio::time::timeout(Duration::from_millis(5), &mut append).await.is_err());
    drop(paced);
    tokio::time::timeout(Duration::from_secs(30), append).await.unwrap();
    assert_eq!(log.totals().stdout_dropped, 10_000);
}

/// What a reader gives without waiting.
async fn all_now(reader: &mut Reader) -> Vec<Item> {
    let mut items = Vec::new();
    while let Ok(Some(item)) = tokio::time::timeout(Duration::from_millis(5), reader.next()).await {
        items.push(item);
    }
    items
}

#[tokio::test]
async fn file_that_is_read_is_not_used_for_another_log() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    print(&log, Kind::Stdout, 3_000).await;
    let mut reader = from_start(&log);
    assert_eq!(reader.next().await, Some(stdout(0, &numbered(0, 3_000))));
    log.finish(b"tail");
    let later = log.ended_at().unwrap() + Duration::from_secs(60);
    assert_eq!(place.journal.sweep(later).len(), 1);
    // more than there are spare files
    for _ in 0..300 {
        let other = place.log();
        other.append(Kind::Stdout, &[b'S'; 3_000]).await;
        assert_eq!(other.read(Stream::Stdout, 0, 4_000).unwrap().bytes, [b'S'; 3_000]);
        other.finish(b"other");
        assert_eq!(place.journal.sweep(later + Duration::from_secs(6_000)).len(), 1);
    }
    assert_eq!(all(reader).await, [tail()]);
}

/// A file system of its own, as large as it should be; `None` where it cannot be had.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<Self> {
        let dir = TempDir::new().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "journal-test"])
            .arg(dir.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn disk_that_takes_nothing_is_told_when_the_journal_is_opened() {
    let Some(disk) = SmallDisk::mount("1m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let dir = disk.0.path().join("journal");
    let full = disk.0.path().join("full");
    let filled = std::fs::write(&full, vec![0; 2 * MIB]).unwrap_err();
    assert_eq!(filled.kind(), ErrorKind::StorageFull);
    let error = Journal::open(Options::new(&dir)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
    assert!(error.to_string().contains(dir.to_str().unwrap()) && error.to_string().contains("No space"), "{error}");

    std::fs::remove_file(full).unwrap();
    drop(Journal::open(Options::new(&dir)).unwrap());
    let remounted = Command::new("mount").args(["-o", "remount,ro"]).arg(disk.0.path()).status().unwrap();
    assert!(remounted.success());
    let error = Journal::open(Options::new(&dir)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    assert!(error.to_string().contains(dir.to_str().unwrap()), "{error}");
    assert_eq!(Journal::open(Options::new("/proc/none")).unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn disk_that_its_own_journal_has_filled_is_made_room_on() {
    let Some(disk) = SmallDisk::mount("2m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let (journal, _) = open(disk.0.path(), 4 << 20, u64::MAX);
    let old = journal.create(SandboxId::generate(), ExecutionId::generate(), b"head").unwrap();
    print(&old, Kind::Stdout, 4 * MIB).await;
    old.finish(b"tail");
    let new = journal.create(SandboxId::generate(), ExecutionId::generate(), &[1; 200_000]).unwrap();
    assert!(old.totals().evicted);
    print(&new, Kind::Stdout, 4 * MIB).await;
    new.finish(b"tail");
    drop((journal, old, new));
    std::fs::write(disk.0.path().join("filler"), vec![0; 4 * MIB]).unwrap_err();
    let (journal, recovered) = open(disk.0.path(), 4 << 20, u64::MAX);
    let log = &recovered[0].logs[0].log;
    assert!(log.totals().evicted && journal.bytes() == 0);
}

#[tokio::test]
async fn full_disk_recycles_the_middle_and_fails_nothing() {
    let Some(disk) = SmallDisk::mount("6m") else {
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let (journal, _) = open(disk.0.path(), 16 << 20, u64::MAX);
    let log = journal.create(SandboxId::generate(), ExecutionId::generate(), b"head").unwrap();
    print(&log, Kind::Stdout, 3 * MIB).await;
    let late = journal.create(SandboxId::generate(), ExecutionId::generate(), b"head").unwrap();
    print(&log, Kind::Stdout, 30 * MIB).await;
    print(&late, Kind::Stderr, MIB).await;
    log.finish(b"tail");
    late.finish(b"tail");
    for (log, stream, total) in [(&log, Stream::Stdout, 33 * MIB), (&late, Stream::Stderr, MIB)] {
        let items = all(from_start(log)).await;
        assert_eq!(items.last(), Some(&tail()));
        let mut end = 0;
        for (offset, bytes) in stitched(&items, stream, 0) {
            if let Some(bytes) = bytes {
                assert_eq!(bytes, numbered(offset, bytes.len()));
                end = offset + bytes.len() as u64;
            }
        }
        let totals = log.totals();
        assert_eq!(if stream == Stream::Stdout { totals.stdout } else { totals.stderr }, total as u64);
        assert!(stream == Stream::Stderr || end == total as u64, "the end is there");
    }
    drop((log, late, journal));
}
