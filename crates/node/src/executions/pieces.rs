//! Cuts output into events: text where it is UTF-8, bytes where it is not, never within a character.

use cloud_sandbox_proto::v1::{ExecOutput, exec_output::Content};

/// The most bytes in one event.
pub(crate) const PIECE_MAX: usize = 32 * 1024;

/// One output stream on its way to a caller.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    offset: u64,
    /// the beginning of a character whose end has not come yet
    carry: Vec<u8>,
    /// nothing was given yet: it may begin within a character
    fresh: bool,
}

impl Pieces {
    /// From an offset on.
    pub(crate) fn at(offset: u64) -> Self {
        Self { offset, carry: Vec::new(), fresh: offset > 0 }
    }

    /// The events for what came now. When it is the last, a character that was only begun comes as bytes.
    pub(crate) fn push(&mut self, bytes: &[u8], last: bool) -> Vec<ExecOutput> {
        let joined;
        let mut rest = if self.carry.is_empty() {
            bytes
        } else {
            joined = [std::mem::take(&mut self.carry).as_slice(), bytes].concat();
            joined.as_slice()
        };
        let mut pieces = Vec::new();
        if self.fresh {
            let (broken, whole) = rest.split_at(broken_character(rest));
            // the end of the end may be yet to come
            self.fresh = whole.is_empty();
            if !broken.is_empty() {
                pieces.push(self.piece(broken.len(), Content::Data(broken.to_vec().into())));
            }
            rest = whole;
        }
        while !rest.is_empty() {
            let window = &rest[..rest.len().min(PIECE_MAX)];
            let (length, content) = match std::str::from_utf8(window) {
                Ok(text) => (window.len(), Content::Text(text.to_owned())),
                Err(error) if error.valid_up_to() > 0 => {
                    let (text, _) = window.split_at(error.valid_up_to());
                    (text.len(), Content::Text(String::from_utf8_lossy(text).into_owned()))
                }
                // only at the end of what is there: a window is longer than a character
                Err(error) if error.error_len().is_none() && !last => {
                    self.carry = rest.to_vec();
                    break;
                }
                Err(_) => (window.len(), Content::Data(window.to_vec().into())),
            };
            pieces.push(self.piece(length, content));
            rest = &rest[length..];
        }
        pieces
    }

    fn piece(&mut self, length: usize, content: Content) -> ExecOutput {
        let offset = self.offset;
        self.offset += length as u64;
        ExecOutput { offset, content: Some(content) }
    }
}

/// How many bytes `bytes` begin with that are the end of a character.
fn broken_character(bytes: &[u8]) -> usize {
    let rest = bytes.iter().take(4).take_while(|byte| matches!(byte, 0x80..=0xBF)).count();
    if rest > 3 { 0 } else { rest }
}

/// How much of `bytes` ends with a whole character; all of it unless the end could be the beginning of one.
pub(crate) fn whole_characters(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let start = bytes.len() - back;
        let length = match bytes[start] {
            0x80..=0xBF => continue,
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            _ => 1,
        };
        return if back < length { start } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(piece: &ExecOutput) -> &str {
        match piece.content.as_ref().unwrap() {
            Content::Text(text) => text,
            Content::Data(_) => panic!("not text: {piece:?}"),
        }
    }

    #[test]
    fn character_that_comes_in_two_parts_is_sent_whole() {
        let mut pieces = Pieces::default();
        let bytes = "aé".as_bytes();
        let first = pieces.push(&bytes[..2], false);
        assert_eq!((text(&first[0]), first[0].offset), ("a", 0));
        let second = pieces.push(&bytes[2..], false);
        assert_eq!((text(&second[0]), second[0].offset), ("é", 1));
        assert!(pieces.push(b"", true).is_empty());
    }

    #[test]
    fn character_without_its_end_comes_as_bytes_at_the_last() {
        let mut pieces = Pieces::default();
        assert!(pieces.push(&[0xC3], false).is_empty());
        let last = pieces.push(b"", true);
        assert_eq!(last[0].content, Some(Content::Data(vec![0xC3].into())));
    }

    #[test]
    fn text_before_what_is_not_text_stays_text() {
        let sent = Pieces::default().push(b"ab\xFF\xFEcd", false);
        assert_eq!(text(&sent[0]), "ab");
        assert_eq!((sent[1].offset, sent[1].content.clone()), (2, Some(Content::Data(b"\xFF\xFEcd".to_vec().into()))));
    }

    #[test]
    fn what_begins_within_a_character_is_text_after_it() {
        let sent = Pieces::at(7).push(&"😀é!".as_bytes()[1..], false);
        assert_eq!(sent[0].content, Some(Content::Data("😀".as_bytes()[1..].to_vec().into())));
        assert_eq!((text(&sent[1]), sent[1].offset), ("é!", 10));

        let mut pieces = Pieces::at(2);
        assert_eq!(pieces.push(&[0x98], false).len(), 1);
        let rest = pieces.push(b"\x80a", false);
        assert_eq!((rest[0].offset, text(&rest[1]), rest[1].offset), (3, "a", 4));
    }

    #[test]
    fn whole_characters_leave_out_a_beginning_only() {
        for (bytes, whole) in [("a😀", 5), ("aé", 3), ("", 0)] {
            assert_eq!(whole_characters(bytes.as_bytes()), whole);
        }
        for cut in 1..4 {
            assert_eq!(whole_characters(&"a😀".as_bytes()[..1 + cut]), 1);
        }
        assert_eq!(whole_characters(&[0xFF, 0x80, 0x80, 0x80, 0x80]), 5);
    }

    #[test]
    fn pieces_are_bounded_and_put_together_give_everything() {
        let all = "é😀x".repeat(20_000);
        let sent = Pieces::default().push(all.as_bytes(), true);
        assert!(sent.len() > 1 && sent.iter().all(|piece| text(piece).len() <= PIECE_MAX));
        let mut offset = 0;
        for piece in &sent {
            assert_eq!(piece.offset, offset);
            offset += text(piece).len() as u64;
        }
        assert_eq!(sent.iter().map(text).collect::<String>(), all);
    }
}
