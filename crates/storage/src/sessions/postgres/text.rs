//! The texts of sessions as PostgreSQL keeps them.

use std::collections::BTreeMap;

use crate::{
    sessions::{Along, SessionEvent, SessionRecord},
    sql::postgres::text::{given, keep},
};

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
