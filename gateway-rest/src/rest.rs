//! REST calls: found in the route table, transcoded to the RPC behind the route, and its answer back.

use std::{sync::Arc, time::Duration};

use axum::{body::Body, extract::Request, response::IntoResponse};
use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use cloud_sandbox_rpc::{Upstream, upstream::MESSAGE_MAX};
use http::{
    HeaderMap, HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use prost::Message as _;
use prost_reflect::DynamicMessage;
use tokio::time::{Instant, timeout_at};
use tonic::{Streaming, client::Grpc, metadata::MetadataMap};

use crate::{
    accept::{self, Form},
    codec::Encoded,
    edge::{Edge, ISSUER, call_of},
    errors::{self, Rejection, deadline_exceeded, from_upstream},
    forward,
    json::write,
    request,
    routes::{Binding, Endpoint, Miss},
    stream, template,
};

/// Serves one REST call.
pub async fn serve(edge: Arc<Edge>, request: Request) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let Some(segments) = template::segments(parts.uri.path()) else {
        let message = "the path is not valid UTF-8";
        let error = Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message);
        return Rejection::from(error).into_response();
    };
    let method = if parts.method == Method::HEAD { &Method::GET } else { &parts.method };
    let (endpoint, variables) = match edge.routes.find(method, &segments) {
        Ok(found) => found,
        Err(Miss::Method(methods)) if parts.method == Method::OPTIONS => return options(&methods),
        Err(Miss::Method(methods)) => return Rejection::method(&methods).into_response(),
        Err(Miss::Path) => return Rejection::no_route().into_response(),
    };
    let call = call_of(&parts.extensions);
    if let Some(call) = &call {
        call.route(endpoint.template.text());
    }
    let Some((binding, form)) = form(endpoint, &parts) else { return Rejection::no_route().into_response() };
    let (standing, admitted) = edge.admit(binding.path.path(), &parts.headers, &parts.extensions);
    if let (Some(call), Ok(principal)) = (&call, &admitted) {
        call.caller(principal.as_ref());
    }
    let result = match admitted {
        Ok(_) => transcode(&edge, binding, form, &variables, &parts, body).await,
        Err(error) => Err(error.into()),
    };
    let mut response = result.unwrap_or_else(IntoResponse::into_response);
    if let Some(standing) = standing {
        standing.write(response.headers_mut());
    }
    response
}

/// The answer to OPTIONS where `methods` are served.
pub fn options(methods: &[Method]) -> Response<Body> {
    let mut response = StatusCode::NO_CONTENT.into_response();
    response.headers_mut().insert(ALLOW, errors::allow(methods));
    response
}

/// The RPC that serves the form which the caller wants, and that form.
fn form<'a>(endpoint: &'a Endpoint, parts: &Parts) -> Option<(&'a Binding, Form)> {
    let wanted = if parts.method == Method::HEAD { Form::Json } else { accept::preferred(&parts.headers) };
    match (&endpoint.unary, &endpoint.streaming) {
        (_, Some(streaming)) if wanted != Form::Json => Some((streaming, wanted)),
        (Some(unary), _) => Some((unary, Form::Json)),
        (None, Some(streaming)) => Some((streaming, Form::JsonLines)),
        (None, None) => None,
    }
}

async fn transcode(
    edge: &Edge,
    binding: &Binding,
    form: Form,
    variables: &[(&str, String)],
    parts: &Parts,
    body: Body,
) -> Result<Response<Body>, Rejection> {
    let body = request::collect(body, edge.max_body_bytes).await?;
    let message = request::message(binding, variables, parts.uri.query(), &parts.headers, &body)?;
    drop(body);
    let timeout = forward::timeout(&parts.headers, edge.max_timeout);
    let upstream = Call::new(edge, binding, &parts.headers, &message, timeout)?;
    drop(message);
    if binding.rpc.is_server_streaming() {
        let deadline = upstream.deadline;
        let messages = upstream.stream().await?;
        return Ok(stream::response(binding.clone(), form, messages, deadline));
    }
    let answer = upstream.unary().await?;
    Ok(json(StatusCode::OK, render(binding, answer)?))
}

/// The JSON of an answer (or of one message of a streamed one).
pub fn render(binding: &Binding, message: Bytes) -> Result<Vec<u8>, Error> {
    let message = DynamicMessage::decode(binding.rpc.output(), message)
        .map_err(|error| Error::internal("read the service's answer", error))?;
    let text = match &binding.response_body {
        None => serde_json::to_vec(&write::Message(&message)),
        Some(field) => serde_json::to_vec(&write::Field(&message, field)),
    };
    text.map_err(|error| Error::internal("print the service's answer", error))
}

fn json(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(Form::Json.media_type()));
    // answers hold tokens and what is inside sandboxes
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// One call to a service.
struct Call<'a> {
    client: Grpc<Upstream>,
    binding: &'a Binding,
    request: tonic::Request<Bytes>,
    deadline: Instant,
}

impl<'a> Call<'a> {
    fn new(
        edge: &Edge,
        binding: &'a Binding,
        headers: &HeaderMap,
        message: &DynamicMessage,
        timeout: Duration,
    ) -> Result<Self, Error> {
        let service = binding.rpc.parent_service();
        let upstream = edge.services.get(service.full_name());
        let upstream = upstream.ok_or_else(|| {
            let message = format!("{} is not served here", service.full_name());
            Error::new(ErrorKind::Unimplemented, errors::edge_reason::METHOD_NOT_FOUND, message)
        })?;
        let headers = forward::context(headers, timeout, service.full_name() == ISSUER);
        let mut request = tonic::Request::new(Bytes::from(message.encode_to_vec()));
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        let client = Grpc::new(upstream.clone()).max_decoding_message_size(MESSAGE_MAX);
        Ok(Self { client, binding, request, deadline: Instant::now() + timeout })
    }

    async fn unary(mut self) -> Result<Bytes, Error> {
        let path = self.binding.path.clone();
        let call = async {
            self.client.ready().await.map_err(errors::unreachable)?;
            let answer = self.client.unary(self.request, path, Encoded).await;
            answer.map(tonic::Response::into_inner).map_err(|status| from_upstream(&status))
        };
        timeout_at(self.deadline, call).await.unwrap_or_else(|_| Err(deadline_exceeded()))
    }

    async fn stream(mut self) -> Result<Streaming<Bytes>, Error> {
        let path = self.binding.path.clone();
        let call = async {
            self.client.ready().await.map_err(errors::unreachable)?;
            let answer = self.client.server_streaming(self.request, path, Encoded).await;
            answer.map(tonic::Response::into_inner).map_err(|status| from_upstream(&status))
        };
        timeout_at(self.deadline, call).await.unwrap_or_else(|_| Err(deadline_exceeded()))
    }
}
