//! What of a client's call reaches the service behind it: a short list of headers, and nothing else.

use std::time::Duration;

use cloud_sandbox_rpc::{CallContext, context::REQUEST_ID};
use http::{HeaderMap, HeaderName, HeaderValue};
use tonic::{Request, metadata::MetadataMap};
use ulid::Ulid;

const CONTEXT: [&str; 5] = ["authorization", "traceparent", "tracestate", "baggage", REQUEST_ID];
/// What the gRPC framing of a passed-through body needs.
const FRAMING: [&str; 5] = ["content-type", "te", "grpc-encoding", "grpc-accept-encoding", "user-agent"];
/// What only the issuer of tokens may see.
const API_KEY: &str = "x-api-key";
const TIMEOUT: &str = "grpc-timeout";
const REQUEST_ID_MAX: usize = 128;

/// The headers for a call that the edge makes itself.
pub fn context(headers: &HeaderMap, timeout: Duration, to_issuer: bool) -> HeaderMap {
    let mut kept = HeaderMap::new();
    keep(&CONTEXT, headers, &mut kept);
    if to_issuer {
        keep(&[API_KEY], headers, &mut kept);
    }
    if let Some(value) = timeout_value(timeout) {
        kept.insert(TIMEOUT, value);
    }
    kept
}

/// The headers for a gRPC call whose body is passed through.
pub fn passed_through(headers: &HeaderMap, timeout: Duration, to_issuer: bool) -> HeaderMap {
    let mut kept = context(headers, timeout, to_issuer);
    keep(&FRAMING, headers, &mut kept);
    kept
}

fn keep(names: &[&'static str], from: &HeaderMap, to: &mut HeaderMap) {
    for name in names {
        if let Some(value) = from.get(*name) {
            to.insert(HeaderName::from_static(name), value.clone());
        }
    }
}

/// How long the call may take: what its caller allows, within `max`.
pub fn timeout(headers: &HeaderMap, max: Duration) -> Duration {
    let Some(value) = headers.get(TIMEOUT) else { return max };
    let only = HeaderMap::from_iter([(HeaderName::from_static(TIMEOUT), value.clone())]);
    let request = Request::from_parts(MetadataMap::from_headers(only), Default::default(), ());
    CallContext::of(&request).remaining().map_or(max, |timeout| timeout.min(max))
}

fn timeout_value(timeout: Duration) -> Option<HeaderValue> {
    let mut request = Request::new(());
    request.set_timeout(timeout);
    request.into_parts().0.into_headers().remove(TIMEOUT)
}

/// The call's id: the caller's own where it is fit for a log line, else a new one.
pub fn request_id(headers: &HeaderMap) -> String {
    let fit = |id: &&str| {
        (1..=REQUEST_ID_MAX).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    };
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(fit);
    given.map_or_else(|| Ulid::generate().to_string().to_ascii_lowercase(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn only_listed_headers_are_forwarded() {
        let incoming = headers(&[
            ("authorization", "Bearer t"),
            ("cookie", "c"),
            ("connection", "close"),
            ("x-api-key", "k"),
            ("x-forwarded-for", "1.2.3.4"),
            ("traceparent", "tp"),
            ("te", "trailers"),
        ]);
        let second = Duration::from_secs(1);
        let names = |kept: HeaderMap| {
            let mut names: Vec<_> = kept.keys().map(|name| name.as_str().to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names(context(&incoming, second, false)), ["authorization", "grpc-timeout", "traceparent"]);
        assert!(context(&incoming, second, true).contains_key("x-api-key"));
        let passed = names(passed_through(&incoming, second, false));
        assert_eq!(passed, ["authorization", "grpc-timeout", "te", "traceparent"]);
    }

    #[test]
    fn callers_timeout_counts_when_it_is_shorter() {
        let max = Duration::from_secs(60);
        assert_eq!(timeout(&headers(&[]), max), max);
        assert_eq!(timeout(&headers(&[("grpc-timeout", "2H")]), max), max);
        assert_eq!(timeout(&headers(&[("grpc-timeout", "nonsense")]), max), max);
        assert!(timeout(&headers(&[("grpc-timeout", "100m")]), max) <= Duration::from_millis(100));
    }

    #[test]
    fn unfit_request_id_is_replaced() {
        assert_eq!(request_id(&headers(&[("x-request-id", "abc.D-1_2")])), "abc.D-1_2");
        for bad in ["", "a b", "<script>"] {
            assert_ne!(request_id(&headers(&[("x-request-id", bad)])), bad);
        }
        let long = HeaderValue::try_from("a".repeat(129)).unwrap();
        let headers = HeaderMap::from_iter([(HeaderName::from_static("x-request-id"), long)]);
        assert_eq!(request_id(&headers).len(), 26);
    }
}
