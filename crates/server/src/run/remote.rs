//! A server that runs already.

use anyhow::Context as _;
use cloud_sandbox_proto::v1::{IssueTokenRequest, auth_service_client::AuthServiceClient};
use cloud_sandbox_rpc::connect;

use super::{Api, failure};

/// The environment variable that holds the token.
const TOKEN_ENV: &str = "CLOUD_SANDBOX_TOKEN";
const USER: &str = "cli";

/// The services of `server`, called with the token given, the one in the environment, or one that the server hands out
/// freely, as servers that listen on loopback alone do.
pub(super) async fn api(server: &str, token: Option<&str>) -> anyhow::Result<Api> {
    let upstream = connect(server.trim_end_matches('/'))
        .map_err(|error| anyhow::anyhow!("{server} is no server's URL, like http://host:8080: {error}"))?;
    let known = token.map(str::to_owned).or_else(|| std::env::var(TOKEN_ENV).ok().filter(|token| !token.is_empty()));
    let token = match known {
        Some(token) => token,
        None => {
            let wanted = IssueTokenRequest { user_id: USER.to_owned(), ..IssueTokenRequest::default() };
            let issued = AuthServiceClient::new(upstream.clone()).issue_token(wanted).await.map_err(failure);
            let hint = || format!("failed to get a token from {server}; give one with --token or {TOKEN_ENV}");
            issued.with_context(hint)?.into_inner().access_token
        }
    };
    Api::new(upstream.clone(), upstream, &token)
}
