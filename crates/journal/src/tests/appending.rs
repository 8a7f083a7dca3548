use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

use super::*;
use crate::Totals;

#[tokio::test]
async fn what_is_appended_is_read_in_order_with_its_offsets() {
    let place = Place::new();
    let log = place.log();
    log.append(Kind::Stdout, b"one ").await;
    log.append(Kind::Stderr, b"oops").await;
    log.append(Kind::Event, b"result").await;
    log.append(Kind::Stdout, b"two").await;
    log.append(Kind::Stdout, b"").await;
    log.finish(b"tail");
    let event = Item::Event(Bytes::from_static(b"result"));
    assert_eq!(all(from_start(&log)).await, [stdout(0, b"one "), stderr(0, b"oops"), event, stdout(4, b"two"), tail()]);
    let expected = Totals { stdout: 7, stderr: 4, events: 1, finished: true, ..Totals::default() };
    assert_eq!(log.totals(), expected);
    assert_eq!((log.head(), log.tail()), (Bytes::from_static(b"head"), Some(Bytes::from_static(b"tail"))));
}

#[tokio::test]
async fn large_pieces_are_split_and_segments_followed() {
    let place = Place::new();
    let log = place.log();
    print(&log, Kind::Stdout, 5_000_000).await;
    print(&log, Kind::Stderr, 100).await;
    log.finish(b"tail");
    let items = all(from_start(&log)).await;
    assert!(items.iter().all(|item| !matches!(item, Item::Stdout { bytes, .. } if bytes.len() > crate::PIECE)));
    assert_eq!(stitched(&items, Stream::Stdout, 0), [(0, Some(numbered(0, 5_000_000)))]);
    assert_eq!(stitched(&items, Stream::Stderr, 0), [(0, Some(numbered(0, 100)))]);
    let files = fs::read_dir(place.dir.path().join(log.sandbox().to_string())).unwrap().count();
    assert_eq!(files, 5, "about a MiB in each");
}

#[tokio::test]
async fn finished_log_stays_as_it_is() {
    let place = Place::new();
    let log = place.log();
    log.append(Kind::Stdout, b"x").await;
    log.finish(b"tail");
    let totals = log.totals();
    log.append(Kind::Stdout, b"late").await;
    log.finish(b"again");
    log.interrupt();
    assert_eq!(log.totals(), totals);
    assert_eq!(all(from_start(&log)).await, [stdout(0, b"x"), tail()]);
}

#[tokio::test]
async fn execution_has_one_log() {
    let place = Place::new();
    let log = place.log();
    let again = place.journal.create(log.sandbox(), log.execution(), b"other");
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AlreadyExists);
    assert!(Arc::ptr_eq(&place.journal.log(log.sandbox(), log.execution()).unwrap(), &log));
    let large = vec![0; 9 << 20];
    let refused = place.journal.create(log.sandbox(), ExecutionId::generate(), &large);
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[tokio::test]
async fn files_are_for_their_owner_only() {
    let place = Place::new();
    let dir = place.dir.path().join("deep/journal");
    let (journal, _) = open(&dir, SMALL, u64::MAX);
    let sandbox = SandboxId::generate();
    journal.describe_sandbox(sandbox, b"one").unwrap();
    journal.describe_sandbox(sandbox, b"two").unwrap();
    let log = journal.create(sandbox, ExecutionId::generate(), b"").unwrap();
    let folder = dir.join(sandbox.to_string());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&folder)), (0o700, 0o700));
    assert_eq!(mode(&folder.join("sandbox")), 0o600);
    assert_eq!(mode(&folder.join(format!("{}.0", log.execution()))), 0o600);
    assert_eq!(mode(&dir.join("lock")), 0o600);
    assert_eq!(fs::read(folder.join("sandbox")).unwrap(), b"two");
}

#[tokio::test]
async fn idle_and_finished_logs_hold_no_file_open() {
    let place = Place::new();
    let folder = place.dir.path().canonicalize().unwrap();
    let open_files = || {
        let files = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
        files
            .filter(|path| {
                path.starts_with(&folder) && !path.ends_with("lock") && !path.starts_with(folder.join("spare"))
            })
            .count()
    };
    let logs: Vec<_> = (0..20).map(|_| place.log()).collect();
    assert_eq!(open_files(), 20, "one for each that is written");
    for log in &logs {
        log.append(Kind::Stdout, b"x").await;
        log.finish(b"tail");
        all(from_start(log)).await;
    }
    assert_eq!(open_files(), 0);
}

#[tokio::test]
#[ignore = "measures; run it in release"]
async fn cost_of_a_small_execution() {
    let place = Place::new();
    let sandbox = SandboxId::generate();
    let rounds = 10_000;
    let start = Instant::now();
    for _ in 0..rounds {
        let log = place.journal.create(sandbox, ExecutionId::generate(), &[7; 300]).unwrap();
        log.append(Kind::Stdout, &[b'x'; 100]).await;
        log.finish(&[7; 50]);
    }
    println!("create, append 100 B, finish: {:?}", start.elapsed() / rounds);
    let later = std::time::SystemTime::now() + Duration::from_secs(6_000);
    place.journal.sweep(later);
    let (mut spent, mut sweeping) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..rounds / 50 {
        let start = Instant::now();
        for _ in 0..50 {
            let log = place.journal.create(sandbox, ExecutionId::generate(), &[7; 300]).unwrap();
            log.append(Kind::Stdout, &[b'x'; 100]).await;
            log.finish(&[7; 50]);
        }
        spent += start.elapsed();
        let start = Instant::now();
        place.journal.sweep(later);
        sweeping += start.elapsed();
    }
    println!("the same where logs come and go: {:?}, eviction {:?}", spent / rounds, sweeping / rounds);
    let large = place.log();
    let piece = vec![b'x'; 32 << 10];
    let start = Instant::now();
    for _ in 0..(1 << 15) {
        large.append(Kind::Stdout, &piece).await;
    }
    println!("append of 1 GiB to a ring of 64 MiB: {:?}", start.elapsed());
    large.finish(b"tail");
    let start = Instant::now();
    let items = all(from_start(&large)).await;
    println!("reading the 64 MiB that are left, {} items: {:?}", items.len(), start.elapsed());
    drop(large);
    let start = Instant::now();
    let (_place, recovered) = place.reopen();
    println!(
        "recovery of {} logs: {:?}",
        recovered.iter().map(|found| found.logs.len()).sum::<usize>(),
        start.elapsed()
    );
}
