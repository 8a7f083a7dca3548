//! Who is calling, and what they may call.
//!
//! A caller is known by a JWT in `authorization: Bearer …`, verified at the service that is called. [`access`] is the
//! one table of which roles may call which method; whose things they may touch is decided where the thing is found,
//! with [`Principal::may_use`].
//!
//! A token for one file of a sandbox (a signed URL) speaks for its maker, and carries a [`FileGrant`]: it opens the few
//! methods that [`access::granted`] names, and the file service checks that the call is about that file.

pub mod access;
pub mod issuer;
pub mod layer;
pub mod principal;
pub mod service;
pub mod token;

pub use access::Access;
pub use issuer::{ApiKey, TokenIssuer};
pub use layer::{AuthLayer, Authenticated, authorize};
pub use principal::{FileAccess, FileGrant, Principal, Role};
pub use service::ServiceIdentity;
pub use token::Tokens;
