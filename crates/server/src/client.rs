//! A server that runs already, as commands call it.

use std::error::Error as _;

use anyhow::Context as _;
use cloud_sandbox_model::error::chain;
use cloud_sandbox_proto::v1::{IssueTokenRequest, auth_service_client::AuthServiceClient};
use cloud_sandbox_rpc::{Upstream, connect, from_status, upstream::BoxError};
use http::HeaderValue;
use tonic::Status;
use tower::ServiceExt as _;

/// The environment variable that names the server, as the SDK's clients read it.
pub const SERVER_ENV: &str = "CLOUD_SANDBOX_URL";
/// The environment variable that holds the token.
pub const TOKEN_ENV: &str = "CLOUD_SANDBOX_TOKEN";
const USER: &str = "cli";

/// The server at `url`, not connected to yet. Where nobody answers there, calls say so.
pub fn server(url: &str) -> anyhow::Result<Upstream> {
    let server = connect(url.trim_end_matches('/'))
        .map_err(|error| anyhow::anyhow!("{url} is no server's URL, like http://host:8080: {error}"))?;
    let url = url.to_owned();
    Ok(Upstream::new(server.map_err(move |error| {
        let why = error.source().map(chain).unwrap_or_default();
        BoxError::from(Status::unavailable(format!("no server answers at {url}: {why}")))
    })))
}

/// The token given, else the one in the environment.
pub fn known_token(given: Option<&str>) -> Option<String> {
    given.map(str::to_owned).or_else(|| std::env::var(TOKEN_ENV).ok()).filter(|token| !token.is_empty())
}

/// A token that the server at `url` hands out freely, as servers that listen on loopback alone do.
pub async fn issued_token(server: &Upstream, url: &str) -> anyhow::Result<String> {
    let wanted = IssueTokenRequest { user_id: USER.to_owned(), ..IssueTokenRequest::default() };
    let issued = AuthServiceClient::new(server.clone()).issue_token(wanted).await.map_err(failure);
    let hint = || format!("failed to get a token from {url}; give one with --token or {TOKEN_ENV}");
    Ok(issued.with_context(hint)?.into_inner().access_token)
}

/// The same server, called with a token.
pub fn authorized(server: Upstream, token: &str) -> anyhow::Result<Upstream> {
    let token = HeaderValue::try_from(format!("Bearer {token}")).context("the token is not a header")?;
    Ok(server.authorized(move || Ok(token.clone())))
}

/// What a call's status says, for people.
#[expect(clippy::needless_pass_by_value, reason = "made for map_err(failure)")]
pub fn failure(status: Status) -> anyhow::Error {
    anyhow::Error::msg(from_status(&status).message().to_owned())
}
