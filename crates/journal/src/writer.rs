//! How a log is written: pieces go to the end of the last segment, and room is made for them before.
//!
//! Order of what gives way to a new piece: finished logs of the journal, the middle of this log, the middles of other
//! running logs. What a paced reader has not read yet does not give way; the writer waits for it. Within its floor a log
//! waits for nobody: when nothing else gives way it is written beyond the total, in small segments, so that a log that
//! prints more is a ring there. When the disk fails, or there is nothing to give way to a piece larger than the floor,
//! the piece is lost to the log, and its readers see a gap; except that paced readers are given it from memory first,
//! one piece at a time.

use std::{
    fs::File,
    io::{self, ErrorKind, IoSlice, Write},
    sync::Arc,
};

use bytes::Bytes;

use crate::{
    frame::{self, FRAME_HEADER, MAX_DATA, SEGMENT_HEADER, SKIP_FRAME, Tag},
    index::{End, Passing, Segment},
    lock,
    log::{Dropped, Log},
    place::Place,
    reader::PIECE,
};

/// What is appended to a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// bytes of standard output
    Stdout,
    /// bytes of standard error
    Stderr,
    /// something else that happened, kept whole
    Event,
}

impl From<Kind> for Tag {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Stdout => Self::Stdout,
            Kind::Stderr => Self::Stderr,
            Kind::Event => Self::Event,
        }
    }
}

/// The open end of a log.
#[derive(Debug)]
pub(crate) struct Writer {
    /// the last segment, when it can be written on
    file: Option<File>,
    closed: bool,
    warned: bool,
}

impl Writer {
    pub fn new(file: File) -> Self {
        Self { file: Some(file), closed: false, warned: false }
    }

    /// Of a log that is not written any more.
    pub fn closed() -> Self {
        Self { file: None, closed: true, warned: false }
    }

    pub fn close(&mut self) {
        self.file = None;
        self.closed = true;
    }
}

/// What became of a piece.
enum Put {
    Done,
    /// not written: a paced reader must read on first
    Held,
    /// lost, but paced readers are to have it
    Passing,
}

/// Whether there is room for a piece.
enum Room {
    Made,
    /// beyond what all logs may take together
    Floor,
    Held,
    Nowhere,
}

impl Log {
    /// Appends what came. Returns when it is in the page cache, or when it is known to be lost; waits only while the log
    /// or the journal is full and a paced reader has not read what would have to be dropped.
    ///
    /// Output in pieces over [`PIECE`] is split. An event over an eighth of the log's size, or over 16 MiB, is dropped.
    /// Does nothing on a log that has ended. When the future is dropped while it waits, what it has not written is not
    /// in the log and not counted.
    pub async fn append(&self, kind: Kind, data: &[u8]) {
        if kind == Kind::Event {
            return self.append_piece(Tag::Event, data).await;
        }
        for piece in data.chunks(self.bounds.piece()) {
            self.append_piece(kind.into(), piece).await;
        }
    }

    async fn append_piece(&self, tag: Tag, data: &[u8]) {
        loop {
            // both are asked for before the attempt, so that what happens in between wakes
            let read_on = self.read_on.notified();
            let room = self.ground.room.notified();
            match self.put(tag, data) {
                Put::Done => return,
                Put::Held => tokio::select! { () = read_on => {}, () = room => {} },
                Put::Passing => return self.pass().await,
            }
        }
    }

    /// Waits until all paced readers have what could not be written.
    async fn pass(&self) {
        loop {
            let read_on = self.read_on.notified();
            let passed = self.with_index(|index| {
                let passed = index.closed() || index.all_caught_up();
                if passed {
                    index.passing = None;
                }
                passed
            });
            if passed {
                return;
            }
            read_on.await;
        }
    }

    /// Ends the log, once. Returns when the tail is on disk; when the disk cannot take it, it is remembered in memory
    /// only, and a later process finds the log interrupted. A log that has ended stays as it is.
    pub fn finish(&self, tail: &[u8]) {
        let mut writer = lock(&self.writer);
        if writer.closed {
            tracing::warn!(execution = %self.execution(), "a log that has ended cannot be finished");
            return;
        }
        let end = End::Finished(Bytes::copy_from_slice(tail));
        loop {
            match self.write(&mut writer, (Tag::Tail, tail), Some(&end), false) {
                Ok(()) => break,
                Err(error) => {
                    self.warn_once(&mut writer, &error);
                    if !full(&error) || !matches!(self.drop_oldest(None), Dropped::Segment) {
                        break;
                    }
                }
            }
        }
        self.close(&mut writer, end);
        drop(writer);
        self.announce_end();
    }

    fn put(&self, tag: Tag, data: &[u8]) -> Put {
        let mut writer = lock(&self.writer);
        if writer.closed {
            return Put::Done;
        }
        if data.len() > self.bounds.largest() {
            return self.lose(tag, data);
        }
        let small = match self.make_room((SEGMENT_HEADER + SKIP_FRAME + FRAME_HEADER + data.len()) as u64) {
            Room::Made => false,
            Room::Floor => true,
            Room::Held => return Put::Held,
            Room::Nowhere => return self.lose(tag, data),
        };
        while let Err(error) = self.write(&mut writer, (tag, data), None, small) {
            self.warn_once(&mut writer, &error);
            // only of a full disk is it known that dropping something helps
            match if full(&error) { self.drop_oldest(None) } else { Dropped::Nothing } {
                Dropped::Segment => {}
                Dropped::Held => return Put::Held,
                Dropped::Nothing => return self.lose(tag, data),
            }
        }
        Put::Done
    }

    fn make_room(&self, need: u64) -> Room {
        while self.with_index(|index| index.bytes()) + need > self.bounds.log {
            match self.drop_oldest(None) {
                Dropped::Segment => {}
                Dropped::Held => return Room::Held,
                Dropped::Nothing => return Room::Nowhere,
            }
        }
        while self.ground.short_of(need) {
            let Some(journal) = self.journal.upgrade() else { return Room::Made };
            if journal.evict_oldest() {
                continue;
            }
            let floor = self.bounds.floor;
            let dropped = if self.with_index(|index| index.taken_of(floor)) + need <= floor {
                Dropped::Nothing
            } else {
                self.drop_oldest(Some(self.ground.options.reader_patience))
            };
            match dropped {
                Dropped::Segment => {}
                Dropped::Held => return Room::Held,
                Dropped::Nothing if journal.drop_elsewhere_soon() => {}
                Dropped::Nothing if need <= floor => return Room::Floor,
                Dropped::Nothing => return Room::Nowhere,
            }
        }
        Room::Made
    }

    /// Counts a piece that cannot be kept: a gap at this place.
    fn lose(&self, tag: Tag, data: &[u8]) -> Put {
        let extent = tag.extent(data.len());
        let put = self.with_index(|index| {
            let attended = index.attended(None) && data.len() <= MAX_DATA;
            index.passing = attended.then(|| Passing { at: index.totals, tag, data: Bytes::copy_from_slice(data) });
            index.grow(extent);
            index.lost = index.lost.plus(extent);
            if attended { Put::Passing } else { Put::Done }
        });
        metrics::counter!("cloud_sandbox_journal_dropped_bytes_total", "cause" => "failed").increment(extent.bytes());
        self.grown.notify_waiters();
        put
    }

    fn warn_once(&self, writer: &mut Writer, error: &io::Error) {
        if !writer.warned {
            writer.warned = true;
            tracing::warn!(
                sandbox = %self.sandbox(), execution = %self.execution(), %error,
                "failed to write to the journal, output is dropped from it"
            );
        }
    }

    /// Writes one frame, in a `small` segment or another, and shows it to readers, together with `end`. After an error
    /// nothing has changed.
    fn write(&self, writer: &mut Writer, (tag, data): (Tag, &[u8]), end: Option<&End>, small: bool) -> io::Result<()> {
        if data.len() > MAX_DATA {
            return Err(io::Error::new(ErrorKind::InvalidInput, "larger than a frame"));
        }
        let header = frame::header(tag, data);
        let frame = [&header[..], data];
        let (last, written, totals) =
            self.with_index(|index| (index.segments.back().map(|last| last.bytes), index.written, index.totals));
        let size = FRAME_HEADER + data.len();
        let most = if small { self.bounds.small_segment_bytes() } else { self.bounds.segment_bytes() };
        let fits = |last: &u64| last + size as u64 <= most;
        match (&writer.file, last.filter(fits)) {
            (Some(file), Some(last)) => {
                let skip = frame::skip(totals);
                let skip = if written == totals { &[][..] } else { &skip[..] };
                if let Err(error) = self.ground.write(file, &[skip, frame[0], frame[1]]) {
                    // a half-written frame must not be followed by anything
                    if file.set_len(last).is_err() {
                        writer.file = None;
                    }
                    return Err(error);
                }
                self.show(None, (skip.len() + size) as u64, tag.extent(data.len()), end);
            }
            _ => {
                let (file, segment) = self.next_segment(frame, small)?;
                writer.file = Some(file);
                self.show(Some(segment), size as u64, tag.extent(data.len()), end);
            }
        }
        Ok(())
    }

    /// Starts a segment with its first frame.
    fn next_segment(&self, frame: [&[u8]; 2], small: bool) -> io::Result<(File, Segment)> {
        let (number, start, lost, bytes) = self.with_index(|index| {
            (index.segments.back().map_or(0, |last| last.number + 1), index.totals, index.lost, index.bytes())
        });
        let path = self.segment_path(number);
        let file = self.ground.spares.take(&path)?;
        let header = frame::segment_header(start, lost);
        if let Err(error) = self.ground.write(&file, &[&header, frame[0], frame[1]]) {
            // best effort: recovery removes a segment without a frame too
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        let beginning = if small { self.bounds.floor } else { self.bounds.log } / 4;
        let pinned = number == self.pinned_so_far() && bytes < beginning;
        Ok((
            file,
            Segment {
                number,
                start,
                kept: Place::default(),
                bytes: SEGMENT_HEADER as u64,
                pinned,
                lease: Arc::default(),
            },
        ))
    }

    /// How many segments the kept beginning has; it ends for good with the first one that is not part of it.
    fn pinned_so_far(&self) -> u64 {
        self.with_index(|index| index.segments.iter().filter(|segment| segment.pinned).count() as u64)
    }

    fn show(&self, segment: Option<Segment>, size: u64, extent: Place, end: Option<&End>) {
        self.ground.took(size + segment.as_ref().map_or(0, |segment| segment.bytes));
        self.with_index(|index| {
            index.segments.extend(segment);
            index.grow(extent);
            index.written = index.totals;
            index.passing = None;
            if let Some(last) = index.segments.back_mut() {
                last.bytes += size;
                last.kept = last.kept.plus(extent);
            }
            if let Some(end) = end {
                index.end = end.clone();
                index.ended_at = Some(std::time::SystemTime::now());
            }
        });
        self.grown.notify_waiters();
    }
}

/// Whether something was written to a full disk.
pub(crate) fn full(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

/// Writes all of `parts` in as few calls as it takes.
pub(crate) fn write_parts(mut file: &File, parts: &[&[u8]]) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> =
        parts.iter().filter(|part| !part.is_empty()).map(|part| IoSlice::new(part)).collect();
    let mut left = &mut slices[..];
    while !left.is_empty() {
        match file.write_vectored(left) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut left, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The most of a stream that one frame holds in segments of `segment_bytes`.
pub(crate) fn piece_of(segment_bytes: u64) -> usize {
    PIECE.min(segment_bytes as usize - SEGMENT_HEADER - FRAME_HEADER)
}
