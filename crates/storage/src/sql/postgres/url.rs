//! The URL of a database. What is wrong with one is said without repeating it: it may hold a password.

use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

const SCHEMES: [&str; 2] = ["postgres", "postgresql"];
const RULE: &str = "must be a URL like postgres://user:password@host:5432/database";
/// Those of libpq that the client heeds. A misspelt one would be ignored, and with `sslmode` that is a risk.
const PARAMETERS: [&str; 13] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];
/// `allow` is left out: the client would never try TLS.
const SSL_MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];

/// Whether a store can be made of `url`; if not, the rule that it broke, in words that follow a setting's name.
pub fn check_url(url: &str) -> Result<(), String> {
    options(url).map(drop)
}

/// How to connect to `url`.
pub(crate) fn options(url: &str) -> Result<PgConnectOptions, String> {
    let (scheme, rest) = url.split_once("://").ok_or(RULE)?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let host = place.rsplit('@').next().unwrap_or(place);
    let mut named = !host.is_empty() && !host.starts_with(['/', ':']);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if !PARAMETERS.contains(&name) {
            return Err(format!("must have known parameters alone: {}", PARAMETERS.join(", ")));
        }
        if name == "sslmode" && !SSL_MODES.contains(&value) {
            return Err(format!("must have an sslmode of {}", SSL_MODES.join(", ")));
        }
        named |= name.starts_with("host") && !value.is_empty();
    }
    if !named || !SCHEMES.contains(&scheme) {
        return Err(RULE.to_owned());
    }
    let options = PgConnectOptions::from_str(url).map_err(|_| RULE)?;
    let called = options.get_application_name().is_some();
    Ok(if called { options } else { options.application_name("cloud-sandbox") })
}

#[cfg(test)]
mod tests {
    use sqlx::postgres::PgSslMode;

    use super::*;

    #[test]
    fn urls_of_both_schemes_with_hosts_or_sockets_are_taken() {
        for url in [
            "postgres://host",
            "postgresql://ada:pw@host:5433/db?sslmode=verify-full&sslrootcert=/ca.pem",
            "postgres:///db?user=ada&host=/run/postgresql",
            "postgres://%2Frun%2Fpostgresql/db",
        ] {
            assert_eq!(check_url(url), Ok(()), "{url}");
        }
        let options = options("postgres://ada:p%40w@host:5433/db?sslmode=require").unwrap();
        assert_eq!((options.get_host(), options.get_port(), options.get_database()), ("host", 5433, Some("db")));
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Require));
    }

    #[test]
    fn what_is_wrong_is_said_without_the_password() {
        for url in [
            "",
            "host",
            "mysql://ada:hunter2@host/db",
            "sqlite:sessions.db",
            "postgres://",
            "postgres:///db",
            "postgres://:5432",
            "postgres://ada:hunter2@host:port/db",
            "postgres://ada:hunt#er2@host/db",
            "postgres://host/db?sslmode=hunter2",
            "postgres://host/db?sslmode=allow",
            "postgres://host/db?pasword=hunter2",
            "postgres://host/db?port=hunter2",
        ] {
            let rule = check_url(url).unwrap_err();
            assert!(rule.starts_with("must ") && !rule.contains("hunt"), "{url}: {rule}");
        }
    }
}
