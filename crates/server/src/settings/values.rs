//! How the text of a setting becomes its value. An error is the rule that the text broke, in words that follow the
//! setting's name; it never repeats the text of a secret.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use cloud_sandbox_auth::{ApiKey, Role};
use cloud_sandbox_model::{
    Template,
    input::Violations,
    template::{check_name, split_reference},
};
use cloud_sandbox_storage::check_database_url;

/// The shortest API key, in bytes: 64 bits even when it is written in hexadecimal digits.
const API_KEY_MIN: usize = 16;

/// What stands in place of a secret.
pub const MASK: &str = "********";

/// A value that is never printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value, for the one place that needs it.
    pub const fn reveal(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let parsed = match text.strip_prefix("localhost:") {
        Some(port) => port.parse().map(|port: u16| (Ipv4Addr::LOCALHOST, port).into()).ok(),
        None => text.parse().ok(),
    };
    parsed.ok_or_else(|| format!("must be an IP address and a port, like 127.0.0.1:8080, not {text:?}"))
}

pub(super) fn whole<T>(text: &str, min: T, max: T) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display + Copy,
{
    let parsed = text.parse().ok().filter(|number| *number >= min && *number <= max);
    parsed.ok_or_else(|| format!("must be a whole number from {min} to {max}, not {text:?}"))
}

/// A number of bytes, in a unit or without one.
pub fn bytes(text: &str, min: u64, max: u64) -> Result<u64, String> {
    const UNITS: [(&str, u64); 3] = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let unit = UNITS.iter().find_map(|(name, factor)| Some((text.strip_suffix(name)?, *factor)));
    let (digits, factor) = unit.unwrap_or((text, 1));
    let parsed = digits.trim().parse().ok().and_then(|number: u64| number.checked_mul(factor));
    parsed.filter(|number| (min..=max).contains(number)).ok_or_else(|| {
        format!("must be a number of bytes from {min} to {max}, or such a number of KiB, MiB or GiB, not {text:?}")
    })
}

/// Words of `known` with commas between, each once.
pub(super) fn words(text: &str, known: &[&str]) -> Result<Vec<String>, String> {
    let mut words: Vec<String> = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        if !known.contains(&word) {
            return Err(format!("must be some of {} with commas between, not {word:?}", known.join(", ")));
        }
        if !words.iter().any(|seen| seen == word) {
            words.push(word.to_owned());
        }
    }
    Ok(words)
}

/// The same, and at least one.
pub(super) fn some_words(text: &str, known: &[&str]) -> Result<Vec<String>, String> {
    match words(text, known)? {
        none if none.is_empty() => Err(format!("must be some of {} with commas between", known.join(", "))),
        words => Ok(words),
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("must be true or false, not {text:?}")),
    }
}

/// A URL with one of `schemes` and a host. Its text is not repeated: it may hold a password.
pub(super) fn url(text: &str, schemes: &[&str]) -> Result<String, String> {
    let good = text.split_once("://").is_some_and(|(scheme, rest)| {
        let host = rest.rsplit('@').next().unwrap_or(rest);
        schemes.contains(&scheme) && !host.is_empty() && !host.starts_with(['/', ':']) && !text.contains(' ')
    });
    if good { Ok(text.to_owned()) } else { Err(format!("must be a URL like {}://host:port", schemes[0])) }
}

/// The URL of a PostgreSQL database. Its text is not repeated either.
pub(super) fn database_url(text: &str) -> Result<Secret<String>, String> {
    check_database_url(text).map(|()| Secret::new(text.to_owned()))
}

/// The URL without the passwords in it, one before the host and those among the parameters.
pub(super) fn masked_url(url: &str) -> String {
    let (place, parameters) = url.split_once('?').map_or((url, None), |(place, rest)| (place, Some(rest)));
    let masked = place.split_once("://").and_then(|(scheme, rest)| {
        let (credentials, host) = rest.rsplit_once('@')?;
        let user = credentials.split(':').next().unwrap_or_default();
        Some(format!("{scheme}://{user}:{MASK}@{host}"))
    });
    let place = masked.unwrap_or_else(|| place.to_owned());
    let Some(parameters) = parameters else { return place };
    let masked = parameters.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if name.contains("password") => format!("{name}={MASK}"),
        _ => pair.to_owned(),
    });
    format!("{place}?{}", masked.collect::<Vec<_>>().join("&"))
}

/// The URL of an S3 server: nothing but where it is.
pub(super) fn endpoint(text: &str) -> Result<String, String> {
    let text = text.trim_end_matches('/');
    let place = url(text, &["https", "http"])?;
    let host = place.split_once("://").map_or("", |(_, host)| host);
    if host.contains(['/', '@', '?', '#']) {
        return Err("must be a URL like https://host:port, without a user or a path".to_owned());
    }
    Ok(place)
}

/// Source: the S3 user guide, "General purpose bucket naming rules".
pub(super) fn bucket(text: &str) -> Result<String, String> {
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.');
    let fits = (3..=63).contains(&text.len()) && text.bytes().all(known);
    let edges = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    if fits && edges(text.bytes().next()) && edges(text.bytes().last()) {
        return Ok(text.to_owned());
    }
    Err(format!("must be 3 to 63 lower-case letters, digits, dots and hyphens, like sessions, not {text:?}"))
}

pub(super) fn region(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if fits { Ok(text.to_owned()) } else { Err(format!("must be a region like us-east-1, not {text:?}")) }
}

/// The longest folder of a bucket: a name in it has at most 1024 bytes.
const PREFIX_MAX: usize = 512;

pub(super) fn prefix(text: &str) -> Result<String, String> {
    let plain = text.trim_matches('/');
    let fine = |name: &str| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        !matches!(name, "" | "." | "..") && name.bytes().all(known)
    };
    if plain.len() <= PREFIX_MAX && plain.split('/').all(fine) {
        return Ok(plain.to_owned());
    }
    Err(format!("must be names of letters, digits, dots, hyphens and underscores with / between, not {text:?}"))
}

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    std::path::absolute(text).map_err(|_| "must be the path of a folder".to_owned())
}

/// Where a Docker Engine is, as its own tools take it.
pub(super) fn docker_host(text: &str) -> Result<String, String> {
    let good = match text.split_once("://") {
        Some(("unix", path)) => path.starts_with('/'),
        Some(("tcp" | "http" | "https", host)) => !host.is_empty() && !host.starts_with(['/', ':']),
        _ => false,
    };
    if good && !text.contains(' ') {
        return Ok(text.to_owned());
    }
    Err(format!("must be a URL like unix:///run/docker.sock or tcp://host:port, not {text:?}"))
}

pub(super) fn image(text: &str) -> Result<String, String> {
    let template = Template { name: "image".to_owned(), ..Template::docker(text) };
    match template.check() {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(error.violations().iter().map(|broken| broken.rule.clone()).collect::<Vec<_>>().join("; ")),
    }
}

pub(super) fn template(text: &str) -> Result<String, String> {
    let mut violations = Violations::default();
    let (name, _) = split_reference(text).ok_or("must be a name, or name@version with a whole number from 1")?;
    check_name(&mut violations, "", name);
    violations.finish().map_err(|error| error.violations()[0].rule.clone())?;
    Ok(text.to_owned())
}

pub(super) fn api_keys(text: &str) -> Result<Vec<ApiKey>, String> {
    text.split(',').map(|pair| api_key(pair.trim())).collect()
}

fn api_key(pair: &str) -> Result<ApiKey, String> {
    const RULE: &str = "must be key:role pairs with commas between, the role user or admin";
    let (key, role) = pair.rsplit_once(':').ok_or(RULE)?;
    let role = match role {
        "user" => Role::User,
        "admin" => Role::Admin,
        _ => return Err(RULE.to_owned()),
    };
    if key.len() < API_KEY_MIN || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("must have keys of at least {API_KEY_MIN} visible ASCII characters"));
    }
    Ok(ApiKey { key: key.to_owned(), role })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_ip_and_port() {
        assert_eq!(address("localhost:80"), address("127.0.0.1:80"));
        assert!(address("[::1]:80").is_ok());
        for bad in ["", "8080", ":8080", "127.0.0.1", "example.com:80", "127.0.0.1:99999"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_may_carry_a_unit_and_never_overflow() {
        assert_eq!(bytes("16MiB", 0, u64::MAX), Ok(16 << 20));
        assert_eq!(bytes("2 GiB", 0, u64::MAX), Ok(2 << 30));
        assert_eq!(bytes("7", 0, u64::MAX), Ok(7));
        for bad in ["", "MiB", "1MB", "-1", "1.5GiB", "99999999999999GiB", "11"] {
            assert!(bytes(bad, 0, 10).is_err(), "{bad}");
        }
    }

    #[test]
    fn passwords_in_urls_are_masked_and_never_repeated() {
        assert_eq!(masked_url("redis://ada:hunter2@host:6379/0"), format!("redis://ada:{MASK}@host:6379/0"));
        assert_eq!(masked_url("redis://host"), "redis://host");
        assert_eq!(
            masked_url("postgres://ada:hunter2@host/db?sslmode=require&password=hunter2"),
            format!("postgres://ada:{MASK}@host/db?sslmode=require&password={MASK}")
        );
        assert!(!url("http://ada:hunter2@host", &["redis"]).unwrap_err().contains("hunter2"));
        for bad in ["host:6379", "redis://", "redis://:6379", "redis://a b"] {
            assert!(url(bad, &["redis"]).is_err(), "{bad}");
        }
    }

    #[test]
    fn buckets_and_their_servers_are_named_plainly() {
        assert_eq!(endpoint("https://s3.example.com:9000/"), Ok("https://s3.example.com:9000".to_owned()));
        for bad in ["s3.example.com", "https://", "ftp://host", "https://ada:hunter2@host", "https://host/bucket"] {
            let rule = endpoint(bad).unwrap_err();
            assert!(!rule.contains("hunter2"), "{rule}");
        }
        assert!(bucket("my.sessions-1").is_ok());
        for bad in ["", "ab", "Sessions", "a_b", "-abc", "abc-", "a/b", &"a".repeat(64)] {
            assert!(bucket(bad).is_err(), "{bad}");
        }
        assert_eq!(prefix("/a/b_c.d/"), Ok("a/b_c.d".to_owned()));
        for bad in ["", "/", "a//b", "../a", "a b", "ä"] {
            assert!(prefix(bad).is_err(), "{bad}");
        }
        assert!(region("eu-central-1").is_ok() && region("").is_err() && region("a b").is_err());
    }

    #[test]
    fn runtimes_engines_images_and_templates_are_told_from_what_is_none() {
        assert_eq!(some_words(" docker,linux,docker ", &["linux", "docker"]).unwrap(), ["docker", "linux"]);
        for bad in ["", ",", "podman", "docker+runsc"] {
            assert!(some_words(bad, &["linux", "docker"]).unwrap_err().contains("linux, docker"), "{bad}");
        }
        for good in ["unix:///var/run/docker.sock", "tcp://127.0.0.1:2375"] {
            assert_eq!(docker_host(good).as_deref(), Ok(good));
        }
        for bad in ["", "/var/run/docker.sock", "unix://docker.sock", "tcp://", "ssh://host", "tcp:// host"] {
            assert!(docker_host(bad).is_err(), "{bad}");
        }
        assert!(image("ghcr.io/owner/name@sha256:00").is_ok());
        for bad in ["", "a b", "-x", &"a".repeat(513)] {
            assert!(image(bad).unwrap_err().starts_with("must be an image reference"), "{bad}");
        }
        assert!(template("python").is_ok() && template("python@3").is_ok());
        for bad in ["", "Python", "python@", "python@0", "a/b"] {
            assert!(template(bad).unwrap_err().starts_with("must be"), "{bad}");
        }
    }

    #[test]
    fn api_keys_have_a_role_and_some_length() {
        let keys = api_keys("0123456789abcdef:admin, with:colon:in:it:xyz:user").unwrap();
        assert_eq!((keys[0].role, keys[1].role), (Role::Admin, Role::User));
        assert_eq!(keys[1].key, "with:colon:in:it:xyz");
        for bad in ["", "0123456789abcdef", "0123456789abcdef:root", "0123456789abcdef:service", "short:user"] {
            let rule = api_keys(bad).err().unwrap();
            assert!(bad.is_empty() || !rule.contains(bad), "{rule}");
        }
    }
}
