//! A call that the edge makes to a service on behalf of a REST caller.

use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind};
use cloud_sandbox_rpc::{Upstream, upstream::MESSAGE_MAX};
use futures::Stream;
use http::{HeaderMap, uri::PathAndQuery};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Response, Status, Streaming, client::Grpc, metadata::MetadataMap};

use crate::{
    codec::{Encoded, InParts, Parts},
    edge::{Edge, ISSUER},
    errors::{self, deadline_exceeded, from_upstream},
    forward,
    routes::Binding,
};

/// One call to a service, ready to be made. A clone is another call with the same deadline.
#[derive(Clone)]
pub struct Call {
    client: Grpc<Upstream>,
    path: PathAndQuery,
    metadata: MetadataMap,
    /// when the call is given up
    pub deadline: Instant,
}

impl Call {
    /// A call to the RPC of `binding`, with what of the caller's `headers` is forwarded.
    pub fn new(edge: &Edge, binding: &Binding, headers: &HeaderMap) -> Result<Self, Error> {
        let service = binding.rpc.parent_service();
        let upstream = edge.services.get(service.full_name());
        let upstream = upstream.ok_or_else(|| {
            let message = format!("{} is not served here", service.full_name());
            Error::new(ErrorKind::Unimplemented, errors::edge_reason::METHOD_NOT_FOUND, message)
        })?;
        let timeout = forward::timeout(headers, edge.max_timeout);
        let headers = forward::context(headers, timeout, service.full_name() == ISSUER);
        Ok(Self {
            client: Grpc::new(upstream.clone()).max_decoding_message_size(MESSAGE_MAX),
            path: binding.path.clone(),
            metadata: MetadataMap::from_headers(headers),
            deadline: Instant::now() + timeout,
        })
    }

    /// One message for one message.
    pub async fn unary(mut self, message: Bytes) -> Result<Bytes, Error> {
        let (deadline, request, path) = (self.deadline, self.request(message), self.path.clone());
        within(deadline, async {
            self.client.ready().await.map_err(errors::unreachable)?;
            answer(self.client.unary(request, path, Encoded).await)
        })
        .await
    }

    /// One message for many.
    pub async fn stream(mut self, message: Bytes) -> Result<Streaming<Bytes>, Error> {
        let (deadline, request, path) = (self.deadline, self.request(message), self.path.clone());
        within(deadline, async {
            self.client.ready().await.map_err(errors::unreachable)?;
            answer(self.client.server_streaming(request, path, Encoded).await)
        })
        .await
    }

    /// Many messages for one. May be answered before the last of them is taken.
    pub async fn upload(mut self, messages: impl Stream<Item = Parts> + Send + 'static) -> Result<Bytes, Error> {
        let (deadline, request, path) = (self.deadline, self.request(messages), self.path.clone());
        within(deadline, async {
            self.client.ready().await.map_err(errors::unreachable)?;
            answer(self.client.client_streaming(request, path, InParts).await)
        })
        .await
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }
}

async fn within<T>(deadline: Instant, call: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    timeout_at(deadline, call).await.unwrap_or_else(|_| Err(deadline_exceeded()))
}

fn answer<T>(result: Result<Response<T>, Status>) -> Result<T, Error> {
    result.map(Response::into_inner).map_err(|status| from_upstream(&status))
}
