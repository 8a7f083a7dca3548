use super::*;

#[tokio::test]
async fn reader_follows_a_running_log_and_ends_after_its_tail() {
    let place = Place::new();
    let log = place.log();
    let mut reader = from_start(&log);
    let writer = Arc::clone(&log);
    let task = tokio::spawn(async move {
        for number in 0..100_u64 {
            writer.append(Kind::Stdout, &numbered(number, 1)).await;
            tokio::task::yield_now().await;
        }
        writer.finish(b"tail");
    });
    let mut items = Vec::new();
    while let Some(item) = reader.next().await {
        items.push(item);
    }
    task.await.unwrap();
    assert_eq!(items.last(), Some(&tail()));
    assert_eq!(stitched(&items, Stream::Stdout, 0), [(0, Some(numbered(0, 100)))]);
    assert_eq!(reader.next().await, None, "and stays ended");
}

#[tokio::test]
async fn waiting_reader_can_be_dropped_and_loses_nothing() {
    let place = Place::new();
    let log = place.log();
    let mut reader = from_start(&log);
    for _ in 0..3 {
        assert!(tokio::time::timeout(Duration::from_millis(5), reader.next()).await.is_err());
    }
    log.append(Kind::Stderr, b"now").await;
    assert_eq!(reader.next().await, Some(stderr(0, b"now")));
}

#[tokio::test]
async fn small_pieces_are_joined_for_a_late_reader() {
    let place = Place::new();
    let log = place.log();
    for at in 0..50_000 {
        log.append(Kind::Stdout, &numbered(at, 1)).await;
    }
    log.finish(b"tail");
    let items = all(from_start(&log)).await;
    assert!(items.len() < 20, "{} items", items.len());
    assert_eq!(stitched(&items, Stream::Stdout, 0), [(0, Some(numbered(0, 50_000)))]);
}

#[tokio::test]
async fn reader_from_a_position_gets_the_bytes_from_there() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    for _ in 0..20 {
        print(&log, Kind::Stdout, 700).await;
        print(&log, Kind::Stderr, 300).await;
    }
    log.finish(b"tail");
    for (out, err) in
        [(0, 0), (1, 0), (699, 0), (700, 300), (7_000, 3_000), (13_999, 5_999), (14_000, 6_000), (0, 6_000)]
    {
        let items = all(log.reader(Position { stdout: out, stderr: err }, Attach::Free)).await;
        for (stream, from, total) in [(Stream::Stdout, out, 14_000), (Stream::Stderr, err, 6_000)] {
            let parts = stitched(&items, stream, from);
            let bytes = parts.iter().flat_map(|(_, bytes)| bytes.clone().unwrap()).collect::<Vec<_>>();
            assert_eq!(bytes, numbered(from, (total - from) as usize), "{out}/{err} {stream:?}");
        }
        assert_eq!(items.last(), Some(&tail()));
    }
}

#[tokio::test]
async fn position_beyond_the_end_is_waited_for() {
    let place = Place::new();
    let log = place.log();
    log.append(Kind::Stdout, b"0123").await;
    let mut reader = log.reader(Position { stdout: 6, stderr: 100 }, Attach::Paced);
    assert!(tokio::time::timeout(Duration::from_millis(5), reader.next()).await.is_err());
    log.append(Kind::Stderr, b"not yet").await;
    log.append(Kind::Stdout, b"4567").await;
    assert_eq!(reader.next().await, Some(stdout(6, b"67")));
    log.append(Kind::Stdout, b"89").await;
    assert_eq!(reader.next().await, Some(stdout(8, b"89")));
    log.finish(b"tail");
    assert_eq!(all(reader).await, [tail()]);
    let late = Position { stdout: 1 << 60, stderr: u64::MAX };
    assert_eq!(all(log.reader(late, Attach::Free)).await, [tail()]);
}

#[tokio::test]
async fn events_belong_to_the_place_where_they_stand() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    // enough that events before any output fill more than one segment
    for number in 0..10 {
        log.append(Kind::Event, &[number; 1000]).await;
    }
    log.append(Kind::Stdout, b"0123").await;
    log.append(Kind::Event, b"at 4").await;
    log.append(Kind::Stdout, b"4567").await;
    log.append(Kind::Event, b"at 8").await;
    log.finish(b"tail");
    let at_4 = Item::Event(Bytes::from_static(b"at 4"));
    let at_8 = Item::Event(Bytes::from_static(b"at 8"));
    let from = |stdout| log.reader(Position { stdout, stderr: 0 }, Attach::Free);
    assert_eq!(all(from(0)).await.len(), 15);
    assert_eq!(all(from(3)).await, [stdout(3, b"3"), at_4.clone(), stdout(4, b"4567"), at_8.clone(), tail()]);
    assert_eq!(all(from(4)).await, [at_4, stdout(4, b"4567"), at_8.clone(), tail()]);
    assert_eq!(all(from(5)).await, [stdout(5, b"567"), at_8, tail()]);
}

#[tokio::test]
async fn event_at_a_segment_s_end_is_given_to_who_begins_there() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    log.append(Kind::Stdout, b"0123").await;
    log.append(Kind::Event, &[1; 3_500]).await;
    log.append(Kind::Event, &[2; 3_500]).await;
    log.append(Kind::Stdout, b"4").await;
    log.finish(b"tail");
    let items = all(log.reader(Position { stdout: 4, stderr: 0 }, Attach::Free)).await;
    assert_eq!(items.len(), 4, "{items:?}");
}

#[tokio::test]
async fn large_event_comes_whole() {
    let place = Place::new();
    let log = place.log();
    let large = numbered(0, 8 << 20);
    log.append(Kind::Event, &large).await;
    log.append(Kind::Event, &[0; (8 << 20) + 1]).await;
    log.append(Kind::Stdout, b"x").await;
    log.finish(b"tail");
    let gap = crate::Gap { stream: Stream::Stdout, offset: 0, length: 0, events: 1 };
    let items = all(from_start(&log)).await;
    assert_eq!(items, [Item::Event(large.into()), Item::Gap(gap), stdout(0, b"x"), tail()]);
    assert_eq!(log.totals().events_dropped, 1);
}

#[tokio::test]
async fn ranges_are_read_from_anywhere() {
    let place = Place::of(1 << 20, u64::MAX);
    let log = place.log();
    for _ in 0..100 {
        print(&log, Kind::Stdout, 3_001).await;
        print(&log, Kind::Stderr, 77).await;
    }
    for (offset, limit) in [(0, 10), (3_000, 2), (150_000, 100_000), (300_099, 5), (300_100, 5), (400_000, 5), (5, 0)] {
        let range = log.read(Stream::Stdout, offset, limit).unwrap();
        let expected = numbered(offset, limit.min(300_100_u64.saturating_sub(offset) as usize));
        assert_eq!((range.offset, range.total, range.finished), (offset, 300_100, false));
        assert_eq!(range.next_offset, offset + expected.len() as u64);
        assert_eq!((range.bytes, range.gap), (expected, None), "{offset}+{limit}");
    }
    log.finish(b"tail");
    let range = log.read(Stream::Stderr, 7_000, crate::MAX_RANGE).unwrap();
    assert_eq!((range.bytes, range.finished), (numbered(7_000, 700), true));
    assert!(log.read(Stream::Stderr, 0, crate::MAX_RANGE + 1).is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn line_is_received_before_more_is_printed() {
    let place = Place::new();
    let log = place.log();
    let mut reader = from_start(&log);
    for _ in 0..200 {
        log.append(Kind::Stdout, b"a line\n").await;
        assert!(matches!(reader.next().await, Some(Item::Stdout { .. })));
    }
}
