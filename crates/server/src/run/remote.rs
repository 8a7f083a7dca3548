//! A server that runs already.

use super::Api;
use crate::client;

/// The services of `server`, called with the token given, the one in the environment, or one that the server hands out.
pub(super) async fn api(server: &str, token: Option<&str>) -> anyhow::Result<Api> {
    let upstream = client::server(server)?;
    let token = match client::known_token(token) {
        Some(token) => token,
        None => client::issued_token(&upstream, server).await?,
    };
    Api::new(upstream.clone(), upstream, &token)
}
