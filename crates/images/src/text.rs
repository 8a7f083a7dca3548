//! Digests as text, and what others have to say.

/// How much is shown of what somebody else says, in characters.
const SAID_MOST: usize = 500;

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The name of a layer's folder; none unless it is a digest of a known kind, which is safe as a name.
pub(crate) fn layer_name(digest: &str) -> Option<String> {
    let (kind, digits) = digest.split_once(':')?;
    let length = match kind {
        "sha256" => 64,
        "sha512" => 128,
        _ => return None,
    };
    let good = digits.len() == length && digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    good.then(|| format!("{kind}-{digits}"))
}

/// What somebody else says, fit to be shown: not for ever, of visible characters, and without the queries of addresses, which
/// may hold a signature that lets in whoever has it.
pub(crate) fn said(text: &str) -> String {
    let (mut shown, mut length, mut rest) = (String::new(), 0, text);
    while let Some(next) = rest.chars().next() {
        if length == SAID_MOST {
            shown.push('…');
            break;
        }
        if next == '?' && is_in_address(&shown) {
            let end = rest.find(|c: char| c.is_whitespace() || "\"'`<>()[]{}".contains(c));
            rest = end.map_or("", |end| &rest[end..]);
            continue;
        }
        shown.push(if is_shown(next) { next } else { ' ' });
        length += 1;
        rest = &rest[next.len_utf8()..];
    }
    shown
}

/// The same of an error and its causes.
pub(crate) fn said_by(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    let text = causes.reduce(|text, cause| if text.ends_with(&cause) { text } else { format!("{text}: {cause}") });
    said(&text.unwrap_or_default())
}

fn is_in_address(text: &str) -> bool {
    text.rsplit(char::is_whitespace).next().is_some_and(|word| word.contains("://"))
}

/// Neither a control character nor one that turns around the direction of what follows (Unicode, UAX #9).
fn is_shown(c: char) -> bool {
    !c.is_control() && !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_short_and_plain_and_gives_nothing_away() {
        assert_eq!(said("\u{1b}[2Jgone\r\nthen \u{202e}back"), " [2Jgone  then  back");
        assert_eq!(said("for url (https://cdn.example/a?sig=x&b=y): no"), "for url (https://cdn.example/a): no");
        assert_eq!(said("https://a/b?c, and is it? https://d?e"), "https://a/b and is it? https://d");
        assert_eq!(said("why?"), "why?");
        let long = said(&"ä".repeat(10_000));
        assert_eq!((long.chars().count(), long.ends_with('…')), (SAID_MOST + 1, true));
    }

    #[test]
    fn only_digests_become_names() {
        let digits = hex(&[0xab; 32]);
        assert_eq!(layer_name(&format!("sha256:{digits}")), Some(format!("sha256-{digits}")));
        for bad in ["", "sha256:", "sha256:../x", "md5:00", &format!("sha256:{}", digits.to_uppercase()), &digits] {
            assert_eq!(layer_name(bad), None, "{bad}");
        }
    }
}
