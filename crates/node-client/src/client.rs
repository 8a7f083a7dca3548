//! The services that a node serves, as clients of one node.

use cloud_sandbox_proto::{
    node::v1::node_service_client::NodeServiceClient,
    v1::{
        context_service_client::ContextServiceClient, exec_service_client::ExecServiceClient,
        file_service_client::FileServiceClient,
    },
};
use cloud_sandbox_rpc::{Upstream, upstream::MESSAGE_MAX};

/// Calls about the lives of a node's sandboxes.
pub type NodeClient = NodeServiceClient<Upstream>;
/// Calls about what runs in them.
pub type ExecClient = ExecServiceClient<Upstream>;
/// Calls about their interpreters.
pub type ContextClient = ContextServiceClient<Upstream>;
/// Calls about their files.
pub type FileClient = FileServiceClient<Upstream>;

/// A client of one service of a node.
pub trait NodeApi: Send + 'static {
    /// The client of the node that `upstream` leads to, for messages of any size that nodes take.
    fn over(upstream: Upstream) -> Self;
}

macro_rules! node_api {
    ($($client:ident),*) => {$(
        impl NodeApi for $client {
            fn over(upstream: Upstream) -> Self {
                Self::new(upstream).max_decoding_message_size(MESSAGE_MAX).max_encoding_message_size(MESSAGE_MAX)
            }
        }
    )*};
}

node_api!(NodeClient, ExecClient, ContextClient, FileClient);
