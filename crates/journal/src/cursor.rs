//! Walks through a log's frames in order, over segment boundaries, gaps and damage, without holding a lock while it
//! reads.
//!
//! Invariant: `at` is the place up to which everything was either yielded or jumped over, so a walk never loses its
//! offsets, whatever is dropped under it.

use std::{fs::File, io, os::unix::fs::FileExt, sync::Arc};

use bytes::{Buf, Bytes};

use crate::{
    frame::{self, FRAME_HEADER, Parsed, SEGMENT_HEADER, Tag},
    index::{Progress, ReadTo, View},
    log::Log,
    place::{Place, Stream},
};

/// How much is read at once; an event that is larger is read whole.
const WINDOW: u64 = 64 << 10;

#[derive(Debug)]
pub(crate) enum Step {
    Piece {
        stream: Stream,
        offset: u64,
        data: Bytes,
    },
    Event {
        at: Place,
        data: Bytes,
    },
    /// what lies between is not there
    Jump {
        from: Place,
        to: Place,
    },
    /// everything there is has been yielded; `closed` says that nothing will follow
    Caught {
        closed: bool,
    },
}

#[derive(Debug)]
pub(crate) struct Cursor {
    segment: u64,
    /// where in the segment's file the window begins
    position: u64,
    window: Bytes,
    /// the file is closed before its lease ends
    file: Option<(File, Arc<()>)>,
    at: Place,
}

impl Cursor {
    /// Begins in the last segment whose beginning `before` accepts, or in the first.
    pub fn new(log: &Log, before: impl Fn(Place) -> bool) -> Self {
        let found = log.with_index(|index| index.find(before));
        let (segment, at) = found.map_or((0, Place::default()), |segment| (segment.number, segment.start));
        Self { segment, position: SEGMENT_HEADER as u64, window: Bytes::new(), file: None, at }
    }

    /// Begins where `offset` of one stream is found.
    pub fn at_offset(log: &Log, stream: Stream, offset: u64) -> Self {
        Self::new(log, |start| start.of(stream) <= offset)
    }

    /// How far it is, and what is not needed on disk any more.
    pub fn progress(&self) -> Progress {
        let read_to = ReadTo { segment: self.segment, bytes: self.position + self.window.len() as u64 };
        Progress { read_to, at: self.at }
    }

    pub fn step(&mut self, log: &Log) -> Step {
        loop {
            if let Some(step) = self.step_buffered() {
                return step;
            }
            if let Some(step) = self.advance(log) {
                return step;
            }
        }
    }

    /// The next step, if it needs nothing from disk.
    pub fn step_buffered(&mut self) -> Option<Step> {
        while let Parsed::Frame(tag, length) = frame::parse(&self.window) {
            let data = self.window.slice(FRAME_HEADER..FRAME_HEADER + length);
            self.window.advance(FRAME_HEADER + length);
            self.position += (FRAME_HEADER + length) as u64;
            let step = self.take(tag, data);
            if step.is_some() {
                return step;
            }
        }
        None
    }

    fn take(&mut self, tag: Tag, data: Bytes) -> Option<Step> {
        let at = self.at;
        self.at = at.plus(tag.extent(data.len()));
        match tag {
            Tag::Stdout => Some(Step::Piece { stream: Stream::Stdout, offset: at.stdout, data }),
            Tag::Stderr => Some(Step::Piece { stream: Stream::Stderr, offset: at.stderr, data }),
            Tag::Event => Some(Step::Event { at, data }),
            Tag::Skip => frame::skipped_to(&data).and_then(|to| self.jump(to)),
            // both are in memory with the log
            Tag::Head | Tag::Tail => None,
        }
    }

    /// Gets more into the window, or goes on to the next segment. `None`: try again.
    fn advance(&mut self, log: &Log) -> Option<Step> {
        let view = log.view(self.segment);
        let Some((bytes, lease)) = &view.there else { return self.leave(&view) };
        let bytes = *bytes;
        let read = self.position + self.window.len() as u64;
        let wanted = match frame::parse(&self.window) {
            Parsed::Short(need) => (need - self.window.len()) as u64,
            Parsed::Bad | Parsed::Frame(..) => u64::MAX,
        };
        if read == bytes && self.window.is_empty() {
            return self.leave(&view);
        }
        if wanted > bytes.saturating_sub(read) {
            return self.give_up(log, &view, bytes, "damaged");
        }
        match self.fill(log, lease, read, WINDOW.max(wanted).min(bytes - read)) {
            Ok(()) => None,
            // dropped in between: the next view says so
            Err(error) if error.kind() == io::ErrorKind::NotFound && log.view(self.segment).there.is_none() => None,
            Err(error) => self.give_up(log, &view, bytes, &error.to_string()),
        }
    }

    fn fill(&mut self, log: &Log, lease: &Arc<()>, from: u64, count: u64) -> io::Result<()> {
        let (file, _) = match &self.file {
            Some(file) => file,
            None => self.file.insert((File::open(log.segment_path(self.segment))?, Arc::clone(lease))),
        };
        let kept = self.window.len();
        let mut window = vec![0; kept + count as usize];
        window[..kept].copy_from_slice(&self.window);
        file.read_exact_at(&mut window[kept..], from)?;
        self.window = window.into();
        Ok(())
    }

    /// Goes on behind what cannot be read of this segment, which is all that is in it now.
    fn give_up(&mut self, log: &Log, view: &View, bytes: u64, error: &str) -> Option<Step> {
        let path = log.segment_path(self.segment);
        tracing::warn!(path = %path.display(), position = self.position, error, "cannot read the journal here");
        self.window = Bytes::new();
        self.position = bytes;
        self.leave(view)
    }

    fn leave(&mut self, view: &View) -> Option<Step> {
        let Some((segment, start)) = view.next else {
            return Some(self.finish(view));
        };
        self.segment = segment;
        self.position = SEGMENT_HEADER as u64;
        self.window = Bytes::new();
        self.file = None;
        self.jump(start)
    }

    /// At the end of the files: what is only in memory, or nothing.
    fn finish(&mut self, view: &View) -> Step {
        if let Some(passing) = &view.passing
            && passing.at.reaches(self.at)
        {
            let taken = self.jump(passing.at).or_else(|| self.take(passing.tag, passing.data.clone()));
            if let Some(step) = taken {
                return step;
            }
        }
        self.jump(view.totals).unwrap_or(Step::Caught { closed: view.closed })
    }

    fn jump(&mut self, to: Place) -> Option<Step> {
        let from = self.at;
        self.at = from.max(to);
        (!from.reaches(to)).then_some(Step::Jump { from, to: self.at })
    }
}
