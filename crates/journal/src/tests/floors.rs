//! Who reads slowly, or prints much, costs others nothing.

use std::time::SystemTime;

use tokio::task::JoinHandle;

use super::*;
use crate::Totals;

const LOG: u64 = 256 << 10;
const FLOOR: u64 = LOG / 4;
const TOTAL: u64 = 1 << 20;
const STUCK: usize = 64;

struct Stuck {
    log: Arc<Log>,
    reader: Reader,
    read: u64,
    writer: JoinHandle<()>,
}

fn crowded(patience: Duration) -> Place {
    let dir = TempDir::new().unwrap();
    let options = Options { log_bytes: LOG, total_bytes: TOTAL, reader_patience: patience, ..Options::new(dir.path()) };
    let (journal, _) = Journal::open(options).unwrap();
    Place { dir, journal }
}

/// Executions that print half a mebibyte each, before readers that stand still.
async fn stuck(place: &Place, count: usize) -> Vec<Stuck> {
    let mut all = Vec::new();
    for _ in 0..count {
        let log = place.log();
        let mut reader = log.reader(Position::default(), Attach::Paced);
        let writer = tokio::spawn({
            let log = Arc::clone(&log);
            async move {
                for _ in 0..32 {
                    print(&log, Kind::Stdout, 16 << 10).await;
                }
                log.finish(b"tail");
            }
        });
        let Some(Item::Stdout { bytes, .. }) = reader.next().await else { panic!("nothing to read") };
        all.push(Stuck { log, reader, read: bytes.len() as u64, writer });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    all
}

fn most(logs: usize) -> u64 {
    TOTAL + logs as u64 * (FLOOR + (2 << 10))
}

#[tokio::test]
async fn others_output_is_whole_while_readers_stand_still() {
    let place = crowded(Duration::from_secs(600));
    let all_stuck = stuck(&place, STUCK).await;
    assert!(place.journal.bytes() > TOTAL - 64 * 1024 && place.journal.bytes() <= most(STUCK));
    for one in &all_stuck {
        assert!(!one.writer.is_finished() && one.log.totals().stdout_dropped == 0, "it waits for its reader");
    }
    for _ in 0..20 {
        let echo = place.log();
        echo.append(Kind::Stdout, b"hello").await;
        echo.append(Kind::Event, &[7; 5_000]).await;
        echo.finish(b"tail");
        let items = all(from_start(&echo)).await;
        assert_eq!(items, [stdout(0, b"hello"), Item::Event(Bytes::from_static(&[7; 5_000])), tail()]);
    }
    // all of a floor but for headers
    let longer = place.log();
    print(&longer, Kind::Stdout, FLOOR as usize - 2_000).await;
    assert_eq!(longer.totals().stdout_dropped, 0);
    longer.finish(b"tail");
    assert!(place.journal.bytes() <= most(STUCK + 1));
}

#[tokio::test]
async fn what_prints_more_than_its_floor_is_a_ring_there() {
    let place = crowded(Duration::from_secs(600));
    let _stuck = stuck(&place, STUCK).await;
    let log = place.log();
    for _ in 0..2_000 {
        print(&log, Kind::Stdout, 1_000).await;
        assert!(place.journal.bytes() <= most(STUCK + 1));
    }
    log.finish(b"tail");
    let parts = stitched(&all(from_start(&log)).await, Stream::Stdout, 0);
    let [(0, Some(head)), (_, None), (tail, Some(rest))] = &parts[..] else { panic!("{} parts", parts.len()) };
    assert_eq!((head, rest), (&numbered(0, head.len()), &numbered(*tail, rest.len())));
    assert_eq!(tail + rest.len() as u64, 2_000_000, "its end is there");
    assert!(head.len() >= 10_000 && head.len() + rest.len() >= FLOOR as usize / 2);
}

#[tokio::test]
async fn log_that_was_long_before_room_ran_out_still_gets_its_end() {
    let place = crowded(Duration::from_secs(600));
    let log = place.log();
    print(&log, Kind::Stdout, 200_000).await;
    let _stuck = stuck(&place, STUCK).await;
    print(&log, Kind::Stdout, 300_000).await;
    log.finish(b"tail");
    let parts = stitched(&all(from_start(&log)).await, Stream::Stdout, 0);
    let (at, Some(rest)) = &parts[parts.len() - 1] else { panic!("the end is missing") };
    assert_eq!(at + rest.len() as u64, 500_000);
}

#[tokio::test]
async fn reader_that_reads_nothing_for_long_gets_an_exact_gap_and_frees_its_writer() {
    let place = crowded(Duration::from_secs(3));
    let all_stuck = stuck(&place, STUCK).await;
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    // a few may go on to fill their logs and wait for their readers there, when there is room again
    let alone = (TOTAL / LOG) as usize;
    while all_stuck.iter().filter(|one| !one.writer.is_finished()).count() > alone {
        assert!(std::time::Instant::now() < deadline, "writers wait for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
        place.journal.sweep(SystemTime::now());
    }
    let mut gaps = 0;
    for Stuck { log, reader, read, .. } in all_stuck {
        let items = all(reader).await;
        assert_eq!(items.last(), Some(&tail()));
        let Totals { stdout, .. } = log.totals();
        assert!(stdout == 1 << 19);
        let mut end = read;
        for (offset, bytes) in stitched(&items, Stream::Stdout, end) {
            end = offset;
            match bytes {
                Some(bytes) => {
                    assert_eq!(bytes, numbered(offset, bytes.len()));
                    end += bytes.len() as u64;
                }
                None => gaps += 1,
            }
        }
        assert!(end == stdout || log.totals().evicted);
    }
    assert!(gaps >= STUCK / 2, "{gaps}");
}

#[tokio::test]
async fn log_limit_alone_waits_for_a_reader_however_long_it_takes() {
    let place = crowded(Duration::from_millis(20));
    let mut one = stuck(&place, 1).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    place.journal.sweep(SystemTime::now());
    tokio::time::sleep(Duration::from_millis(20)).await;
    let Stuck { log, reader, read, writer } = one.remove(0);
    assert!(!writer.is_finished() && log.totals().stdout_dropped == 0);
    let items = all(reader).await;
    assert_eq!(stitched(&items, Stream::Stdout, read), [(read, Some(numbered(read, (1 << 19) - read as usize)))]);
}

#[tokio::test]
async fn ended_log_whose_readers_stand_still_gives_way() {
    let place = crowded(Duration::from_secs(1));
    let mut readers = Vec::new();
    for _ in 0..5 {
        let log = place.log();
        print(&log, Kind::Stdout, 190_000).await;
        readers.push((Arc::clone(&log), log.reader(Position::default(), Attach::Paced)));
        log.finish(b"tail");
    }
    let log = place.log();
    print(&log, Kind::Stdout, 100_000).await;
    assert!(readers.iter().all(|(log, _)| !log.totals().evicted), "they have just come");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    print(&log, Kind::Stdout, 150_000).await;
    assert_eq!(log.totals().stdout_dropped, 0);
    let (first, reader) = readers.remove(0);
    assert!(first.totals().evicted);
    let gap = crate::Gap { stream: Stream::Stdout, offset: 0, length: 190_000, events: 0 };
    assert_eq!(all(reader).await, [Item::Gap(gap), tail()]);
}

#[tokio::test]
async fn ended_log_that_is_held_stays_until_it_was_read() {
    let place = crowded(Duration::from_secs(600));
    let _stuck = stuck(&place, STUCK).await;
    let (held, other) = (place.log(), place.log());
    let hold = held.hold();
    for log in [&held, &other] {
        log.append(Kind::Stdout, b"hello").await;
        log.finish(b"tail");
    }
    let printing = place.log();
    print(&printing, Kind::Stdout, 100_000).await;
    assert!(other.totals().evicted && !held.totals().evicted);
    assert_eq!(held.read(Stream::Stdout, 0, 10).unwrap().bytes, b"hello");
    drop(hold);
    print(&printing, Kind::Stdout, 10).await;
    assert!(held.totals().evicted);
}

#[tokio::test]
async fn hold_does_not_slow_the_writer() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let _hold = log.hold();
    print(&log, Kind::Stdout, 1 << 20).await;
    *crate::lock(&place.journal.0.ground.fault) = Some(std::io::ErrorKind::StorageFull);
    print(&log, Kind::Stdout, 1 << 20).await;
    assert_eq!(log.totals().stdout, 2 << 20);
}
