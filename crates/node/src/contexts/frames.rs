//! What an interpreter says on its control channel: one JSON document a line.
//!
//! The program at the other end is in the hands of whoever's code it runs, so nothing it says is believed further than
//! the contract goes: lines, forms and texts are bounded, and what is no message is an error.

use std::collections::HashMap;

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::{Buf, Bytes, BytesMut};
use cloud_sandbox_proto::{
    checkpoint::v1::LostVariable,
    v1::{CodeError, CodeResult},
};
use serde::Deserialize;

/// The longest line.
pub(super) const LINE_MAX: usize = 12 * 1024 * 1024;
/// The most that one result carries, in bytes.
const RESULT_MAX: usize = 8 * 1024 * 1024;
const FORMS_MAX: usize = 64;
const MIME_MAX: usize = 256;
const NAME_MAX: usize = 1024;
const TEXT_MAX: usize = 256 * 1024;
/// Variables of a context, and how long their names and the reasons of their loss are, in bytes.
const VARIABLES_MAX: usize = 10_000;
const VARIABLE_MAX: usize = 1024;
const REASON_MAX: usize = 1024;

/// A message of an interpreter.
#[derive(Debug, PartialEq)]
pub(super) enum Frame {
    Ready {
        version: String,
    },
    Result {
        id: String,
        result: Box<CodeResult>,
    },
    Error {
        id: String,
        error: CodeError,
    },
    Done {
        id: String,
        exit_code: i32,
    },
    /// its variables were saved, or loaded
    Values {
        id: String,
        kept: Kept,
    },
    /// nothing we know
    Other,
}

/// What became of an interpreter's variables.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct Kept {
    /// those that were saved, or have their values again
    pub(crate) variables: Vec<String>,
    pub(crate) lost: Vec<LostVariable>,
    /// why there is nothing at all
    pub(crate) failure: Option<String>,
}

impl Kept {
    pub(super) fn nothing(why: impl Into<String>) -> Self {
        Self { failure: Some(why.into()), ..Self::default() }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawLost {
    name: String,
    reason: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Raw {
    r#type: String,
    id: Option<String>,
    version: String,
    main: bool,
    data: HashMap<String, String>,
    dropped: Vec<String>,
    name: String,
    value: String,
    traceback: String,
    exit_code: i32,
    variables: Vec<String>,
    lost: Vec<RawLost>,
    failure: Option<String>,
}

impl Frame {
    /// The message in a line, or why it is none.
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        // serde would take a list of the fields as well
        if !line.trim_ascii_start().starts_with(b"{") {
            return Err("no object".to_owned());
        }
        let raw: Raw = serde_json::from_slice(line).map_err(|error| error.to_string())?;
        let id = raw.id.unwrap_or_default();
        Ok(match raw.r#type.as_str() {
            "ready" => Self::Ready { version: cut(raw.version, NAME_MAX) },
            "result" => Self::Result { id, result: Box::new(result(raw.main, raw.data, raw.dropped)) },
            "error" => Self::Error {
                id,
                error: CodeError {
                    name: cut(raw.name, NAME_MAX),
                    value: cut(raw.value, TEXT_MAX),
                    traceback: cut(raw.traceback, TEXT_MAX),
                },
            },
            "done" => Self::Done { id, exit_code: raw.exit_code },
            "values" => Self::Values { id, kept: kept(raw.variables, raw.lost, raw.failure) },
            _ => Self::Other,
        })
    }
}

fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

/// As many variables, names and reasons as the contract has.
fn kept(variables: Vec<String>, lost: Vec<RawLost>, failure: Option<String>) -> Kept {
    let lost = lost
        .into_iter()
        .take(VARIABLES_MAX)
        .map(|one| LostVariable { name: cut(one.name, VARIABLE_MAX), reason: cut(one.reason, REASON_MAX) });
    let named = variables.into_iter().filter(|name| name.len() <= VARIABLE_MAX);
    Kept {
        lost: lost.collect(),
        variables: named.take(VARIABLES_MAX).collect(),
        failure: failure.map(|why| cut(why, NAME_MAX)),
    }
}

/// The forms that fit, the small ones first.
fn result(is_main: bool, data: HashMap<String, String>, dropped: Vec<String>) -> CodeResult {
    let mut result = CodeResult { is_main, dropped, ..CodeResult::default() };
    let mut forms: Vec<_> = data.into_iter().filter(|(mime, _)| mime.len() <= MIME_MAX).collect();
    forms.sort_unstable_by(|one, other| (one.1.len(), &one.0).cmp(&(other.1.len(), &other.0)));
    let mut room = RESULT_MAX;
    for (index, (mime, form)) in forms.into_iter().enumerate() {
        let bytes = if is_binary(&mime) { BASE64_STANDARD.decode(&form).ok() } else { Some(form.into_bytes()) };
        match bytes.filter(|bytes| index < FORMS_MAX && bytes.len() <= room) {
            Some(bytes) => {
                room -= bytes.len();
                put(&mut result, mime, bytes);
            }
            None => result.dropped.push(mime),
        }
    }
    result.dropped.retain(|mime| mime.len() <= MIME_MAX);
    result.dropped.sort_unstable();
    result.dropped.truncate(FORMS_MAX);
    result
}

/// Whether a form travels in base64.
fn is_binary(mime: &str) -> bool {
    let kinds = ["image/", "audio/", "video/", "application/pdf", "application/octet-stream"];
    mime != "image/svg+xml" && kinds.iter().any(|kind| mime.starts_with(kind))
}

fn put(result: &mut CodeResult, mime: String, bytes: Vec<u8>) {
    let field = match mime.as_str() {
        "text/plain" => &mut result.text,
        "text/html" => &mut result.html,
        "text/markdown" => &mut result.markdown,
        "image/svg+xml" => &mut result.svg,
        "text/latex" => &mut result.latex,
        "application/json" => &mut result.json,
        "application/javascript" => &mut result.javascript,
        "image/png" => return result.png = bytes.into(),
        "image/jpeg" => return result.jpeg = bytes.into(),
        "application/pdf" => return result.pdf = bytes.into(),
        _ => {
            result.extra.insert(mime, bytes.into());
            return;
        }
    };
    // it was text when it came
    *field = String::from_utf8(bytes).unwrap_or_default();
}

/// Puts lines together from pieces.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: BytesMut,
    /// where to look on for the end of the line
    looked: usize,
}

impl Lines {
    /// Takes the next piece; not one that makes a line too long.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), String> {
        let begun = piece.iter().position(|byte| *byte == b'\n').unwrap_or(piece.len());
        if self.buffer.len() + begun > LINE_MAX {
            return Err(format!("a line of more than {LINE_MAX} bytes"));
        }
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole line, without its end.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        let Some(end) = self.buffer[self.looked..].iter().position(|byte| *byte == b'\n') else {
            self.looked = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.looked + end).freeze();
        self.buffer.advance(1);
        self.looked = 0;
        if self.buffer.is_empty() {
            // what a long line needed is given back
            self.buffer = BytesMut::new();
        }
        Some(line)
    }

    /// Bytes of a line that has not ended yet.
    pub(super) fn begun(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_find_their_fields_and_binary_ones_are_decoded() {
        let line = br#"{"type":"result","id":"ex1","main":true,"data":{"text/plain":"1","image/png":"iVBO","image/svg+xml":"<svg/>",
            "application/vnd.x+json":"{}","image/jpeg":"not base64!"}}"#;
        let Frame::Result { id, result } = Frame::parse(line).unwrap() else { panic!() };
        assert_eq!(
            (id.as_str(), result.is_main, result.text.as_str(), result.svg.as_str()),
            ("ex1", true, "1", "<svg/>")
        );
        assert_eq!((&result.png[..], &result.extra["application/vnd.x+json"][..]), (&b"\x89PN"[..], &b"{}"[..]));
        assert_eq!(result.dropped, ["image/jpeg"]);
    }

    #[test]
    fn forms_that_do_not_fit_are_named() {
        let data = [
            ("text/html".to_owned(), "h".repeat(RESULT_MAX - 2)),
            ("text/plain".to_owned(), "12".to_owned()),
            ("text/latex".to_owned(), "l".repeat(RESULT_MAX)),
        ];
        let result = result(false, data.into(), vec!["application/pdf".into()]);
        assert_eq!((result.html.len(), result.text.as_str()), (RESULT_MAX - 2, "12"));
        assert_eq!(result.dropped, ["application/pdf", "text/latex"]);
    }

    #[test]
    fn what_is_no_message_is_refused_and_what_is_unknown_is_let_be() {
        for line in ["", "{", "[]", "1", "{\"type\":1}", "{\"type\":\"done\",\"exit_code\":\"1\"}", "\u{1}"] {
            assert!(Frame::parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(Frame::parse(b"\xFF\xFE").is_err());
        assert!(Frame::parse("[".repeat(100_000).as_bytes()).is_err());
        assert_eq!(Frame::parse(b"{\"type\":\"dance\",\"steps\":[1]}").unwrap(), Frame::Other);
    }

    #[test]
    fn variables_are_bounded_in_number_and_length() {
        let line = format!(
            r#"{{"type":"values","id":"a","variables":["x","{}"{}],"lost":[{{"name":"{}","reason":"{}"}}]}}"#,
            "n".repeat(VARIABLE_MAX + 1),
            ",\"v\"".repeat(VARIABLES_MAX),
            "é".repeat(VARIABLE_MAX),
            "r".repeat(9999)
        );
        let Frame::Values { kept, .. } = Frame::parse(line.as_bytes()).unwrap() else { panic!() };
        assert_eq!((kept.variables.len(), kept.variables[1].as_str()), (VARIABLES_MAX, "v"));
        assert_eq!((kept.lost[0].name.len(), kept.lost[0].reason.len()), (VARIABLE_MAX, REASON_MAX));
    }

    #[test]
    fn texts_of_errors_are_bounded() {
        let line =
            format!(r#"{{"type":"error","id":"a","name":"{}","value":"{}"}}"#, "n".repeat(9999), "é".repeat(TEXT_MAX));
        let Frame::Error { error, .. } = Frame::parse(line.as_bytes()).unwrap() else { panic!() };
        assert_eq!((error.name.len(), error.value.len()), (NAME_MAX, TEXT_MAX));
    }

    #[test]
    fn lines_are_put_together_whatever_the_pieces() {
        let text = b"one\n\ntwo\nthree";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut found = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece).unwrap();
                found.extend(std::iter::from_fn(|| lines.pop()));
            }
            assert_eq!(found, ["one", "", "two"].map(|line| Bytes::from_static(line.as_bytes())));
            assert_eq!(lines.begun(), 5);
        }
    }

    #[test]
    fn line_without_an_end_is_refused_at_its_bound() {
        let mut lines = Lines::default();
        lines.push(&vec![b'x'; LINE_MAX]).unwrap();
        assert!(lines.pop().is_none());
        assert!(lines.push(b"x").is_err());
        lines.push(b"\nrest").unwrap();
        assert_eq!(lines.pop().unwrap().len(), LINE_MAX);
    }
}
