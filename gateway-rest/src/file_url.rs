//! Signed URLs: one file of a sandbox, opened by a token in the query.
//!
//! Invariant: a token leaves the query before anything else looks at it, and is taken from there at [`PATH`] alone, and
//! only from callers who show no other. What it may do is the token's own business.

use std::time::{Duration, SystemTime};

use cloud_sandbox_auth::{FileAccess, FileGrant, Principal, Tokens};
use cloud_sandbox_model::{
    error::{Error, ErrorKind, Result, reason},
    id::SandboxId,
    input::Violations,
};
use cloud_sandbox_proto::v1::{self, CreateFileUrlRequest, CreateFileUrlResponse};
use http::{HeaderValue, Method, Uri, header::AUTHORIZATION, request::Parts, uri::PathAndQuery};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// Where files are read and written, and signed URLs lead.
const PATH: &str = "/api/v1/files";
/// The query parameter of the token (RFC 6750, section 2.3).
pub const TOKEN: &str = "access_token";

const TTL_DEFAULT: u64 = 3600;
const TTL_MAX: u64 = 7 * 24 * 3600;
/// What a query's value may hold as it is (RFC 3986, section 3.4).
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// Whether URLs with `path` can be signed for `method`.
pub fn is_signable(method: &Method, path: &str) -> bool {
    path == PATH && [Method::GET, Method::HEAD, Method::PUT].contains(method)
}

/// Moves a signed URL's token from the query to `authorization`. Says whether there was one.
pub fn take_token(parts: &mut Parts) -> Result<bool> {
    if !is_signable(&parts.method, parts.uri.path()) || parts.headers.contains_key(AUTHORIZATION) {
        return Ok(false);
    }
    let is_token = |pair: &&str| pair.split_once('=').is_some_and(|(name, _)| name == TOKEN);
    let query = parts.uri.query().unwrap_or_default();
    let (tokens, others): (Vec<_>, Vec<_>) = query.split('&').partition(is_token);
    let [token] = tokens[..] else {
        return if tokens.is_empty() { Ok(false) } else { Err(Error::invalid(TOKEN, "is given more than once")) };
    };
    let token = token.split_once('=').map_or("", |(_, token)| token);
    // a JWT has no characters that a query encodes
    let value = HeaderValue::try_from(format!("Bearer {token}"));
    let mut value = value.map_err(|_| invalid("the token in the URL is not a valid JWT of this service"))?;
    value.set_sensitive(true);
    let rest = PathAndQuery::try_from(format!("{PATH}?{}", others.join("&")));
    parts.uri = Uri::from(rest.map_err(|error| Error::internal("read a signed URL", error))?);
    parts.headers.insert(AUTHORIZATION, value);
    Ok(true)
}

/// Refuses whoever shows in a URL what is worth more than one file: URLs are kept in histories and logs.
pub fn check(principal: Option<&Principal>) -> Result<()> {
    match principal {
        Some(Principal { grant: Some(_), .. }) => Ok(()),
        _ => Err(invalid("only a token made for one file is taken from a URL; send others as 'authorization: Bearer'")),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, reason::TOKEN_INVALID, message)
}

/// The URL that `maker` asks for.
pub fn create(tokens: &Tokens, maker: &Principal, wanted: &CreateFileUrlRequest) -> Result<CreateFileUrlResponse> {
    let ttl = if wanted.expires_in == 0 { TTL_DEFAULT } else { wanted.expires_in.into() };
    let mut violations = Violations::default();
    violations.take(wanted.sandbox_id.parse::<SandboxId>());
    violations.path("path", &wanted.path);
    violations.range("expires_in", &ttl, &1, &TTL_MAX);
    let (access, method) = match v1::FileAccess::try_from(wanted.access) {
        Ok(v1::FileAccess::Write) => (FileAccess::Write, Method::PUT),
        Ok(v1::FileAccess::Unspecified | v1::FileAccess::Read) => (FileAccess::Read, Method::GET),
        Err(_) => {
            violations.check(false, "access", "must be read or write");
            (FileAccess::Read, Method::GET)
        }
    };
    violations.finish()?;

    let grant = FileGrant { sandbox: wanted.sandbox_id.clone(), path: wanted.path.clone(), access };
    let token = tokens.mint_file_grant(maker, grant, Duration::from_secs(ttl))?;
    let encoded = |text| utf8_percent_encode(text, ENCODED);
    let (sandbox, path) = (encoded(&wanted.sandbox_id), encoded(&wanted.path));
    let url = format!("{PATH}?sandbox_id={sandbox}&path={path}&{TOKEN}={token}");
    let expire_time = Some((SystemTime::now() + Duration::from_secs(ttl)).into());
    Ok(CreateFileUrlResponse { url, method: method.to_string(), expire_time })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, uri: &str) -> Parts {
        http::Request::builder().method(method).uri(uri).body(()).unwrap().into_parts().0
    }

    #[test]
    fn token_leaves_the_query_for_the_header() {
        for (uri, rest) in [
            ("/api/v1/files?sandbox_id=s&path=/a&access_token=t.o.k", "/api/v1/files?sandbox_id=s&path=/a"),
            ("/api/v1/files?access_token=t.o.k&path=%2Fa", "/api/v1/files?path=%2Fa"),
            ("http://host:1/api/v1/files?access_token=t.o.k", "/api/v1/files?"),
        ] {
            let mut parts = parts("GET", uri);
            assert!(take_token(&mut parts).unwrap());
            assert_eq!(parts.uri.to_string(), rest);
            assert_eq!(parts.headers[AUTHORIZATION], "Bearer t.o.k");
            assert!(!format!("{parts:?}").contains("t.o.k"), "a token is not printed");
        }
    }

    #[test]
    fn token_is_taken_nowhere_else() {
        for (method, uri) in [
            ("GET", "/api/v1/files?path=/a"),
            ("DELETE", "/api/v1/files?access_token=t"),
            ("GET", "/api/v1/files/stat?access_token=t"),
            ("POST", "/api/v1/execute?access_token=t"),
        ] {
            let mut parts = parts(method, uri);
            assert!(!take_token(&mut parts).unwrap(), "{method} {uri}");
            assert!(parts.headers.is_empty());
        }
        let mut parts = parts("GET", "/api/v1/files?access_token=t");
        parts.headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer u"));
        assert!(!take_token(&mut parts).unwrap());
        assert_eq!(parts.headers[AUTHORIZATION], "Bearer u");
    }

    #[test]
    fn two_tokens_are_refused() {
        let mut parts = parts("GET", "/api/v1/files?access_token=a&access_token=b");
        assert!(take_token(&mut parts).is_err());
    }
}
