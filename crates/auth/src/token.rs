//! JWTs, signed with one secret (HS256).
//!
//! A token has one of three audiences, by what it opens: the API, nodes, or one file of a sandbox. Invariant: what is
//! minted for one audience is refused wherever another is wanted.

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

use crate::principal::{FileGrant, Principal, Role};

const ISSUER: &str = "cloud-sandbox";
/// Tokens of clients are for the API, tokens of services are for nodes: neither opens the other's door.
const CLIENT_AUDIENCE: &str = "cloud-sandbox";
const SERVICE_AUDIENCE: &str = "cloud-sandbox-node";
/// For one file.
const FILE_AUDIENCE: &str = "cloud-sandbox-file";
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
    #[serde(default, skip_serializing_if = "Option::is_none")]
    file: Option<FileGrant>,
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
        validation.set_audience(&[CLIENT_AUDIENCE, SERVICE_AUDIENCE, FILE_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.leeway = LEEWAY;
        Self(Arc::new(Keys {
            sign: EncodingKey::from_secret(secret),
            verify: DecodingKey::from_secret(secret),
            validation,
        }))
    }

    /// A token for `principal`, valid for `ttl` from now. One that may do one thing alone gets no token for more.
    pub fn mint(&self, principal: &Principal, ttl: Duration) -> Result<String, Error> {
        self.sign(principal, None, ttl)
    }

    /// A token with which whoever has it may do what `grant` says and nothing else, as far as `maker` itself may when
    /// it is used.
    pub fn mint_file_grant(&self, maker: &Principal, grant: FileGrant, ttl: Duration) -> Result<String, Error> {
        self.sign(maker, Some(grant), ttl)
    }

    fn sign(&self, principal: &Principal, grant: Option<FileGrant>, ttl: Duration) -> Result<String, Error> {
        let Some(audience) = audience(principal.role, grant.as_ref()).filter(|_| principal.grant.is_none()) else {
            let message = "whoever calls may not make a token like this";
            return Err(Error::new(ErrorKind::PermissionDenied, reason::ROLE_DENIED, message));
        };
        let now = seconds_now();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: audience.to_owned(),
            sub: principal.user.clone(),
            tenant: principal.tenant.clone(),
            role: principal.role,
            file: grant,
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
        if audience(claims.role, claims.file.as_ref()) != Some(claims.aud.as_str()) {
            return Err(invalid("the token's audience is not for its role"));
        }
        // what a maker said of one file holds to the second: clocks that differ may end it early, never late
        if claims.file.is_some() && claims.exp <= seconds_now() {
            return Err(expired());
        }
        Ok(Principal { tenant: claims.tenant, user: claims.sub, role: claims.role, grant: claims.file })
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The audience of a token; `None` where there is no such token.
fn audience(role: Role, grant: Option<&FileGrant>) -> Option<&'static str> {
    match (role, grant) {
        (Role::User | Role::Admin, None) => Some(CLIENT_AUDIENCE),
        (Role::User | Role::Admin, Some(_)) => Some(FILE_AUDIENCE),
        (Role::Service, None) => Some(SERVICE_AUDIENCE),
        // services act on nodes, which take no grants
        (Role::Service, Some(_)) => None,
    }
}

fn refusal(error: &jsonwebtoken::errors::Error) -> Error {
    match error.kind() {
        JwtError::ExpiredSignature => expired(),
        JwtError::InvalidAudience => invalid("the token is for another audience"),
        JwtError::InvalidIssuer => invalid("the token is from another issuer"),
        JwtError::InvalidSignature => invalid("the token's signature does not verify"),
        _ => invalid("the token is not a valid JWT of this service"),
    }
}

fn expired() -> Error {
    Error::new(ErrorKind::Unauthenticated, reason::TOKEN_EXPIRED, "the token has expired")
}

fn invalid(message: &str) -> Error {
    Error::new(ErrorKind::Unauthenticated, reason::TOKEN_INVALID, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::FileAccess;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
    const HOUR: Duration = Duration::from_secs(3600);

    fn user(role: Role) -> Principal {
        Principal::new("default", "ada", role)
    }

    fn grant(access: FileAccess) -> FileGrant {
        FileGrant { sandbox: "sb1".into(), path: "/workspace/ü".into(), access }
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
    fn token_for_a_file_is_verified_with_its_grant_and_its_makers_role() {
        let tokens = Tokens::hs256(SECRET);
        for (role, access) in [(Role::User, FileAccess::Read), (Role::Admin, FileAccess::Write)] {
            let token = tokens.mint_file_grant(&user(role), grant(access), HOUR).unwrap();
            let expected = Principal { grant: Some(grant(access)), ..user(role) };
            assert_eq!(tokens.verify(&token).unwrap(), expected);
        }
    }

    #[test]
    fn token_for_a_file_makes_no_other_token_and_services_make_none_for_files() {
        let tokens = Tokens::hs256(SECRET);
        let granted = Principal { grant: Some(grant(FileAccess::Read)), ..user(Role::User) };
        let refused = [
            tokens.mint(&granted, HOUR),
            tokens.mint_file_grant(&granted, grant(FileAccess::Write), HOUR),
            tokens.mint_file_grant(&user(Role::Service), grant(FileAccess::Read), HOUR),
        ];
        for token in refused {
            assert_eq!(token.unwrap_err().kind(), ErrorKind::PermissionDenied);
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
    fn grant_ends_on_the_second() {
        let tokens = Tokens::hs256(SECRET);
        let token = tokens.mint_file_grant(&user(Role::User), grant(FileAccess::Read), Duration::ZERO).unwrap();
        assert_eq!(tokens.verify(&token).unwrap_err().reason(), reason::TOKEN_EXPIRED);
        // a token of the API has some leeway for clocks that differ
        assert!(tokens.verify(&tokens.mint(&user(Role::User), Duration::ZERO).unwrap()).is_ok());
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
            // a grant alone makes no token for a file, nor does the audience alone
            (with("file", serde_json::to_value(grant(FileAccess::Read)).unwrap()), reason::TOKEN_INVALID),
            (with("aud", FILE_AUDIENCE.into()), reason::TOKEN_INVALID),
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
