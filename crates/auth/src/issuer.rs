//! Who gets which token. Decides only; the service around it is the edge's.

use std::time::Duration;

use cloud_sandbox_model::{
    error::{Error, ErrorKind, Result, reason},
    input::Violations,
};

use crate::{
    principal::{DEFAULT_TENANT, Principal, Role},
    token::Tokens,
};

/// The shortest life of a token.
pub const TTL_MIN: Duration = Duration::from_secs(60);
/// The longest life of a token.
pub const TTL_MAX: Duration = Duration::from_secs(7 * 24 * 3600);

/// A key that tokens are given for.
#[derive(Clone)]
pub struct ApiKey {
    /// the secret itself
    pub key: String,
    /// the highest role that it gives
    pub role: Role,
}

/// What a caller shows when it asks for a token.
#[derive(Debug, Default)]
pub struct Credentials<'a> {
    /// the `x-api-key` header
    pub api_key: Option<&'a str>,
    /// whoever the bearer token speaks for
    pub principal: Option<&'a Principal>,
}

/// Gives tokens to those who may have them.
#[derive(Clone)]
pub struct TokenIssuer {
    tokens: Tokens,
    keys: Vec<ApiKey>,
    /// hand out user tokens to anybody: only where the server listens on loopback and has no keys
    open: bool,
    default_ttl: Duration,
}

impl TokenIssuer {
    /// An issuer for `keys`. `open` makes it hand out user tokens without a key.
    #[must_use]
    pub fn new(tokens: Tokens, keys: Vec<ApiKey>, open: bool, default_ttl: Duration) -> Self {
        Self { tokens, keys, open, default_ttl }
    }

    /// Whether this issuer hands out user tokens without a key.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open
    }

    /// A token for `user_id` with `role`, and how long it is valid. `ttl` of zero is the default.
    pub fn issue(
        &self,
        user_id: &str,
        role: Role,
        ttl: Duration,
        shown: &Credentials<'_>,
    ) -> Result<(String, Duration)> {
        let ttl = if ttl.is_zero() { self.default_ttl } else { ttl };
        let mut violations = Violations::default();
        violations.name("user_id", user_id);
        violations.range("expires_in", &ttl.as_secs(), &TTL_MIN.as_secs(), &TTL_MAX.as_secs());
        violations.check(role != Role::Service, "role", "must be user or admin");
        violations.finish()?;

        let (highest, tenant) = self.highest_role(user_id, shown)?;
        if role > highest {
            let message = "the credentials shown do not allow a token of this role";
            return Err(Error::new(ErrorKind::PermissionDenied, reason::ROLE_DENIED, message));
        }
        let principal = Principal::new(tenant, user_id, role);
        Ok((self.tokens.mint(&principal, ttl)?, ttl))
    }

    /// The highest role that what is shown allows a token for `user_id`, and the token's tenant.
    fn highest_role(&self, user_id: &str, shown: &Credentials<'_>) -> Result<(Role, String)> {
        if let Some(key) = shown.api_key {
            let found = self.keys.iter().find(|known| equal_in_constant_time(known.key.as_bytes(), key.as_bytes()));
            let found = found.ok_or_else(|| {
                Error::new(ErrorKind::Unauthenticated, reason::TOKEN_INVALID, "the API key in x-api-key is unknown")
            })?;
            return Ok((found.role, DEFAULT_TENANT.to_owned()));
        }
        // whoever may do one thing alone shows nothing here
        match shown.principal.filter(|principal| principal.grant.is_none()) {
            Some(admin) if admin.role == Role::Admin => Ok((Role::Admin, admin.tenant.clone())),
            Some(user) if user.role == Role::User && user.user == user_id => Ok((Role::User, user.tenant.clone())),
            _ if self.open => Ok((Role::User, DEFAULT_TENANT.to_owned())),
            _ => Err(Error::new(
                ErrorKind::Unauthenticated,
                reason::TOKEN_MISSING,
                "an API key in x-api-key is required",
            )),
        }
    }
}

/// Takes as long for a wrong key as for the right one, so that time tells nothing about it.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (x, y)| difference | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::principal::{FileAccess, FileGrant};

    const NO_TTL: Duration = Duration::ZERO;

    fn tokens() -> Tokens {
        Tokens::hs256(&[3; 32])
    }

    fn issuer(open: bool) -> TokenIssuer {
        let key = |key: &str, role| ApiKey { key: key.into(), role };
        let keys = vec![key("user-key", Role::User), key("admin-key", Role::Admin)];
        TokenIssuer::new(tokens(), keys, open, Duration::from_secs(3600))
    }

    fn key(api_key: &str) -> Credentials<'_> {
        Credentials { api_key: Some(api_key), principal: None }
    }

    #[test]
    fn open_issuer_gives_user_tokens_but_no_admin_tokens() {
        let (token, ttl) = issuer(true).issue("ada", Role::User, NO_TTL, &Credentials::default()).unwrap();
        assert_eq!(ttl, Duration::from_secs(3600));
        assert_eq!(tokens().verify(&token).unwrap().user, "ada");
        let error = issuer(true).issue("ada", Role::Admin, NO_TTL, &Credentials::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
    }

    #[test]
    fn closed_issuer_wants_a_key_and_a_key_gives_no_more_than_its_role() {
        let kind =
            |role, shown: &Credentials<'_>| issuer(false).issue("ada", role, NO_TTL, shown).err().map(|e| e.kind());
        assert_eq!(kind(Role::User, &Credentials::default()), Some(ErrorKind::Unauthenticated));
        assert_eq!(kind(Role::User, &key("wrong")), Some(ErrorKind::Unauthenticated));
        assert_eq!(kind(Role::Admin, &key("user-key")), Some(ErrorKind::PermissionDenied));
        assert_eq!(kind(Role::Admin, &key("admin-key")), None);
        assert_eq!(kind(Role::User, &key("user-key")), None);
    }

    #[test]
    fn caller_renews_its_own_token_but_gets_nobody_elses_and_no_higher_role() {
        let ada = Principal::new("t", "ada", Role::User);
        let shown = Credentials { api_key: None, principal: Some(&ada) };
        let (token, _) = issuer(false).issue("ada", Role::User, NO_TTL, &shown).unwrap();
        assert_eq!(tokens().verify(&token).unwrap().tenant, "t");
        assert!(issuer(false).issue("bob", Role::User, NO_TTL, &shown).is_err());
        assert!(issuer(false).issue("ada", Role::Admin, NO_TTL, &shown).is_err());
    }

    #[test]
    fn token_for_a_file_gets_no_other_token() {
        let grant = FileGrant { sandbox: "sb1".into(), path: "/a".into(), access: FileAccess::Read };
        let granted = Principal { grant: Some(grant), ..Principal::new("t", "ada", Role::Admin) };
        let shown = Credentials { api_key: None, principal: Some(&granted) };
        let error = issuer(false).issue("ada", Role::User, NO_TTL, &shown).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unauthenticated);
    }

    #[test]
    fn bad_names_and_lives_are_named() {
        let error = issuer(true).issue("", Role::Service, Duration::from_secs(1), &Credentials::default()).unwrap_err();
        let fields: Vec<_> = error.violations().iter().map(|v| v.field.as_str()).collect();
        assert_eq!(fields, ["user_id", "expires_in", "role"]);
    }
}
