//! How tests call services, and wait.

use std::time::Duration;

use cloud_sandbox_auth::{Principal, Role, principal::DEFAULT_TENANT};
use tonic::Request;

/// The principal of `user` in the default tenant.
#[must_use]
pub fn principal(user: &str, role: Role) -> Principal {
    Principal::new(DEFAULT_TENANT, user, role)
}

/// A call by `user`, as the auth layer hands it to a service.
pub fn by<T>(user: &str, message: T) -> Request<T> {
    with(principal(user, Role::User), message)
}

/// A call by an admin of the same tenant.
pub fn by_admin<T>(message: T) -> Request<T> {
    with(principal("root", Role::Admin), message)
}

fn with<T>(principal: Principal, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(principal);
    request
}

/// Waits until `holds`, for five seconds at most.
pub async fn assert_eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..3000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come true in time");
}
