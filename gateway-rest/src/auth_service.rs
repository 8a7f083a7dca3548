//! `AuthService`, served by the edge itself: what a caller shows, turned into a token by the issuer, and into URLs for
//! single files.

use std::time::Duration;

use cloud_sandbox_auth::{AuthLayer, Principal, Role, TokenIssuer, Tokens, issuer::Credentials};
use cloud_sandbox_model::Error;
use cloud_sandbox_proto::v1::{
    self, CreateFileUrlRequest, CreateFileUrlResponse, IssueTokenRequest, IssueTokenResponse,
    auth_service_server::{AuthService, AuthServiceServer},
};
use cloud_sandbox_rpc::{Upstream, in_process, to_status};
use tonic::{Request, Response, Status, async_trait};
use tower::Layer;

use crate::file_url;

struct Issuing {
    issuer: TokenIssuer,
    tokens: Tokens,
}

/// The service as an upstream like any other.
pub fn upstream(tokens: Tokens, issuer: TokenIssuer) -> Upstream {
    let layer = AuthLayer::new(tokens.clone());
    in_process(layer.layer(AuthServiceServer::new(Issuing { issuer, tokens })))
}

#[async_trait]
impl AuthService for Issuing {
    async fn issue_token(&self, request: Request<IssueTokenRequest>) -> Result<Response<IssueTokenResponse>, Status> {
        let shown = Credentials {
            api_key: request.metadata().get("x-api-key").and_then(|key| key.to_str().ok()),
            principal: request.extensions().get::<Principal>(),
        };
        let wanted = request.get_ref();
        let role = match v1::Role::try_from(wanted.role) {
            Ok(v1::Role::Unspecified | v1::Role::User) => Role::User,
            Ok(v1::Role::Admin) => Role::Admin,
            Err(_) => return Err(to_status(Error::invalid("role", "must be user or admin"))),
        };
        let ttl = Duration::from_secs(wanted.expires_in.into());
        let (access_token, ttl) = self.issuer.issue(&wanted.user_id, role, ttl, &shown).map_err(to_status)?;
        let expires_in = u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX);
        Ok(Response::new(IssueTokenResponse { access_token, token_type: "Bearer".to_owned(), expires_in }))
    }

    async fn create_file_url(
        &self,
        request: Request<CreateFileUrlRequest>,
    ) -> Result<Response<CreateFileUrlResponse>, Status> {
        let maker = Principal::of(&request).map_err(to_status)?;
        let answer = file_url::create(&self.tokens, maker, request.get_ref()).map_err(to_status)?;
        Ok(Response::new(answer))
    }
}
