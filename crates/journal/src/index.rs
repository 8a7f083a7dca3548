//! What a log knows about its segment files: which are there, where each begins, who still wants them. Plain data; the
//! log keeps it under one lock.
//!
//! Invariant: the kept first quarter ("pinned" segments) and the segment that is written now are never dropped while the
//! log runs, so a log always has its beginning and its end.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use crate::{frame::Tag, place::Place};

/// One segment file.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    pub number: u64,
    /// the place of its first frame
    pub start: Place,
    /// what of each kind is in it
    pub kept: Place,
    /// how much of the file is whole frames
    pub bytes: u64,
    /// belongs to the beginning of the log that is kept for ever
    pub pinned: bool,
    /// a clone for everyone who reads the file or is about to: only a file that nobody reads is used again
    pub lease: Arc<()>,
}

/// Whether and how a log has ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Running,
    Finished(Bytes),
    /// closed without a word of how it ended
    Interrupted,
}

/// Where a paced reader has read to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ReadTo {
    pub segment: u64,
    pub bytes: u64,
}

/// How far a paced reader is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Progress {
    pub read_to: ReadTo,
    pub at: Place,
}

impl Progress {
    /// Of somebody who needs nothing of what is dropped.
    pub const END: Self = Self {
        read_to: ReadTo { segment: u64::MAX, bytes: u64::MAX },
        at: Place { stdout: u64::MAX, stderr: u64::MAX, events: u64::MAX },
    };
}

/// A reader for whom the log keeps what he has not read.
#[derive(Clone, Copy, Debug)]
struct Paced {
    progress: Progress,
    /// when he read something last, or had read all there was
    since: Instant,
}

impl Paced {
    fn at(progress: Progress) -> Self {
        Self { progress, since: Instant::now() }
    }

    /// Whether he has read within `patience`; without one, however long ago it was.
    fn reads(&self, patience: Option<Duration>) -> bool {
        patience.is_none_or(|patience| self.since.elapsed() < patience)
    }
}

/// What could not be written, and is in memory until the paced readers have it.
#[derive(Clone, Debug)]
pub(crate) struct Passing {
    pub at: Place,
    pub tag: Tag,
    pub data: Bytes,
}

/// What an attempt to take the oldest droppable segment out came to.
pub(crate) enum Taken {
    Segment(Segment),
    /// a paced reader has not read it
    Held,
    /// there is none
    Nothing,
}

/// What a reader sees of one segment.
pub(crate) struct View {
    /// whole frames in it, and leave to read them, when it is there
    pub there: Option<(u64, Arc<()>)>,
    /// the segment after it, and where that begins
    pub next: Option<(u64, Place)>,
    pub passing: Option<Passing>,
    pub totals: Place,
    pub closed: bool,
}

#[derive(Debug)]
pub(crate) struct Index {
    pub segments: VecDeque<Segment>,
    /// everything that was ever appended
    pub totals: Place,
    /// what the frames on disk lead to; behind `totals` when the last writes failed
    pub written: Place,
    /// what failed writes have cost
    pub lost: Place,
    pub passing: Option<Passing>,
    pub end: End,
    pub ended_at: Option<SystemTime>,
    pub evicted: bool,
    paced: BTreeMap<u64, Paced>,
    next_reader: u64,
}

impl Index {
    pub fn new(segments: VecDeque<Segment>, totals: Place, lost: Place) -> Self {
        Self {
            segments,
            totals,
            written: totals,
            lost,
            passing: None,
            end: End::Running,
            ended_at: None,
            evicted: false,
            paced: BTreeMap::new(),
            next_reader: 0,
        }
    }

    pub fn closed(&self) -> bool {
        !matches!(self.end, End::Running)
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    pub fn kept(&self) -> Place {
        self.segments.iter().fold(Place::default(), |sum, segment| sum.plus(segment.kept))
    }

    pub fn view(&self, number: u64) -> View {
        let after = self.segments.partition_point(|segment| segment.number <= number);
        let this = after.checked_sub(1).map(|at| &self.segments[at]).filter(|segment| segment.number == number);
        View {
            there: this.map(|segment| (segment.bytes, Arc::clone(&segment.lease))),
            next: self.segments.get(after).map(|segment| (segment.number, segment.start)),
            passing: self.passing.clone(),
            totals: self.totals,
            closed: self.closed(),
        }
    }

    /// The last segment for which `before` holds, which must be a matter of where it begins; else the first.
    pub fn find(&self, before: impl Fn(Place) -> bool) -> Option<Segment> {
        let after = self.segments.partition_point(|segment| before(segment.start));
        self.segments.get(after.saturating_sub(1)).cloned()
    }

    /// How much the log takes of a floor: the beginning counts up to a quarter of it, however much was kept of it while
    /// there was room.
    pub fn taken_of(&self, floor: u64) -> u64 {
        let (beginning, rest) = self.segments.iter().fold((0, 0), |(beginning, rest), segment| match segment.pinned {
            true => (beginning + segment.bytes, rest),
            false => (beginning, rest + segment.bytes),
        });
        rest + beginning.min(floor / 4)
    }

    /// Takes the oldest segment that may be dropped out of the index. Readers who have read nothing for `patience` do
    /// not hold it.
    pub fn drop_oldest(&mut self, patience: Option<Duration>) -> Taken {
        let Some(at) = self.oldest_droppable() else { return Taken::Nothing };
        if self.wanted(&self.segments[at], patience) {
            return Taken::Held;
        }
        self.segments.remove(at).map_or(Taken::Nothing, Taken::Segment)
    }

    /// Bytes that `drop_oldest` could free now, one call after the other.
    pub fn droppable(&self, patience: Option<Duration>) -> u64 {
        let Some(at) = self.oldest_droppable() else { return 0 };
        let last = self.segments.len() - 1;
        let free = self.segments.range(at..last).take_while(|segment| !self.wanted(segment, patience));
        free.map(|segment| segment.bytes).sum()
    }

    fn oldest_droppable(&self) -> Option<usize> {
        let at = self.segments.partition_point(|segment| segment.pinned);
        (at + 1 < self.segments.len()).then_some(at)
    }

    fn wanted(&self, segment: &Segment, patience: Option<Duration>) -> bool {
        let end = ReadTo { segment: segment.number, bytes: segment.bytes };
        self.paced.values().any(|reader| reader.progress.read_to < end && reader.reads(patience))
    }

    pub fn attach(&mut self, at: Progress) -> u64 {
        self.next_reader += 1;
        self.paced.insert(self.next_reader, Paced::at(at));
        self.next_reader
    }

    pub fn has_read(&mut self, reader: u64, to: Progress) {
        self.paced.insert(reader, Paced::at(to));
    }

    pub fn detach(&mut self, reader: u64) {
        self.paced.remove(&reader);
    }

    /// Counts something that was appended. From here on those who had read all have something to read.
    pub fn grow(&mut self, extent: Place) {
        for reader in self.paced.values_mut().filter(|reader| reader.progress.at.reaches(self.totals)) {
            reader.since = Instant::now();
        }
        self.totals = self.totals.plus(extent);
    }

    /// Whether every paced reader has all there is.
    pub fn all_caught_up(&self) -> bool {
        self.paced.values().all(|reader| reader.progress.at.reaches(self.totals))
    }

    /// Whether somebody reads who must not miss anything, and has read something within `patience`.
    pub fn attended(&self, patience: Option<Duration>) -> bool {
        self.paced.values().any(|reader| reader.reads(patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(segment: u64, bytes: u64) -> Progress {
        Progress { read_to: ReadTo { segment, bytes }, at: Place::default() }
    }

    fn index(pinned: u64, segments: u64) -> Index {
        let place = |number: u64| Place { stdout: number * 10, ..Place::default() };
        let segment = |number| Segment {
            number,
            start: place(number),
            kept: place(1),
            bytes: 10,
            pinned: number < pinned,
            lease: Arc::default(),
        };
        Index::new((0..segments).map(segment).collect(), place(segments), Place::default())
    }

    #[test]
    fn beginning_and_last_segment_stay() {
        let mut index = index(2, 5);
        assert_eq!(index.droppable(None), 20);
        for expected in [2, 3] {
            assert!(matches!(index.drop_oldest(None), Taken::Segment(segment) if segment.number == expected));
        }
        assert!(matches!(index.drop_oldest(None), Taken::Nothing));
        let left: Vec<_> = index.segments.iter().map(|segment| segment.number).collect();
        assert_eq!(left, [0, 1, 4]);
    }

    #[test]
    fn slowest_paced_reader_holds_a_segment_until_it_has_read_its_end() {
        let mut index = index(1, 4);
        let fast = index.attach(progress(3, 0));
        let slow = index.attach(progress(1, 9));
        assert!(matches!(index.drop_oldest(None), Taken::Held));
        assert_eq!(index.droppable(None), 0);
        index.has_read(slow, progress(1, 10));
        assert_eq!(index.droppable(None), 10);
        assert!(matches!(index.drop_oldest(None), Taken::Segment(segment) if segment.number == 1));
        assert!(matches!(index.drop_oldest(None), Taken::Held));
        index.detach(slow);
        assert!(matches!(index.drop_oldest(None), Taken::Segment(segment) if segment.number == 2));
        index.detach(fast);
        assert!(!index.attended(None));
    }

    #[test]
    fn reader_who_has_something_to_read_and_does_not_is_waited_for_a_while() {
        let patience = Some(Duration::from_millis(30));
        let mut index = index(1, 4);
        let end = Progress { at: index.totals, ..progress(3, 10) };
        index.attach(end);
        std::thread::sleep(Duration::from_millis(40));
        index.grow(Place { stdout: 1, ..Place::default() });
        assert!(index.attended(patience), "there was nothing to read until now");
        let slow = index.attach(progress(1, 0));
        assert!(matches!(index.drop_oldest(patience), Taken::Held));
        std::thread::sleep(Duration::from_millis(40));
        assert!(matches!(index.drop_oldest(None), Taken::Held));
        assert_eq!((index.droppable(None), index.droppable(patience)), (0, 20));
        index.grow(Place { stdout: 1, ..Place::default() });
        assert!(!index.attended(patience) && index.attended(None), "it does not begin anew");
        assert!(matches!(index.drop_oldest(patience), Taken::Segment(_)));
        index.has_read(slow, progress(1, 1));
        assert!(matches!(index.drop_oldest(patience), Taken::Held));
    }

    #[test]
    fn beginning_takes_a_quarter_of_a_floor_at_most() {
        let index = index(3, 5);
        assert_eq!((index.taken_of(16), index.taken_of(1000)), (24, 50));
    }

    #[test]
    fn view_of_a_dropped_segment_leads_to_the_next_one() {
        let mut index = index(1, 4);
        index.drop_oldest(None);
        let view = index.view(1);
        assert_eq!(view.there, None);
        assert_eq!(view.next.map(|(number, _)| number), Some(2));
        assert!(index.view(9).next.is_none());
    }
}
