//! Which bytes of a file a caller wants, by its `Range` header (RFC 9110, section 14).

use http::{HeaderMap, header::RANGE};

/// One range. Several at once are answered with the whole, as section 14.2 allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// from the first byte to the last, or to the end
    From { first: u64, last: Option<u64> },
    /// so many bytes at the end
    Suffix(u64),
}

/// What a range is of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// the first byte and how many
    Slice {
        start: u64,
        length: u64,
    },
    Unsatisfiable,
}

impl Range {
    /// The range asked for; `None` where there is none, or one that is not understood and so not heeded.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all(RANGE).iter();
        let (value, None) = (values.next()?, values.next()) else { return None };
        let (unit, ranges) = value.to_str().ok()?.split_once('=')?;
        let (first, last) = ranges.trim().split_once('-')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        match (first.trim(), last.trim()) {
            ("", suffix) => number(suffix).map(Self::Suffix),
            (first, "") => number(first).map(|first| Self::From { first, last: None }),
            (first, last) => {
                let (first, last) = (number(first)?, number(last)?);
                (first <= last).then_some(Self::From { first, last: Some(last) })
            }
        }
    }

    /// What this range is of a file of `size` bytes.
    pub fn within(self, size: u64) -> Part {
        match self {
            Self::From { first, .. } if first >= size => Part::Unsatisfiable,
            Self::From { first, last } => {
                let last = last.map_or(size - 1, |last| last.min(size - 1));
                Part::Slice { start: first, length: last - first + 1 }
            }
            Self::Suffix(0) => Part::Unsatisfiable,
            // no Content-Range can say it
            Self::Suffix(_) if size == 0 => Part::Whole,
            Self::Suffix(length) => {
                let length = length.min(size);
                Part::Slice { start: size - length, length }
            }
        }
    }
}

/// Digits; what is too large for a number is beyond the end of every file.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn part(range: &'static str, size: u64) -> Part {
        let headers = HeaderMap::from_iter([(RANGE, HeaderValue::from_static(range))]);
        Range::of(&headers).map_or(Part::Whole, |range| range.within(size))
    }

    #[test]
    fn single_ranges_are_cut_to_the_file() {
        for (range, start, length) in [
            ("bytes=0-0", 0, 1),
            ("bytes=2-4", 2, 3),
            ("Bytes = 2 - 4", 2, 3),
            ("bytes=9-", 9, 1),
            ("bytes=0-99999999999999999999999", 0, 10),
            ("bytes=-3", 7, 3),
            ("bytes=-30", 0, 10),
        ] {
            assert_eq!(part(range, 10), Part::Slice { start, length }, "{range}");
        }
    }

    #[test]
    fn ranges_beyond_the_end_are_unsatisfiable() {
        for range in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999999-"] {
            assert_eq!(part(range, 10), Part::Unsatisfiable, "{range}");
        }
        assert_eq!(part("bytes=0-", 0), Part::Unsatisfiable);
        assert_eq!(part("bytes=-1", 0), Part::Whole);
    }

    #[test]
    fn what_is_not_understood_is_not_heeded() {
        for range in ["bytes=4-2", "bytes=0-1,3-4", "items=0-1", "bytes=a-b", "bytes=-", "bytes", "bytes=+1-2"] {
            assert_eq!(part(range, 10), Part::Whole, "{range}");
        }
    }
}
