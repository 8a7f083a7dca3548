//! Which of an endpoint's forms a caller wants, by its `Accept` header (RFC 9110, section 12.5.1).

use http::{HeaderMap, header::ACCEPT};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    EventStream,
    JsonLines,
    /// bytes of this media type
    Raw(&'static str),
}

impl Form {
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::EventStream => "text/event-stream",
            Self::JsonLines => "application/x-ndjson",
            Self::Raw(media_type) => media_type,
        }
    }

    fn is_named(self, media_type: &str) -> bool {
        let other_name = self == Self::JsonLines && ["application/ndjson", "application/jsonl"].contains(&media_type);
        other_name || media_type == self.media_type()
    }
}

/// The one of `offered` that the caller prefers; the first when it names none of them.
pub fn preferred(headers: &HeaderMap, offered: &[Form]) -> Option<Form> {
    let default = *offered.first()?;
    let mut best = (default, 0.0);
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
        let form = match media_type.as_str() {
            "application/*" | "*/*" => default,
            named => match offered.iter().find(|form| form.is_named(named)) {
                Some(form) => *form,
                None => continue,
            },
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0);
        if weight > best.1 {
            best = (form, weight);
        }
    }
    Some(best.0)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    const RAW: Form = Form::Raw("application/octet-stream");

    fn chosen(accept: &'static str, offered: &[Form]) -> Option<Form> {
        preferred(&HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]), offered)
    }

    #[test]
    fn heaviest_known_range_wins_and_json_is_the_default() {
        for (accept, form) in [
            ("", Form::Json),
            ("image/png", Form::Json),
            ("*/*", Form::Json),
            ("text/event-stream", Form::EventStream),
            ("Application/X-NDJSON; charset=utf-8", Form::JsonLines),
            ("application/jsonl", Form::JsonLines),
            ("application/json;q=0.5, text/event-stream", Form::EventStream),
            ("application/json, text/event-stream;q=0.9", Form::Json),
            ("text/event-stream;q=0", Form::Json),
            ("text/event-stream;q=x, */*;q=0.1", Form::EventStream),
            ("application/octet-stream", Form::Json),
        ] {
            let offered = [Form::Json, Form::EventStream, Form::JsonLines];
            assert_eq!(chosen(accept, &offered), Some(form), "{accept}");
        }
    }

    #[test]
    fn raw_bytes_are_given_when_named_and_where_they_come_first() {
        assert_eq!(chosen("application/octet-stream", &[Form::Json, RAW]), Some(RAW));
        assert_eq!(chosen("*/*", &[Form::Json, RAW]), Some(Form::Json));
        assert_eq!(chosen("text/html, */*;q=0.8", &[RAW, Form::Json]), Some(RAW));
        assert_eq!(chosen("application/json", &[RAW, Form::Json]), Some(Form::Json));
        assert_eq!(chosen("application/json", &[RAW]), Some(RAW));
        assert_eq!(chosen("*/*", &[]), None);
    }
}
