//! The secret that tokens are signed with, and `cloud-sandbox token`.

use std::{io::Write as _, time::Duration};

use anyhow::Context as _;
use cloud_sandbox_auth::{
    ApiKey, Principal, Role, TokenIssuer, Tokens,
    issuer::{TTL_MAX, TTL_MIN},
    principal::DEFAULT_TENANT,
};
use cloud_sandbox_model::input::Violations;

use crate::{
    cli::TokenArgs,
    data_dir::DataDir,
    settings::{Resolved, Settings, is_well_known},
};

/// Tokens signed with the secret of the settings, or with the one that is kept in the data folder.
pub fn tokens(settings: &Settings, data_dir: &DataDir) -> anyhow::Result<Tokens> {
    let Some(secret) = settings.jwt_secret.as_ref().map(|secret| secret.reveal()) else {
        return Ok(Tokens::hs256(data_dir.secret()?.as_bytes()));
    };
    if is_well_known(secret) {
        tracing::warn!("jwt_secret is a value that everybody knows: anybody on this machine can make tokens");
    }
    Ok(Tokens::hs256(secret.as_bytes()))
}

/// A token of an admin, signed with the secret of the settings or with the one in the data folder; `None` where there is
/// none that this user may read. Nothing is made.
pub fn of_this_machine(settings: &Settings, user: &str, ttl: Duration) -> anyhow::Result<Option<String>> {
    let secret = match &settings.jwt_secret {
        Some(secret) => Some(secret.reveal().clone()),
        None => DataDir::known_secret(&settings.data_dir)?,
    };
    let Some(secret) = secret else { return Ok(None) };
    let principal = Principal::new(DEFAULT_TENANT, user, Role::Admin);
    let token = Tokens::hs256(secret.as_bytes()).mint(&principal, ttl).context("failed to mint a token")?;
    Ok(Some(token))
}

/// Hands out tokens for the configured keys; freely where nobody outside this machine can ask and there are no keys.
pub fn issuer(resolved: &Resolved, tokens: &Tokens) -> TokenIssuer {
    let settings = &resolved.settings;
    let keys: Vec<ApiKey> = settings.api_keys.reveal().clone();
    let open = keys.is_empty() && settings.is_loopback_only(resolved.mode);
    TokenIssuer::new(tokens.clone(), keys, open, Duration::from_secs(settings.token_ttl_seconds.into()))
}

/// Mints a token and prints it.
pub fn mint(settings: &Settings, arguments: &TokenArgs) -> anyhow::Result<()> {
    let ttl = Duration::from_secs(arguments.ttl.into());
    let mut violations = Violations::default();
    violations.name("--user", &arguments.user);
    violations.range("--ttl", &ttl.as_secs(), &TTL_MIN.as_secs(), &TTL_MAX.as_secs());
    violations.finish()?;
    let role = if arguments.role == "admin" { Role::Admin } else { Role::User };
    let principal = Principal { tenant: DEFAULT_TENANT.to_owned(), user: arguments.user.clone(), role, grant: None };
    let tokens = tokens(settings, &DataDir::open(&settings.data_dir)?)?;
    let token = tokens.mint(&principal, ttl).context("failed to mint a token")?;
    writeln!(std::io::stdout(), "{token}").context("failed to print the token")?;
    Ok(())
}
