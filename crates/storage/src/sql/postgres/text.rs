//! PostgreSQL keeps no NUL in a text. What users send may hold one, and is kept with `\x01 0` in its place; `\x01`
//! itself becomes `\x01 1`. Nearly every text stays as it is.

const MARK: char = '\u{1}';

/// `text` as it is kept.
pub(crate) fn keep(text: &str) -> String {
    if !text.contains(['\0', MARK]) {
        return text.to_owned();
    }
    text.replace(MARK, "\u{1}1").replace('\0', "\u{1}0")
}

/// The text that was given to [`keep`].
pub(crate) fn given(kept: &str) -> String {
    if !kept.contains(MARK) {
        return kept.to_owned();
    }
    kept.replace("\u{1}0", "\0").replace("\u{1}1", "\u{1}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back_as_they_were_and_hold_no_nul() {
        for text in ["", "plain ü\n", "\0", "\u{1}", "\u{1}0", "\u{1}\0\u{1}1\0", "0\u{1}1\u{1}"] {
            let kept = keep(text);
            assert!(!kept.contains('\0'), "{text:?}");
            assert_eq!(given(&kept), text);
        }
    }
}
