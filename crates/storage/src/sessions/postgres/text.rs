//! PostgreSQL keeps no NUL in a text. What users send may hold one, and is kept with `\x01 0` in its place; `\x01`
//! itself becomes `\x01 1`. Nearly every text stays as it is.

use std::collections::BTreeMap;

use crate::sessions::{Along, SessionEvent, SessionRecord};

const MARK: char = '\u{1}';

/// `text` as it is kept.
pub(super) fn keep(text: &str) -> String {
    if !text.contains(['\0', MARK]) {
        return text.to_owned();
    }
    text.replace(MARK, "\u{1}1").replace('\0', "\u{1}0")
}

/// The text that was given to [`keep`].
fn given(kept: &str) -> String {
    if !kept.contains(MARK) {
        return kept.to_owned();
    }
    kept.replace("\u{1}0", "\0").replace("\u{1}1", "\u{1}")
}

/// A record with its texts as they are kept.
pub(super) fn keep_all(record: &SessionRecord) -> SessionRecord {
    each(record, keep)
}

/// The record that was given to [`keep_all`].
pub(super) fn given_all(record: &SessionRecord) -> SessionRecord {
    each(record, given)
}

/// What is written along with a record, with its texts as they are kept. Ids hold no NUL.
pub(super) fn keep_along(along: &Along) -> Along {
    let events = along.events.iter().map(|event| SessionEvent { message: keep(&event.message), ..event.clone() });
    Along { events: events.collect(), ..along.clone() }
}

/// The event whose text was given to [`keep_along`].
pub(super) fn given_event(event: SessionEvent) -> SessionEvent {
    SessionEvent { message: given(&event.message), ..event }
}

fn each(record: &SessionRecord, translate: fn(&str) -> String) -> SessionRecord {
    let labels = record.metadata.iter().map(|(key, value)| (translate(key), translate(value)));
    SessionRecord {
        tenant: translate(&record.tenant),
        user: translate(&record.user),
        template: translate(&record.template),
        failure: translate(&record.failure),
        request_id: record.request_id.as_deref().map(translate),
        metadata: labels.collect::<BTreeMap<_, _>>(),
        ..record.clone()
    }
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
