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
}

impl Pieces {
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
            pieces.push(ExecOutput { offset: self.offset, content: Some(content) });
            self.offset += length as u64;
            rest = &rest[length..];
        }
        pieces
    }
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
