//! How Redis is reached, whatever is kept there.

use std::time::Duration;

use fred::prelude::{Builder, Client, Config, Error, ReconnectPolicy, TcpConfig};

pub(crate) const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A connection that owes an answer for so long is made anew.
const UNRESPONSIVE_AFTER: Duration = Duration::from_secs(10);
/// Commands that wait for a connection; more than that are refused rather than remembered.
const WAITING_MAX: usize = 10_000;

/// What a server means that is not there at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absence {
    /// it ends the start
    Fails,
    /// it is waited for, as one that goes away later
    Passes,
}

/// A client that is not connected yet. A connection that breaks later is made again.
pub(crate) fn client(
    url: &str,
    answer_within: Duration,
    absence: Absence,
) -> Result<Client, Box<dyn std::error::Error + Send + Sync>> {
    // without TLS in the build the client would speak plain text where the operator asked for secrecy
    if url.starts_with("rediss") || url.starts_with("valkeys") {
        return Err("this build has no TLS for redis; use redis:// inside a trusted network".into());
    }
    let mut config = Config::from_url(url)?;
    config.fail_fast = absence == Absence::Fails;
    let client: Result<Client, Error> = Builder::from_config(config)
        .set_policy(ReconnectPolicy::new_exponential(0, 50, 2_000, 2))
        .with_performance_config(|config| config.default_command_timeout = answer_within)
        .with_connection_config(|config| {
            config.connection_timeout = CONNECT_WITHIN;
            config.internal_command_timeout = answer_within;
            config.max_command_buffer_len = WAITING_MAX;
            config.unresponsive.max_timeout = Some(UNRESPONSIVE_AFTER);
            config.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .build();
    Ok(client?)
}
