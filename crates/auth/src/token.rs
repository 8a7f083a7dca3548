//! JWTs, signed with one secret (HS256).

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use jsonwebtoken::{
    Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode, errors::ErrorKind as JwtError,
};
use serde::{Deserialize, Serialize};

use crate::principal::{Principal, Role};

const ISSUER: &str = "cloud-sandbox";
/// Tokens of clients are for the API, tokens of services are for nodes: neither opens the other's door.
const CLIENT_AUDIENCE: &str = "cloud-sandbox";
const SERVICE_AUDIENCE: &str = "cloud-sandbox-node";
/// The shortest secret that is accepted, in bytes: the output length of the hash (RFC 7518, section 3.2).
pub const SECRET_MIN: usize = 32;
/// How far the clocks of two machines may differ, in seconds.
const LEEWAY: u64 = 5;

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    aud: String,
    sub: String,
    tenant: String,
    role: Role,
    iat: u64,
    exp: u64,
}

/// Mints and verifies tokens.
#[derive(Clone)]
pub struct Tokens(Arc<Keys>);

struct Keys {
    sign: EncodingKey,
    verify: DecodingKey,
    validation: Validation,
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

impl Tokens {
    /// Tokens signed with `secret`.
    #[must_use]
    pub fn hs256(secret: &[u8]) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[ISSUER]);
        validation.set_audience(&[CLIENT_AUDIENCE, SERVICE_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY;
        Self(Arc::new(Keys {
            sign: EncodingKey::from_secret(secret),
            verify: DecodingKey::from_secret(secret),
            validation,
        }))
    }

    /// A token for `principal`, valid for `ttl` from now.
    pub fn mint(&self, principal: &Principal, ttl: Duration) -> Result<String, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: audience(principal.role).to_owned(),
            sub: principal.user.clone(),
            tenant: principal.tenant.clone(),
            role: principal.role,
            iat: now,
            exp: now + ttl.as_secs(),
        };
        encode(&Header::new(Algorithm::HS256), &claims, &self.0.sign)
            .map_err(|error| Error::internal("sign a token", error))
    }

    /// Whoever a token speaks for. Expired, forged, unsigned and foreign tokens are told apart only as far as it helps
    /// an honest caller.
    pub fn verify(&self, token: &str) -> Result<Principal, Error> {
        let data = decode::<Claims>(token, &self.0.verify, &self.0.validation).map_err(|error| refusal(&error))?;
        let claims = data.claims;
        if claims.aud != audience(claims.role) {
            return Err(invalid("the token's audience is not for its role"));
        }
        Ok(Principal { tenant: claims.tenant, user: claims.sub, role: claims.role })
    }
}

fn audience(role: Role) -> &'static str {
    match role {
        Role::User | Role::Admin => CLIENT_AUDIENCE,
        Role::Service => SERVICE_AUDIENCE,
    }
}

fn refusal(error: &jsonwebtoken::errors::Error) -> Error {
    match error.kind() {
        JwtError::ExpiredSignature => {
            Error::new(ErrorKind::Unauthenticated, reason::TOKEN_EXPIRED, "the token has expired")
        }
        JwtError::InvalidAudience => invalid("the token is for another audience"),
        JwtError::InvalidIssuer => invalid("the token is from another issuer"),
        JwtError::InvalidSignature => invalid("the token's signature does not verify"),
        _ => invalid("the token is not a valid JWT of this service"),
    }
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, reason::TOKEN_INVALID, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const HOUR: Duration = Duration::from_secs(3600);

    fn user(role: Role) -> Principal {
        Principal { tenant: "default".into(), user: "ada".into(), role }
    }

    fn signed(claims: &serde_json::Value, secret: &[u8], algorithm: Algorithm) -> String {
        encode(&Header::new(algorithm), claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn claims() -> serde_json::Value {
        serde_json::json!({
            "iss": ISSUER, "aud": CLIENT_AUDIENCE, "sub": "ada", "tenant": "default", "role": "user", "iat": 1,
            "exp": 4_000_000_000_u64
        })
    }

    #[test]
    fn minted_token_is_verified_as_its_principal() {
        let tokens = Tokens::hs256(SECRET);
        for role in [Role::User, Role::Admin, Role::Service] {
            let token = tokens.mint(&user(role), HOUR).unwrap();
            assert_eq!(tokens.verify(&token).unwrap(), user(role));
        }
    }

    #[test]
    fn token_without_signature_is_refused() {
        use std::fmt::Write as _;
        let tokens = Tokens::hs256(SECRET);
        // {"alg":"none","typ":"JWT"} in base64url
        let mut unsigned = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0".to_owned();
        let signed = signed(&claims(), SECRET, Algorithm::HS256);
        write!(unsigned, ".{}.", signed.split('.').nth(1).unwrap()).unwrap();
        assert_eq!(tokens.verify(&unsigned).unwrap_err().reason(), reason::TOKEN_INVALID);
    }

    #[test]
    fn forged_expired_and_foreign_tokens_are_refused() {
        let tokens = Tokens::hs256(SECRET);
        let with = |key: &str, value: serde_json::Value| {
            let mut claims = claims();
            claims[key] = value;
            signed(&claims, SECRET, Algorithm::HS256)
        };
        let cases = [
            (signed(&claims(), b"another secret, just as long as it", Algorithm::HS256), reason::TOKEN_INVALID),
            (signed(&claims(), SECRET, Algorithm::HS512), reason::TOKEN_INVALID),
            (with("exp", 1.into()), reason::TOKEN_EXPIRED),
            (with("aud", "elsewhere".into()), reason::TOKEN_INVALID),
            (with("iss", "elsewhere".into()), reason::TOKEN_INVALID),
            (with("role", "root".into()), reason::TOKEN_INVALID),
            (with("role", "service".into()), reason::TOKEN_INVALID),
            ("x.y.z".into(), reason::TOKEN_INVALID),
            (String::new(), reason::TOKEN_INVALID),
        ];
        for (token, reason) in cases {
            let error = tokens.verify(&token).unwrap_err();
            assert_eq!((error.kind(), error.reason()), (ErrorKind::Unauthenticated, reason), "{token}");
        }
        assert!(tokens.verify(&signed(&claims(), SECRET, Algorithm::HS256)).is_ok(), "the plain claims are good");
    }
}
