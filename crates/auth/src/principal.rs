//! Whoever makes a call.

use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use serde::{Deserialize, Serialize};

/// The tenant of everybody until there are several.
pub const DEFAULT_TENANT: &str = "default";

/// What a principal may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// uses what is its own
    User,
    /// uses what is its tenant's
    Admin,
    /// a service of ours, acting on nodes
    Service,
}

/// Whoever makes a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    /// the tenant it belongs to
    pub tenant: String,
    /// its name within the tenant
    pub user: String,
    /// what it may do
    pub role: Role,
}

impl Principal {
    /// Whether this principal may touch a thing of `user` in `tenant`. Where it may not, the thing is not found.
    #[must_use]
    pub fn may_use(&self, tenant: &str, user: &str) -> bool {
        match self.role {
            Role::Service => true,
            Role::Admin => self.tenant == tenant,
            Role::User => self.tenant == tenant && self.user == user,
        }
    }

    /// The principal that [`crate::AuthLayer`] put into the call.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<&Self, Error> {
        request
            .extensions()
            .get::<Self>()
            .ok_or_else(|| Error::new(ErrorKind::Unauthenticated, reason::TOKEN_MISSING, "a bearer token is required"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_reaches_its_own_admin_its_tenants_service_all() {
        let principal = |role| Principal { tenant: "t".into(), user: "u".into(), role };
        for (role, own, tenants, others) in
            [(Role::User, true, false, false), (Role::Admin, true, true, false), (Role::Service, true, true, true)]
        {
            let who = principal(role);
            let may = (who.may_use("t", "u"), who.may_use("t", "v"), who.may_use("s", "u"));
            assert_eq!(may, (own, tenants, others), "{role:?}");
        }
    }
}
