use super::*;
use crate::Strategy;

async fn printed(place: &Place, text: &[u8]) -> Arc<Log> {
    let log = place.log();
    log.append(Kind::Stderr, b"noise\n").await;
    log.append(Kind::Stdout, text).await;
    log
}

fn excerpt(log: &Log, budget: usize, strategy: Strategy) -> (String, u64) {
    let excerpt = log.excerpt(Stream::Stdout, budget, strategy).unwrap();
    assert!(excerpt.bytes.len() <= budget, "{} of {budget}", excerpt.bytes.len());
    assert!(!excerpt.whole);
    (String::from_utf8(excerpt.bytes).unwrap(), excerpt.omitted)
}

/// Sum of the numbers in the markers.
fn marked(text: &str) -> u64 {
    let marks = text.lines().filter_map(|line| line.strip_prefix("[... ")?.strip_suffix(" bytes omitted ...]"));
    marks.map(|number| number.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn output_that_fits_is_whole_under_every_strategy() {
    let place = Place::new();
    let log = printed(&place, b"error: all of it\n").await;
    for strategy in [Strategy::Head, Strategy::Tail, Strategy::HeadTail, Strategy::Errors] {
        let excerpt = log.excerpt(Stream::Stdout, 17, strategy).unwrap();
        assert_eq!((&excerpt.bytes[..], excerpt.omitted, excerpt.whole), (&b"error: all of it\n"[..], 0, true));
    }
    assert!(log.excerpt(Stream::Stdout, crate::MAX_RANGE + 1, Strategy::Head).is_err());
    let empty = place.log().excerpt(Stream::Stdout, 0, Strategy::Errors).unwrap();
    assert!(empty.whole && empty.bytes.is_empty());
}

#[tokio::test]
async fn head_tail_and_both_keep_what_they_say() {
    let place = Place::new();
    let text: String = (0..1_000).map(|number| format!("line {number}\n")).collect();
    let log = printed(&place, text.as_bytes()).await;
    let total = text.len() as u64;
    assert_eq!(excerpt(&log, 100, Strategy::Head), (text[..100].to_string(), total - 100));
    assert_eq!(excerpt(&log, 100, Strategy::Tail), (text[text.len() - 100..].to_string(), total - 100));
    let (both, omitted) = excerpt(&log, 1_000, Strategy::HeadTail);
    assert!(both.starts_with("line 0\n") && both.ends_with("line 999\n") && both.len() > 950, "{}", both.len());
    assert_eq!(marked(&both), omitted);
    assert!(both.contains(&format!("\n[... {omitted} bytes omitted ...]\n")));
    assert_eq!(excerpt(&log, 50, Strategy::HeadTail).0, text[text.len() - 50..]);
    assert_eq!(excerpt(&log, 0, Strategy::HeadTail), (String::new(), total));
}

#[tokio::test]
async fn characters_are_never_cut() {
    let place = Place::new();
    for pattern in ["ä", "€", "🦀", "aä€🦀"] {
        let log = printed(&place, pattern.repeat(3_000).as_bytes()).await;
        for budget in 128..200 {
            for strategy in [Strategy::Head, Strategy::Tail, Strategy::HeadTail, Strategy::Errors] {
                let (text, _) = excerpt(&log, budget, strategy);
                assert!(text.len() > budget - 20, "{strategy:?} {budget} {}", text.len());
            }
        }
    }
    let binary = printed(&place, &[0x80; 1_000]).await;
    assert_eq!(binary.excerpt(Stream::Stdout, 200, Strategy::Tail).unwrap().bytes.len(), 200);
}

#[tokio::test]
async fn errors_are_shown_with_context_and_the_last_lines() {
    let place = Place::new();
    let failure = [
        "Traceback (most recent call last):\n  File \"a.py\", line 3, in <module>\nValueError: no\n",
        "\u{1b}[1m\u{1b}[91merror\u{1b}[0m: expected `;`\n --> src/main.rs:4:5\n",
        "main.c:3:5: fatal error: foo.h: No such file\n",
        "thread 'main' panicked at src/main.rs:2:5:\n",
        "FAILED tests/test_a.py::test_b\n",
        "E   assert 1 == 2\n",
        "not ok 3 - adds\n",
        "Exception in thread \"main\" java.lang.NullPointerException\n",
        "./run.sh: line 3: foo: command not found\n",
        "src/a.ts(3,5): error TS2304: Cannot find name 'x'.\n",
        "make: *** [Makefile:3: all] Error 2\n",
    ];
    let filler = |from: u32| {
        (from..from + 2_000).map(|at| format!("ok {at}: 0 errors in error_handler.o\n")).collect::<String>()
    };
    for failure in failure {
        let text = filler(0) + "before 2\nbefore 1\n" + failure + &filler(2_000) + "the end\n";
        let log = printed(&place, text.as_bytes()).await;
        let (found, omitted) = excerpt(&log, 4_000, Strategy::Errors);
        assert!(found.contains(&format!("before 2\nbefore 1\n{failure}")), "{failure}\n{found}");
        assert!(found.ends_with("the end\n") && found.starts_with("\n[... "), "{found}");
        assert_eq!(marked(&found), omitted);
        assert_eq!(found.matches("bytes omitted").count(), 2);
    }
}

#[tokio::test]
async fn without_errors_the_end_is_shown_and_with_too_many_the_first_and_the_last_lines() {
    let place = Place::new();
    let calm = "all is well\n".repeat(1_000);
    let log = printed(&place, calm.as_bytes()).await;
    assert_eq!(excerpt(&log, 240, Strategy::Errors).0, calm[calm.len() - 240..]);
    let stormy: String = (0..5_000).map(|at| format!("error: number {at}\n")).collect();
    let log = printed(&place, stormy.as_bytes()).await;
    let (found, omitted) = excerpt(&log, 2_000, Strategy::Errors);
    assert!(found.starts_with("error: number 0\n") && found.ends_with("error: number 4999\n"));
    assert_eq!(marked(&found), omitted);
}

#[tokio::test]
async fn gap_of_a_full_log_is_marked_with_its_size() {
    let place = Place::of(SMALL, u64::MAX);
    let log = place.log();
    let line = "ERROR everything is lost here\n";
    for _ in 0..20_000 {
        log.append(Kind::Stdout, line.as_bytes()).await;
    }
    log.finish(b"tail");
    for strategy in [Strategy::HeadTail, Strategy::Errors] {
        for budget in [200, 10_000, 40_000, 8 << 20] {
            let (text, omitted) = excerpt(&log, budget, strategy);
            assert_eq!(marked(&text), omitted, "{strategy:?} {budget}");
            assert!(text.starts_with(line) && text.ends_with(line), "{text}");
        }
    }
}

#[tokio::test]
async fn one_endless_line_needs_no_more_than_the_budget() {
    let place = Place::new();
    let log = place.log();
    for _ in 0..1_000 {
        log.append(Kind::Stdout, &[b'x'; 32 << 10]).await;
    }
    log.append(Kind::Stdout, b" error: so long").await;
    log.finish(b"tail");
    for strategy in [Strategy::Head, Strategy::Tail, Strategy::HeadTail, Strategy::Errors] {
        let (text, omitted) = excerpt(&log, 9_000, strategy);
        assert!(text.len() > 4_000 && omitted > 32_000_000, "{strategy:?}: {}", text.len());
        assert!(strategy == Strategy::Head || text.ends_with(" error: so long"));
    }
}
