use std::{fs, io::ErrorKind, time::SystemTime};

use super::*;

#[tokio::test]
async fn ended_logs_go_when_their_time_is_over_and_running_ones_stay() {
    let place = Place::new();
    let running = place.log();
    print(&running, Kind::Stdout, 10).await;
    let ended = place.log();
    print(&ended, Kind::Stdout, 10).await;
    let mut reader = from_start(&ended);
    assert_eq!(reader.next().await, Some(stdout(0, &numbered(0, 10))));
    print(&ended, Kind::Stdout, 40).await;
    print(&ended, Kind::Stderr, 5).await;
    ended.finish(b"tail");
    let now = ended.ended_at().unwrap();
    assert!(place.journal.sweep(now + Duration::from_secs(59)).is_empty());
    assert_eq!(place.journal.sweep(now + Duration::from_secs(60)), [(ended.sandbox(), ended.execution())]);
    assert!(place.journal.sweep(now + Duration::from_secs(6_000)).is_empty());
    assert!(place.journal.log(ended.sandbox(), ended.execution()).is_none());
    let gap = |stream, offset, length| Item::Gap(crate::Gap { stream, offset, length, events: 0 });
    let rest = [gap(Stream::Stdout, 10, 40), gap(Stream::Stderr, 0, 5), tail()];
    assert_eq!(all(reader).await, rest);
    assert_eq!(all(from_start(&ended)).await, [gap(Stream::Stdout, 0, 50), gap(Stream::Stderr, 0, 5), tail()]);
    let range = ended.read(Stream::Stdout, 7, 100).unwrap();
    assert_eq!((range.offset, range.bytes.len(), range.next_offset, range.finished), (50, 0, 50, true));
    assert_eq!(range.gap.unwrap().length, 43);
    let folder = place.dir.path().join(ended.sandbox().to_string());
    assert_eq!(fs::read_dir(folder).unwrap().count(), 0);
    assert_eq!(all_of(&running), numbered(0, 10));
}

fn all_of(log: &Log) -> Vec<u8> {
    log.read(Stream::Stdout, 0, crate::MAX_RANGE).unwrap().bytes
}

#[tokio::test]
async fn removed_sandbox_leaves_nothing_and_its_readers_end() {
    let place = Place::new();
    let sandbox = SandboxId::generate();
    place.journal.describe_sandbox(sandbox, b"owner").unwrap();
    let finished = place.journal.create(sandbox, ExecutionId::generate(), b"").unwrap();
    finished.append(Kind::Stdout, b"x").await;
    finished.finish(b"tail");
    let running = place.journal.create(sandbox, ExecutionId::generate(), b"").unwrap();
    running.append(Kind::Stdout, b"abc").await;
    let mut reader = from_start(&running);
    assert_eq!(reader.next().await, Some(stdout(0, b"abc")));
    let other = place.log();
    let waiting = tokio::spawn(all(reader));
    tokio::task::yield_now().await;
    place.journal.remove_sandbox(sandbox).unwrap();
    assert_eq!(waiting.await.unwrap(), [], "ends without a tail");
    running.append(Kind::Stdout, &[0; 1 << 20]).await;
    running.finish(b"tail");
    assert!(!place.dir.path().join(sandbox.to_string()).exists());
    assert!(place.journal.log(sandbox, finished.execution()).is_none());
    assert!(place.journal.sweep(SystemTime::now()).is_empty(), "the node knows");
    assert!(place.journal.log(other.sandbox(), other.execution()).is_some());
    place.journal.remove_sandbox(sandbox).unwrap();
    drop(other);
    let bytes: u64 = place.journal.bytes();
    assert!(bytes > 0 && bytes < 200, "only the other log's: {bytes}");
}

#[tokio::test]
async fn removing_a_sandbox_frees_a_held_writer() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let reader = log.reader(Position::default(), Attach::Paced);
    let task = tokio::spawn({
        let log = Arc::clone(&log);
        async move { print(&log, Kind::Stdout, 1 << 20).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!task.is_finished());
    place.journal.remove_sandbox(log.sandbox()).unwrap();
    tokio::time::timeout(Duration::from_secs(30), task).await.unwrap().unwrap();
    all(reader).await;
}

#[tokio::test]
async fn interrupted_log_ends_its_readers_without_a_tail() {
    let place = Place::new();
    let log = place.log();
    log.append(Kind::Stdout, b"x").await;
    let reader = tokio::spawn(all(from_start(&log)));
    tokio::task::yield_now().await;
    log.interrupt();
    assert_eq!(reader.await.unwrap(), [stdout(0, b"x")]);
    assert!(log.interrupted() && log.tail().is_none());
    let later = SystemTime::now() + Duration::from_secs(61);
    assert_eq!(place.journal.sweep(later), [(log.sandbox(), log.execution())]);
}

#[tokio::test]
async fn second_process_is_refused() {
    let place = Place::new();
    let error = Journal::open(Options::new(place.dir.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(error.to_string().contains("in use by another process"), "{error}");
    let dir = place.dir;
    drop(place.journal);
    Journal::open(Options::new(dir.path())).unwrap();
}

#[tokio::test]
async fn recovered_sandbox_s_folder_goes_with_its_last_log() {
    let place = Place::new();
    let log = place.log();
    place.journal.describe_sandbox(log.sandbox(), b"owner").unwrap();
    log.finish(b"tail");
    let folder = place.dir.path().join(log.sandbox().to_string());
    drop(log);
    let (place, recovered) = place.reopen();
    assert_eq!(recovered[0].blob.as_deref(), Some(&b"owner"[..]));
    drop(recovered);
    assert_eq!(place.journal.sweep(SystemTime::now() + Duration::from_secs(61)).len(), 1);
    assert!(!folder.exists());
    assert_eq!(place.journal.bytes(), 0);
}

#[tokio::test]
async fn removed_log_leaves_nothing_and_its_readers_end() {
    let place = Place::new();
    let kept = place.log();
    let log = place.journal.create(kept.sandbox(), ExecutionId::generate(), b"").unwrap();
    let running = place.journal.create(kept.sandbox(), ExecutionId::generate(), b"").unwrap();
    for log in [&kept, &log, &running] {
        log.append(Kind::Stdout, b"abc").await;
    }
    kept.finish(b"tail");
    let before = place.journal.bytes();
    log.finish(b"tail");
    let (mut reader, waiting) = (from_start(&running), from_start(&log));
    assert_eq!(reader.next().await, Some(stdout(0, b"abc")));
    for log in [&log, &running, &running] {
        place.journal.remove(log.sandbox(), log.execution());
        assert!(place.journal.log(log.sandbox(), log.execution()).is_none());
    }
    let gap = crate::Gap { stream: Stream::Stdout, offset: 0, length: 3, events: 0 };
    assert_eq!(all(waiting).await, [Item::Gap(gap), tail()]);
    assert_eq!(all(reader).await, [], "ends without a tail");
    running.append(Kind::Stdout, b"more").await;
    running.finish(b"tail");
    assert!(place.journal.bytes() < before);
    let folder = place.dir.path().join(kept.sandbox().to_string());
    assert_eq!(fs::read_dir(folder).unwrap().count(), 1);
    let later = SystemTime::now() + Duration::from_secs(61);
    assert_eq!(place.journal.sweep(later), [(kept.sandbox(), kept.execution())], "the node knows of the others");
    assert_eq!(place.journal.bytes(), 0);
    place.journal.create(kept.sandbox(), log.execution(), b"").unwrap();
}

#[tokio::test]
async fn last_recovered_log_that_is_removed_takes_its_sandbox_s_folder_along() {
    let place = Place::new();
    let log = place.log();
    place.journal.describe_sandbox(log.sandbox(), b"owner").unwrap();
    log.finish(b"tail");
    let (sandbox, execution) = (log.sandbox(), log.execution());
    drop(log);
    let (place, _) = place.reopen();
    place.journal.remove(sandbox, execution);
    assert!(!place.dir.path().join(sandbox.to_string()).exists());
}

#[tokio::test]
async fn unknown_end_can_be_asked_for_however_long_nothing_was_printed() {
    let place = Place::new();
    let log = place.log();
    print(&log, Kind::Stdout, 10).await;
    let path = place.dir.path().join(log.sandbox().to_string()).join(format!("{}.0", log.execution()));
    let long_ago = SystemTime::now() - Duration::from_secs(6_000);
    fs::OpenOptions::new().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    drop(log);
    let (place, recovered) = place.reopen();
    assert!(place.journal.sweep(SystemTime::now()).is_empty());
    assert!(recovered[0].logs[0].log.interrupted());
}
