use super::*;
use crate::{Grep, GrepError, GrepOptions, Match};

const ALL: GrepOptions<'_> =
    GrepOptions { pattern: "", ignore_case: false, streams: &Stream::BOTH, max_matches: 1_000, context_lines: 0 };

fn grep(log: &Log, pattern: &str) -> Grep {
    log.grep(&GrepOptions { pattern, ..ALL }).unwrap()
}

fn texts(lines: &[Vec<u8>]) -> Vec<&str> {
    lines.iter().map(|line| std::str::from_utf8(line).unwrap()).collect()
}

fn lines(found: &Grep) -> Vec<&str> {
    found.matches.iter().map(|found| std::str::from_utf8(&found.line).unwrap()).collect()
}

#[tokio::test]
async fn matching_lines_are_found_with_number_and_offset() {
    let place = Place::new();
    let log = place.log();
    // lines over the borders of pieces, streams in turns, an end like a terminal's and none
    for (kind, piece) in [
        (Kind::Stdout, "first\nsec"),
        (Kind::Stderr, "err one\n"),
        (Kind::Stdout, "ond one\r\n\nlast o"),
        (Kind::Stderr, "err two\n"),
        (Kind::Stdout, "ne"),
    ] {
        log.append(kind, piece.as_bytes()).await;
    }
    let expected = |stream, line_number, offset, match_offset, line: &str| Match {
        stream,
        line_number,
        offset,
        match_offset,
        line: line.into(),
        cut: false,
        before: vec![],
        after: vec![],
    };
    let found = grep(&log, "one$");
    let all = [
        expected(Stream::Stdout, 2, 6, 13, "second one"),
        expected(Stream::Stdout, 4, 19, 24, "last one"),
        expected(Stream::Stderr, 1, 0, 4, "err one"),
    ];
    assert_eq!((found.matches, found.more), (all.to_vec(), false));
    let other =
        log.grep(&GrepOptions { pattern: "ERR", ignore_case: true, streams: &[Stream::Stderr], ..ALL }).unwrap();
    assert_eq!(lines(&other), ["err one", "err two"]);
    assert!(grep(&log, "ERR").matches.is_empty());
    assert_eq!(lines(&grep(&log, "^$")), [""]);
}

#[tokio::test]
async fn context_is_given_and_matches_are_bounded() {
    let place = Place::new();
    let log = place.log();
    let text: String = (1..=20).map(|number| format!("l{number}\n")).collect();
    log.append(Kind::Stdout, text.as_bytes()).await;
    let options = GrepOptions { pattern: "^l(1|5|6|19)$", context_lines: 2, ..ALL };
    let found = log.grep(&options).unwrap();
    let seen: Vec<_> =
        found.matches.iter().map(|found| (found.line_number, texts(&found.before), texts(&found.after))).collect();
    let expected = [
        (1, vec![], vec!["l2", "l3"]),
        (5, vec!["l3", "l4"], vec!["l6", "l7"]),
        (6, vec!["l4", "l5"], vec!["l7", "l8"]),
        (19, vec!["l17", "l18"], vec!["l20"]),
    ];
    assert_eq!((seen, found.more), (expected.to_vec(), false));
    let two = log.grep(&GrepOptions { max_matches: 2, ..options.clone() }).unwrap();
    assert_eq!((two.matches.len(), two.more, texts(&two.matches[1].after)), (2, true, vec!["l6", "l7"]));
    let exactly = log.grep(&GrepOptions { max_matches: 4, ..options }).unwrap();
    assert_eq!((exactly.matches.len(), exactly.more), (4, false));
}

#[tokio::test]
async fn bad_and_huge_patterns_are_refused_with_a_reason() {
    let place = Place::new();
    let log = place.log();
    for (pattern, reason) in [("(", "unclosed group"), (r"\w{1000}{1000}", "memory"), ("a{9,1}", "repetition")] {
        match log.grep(&GrepOptions { pattern, ..ALL }) {
            Err(GrepError::BadPattern(said)) => assert!(said.contains(reason) && !said.contains('\n'), "{said}"),
            other => panic!("{pattern}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn endless_line_is_searched_in_windows() {
    let place = Place::new();
    let log = place.log();
    let filler = vec![b'x'; 32 << 10];
    log.append(Kind::Stdout, b"before\n").await;
    // over the border of the first window
    log.append(Kind::Stdout, &filler).await;
    log.append(Kind::Stdout, &filler[..(32 << 10) - 3]).await;
    log.append(Kind::Stdout, b"needle").await;
    for _ in 0..300 {
        log.append(Kind::Stdout, &filler).await;
    }
    log.append(Kind::Stdout, b"end\nafter needle\n").await;
    let found = log.grep(&GrepOptions { pattern: "needle", context_lines: 1, ..ALL }).unwrap();
    let [long, after] = &found.matches[..] else { panic!("{}", found.matches.len()) };
    assert_eq!((long.line_number, long.offset, long.match_offset, long.cut), (2, 7, 7 + 65_533, true));
    assert!(long.line.len() <= 4_096 && long.line.windows(6).any(|part| part == b"needle"));
    assert_eq!((texts(&long.before), texts(&long.after)), (vec!["before"], vec!["after needle"]));
    assert_eq!((after.line_number, texts(&after.before)[0].len()), (3, 4_096));
    assert_eq!(grep(&log, "end$").matches[0].line_number, 2);
    assert!(grep(&log, "^xxxneedle").matches.is_empty());
    let huge = grep(&log, "x");
    assert_eq!((huge.matches.len(), huge.matches[0].line.len(), huge.matches[0].cut), (1, 4_096, true));
}

#[tokio::test]
async fn gap_ends_a_line_and_binary_output_is_searched() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    log.append(Kind::Stdout, b"first\n").await;
    for _ in 0..10_000 {
        log.append(Kind::Stdout, b"0123456789\xff\x00\n").await;
    }
    log.append(Kind::Stdout, b"last").await;
    log.finish(b"tail");
    assert_eq!(lines(&grep(&log, "^(first|last)$")), ["first", "last"]);
    let found = grep(&log, r"(?-u:\xff)");
    assert!(found.more);
    assert!(found.matches.iter().all(|found| found.line.ends_with(b"\xff\x00") && found.line.len() <= 12));
}
