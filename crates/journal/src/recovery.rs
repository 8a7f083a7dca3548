//! Finds what earlier processes left, and repairs what they left half done.
//!
//! Only the header of a segment is read that another one follows; the last one is read whole, for a frame that was being
//! written when its process died. What follows a broken frame there is cut off.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use bytes::Bytes;
use cloud_sandbox_model::{ExecutionId, SandboxId};

use crate::{
    frame::{self, FRAME_HEADER, Parsed, SEGMENT_HEADER, Tag},
    index::{End, Index, Segment},
    journal::{Inner, LOCK_FILE, SANDBOX_FILE},
    log::Log,
    place::Place,
    spares,
    writer::Writer,
};

/// What earlier processes left of a sandbox.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// the sandbox
    pub sandbox: SandboxId,
    /// what was noted about it, if anything
    pub blob: Option<Bytes>,
    /// its logs, the oldest execution first; at least one
    pub logs: Vec<RecoveredLog>,
}

/// A log of an earlier process. It has ended, or it is interrupted.
#[derive(Clone, Debug)]
pub struct RecoveredLog {
    /// the execution
    pub execution: ExecutionId,
    /// its log
    pub log: Arc<Log>,
}

pub(crate) fn recover(inner: &Arc<Inner>) -> io::Result<Vec<Recovered>> {
    let mut recovered = Vec::new();
    for entry in fs::read_dir(&inner.ground.options.dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let id = name.to_str().and_then(|name| name.parse::<SandboxId>().ok());
        match id {
            Some(sandbox) if entry.file_type()?.is_dir() => match recover_sandbox(inner, sandbox, &entry.path()) {
                Ok(found) => recovered.extend(found),
                Err(error) => warn(&entry.path(), &error.to_string()),
            },
            // nothing is removed here: the folder may have been given by mistake
            _ if name != LOCK_FILE && name != spares::FOLDER => {
                warn(&entry.path(), "does not belong to the journal, left alone")
            }
            _ => {}
        }
    }
    Ok(recovered)
}

fn recover_sandbox(inner: &Arc<Inner>, sandbox: SandboxId, folder: &Path) -> io::Result<Option<Recovered>> {
    let mut segments: BTreeMap<ExecutionId, Vec<u64>> = BTreeMap::new();
    let mut blob = None;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_file = entry.file_type()?.is_file();
        if is_file && name == SANDBOX_FILE {
            blob = Some(fs::read(entry.path())?.into());
        } else if let Some((execution, number)) = name.to_str().and_then(segment_name).filter(|_| is_file) {
            segments.entry(execution).or_default().push(number);
        } else {
            remove(&entry.path(), "does not belong to the journal, removed");
        }
    }
    let mut logs = Vec::with_capacity(segments.len());
    for (execution, mut numbers) in segments {
        numbers.sort_unstable();
        let paths = Paths { folder, execution };
        match recover_log(inner, sandbox, &paths, &numbers) {
            Ok(Some(log)) => logs.push(RecoveredLog { execution, log: Arc::new(log) }),
            Ok(None) => numbers.iter().for_each(|number| paths.remove(*number, "no log, removed")),
            Err(error) => warn(&paths.of(numbers[0]), &error.to_string()),
        }
    }
    if logs.is_empty() {
        // best effort: a folder that is not empty holds what could not be read, and is looked at again next time
        let _ = fs::remove_file(folder.join(SANDBOX_FILE));
        let _ = fs::remove_dir(folder);
        return Ok(None);
    }
    Ok(Some(Recovered { sandbox, blob, logs }))
}

/// Execution and number of a segment's file name, in its one spelling.
fn segment_name(name: &str) -> Option<(ExecutionId, u64)> {
    let (execution, number) = name.split_once('.')?;
    let parsed: u64 = number.parse().ok()?;
    (parsed.to_string() == number).then_some((execution.parse().ok()?, parsed))
}

struct Paths<'a> {
    folder: &'a Path,
    execution: ExecutionId,
}

impl Paths<'_> {
    fn of(&self, number: u64) -> std::path::PathBuf {
        self.folder.join(format!("{}.{number}", self.execution))
    }

    fn remove(&self, number: u64, why: &str) {
        remove(&self.of(number), why);
    }
}

/// A segment as its header describes it.
#[derive(Clone, Copy)]
struct Found {
    number: u64,
    start: Place,
    lost: Place,
    length: u64,
    modified: SystemTime,
}

/// What reading a segment whole says about it.
struct Scan {
    /// how much of it is good
    bytes: u64,
    end: Place,
    kept: Place,
    frames: usize,
    head: Option<Bytes>,
    tail: Option<Bytes>,
}

/// `None` when there is no beginning, and so nothing to tell about the log.
fn recover_log(inner: &Arc<Inner>, sandbox: SandboxId, paths: &Paths<'_>, numbers: &[u64]) -> io::Result<Option<Log>> {
    let mut found = find_segments(paths, numbers)?;
    let (last, scan) = loop {
        let Some(last) = found.last().copied() else { return Ok(None) };
        let scan = scan(&fs::read(paths.of(last.number))?, last.start);
        if scan.frames > 0 {
            break (last, scan);
        }
        paths.remove(last.number, "a journal segment without a frame, removed");
        found.pop();
    };
    if found[0].number != 0 {
        return Ok(None);
    }
    let head = if found.len() == 1 { scan.head.clone() } else { read_head(&paths.of(0), found[0].length)? };
    let Some(head) = head else { return Ok(None) };
    if scan.bytes < last.length {
        OpenOptions::new().write(true).open(paths.of(last.number))?.set_len(scan.bytes)?;
    }
    let mut segments = VecDeque::with_capacity(found.len());
    for pair in found.windows(2) {
        segments.push_back(sealed(paths, pair[0], pair[1])?);
    }
    let lost = last.lost.plus(scan.end.minus(last.start).minus(scan.kept));
    segments.push_back(segment(last, scan.kept, scan.bytes));
    let mut index = Index::new(segments, scan.end, lost);
    // one without a tail has ended for those who will ask only now
    (index.end, index.ended_at) = match scan.tail {
        Some(tail) => (End::Finished(tail), Some(last.modified)),
        None => (End::Interrupted, Some(SystemTime::now())),
    };
    inner.ground.took(index.bytes());
    // its bounds do not count: it is not written any more
    let shared = (Arc::clone(&inner.ground), Arc::downgrade(inner), inner.ground.bounds(u64::MAX));
    Ok(Some(Log::new((sandbox, paths.execution), head, shared, Writer::closed(), index)))
}

/// The segments with a good header, in order. Others are removed: what they held becomes a gap.
fn find_segments(paths: &Paths<'_>, numbers: &[u64]) -> io::Result<Vec<Found>> {
    let mut found: Vec<Found> = Vec::with_capacity(numbers.len());
    for number in numbers {
        let file = File::open(paths.of(*number))?;
        let metadata = file.metadata()?;
        let mut header = [0; SEGMENT_HEADER];
        let whole = metadata.len() >= SEGMENT_HEADER as u64;
        if whole {
            file.read_exact_at(&mut header, 0)?;
        }
        let places = frame::parse_segment_header(&header).filter(|_| whole);
        let in_order = |start: &Place| found.last().is_none_or(|last| start.reaches(last.start));
        match places.filter(|(start, _)| in_order(start)) {
            Some((start, lost)) => found.push(Found {
                number: *number,
                start,
                lost,
                length: metadata.len(),
                modified: metadata.modified()?,
            }),
            None => paths.remove(*number, "a journal segment without a good header, removed"),
        }
    }
    Ok(found)
}

/// A segment that another one follows. What is in it is known from both headers, unless there was one between them.
fn sealed(paths: &Paths<'_>, this: Found, next: Found) -> io::Result<Segment> {
    if next.number == this.number + 1 {
        let kept = next.start.minus(this.start).minus(next.lost.minus(this.lost));
        return Ok(segment(this, kept, this.length));
    }
    let scan = scan(&fs::read(paths.of(this.number))?, this.start);
    Ok(segment(this, scan.kept, scan.bytes))
}

fn segment(found: Found, kept: Place, bytes: u64) -> Segment {
    Segment { number: found.number, start: found.start, kept, bytes, pinned: true, lease: Arc::default() }
}

fn scan(bytes: &[u8], start: Place) -> Scan {
    let mut scan = Scan { bytes: 0, end: start, kept: Place::default(), frames: 0, head: None, tail: None };
    let mut at = SEGMENT_HEADER.min(bytes.len());
    while let Parsed::Frame(tag, length) = frame::parse(&bytes[at..])
        && scan.tail.is_none()
    {
        let data = &bytes[at + FRAME_HEADER..at + FRAME_HEADER + length];
        at += FRAME_HEADER + length;
        scan.frames += 1;
        scan.kept = scan.kept.plus(tag.extent(length));
        scan.end = scan.end.plus(tag.extent(length));
        match tag {
            Tag::Head => scan.head = Some(Bytes::copy_from_slice(data)),
            Tag::Tail => scan.tail = Some(Bytes::copy_from_slice(data)),
            Tag::Skip => scan.end = frame::skipped_to(data).map_or(scan.end, |to| scan.end.max(to)),
            Tag::Stdout | Tag::Stderr | Tag::Event => {}
        }
    }
    scan.bytes = at as u64;
    scan
}

/// The head of a log, from its first segment.
fn read_head(path: &Path, length: u64) -> io::Result<Option<Bytes>> {
    let file = File::open(path)?;
    let mut bytes = Vec::new();
    let mut wanted = 4096;
    loop {
        let available = length.saturating_sub(SEGMENT_HEADER as u64);
        bytes.resize(available.min(wanted) as usize, 0);
        file.read_exact_at(&mut bytes, SEGMENT_HEADER as u64)?;
        match frame::parse(&bytes) {
            Parsed::Frame(Tag::Head, length) => {
                return Ok(Some(Bytes::copy_from_slice(&bytes[FRAME_HEADER..FRAME_HEADER + length])));
            }
            Parsed::Short(need) if need as u64 <= available => wanted = need as u64,
            _ => return Ok(None),
        }
    }
}

fn remove(path: &Path, why: &str) {
    warn(path, why);
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "failed to remove a file from the journal");
    }
}

fn warn(path: &Path, what: &str) {
    tracing::warn!(path = %path.display(), "journal: {what}");
}
