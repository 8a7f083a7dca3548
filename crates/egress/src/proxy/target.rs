//! What a request is for. Anything that two readers could understand in two ways is refused.

use std::{fmt, net::IpAddr};

use http::{HeaderMap, Method, Request, header};

/// The longest name of a host.
const HOST_MAX: usize = 253;

/// A host and a port.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// a name in lower case without the dot of the root, or an address, IPv6 without brackets
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    /// The target of a request, or why it has none.
    pub(super) fn of<B>(request: &Request<B>) -> Result<Self, String> {
        check_framing(request.headers())?;
        let uri = request.uri();
        let authority = uri.authority().map(http::uri::Authority::as_str);
        if request.method() == Method::CONNECT {
            if request.headers().contains_key(header::CONTENT_LENGTH)
                || request.headers().contains_key(header::TRANSFER_ENCODING)
            {
                return Err("a CONNECT request has no body".to_owned());
            }
            let authority = authority.filter(|_| uri.scheme().is_none()).ok_or("a CONNECT request is for host:port")?;
            let (host, port) = split(authority)?;
            return Ok(Self { host, port: port.ok_or("a CONNECT request names a port")? });
        }
        match (uri.scheme_str(), authority) {
            (Some("http"), Some(authority)) => {
                let (host, port) = split(authority)?;
                Ok(Self { host, port: port.unwrap_or(80) })
            }
            (Some(scheme), _) => Err(format!("{scheme} goes through the proxy by CONNECT alone")),
            (None, _) => {
                Err("this is the proxy of the sandbox: ask it for http://host/path, or CONNECT host:port".to_owned())
            }
        }
    }

    /// The value of `Host` for this target.
    pub(super) fn host_header(&self) -> String {
        let bracketed = self.bracketed();
        if self.port == 80 { bracketed } else { format!("{bracketed}:{}", self.port) }
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.bracketed(), self.port)
    }
}

/// Refuses what the next reader of a message might take for another message. hyper does the rest: it refuses lengths that differ,
/// folded lines and spaces before a colon, and forgets a length beside a coding.
fn check_framing(headers: &HeaderMap) -> Result<(), String> {
    if headers.get_all(header::HOST).iter().count() > 1 {
        return Err("a request has one Host".to_owned());
    }
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err("the only Transfer-Encoding here is chunked".to_owned());
    }
    Ok(())
}

/// The host and the port, if there is one.
fn split(authority: &str) -> Result<(String, Option<u16>), String> {
    if authority.contains('@') {
        return Err("a target has no user name: say it in Authorization".to_owned());
    }
    let end = match authority.strip_prefix('[') {
        Some(rest) => rest.find(']').map_or(authority.len(), |end| end + 2),
        None => authority.find(':').unwrap_or(authority.len()),
    };
    let (host, rest) = authority.split_at(end);
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        Some(port) => {
            let plain = port.bytes().all(|byte| byte.is_ascii_digit());
            let number = port.parse().ok().filter(|number: &u16| plain && *number != 0);
            Some(number.ok_or_else(|| format!("{port:?} is no port"))?)
        }
        None => return Err(format!("{authority:?} is no host")),
    };
    Ok((read_host(host).ok_or_else(|| format!("{host:?} is no host"))?, port))
}

fn read_host(host: &str) -> Option<String> {
    if let Some(inside) = host.strip_prefix('[') {
        let address: std::net::Ipv6Addr = inside.strip_suffix(']')?.parse().ok()?;
        return Some(address.to_string());
    }
    if let Ok(address @ IpAddr::V4(_)) = host.parse::<IpAddr>() {
        return Some(address.to_string());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    // underscores are no part of host names, but of some that exist
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let named = (1..=HOST_MAX).contains(&name.len()) && name.bytes().all(good) && !name.split('.').any(str::is_empty);
    named.then(|| name.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    fn of(method: &str, uri: &str, headers: &[(&str, &str)]) -> Result<Target, String> {
        let mut request = Request::builder().method(method).uri(uri).version(Version::HTTP_11);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Target::of(&request.body(()).map_err(|error| error.to_string())?)
    }

    fn target(host: &str, port: u16) -> Result<Target, String> {
        Ok(Target { host: host.to_owned(), port })
    }

    #[test]
    fn target_is_what_the_request_line_says() {
        assert_eq!(of("CONNECT", "PyPI.org:443", &[]), target("pypi.org", 443));
        assert_eq!(of("CONNECT", "[2001:DB8::1]:443", &[]), target("2001:db8::1", 443));
        assert_eq!(of("CONNECT", "pypi.org.:443", &[("host", "other.example")]), target("pypi.org", 443));
        assert_eq!(of("GET", "http://pypi.org/simple", &[("host", "other.example")]), target("pypi.org", 80));
        assert_eq!(of("GET", "http://pypi.org:8080/", &[]), target("pypi.org", 8080));
        assert_eq!(of("GET", "http://2130706433/", &[]), target("2130706433", 80));
        assert_eq!(of("GET", "http://[::ffff:127.0.0.1]/", &[]), target("::ffff:127.0.0.1", 80));
    }

    #[test]
    fn what_could_be_understood_in_two_ways_is_refused() {
        for (method, uri) in [
            ("CONNECT", "pypi.org"),
            ("CONNECT", "http://pypi.org:443/"),
            ("CONNECT", "user@pypi.org:443"),
            ("CONNECT", "pypi.org:443@evil.example:443"),
            ("CONNECT", "pypi.org:0"),
            ("CONNECT", "[fe80::1%25eth0]:443"),
            ("GET", "http://user:password@pypi.org/"),
            ("GET", "http://pypi.org:99999/"),
            ("GET", "http://pypi.org:/"),
            ("GET", "http://pypi..org/"),
            ("GET", "http://pypi.org%2eevil.example/"),
            ("GET", "https://pypi.org/"),
            ("GET", "ftp://pypi.org/"),
            ("GET", "/simple"),
            ("OPTIONS", "*"),
        ] {
            assert!(of(method, uri, &[]).is_err(), "{method} {uri}");
        }
        for headers in [
            &[("host", "a.example"), ("host", "b.example")][..],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "identity")],
        ] {
            assert!(of("POST", "http://a.example/", headers).is_err(), "{headers:?}");
        }
        assert!(of("CONNECT", "a.example:443", &[("content-length", "3")]).is_err());
    }

    #[test]
    fn host_header_names_the_port_where_it_is_not_the_usual_one() {
        let header = |host, port| target(host, port).unwrap().host_header();
        assert_eq!(header("a.example", 80), "a.example");
        assert_eq!(header("a.example", 8080), "a.example:8080");
        assert_eq!(header("2001:db8::1", 80), "[2001:db8::1]");
        assert_eq!(target("2001:db8::1", 80).unwrap().to_string(), "[2001:db8::1]:80");
    }
}
