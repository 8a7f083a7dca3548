//! The id that names a request in every log of every service it passes.

use http::{HeaderMap, HeaderValue};
use ulid::Ulid;

/// The header it travels in.
pub const REQUEST_ID: &str = "x-request-id";
/// The longest id that is taken over from a caller, in bytes: a UUID or a trace id fits, a log stays readable.
pub const REQUEST_ID_MAX: usize = 128;

/// The request's id. A missing one is made, and so is one that would spoil a log line; the headers carry it from then on.
pub fn ensure(headers: &mut HeaderMap) -> String {
    if let Some(id) = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(|id| is_good(id)) {
        return id.to_owned();
    }
    let id = Ulid::generate().to_string().to_ascii_lowercase();
    if let Ok(value) = HeaderValue::try_from(&id) {
        headers.insert(REQUEST_ID, value);
    }
    id
}

fn is_good(id: &str) -> bool {
    (1..=REQUEST_ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_of_the_caller_is_kept() {
        let mut headers = HeaderMap::new();
        headers.insert(REQUEST_ID, HeaderValue::from_static("3f1c-9"));
        assert_eq!(ensure(&mut headers), "3f1c-9");
    }

    #[test]
    fn missing_and_unreadable_ids_are_replaced() {
        for bad in ["", "two words", &"x".repeat(REQUEST_ID_MAX + 1)] {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_str(bad).unwrap());
            let id = ensure(&mut headers);
            assert_ne!(id, bad);
            assert_eq!(headers.get(REQUEST_ID).unwrap(), &id);
        }
        let mut none = HeaderMap::new();
        assert_eq!(ensure(&mut none).len(), 26);
    }
}
