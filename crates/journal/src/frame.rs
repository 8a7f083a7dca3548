//! The bytes of a segment file: a header, then frames to the end.
//!
//! ```text
//! segment  magic 4 | start 3 x u64 | lost 3 x u64 | crc32 of those
//! frame    tag 1 | length u32 | crc32 of tag, length and data | data
//! ```
//! Numbers are little endian. `start` is the place of the segment's first frame and `lost` is what failed writes had
//! cost the log by then. A frame that is cut off or whose check does not hold ends the segment: whatever follows cannot
//! be trusted.

use crate::place::Place;

/// Bytes before a frame's data.
pub(crate) const FRAME_HEADER: usize = 9;
/// Bytes before a segment's first frame.
pub(crate) const SEGMENT_HEADER: usize = 56;
/// The most data one frame holds.
pub(crate) const MAX_DATA: usize = 16 << 20;
/// A skip frame, whole.
pub(crate) const SKIP_FRAME: usize = FRAME_HEADER + 24;

const MAGIC: &[u8; 4] = b"csj1";

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Head = 1,
    Stdout = 2,
    Stderr = 3,
    Event = 4,
    /// the place at which the log goes on; what lies before it and is not there could not be written
    Skip = 5,
    Tail = 6,
}

impl Tag {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Head, Self::Stdout, Self::Stderr, Self::Event, Self::Skip, Self::Tail]
            .into_iter()
            .find(|tag| *tag as u8 == byte)
    }

    /// What `length` bytes of data under this tag add to a place.
    pub fn extent(self, length: usize) -> Place {
        let length = length as u64;
        match self {
            Self::Stdout => Place { stdout: length, ..Place::default() },
            Self::Stderr => Place { stderr: length, ..Place::default() },
            Self::Event => Place { events: 1, ..Place::default() },
            Self::Head | Self::Skip | Self::Tail => Place::default(),
        }
    }
}

/// What stands at the beginning of some bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// a good frame with this much data behind its header
    Frame(Tag, usize),
    /// perhaps a frame, if this many bytes were there
    Short(usize),
    /// no frame
    Bad,
}

/// The header that goes before `data`.
pub(crate) fn header(tag: Tag, data: &[u8]) -> [u8; FRAME_HEADER] {
    let mut header = [0; FRAME_HEADER];
    header[0] = tag as u8;
    header[1..5].copy_from_slice(&(data.len() as u32).to_le_bytes());
    let check = check(&header[..5], data);
    header[5..].copy_from_slice(&check.to_le_bytes());
    header
}

/// The skip frame that says the log goes on at `place`.
pub(crate) fn skip(place: Place) -> [u8; SKIP_FRAME] {
    let data = place_bytes(place);
    let mut frame = [0; SKIP_FRAME];
    frame[..FRAME_HEADER].copy_from_slice(&header(Tag::Skip, &data));
    frame[FRAME_HEADER..].copy_from_slice(&data);
    frame
}

/// The place in a skip frame's data.
pub(crate) fn skipped_to(data: &[u8]) -> Option<Place> {
    (data.len() == 24).then(|| place_from(data))
}

/// Reads the frame that `bytes` begin with.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let Some((head, rest)) = bytes.split_at_checked(FRAME_HEADER) else {
        return Parsed::Short(FRAME_HEADER);
    };
    let Some(tag) = Tag::from_byte(head[0]) else { return Parsed::Bad };
    let length = u32_at(head, 1) as usize;
    if length > MAX_DATA {
        return Parsed::Bad;
    }
    let Some(data) = rest.get(..length) else { return Parsed::Short(FRAME_HEADER + length) };
    if u32_at(head, 5) == check(&head[..5], data) { Parsed::Frame(tag, length) } else { Parsed::Bad }
}

/// The header of a segment that begins at `start`.
pub(crate) fn segment_header(start: Place, lost: Place) -> [u8; SEGMENT_HEADER] {
    let mut header = [0; SEGMENT_HEADER];
    header[..4].copy_from_slice(MAGIC);
    header[4..28].copy_from_slice(&place_bytes(start));
    header[28..52].copy_from_slice(&place_bytes(lost));
    let check = crc32fast::hash(&header[..52]);
    header[52..].copy_from_slice(&check.to_le_bytes());
    header
}

/// `start` and `lost` of the segment whose file begins with `bytes`.
pub(crate) fn parse_segment_header(bytes: &[u8]) -> Option<(Place, Place)> {
    let header = bytes.get(..SEGMENT_HEADER)?;
    (header.starts_with(MAGIC) && u32_at(header, 52) == crc32fast::hash(&header[..52]))
        .then(|| (place_from(&header[4..28]), place_from(&header[28..52])))
}

fn check(head: &[u8], data: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(data);
    hasher.finalize()
}

fn place_bytes(place: Place) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&place.stdout.to_le_bytes());
    bytes[8..16].copy_from_slice(&place.stderr.to_le_bytes());
    bytes[16..].copy_from_slice(&place.events.to_le_bytes());
    bytes
}

fn place_from(bytes: &[u8]) -> Place {
    Place { stdout: u64_at(bytes, 0), stderr: u64_at(bytes, 8), events: u64_at(bytes, 16) }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_a_frame_is_short_and_every_changed_byte_is_bad_or_short() {
        let mut frame = header(Tag::Stdout, b"hello").to_vec();
        frame.extend_from_slice(b"hello");
        assert_eq!(parse(&frame), Parsed::Frame(Tag::Stdout, 5));
        for cut in 0..frame.len() {
            assert!(matches!(parse(&frame[..cut]), Parsed::Short(need) if need > cut), "{cut}");
        }
        for at in 0..frame.len() {
            for bit in 0..8 {
                let mut broken = frame.clone();
                broken[at] ^= 1 << bit;
                assert!(!matches!(parse(&broken), Parsed::Frame(..)), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn segment_header_and_skip_are_read_back() {
        let start = Place { stdout: 1, stderr: u64::MAX, events: 3 };
        let lost = Place { stdout: 4, stderr: 5, events: 6 };
        let header = segment_header(start, lost);
        assert_eq!(parse_segment_header(&header), Some((start, lost)));
        assert_eq!(parse_segment_header(&header[..55]), None);
        let skip = skip(start);
        assert_eq!(parse(&skip), Parsed::Frame(Tag::Skip, 24));
        assert_eq!(skipped_to(&skip[FRAME_HEADER..]), Some(start));
    }

    #[test]
    fn zeroes_are_no_frame() {
        assert_eq!(parse(&[0; 64]), Parsed::Bad);
    }
}
