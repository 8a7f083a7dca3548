//! Which of an endpoint's forms a caller wants, by its `Accept` header (RFC 9110, section 12.5.1).

use http::{HeaderMap, header::ACCEPT};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Json,
    EventStream,
    JsonLines,
}

impl Form {
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::EventStream => "text/event-stream",
            Self::JsonLines => "application/x-ndjson",
        }
    }
}

/// The form that the caller prefers; JSON when it names none that there is.
pub fn preferred(headers: &HeaderMap) -> Form {
    let mut best = (Form::Json, 0.0);
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    for range in values.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let form = match parts.next().unwrap_or_default().to_ascii_lowercase().as_str() {
            "text/event-stream" => Form::EventStream,
            "application/x-ndjson" | "application/ndjson" | "application/jsonl" => Form::JsonLines,
            "application/json" | "application/*" | "*/*" => Form::Json,
            _ => continue,
        };
        let weight = parts.find_map(|part| part.strip_prefix("q=")).and_then(|q| q.parse().ok()).unwrap_or(1.0);
        if weight > best.1 {
            best = (form, weight);
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn heaviest_known_range_wins_and_json_is_the_default() {
        for (accept, form) in [
            ("", Form::Json),
            ("image/png", Form::Json),
            ("*/*", Form::Json),
            ("text/event-stream", Form::EventStream),
            ("Application/X-NDJSON; charset=utf-8", Form::JsonLines),
            ("application/json;q=0.5, text/event-stream", Form::EventStream),
            ("application/json, text/event-stream;q=0.9", Form::Json),
            ("text/event-stream;q=0", Form::Json),
            ("text/event-stream;q=x, */*;q=0.1", Form::EventStream),
        ] {
            let headers = HeaderMap::from_iter([(ACCEPT, HeaderValue::from_static(accept))]);
            assert_eq!(preferred(&headers), form, "{accept}");
        }
    }
}
