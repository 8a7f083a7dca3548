//! What travels with a call: the request's id and trace, the deadline and, where a service acts for its caller, the
//! caller's token.

use std::time::{Duration, Instant};

use tonic::{Request, metadata::AsciiMetadataValue, metadata::MetadataMap};

/// The header that names a request in every log of every service it passes.
pub const REQUEST_ID: &str = "x-request-id";
const GRPC_TIMEOUT: &str = "grpc-timeout";
const PASSED_ON: [&str; 4] = [REQUEST_ID, "traceparent", "tracestate", "baggage"];

/// What an incoming call brought along for the calls made on its behalf.
#[derive(Debug, Clone, Default)]
pub struct CallContext {
    headers: MetadataMap,
    authorization: Option<AsciiMetadataValue>,
    deadline: Option<Instant>,
}

impl CallContext {
    /// Reads the context off an incoming call.
    #[must_use]
    pub fn of<T>(request: &Request<T>) -> Self {
        let mut headers = MetadataMap::new();
        for name in PASSED_ON {
            if let Some(value) = request.metadata().get(name) {
                headers.insert(name, value.clone());
            }
        }
        let timeout = request.metadata().get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.to_str().ok()?));
        Self {
            headers,
            authorization: request.metadata().get("authorization").cloned(),
            deadline: timeout.map(|timeout| Instant::now() + timeout),
        }
    }

    /// A request on behalf of the incoming call, with what is left of its time.
    #[must_use]
    pub fn outbound<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        if let Some(left) = self.remaining() {
            request.set_timeout(left);
        }
        request
    }

    /// The same, made in the caller's own name.
    #[must_use]
    pub fn outbound_as_caller<T>(&self, message: T) -> Request<T> {
        let mut request = self.outbound(message);
        if let Some(token) = &self.authorization {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// Time left until the caller's deadline; `None` when it set none.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}

/// Reads a `grpc-timeout` value: up to eight digits and a unit (gRPC over HTTP/2, "Timeout").
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_in_every_unit_and_nonsense_is_not() {
        assert_eq!(parse_timeout("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_timeout("15S"), Some(Duration::from_secs(15)));
        assert_eq!(parse_timeout("99999999m"), Some(Duration::from_millis(99_999_999)));
        for text in ["", "S", "1", "-1S", "123456789S", "1s", "1ü"] {
            assert_eq!(parse_timeout(text), None, "{text}");
        }
    }

    #[test]
    fn call_passes_on_its_id_and_remaining_time_but_no_token_unless_asked() {
        let mut incoming = Request::new(());
        incoming.metadata_mut().insert("x-request-id", "r1".parse().unwrap());
        incoming.metadata_mut().insert("authorization", "Bearer t".parse().unwrap());
        incoming.metadata_mut().insert("cookie", "c".parse().unwrap());
        incoming.set_timeout(Duration::from_secs(5));
        let context = CallContext::of(&incoming);

        let plain = context.outbound(());
        assert_eq!(plain.metadata().get("x-request-id").unwrap(), "r1");
        assert!(plain.metadata().get("authorization").is_none() && plain.metadata().get("cookie").is_none());
        assert!(context.remaining().is_some_and(|left| left <= Duration::from_secs(5)));
        assert!(plain.metadata().get("grpc-timeout").is_some());
        assert_eq!(context.outbound_as_caller(()).metadata().get("authorization").unwrap(), "Bearer t");
    }
}
