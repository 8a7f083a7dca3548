//! ContextService.

use std::sync::Arc;

use cloud_sandbox_node_client::{Answer, ContextClient};
use cloud_sandbox_proto::v1::{
    self, CreateContextRequest, CreateContextResponse, DeleteContextRequest, DeleteContextResponse, GetContextRequest,
    GetContextResponse, InterruptContextRequest, InterruptContextResponse, ListContextsRequest, ListContextsResponse,
    RestartContextRequest, RestartContextResponse, context_service_server::ContextServiceServer,
};
use cloud_sandbox_rpc::{Dial, Upstream, upstream::MESSAGE_MAX};
use cloud_sandbox_storage::Directory;
use tonic::{Request, Response, Status};

use crate::relay::{Relay, relayed};

/// Keeps interpreters in sandboxes, wherever they are.
#[derive(Clone)]
pub struct ContextService {
    relay: Relay,
}

impl ContextService {
    /// A service that finds sandboxes in `directory`, those of sessions by the session manager `session`, and calls their
    /// nodes through `dial`.
    #[must_use]
    pub fn new(directory: Arc<dyn Directory>, dial: Arc<dyn Dial>, session: Upstream) -> Self {
        Self { relay: Relay::new(directory, dial, session) }
    }

    /// The gRPC service.
    #[must_use]
    pub fn grpc(self) -> ContextServiceServer<Self> {
        ContextServiceServer::new(self).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
    }
}

relayed! {
    v1::context_service_server::ContextService, ContextService, ContextClient;
    unary {
        create_context(CreateContextRequest) -> CreateContextResponse;
        list_contexts(ListContextsRequest) -> ListContextsResponse;
        get_context(GetContextRequest) -> GetContextResponse;
        restart_context(RestartContextRequest) -> RestartContextResponse;
        interrupt_context(InterruptContextRequest) -> InterruptContextResponse;
        delete_context(DeleteContextRequest) -> DeleteContextResponse;
    }
    server_stream {}
    client_stream {}
    both_streams {}
}
