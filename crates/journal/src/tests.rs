//! What a journal does as a whole. Tests of single parts are beside them.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use cloud_sandbox_model::{ExecutionId, SandboxId};
use tempfile::TempDir;

use crate::{Attach, Item, Journal, Kind, Log, Options, Position, Reader, Recovered, Stream};

mod appending;
mod choosing;
mod crashes;
mod floors;
mod full;
mod keeping;
mod random;
mod reading;
mod searching;

/// The smallest log there is: sixteen segments of 4 KiB.
const SMALL: u64 = 64 << 10;

struct Place {
    dir: TempDir,
    journal: Journal,
}

impl Place {
    fn new() -> Self {
        Self::of(u64::MAX, u64::MAX)
    }

    fn of(log_bytes: u64, total_bytes: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let (journal, recovered) = open(dir.path(), log_bytes, total_bytes);
        assert!(recovered.is_empty());
        Self { dir, journal }
    }

    fn log(&self) -> Arc<Log> {
        self.journal.create(SandboxId::generate(), ExecutionId::generate(), b"head").unwrap()
    }

    /// The journal as a later process finds it.
    fn reopen(self) -> (Self, Vec<Recovered>) {
        let Self { dir, journal } = self;
        drop(journal);
        let (journal, recovered) = open(dir.path(), SMALL, u64::MAX);
        (Self { dir, journal }, recovered)
    }
}

fn open(dir: &Path, log_bytes: u64, total_bytes: u64) -> (Journal, Vec<Recovered>) {
    let log_bytes = log_bytes.min(Options::LOG_BYTES);
    let retention = Duration::from_secs(60);
    Journal::open(Options { retention, log_bytes, total_bytes, ..Options::new(dir) }).unwrap()
}

fn from_start(log: &Arc<Log>) -> Reader {
    log.reader(Position::default(), Attach::Free)
}

/// Everything until the reader ends.
async fn all(mut reader: Reader) -> Vec<Item> {
    let mut items = Vec::new();
    while let Some(item) = tokio::time::timeout(Duration::from_secs(30), reader.next()).await.expect("a stream hangs") {
        items.push(item);
    }
    items
}

fn stdout(offset: u64, bytes: &[u8]) -> Item {
    Item::Stdout { offset, bytes: Bytes::copy_from_slice(bytes) }
}

fn stderr(offset: u64, bytes: &[u8]) -> Item {
    Item::Stderr { offset, bytes: Bytes::copy_from_slice(bytes) }
}

fn tail() -> Item {
    Item::Tail(Bytes::from_static(b"tail"))
}

/// The bytes of a stream that `items` hold, each at its offset and in order; gaps as `None`.
fn stitched(items: &[Item], stream: Stream, from: u64) -> Vec<(u64, Option<Vec<u8>>)> {
    let mut parts: Vec<(u64, Option<Vec<u8>>)> = Vec::new();
    let mut end = from;
    for item in items {
        let (offset, bytes, length) = match item {
            Item::Stdout { offset, bytes } if stream == Stream::Stdout => (*offset, Some(bytes), bytes.len() as u64),
            Item::Stderr { offset, bytes } if stream == Stream::Stderr => (*offset, Some(bytes), bytes.len() as u64),
            Item::Gap(gap) if gap.stream == stream && gap.length > 0 => (gap.offset, None, gap.length),
            _ => continue,
        };
        assert_eq!(offset, end, "neither twice nor missing");
        end += length;
        match (parts.last_mut(), bytes) {
            (Some((_, Some(last))), Some(bytes)) => last.extend_from_slice(bytes),
            (_, bytes) => parts.push((offset, bytes.map(|bytes| bytes.to_vec()))),
        }
    }
    parts
}

/// Bytes that tell where they are.
fn numbered(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

async fn print(log: &Log, kind: Kind, count: usize) {
    let stream = if kind == Kind::Stdout { log.totals().stdout } else { log.totals().stderr };
    log.append(kind, &numbered(stream, count)).await;
}
