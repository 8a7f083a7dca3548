//! The edge: one port that speaks REST, gRPC and gRPC-Web to clients, and gRPC to the services behind it.
//!
//! Invariant: the public surface is what the contracts say. Routes, request and response shapes and the OpenAPI
//! document all come from the descriptor set and its `google.api.http` annotations; nothing here knows one method from
//! another, except that `AuthService` is served in this process, and that the URLs it signs lead to one path
//! ([`file_url`]).
//!
//! Every call is authenticated and counted against its caller's rate here, and verified again by the service that is
//! called. What is forwarded is on a short list ([`forward`]); no other header of a client reaches a service.

mod accept;
mod auth_service;
mod call;
mod closing;
mod codec;
mod conditions;
mod cors;
mod docs;
mod download;
mod edge;
mod errors;
mod file_url;
mod forward;
mod grpc;
mod health;
mod json;
mod limits;
mod observe;
mod open_door;
mod openapi;
mod operational;
mod range;
mod raw;
mod reflection;
mod request;
mod rest;
mod resume;
mod routes;
mod stream;
mod template;
mod upload;

use std::{sync::Arc, time::Duration};

use cloud_sandbox_auth::{TokenIssuer, Tokens};
use cloud_sandbox_rpc::Upstream;

pub use limits::{Key, Limits, MemoryLimits, RateLimit, Taken};
pub use operational::Check;

use crate::{edge::Edge, routes::RouteTable};

/// Renders all metrics as Prometheus text.
pub type RenderMetrics = Arc<dyn Fn() -> String + Send + Sync>;

/// What the edge can be told.
pub struct Options {
    /// verifies bearer tokens
    pub tokens: Tokens,
    /// answers `AuthService`
    pub issuer: TokenIssuer,
    /// calls per caller
    pub rate_limit: RateLimit,
    /// where several edges count them together; `None` where this one is alone
    pub shared_limits: Option<Arc<dyn Limits>>,
    /// the largest JSON body, in bytes; raw ones are bounded by where they go
    pub max_body_bytes: usize,
    /// the longest call, uploads and downloads included; a caller's own `grpc-timeout` counts when it is shorter
    pub max_timeout: Duration,
    /// what `/metrics` answers
    pub metrics: RenderMetrics,
    /// the services behind the edge
    pub upstreams: Upstreams,
    /// what must be well for `/readyz` to say so
    pub readiness: Vec<Check>,
}

/// The services behind the edge.
pub struct Upstreams {
    /// serves `SchedulerService` and `TemplateService`
    pub scheduler: Upstream,
    /// serves `SessionService`
    pub session: Upstream,
    /// serves `ExecService`, `ContextService` and `FileService`
    pub exec: Upstream,
}

/// Why the edge cannot be built: the contracts themselves are at fault.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// the embedded descriptor set does not decode
    #[error("failed to read the descriptor set")]
    Descriptors(#[from] prost_reflect::DescriptorError),
    /// a method's `google.api.http` annotation cannot be served
    #[error("failed to build the route of {method}: {fault}")]
    Route {
        /// the method's full name
        method: String,
        /// what is wrong with its annotation
        fault: String,
    },
    /// the reflection service refuses the descriptors
    #[error("failed to build the reflection service")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// A message of the contracts, called `name` in full and encoded, as the REST surface shows it. `None` when there is no such
/// message or it is not one.
#[must_use]
pub fn message_json(name: &str, encoded: &[u8]) -> Option<serde_json::Value> {
    let pool = prost_reflect::DescriptorPool::decode(cloud_sandbox_proto::DESCRIPTOR_SET).ok()?;
    let message = prost_reflect::DynamicMessage::decode(pool.get_message_by_name(name)?, encoded).ok()?;
    serde_json::to_value(json::write::Message(&message)).ok()
}

/// The edge. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Gateway(Arc<Edge>);

impl Gateway {
    /// An edge in front of `options.upstreams`.
    pub fn new(options: Options) -> Result<Self, Error> {
        observe::describe();
        Ok(Self(Arc::new(Edge::new(options)?)))
    }

    /// Everything that the port serves. Served with
    /// `into_make_service_with_connect_info::<SocketAddr>()`, callers without a token are told apart by their address.
    pub fn router(&self) -> axum::Router {
        edge::router(Arc::clone(&self.0))
    }

    /// Says to whoever asks (`/readyz`, gRPC health) that no new calls should come; calls are still answered.
    pub fn set_draining(&self) {
        self.0.draining.send_replace(true);
    }

    /// Ends the calls that are still under way, each with the status UNAVAILABLE.
    pub fn close(&self) {
        self.0.closing.cancel();
    }

    /// The OpenAPI 3.1 document of the REST surface.
    pub fn openapi() -> Result<serde_json::Value, Error> {
        Ok(openapi::document(&RouteTable::from_contracts()?))
    }
}
