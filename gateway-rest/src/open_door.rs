//! Who may walk through an open door. A server that hands out tokens freely listens on loopback alone, but a web page in
//! a browser of this machine reaches that too, under its own origin or under a name that resolves to loopback.

use cloud_sandbox_model::{Error, ErrorKind, Result, error::reason};
use http::{
    HeaderMap, HeaderValue,
    header::{HOST, ORIGIN},
};

/// The one method that gives something to callers who show nothing.
const ISSUE_TOKEN: &str = "/cloud_sandbox.v1.AuthService/IssueToken";
/// What a caller shows who does not need the open door.
const API_KEY: &str = "x-api-key";

/// Refuses a token to a call that a web page of somewhere else has made, unless it shows a key.
pub fn check(path: &str, headers: &HeaderMap) -> Result<()> {
    if path != ISSUE_TOKEN || headers.contains_key(API_KEY) {
        return Ok(());
    }
    let is_local = |value: &HeaderValue| value.to_str().is_ok_and(|text| is_loopback(host_of(text)));
    if [ORIGIN, HOST].iter().filter_map(|name| headers.get(name)).all(is_local) {
        return Ok(());
    }
    let message = "without an API key, tokens are handed out to programs of this machine only, not to web pages";
    Err(Error::new(ErrorKind::PermissionDenied, reason::TOKEN_MISSING, message))
}

/// The host in `host`, `host:port`, `scheme://host:port` and with an IPv6 address in brackets.
fn host_of(text: &str) -> &str {
    let authority = text.split_once("://").map_or(text, |(_, rest)| rest);
    match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => address,
        None => authority.split_once(':').map_or(authority, |(host, _)| host),
    }
}

fn is_loopback(host: &str) -> bool {
    let address = host.parse::<std::net::IpAddr>();
    address.map_or_else(|_| host.eq_ignore_ascii_case("localhost"), |address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passes(headers: &[(&'static str, &'static str)]) -> bool {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        check(ISSUE_TOKEN, &headers.collect()).is_ok()
    }

    #[test]
    fn programs_and_pages_of_this_machine_pass() {
        for host in ["localhost:8080", "127.0.0.1:8080", "127.0.0.1", "[::1]:8080", "LOCALHOST"] {
            assert!(passes(&[("host", host)]), "{host}");
        }
        assert!(passes(&[]));
        assert!(passes(&[("host", "localhost:8080"), ("origin", "http://localhost:3000")]));
    }

    #[test]
    fn pages_of_elsewhere_and_names_that_only_resolve_here_do_not() {
        for origin in ["https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1.evil.example"]
        {
            assert!(!passes(&[("host", "localhost:8080"), ("origin", origin)]), "{origin}");
        }
        assert!(!passes(&[("host", "rebound.evil.example:8080")]));
        assert!(passes(&[("host", "rebound.evil.example"), ("x-api-key", "k")]), "a key is judged by the issuer");
    }

    #[test]
    fn other_methods_want_a_token_anyway() {
        let headers = [("origin".parse().unwrap(), HeaderValue::from_static("https://app.example"))];
        assert!(check("/cloud_sandbox.v1.ExecService/Execute", &headers.into_iter().collect()).is_ok());
    }
}
