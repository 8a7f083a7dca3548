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

/// What a grant is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileAccess {
    /// to read the file
    Read,
    /// to write it
    Write,
}

/// One file, and what may be done with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileGrant {
    /// the sandbox's id
    pub sandbox: String,
    /// the file's absolute path, as it was given
    pub path: String,
    /// what it is good for
    pub access: FileAccess,
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
    /// the one thing that it may do; whatever its role allows when `None`
    pub grant: Option<FileGrant>,
}

impl Principal {
    /// A principal that may do whatever its role allows.
    #[must_use]
    pub fn new(tenant: impl Into<String>, user: impl Into<String>, role: Role) -> Self {
        Self { tenant: tenant.into(), user: user.into(), role, grant: None }
    }

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
        let principal = |role| Principal::new("t", "u", role);
        for (role, own, tenants, others) in
            [(Role::User, true, false, false), (Role::Admin, true, true, false), (Role::Service, true, true, true)]
        {
            let who = principal(role);
            let may = (who.may_use("t", "u"), who.may_use("t", "v"), who.may_use("s", "u"));
            assert_eq!(may, (own, tenants, others), "{role:?}");
        }
    }
}
