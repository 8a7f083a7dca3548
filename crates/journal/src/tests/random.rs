//! Whatever is appended, dropped, lost and read: each byte once at its offset, or in an exact gap.

use std::io::ErrorKind;

use proptest::prelude::*;

use super::*;
use crate::lock;

#[derive(Clone, Debug)]
enum Act {
    Append(Kind, usize),
    /// the disk fails from here on, or works again
    Fail(bool),
    Attach(usize, Position),
    Take(usize, usize),
    Detach(usize),
    Range(u64, usize),
}

fn act() -> impl Strategy<Value = Act> {
    let kind = prop_oneof![3 => Just(Kind::Stdout), 2 => Just(Kind::Stderr), 1 => Just(Kind::Event)];
    let size = prop_oneof![0..20_usize, 0..2_000_usize, 3_000..9_000_usize];
    let at = prop_oneof![Just(0), 0..40_000_u64, 0..300_000_u64];
    let position = (at.clone(), at.clone()).prop_map(|(stdout, stderr)| Position { stdout, stderr });
    prop_oneof![
        20 => (kind, size).prop_map(|(kind, size)| Act::Append(kind, size)),
        1 => any::<bool>().prop_map(Act::Fail),
        2 => (0..3_usize, position).prop_map(|(reader, from)| Act::Attach(reader, from)),
        6 => (0..3_usize, 1..12_usize).prop_map(|(reader, count)| Act::Take(reader, count)),
        1 => (0..3_usize).prop_map(Act::Detach),
        2 => (at, 0..20_000_usize).prop_map(|(offset, limit)| Act::Range(offset, limit)),
    ]
}

struct Following {
    reader: Reader,
    from: Position,
    items: Vec<Item>,
}

/// The first attached is paced.
#[derive(Default)]
struct Readers([Option<Following>; 3]);

impl Readers {
    fn attach(&mut self, log: &Arc<Log>, slot: usize, from: Position) {
        let attach = if slot == 0 { Attach::Paced } else { Attach::Free };
        self.0[slot] = Some(Following { reader: log.reader(from, attach), from, items: Vec::new() });
    }

    async fn take(&mut self, slot: usize, count: usize) {
        let Some(following) = &mut self.0[slot] else { return };
        for _ in 0..count {
            tokio::select! {
                biased;
                item = following.reader.next() => following.items.extend(item),
                () = std::future::ready(()) => return,
            }
        }
    }

    /// Appends, and reads with the paced reader while that is what the writer waits for.
    async fn append(&mut self, log: &Log, kind: Kind, data: &[u8]) {
        let append = log.append(kind, data);
        tokio::pin!(append);
        loop {
            tokio::select! {
                biased;
                () = &mut append => return,
                () = self.take(0, 1) => tokio::task::yield_now().await,
            }
        }
    }
}

fn check(items: &[Item], from: Position, stdout: u64, stderr: u64, lossless: bool) {
    for (stream, total) in [(Stream::Stdout, stdout), (Stream::Stderr, stderr)] {
        let from = from.of(stream);
        let mut end = from.min(total.max(from));
        for (offset, bytes) in stitched(items, stream, from) {
            match bytes {
                Some(bytes) => {
                    assert!(bytes == numbered(offset, bytes.len()), "{stream:?} at {offset}");
                    end = offset + bytes.len() as u64;
                }
                None => assert!(!lossless, "a paced reader misses {stream:?} at {offset}"),
            }
        }
        let trailing_gap = items.iter().rev().find_map(|item| match item {
            Item::Gap(gap) if gap.stream == stream => Some(gap.offset + gap.length),
            _ => None,
        });
        assert_eq!(end.max(trailing_gap.unwrap_or(0)), total.max(from), "{stream:?} to its end");
    }
}

async fn run(acts: Vec<Act>, crash: bool) {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let (mut out, mut err, mut events) = (0, 0, 0);
    let mut readers = Readers::default();
    for act in acts {
        match act {
            Act::Append(Kind::Event, size) => {
                readers.append(&log, Kind::Event, &vec![7; size.min(4_000)]).await;
                events += 1;
            }
            Act::Append(kind, size) => {
                let total = if kind == Kind::Stdout { &mut out } else { &mut err };
                readers.append(&log, kind, &numbered(*total, size)).await;
                *total += size as u64;
            }
            Act::Fail(fails) => {
                *lock(&place.journal.0.ground.fault) = fails.then_some(ErrorKind::Other);
            }
            Act::Attach(slot, from) => readers.attach(&log, slot, from),
            Act::Take(slot, count) => readers.take(slot, count).await,
            Act::Detach(slot) => readers.0[slot] = None,
            Act::Range(offset, limit) => {
                let range = log.read(Stream::Stdout, offset, limit).unwrap();
                assert!(range.bytes == numbered(range.offset, range.bytes.len()));
                assert_eq!(range.gap.map_or(0, |gap| gap.length), range.offset - offset);
                assert_eq!(range.total, out);
            }
        }
        assert!(place.journal.bytes() <= SMALL);
    }
    *lock(&place.journal.0.ground.fault) = None;
    log.finish(b"tail");
    let totals = log.totals();
    assert_eq!((totals.stdout, totals.stderr, totals.events), (out, err, events));
    for following in readers.0 {
        let Some(mut following) = following else { continue };
        following.items.extend(all(following.reader).await);
        assert_eq!(following.items.last(), Some(&tail()));
        check(&following.items, following.from, out, err, false);
    }
    let live = all(from_start(&log)).await;
    check(&live, Position::default(), out, err, false);
    let seen: u64 = live
        .iter()
        .map(|item| match item {
            Item::Event(_) => 1,
            Item::Gap(gap) => gap.events,
            _ => 0,
        })
        .sum();
    assert_eq!(seen, events);
    if crash {
        drop(log);
        let (_place, recovered) = place.reopen();
        let log = &recovered[0].logs[0].log;
        assert_eq!(log.totals(), totals);
        assert!(all(from_start(log)).await == live, "the same after a restart");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_comes_once_or_is_in_a_gap(acts in proptest::collection::vec(act(), 1..200), crash in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(run(acts, crash));
    }

    #[test]
    fn paced_reader_misses_nothing_however_slow(sizes in proptest::collection::vec((0..9_000_usize, 0..4_usize, any::<bool>(), 0..20_u8), 1..120)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let place = Place::of(SMALL, u64::MAX);
            let log = place.log();
            let mut readers = Readers::default();
            readers.attach(&log, 0, Position::default());
            for (size, takes, to_stderr, fault) in sizes {
                // a disk that fails now and then, and not only when the reader is near the end
                if fault < 4 {
                    *lock(&place.journal.0.ground.fault) = (fault < 2).then_some(ErrorKind::StorageFull);
                }
                let (kind, total) = match to_stderr {
                    true => (Kind::Stderr, log.totals().stderr),
                    false => (Kind::Stdout, log.totals().stdout),
                };
                readers.append(&log, kind, &numbered(total, size)).await;
                readers.take(0, takes).await;
            }
            log.finish(b"tail");
            let Some(mut following) = readers.0[0].take() else { unreachable!() };
            following.items.extend(all(following.reader).await);
            check(&following.items, Position::default(), log.totals().stdout, log.totals().stderr, true);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn readers_in_other_threads_agree_while_the_log_runs_over() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let readers: Vec<_> = (0..6)
        .map(|number| {
            let attach = if number < 2 { Attach::Paced } else { Attach::Free };
            tokio::spawn(all(log.reader(Position::default(), attach)))
        })
        .collect();
    for round in 0..2_000 {
        let kind = if round % 3 == 0 { Kind::Stderr } else { Kind::Stdout };
        print(&log, kind, 1 + round * 7 % 2_000).await;
    }
    log.finish(b"tail");
    for (number, reader) in readers.into_iter().enumerate() {
        let items = reader.await.unwrap();
        assert_eq!(items.last(), Some(&tail()));
        check(&items, Position::default(), log.totals().stdout, log.totals().stderr, number < 2);
    }
}
