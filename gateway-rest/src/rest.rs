//! REST calls: found in the route table, transcoded to the RPC behind the route, and its answer back.

use std::sync::Arc;

use axum::{body::Body, extract::Request, response::IntoResponse};
use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use http::{
    HeaderValue, Method, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    request::Parts,
};
use prost::Message as _;
use prost_reflect::DynamicMessage;

use crate::{
    accept::{self, Form},
    call::Call,
    conditions, download,
    edge::{Edge, call_of},
    errors::{self, Rejection},
    file_url,
    json::write,
    raw::{Download, Upload},
    request,
    resume::Position,
    routes::{Binding, Endpoint, Miss},
    stream, template, upload,
};

/// Serves one REST call.
pub async fn serve(edge: Arc<Edge>, request: Request) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let signed = match file_url::take_token(&mut parts) {
        Ok(signed) => signed,
        Err(error) => return Rejection::from(error).into_response(),
    };
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
    let Some(way) = Way::of(endpoint, &parts, signed) else { return Rejection::no_route().into_response() };
    let (standing, mut admitted) = edge.admit(way.binding().path.path(), &parts.headers, &parts.extensions).await;
    if signed {
        admitted = admitted.and_then(|who| file_url::check(who.as_ref()).map(|()| who));
    }
    if let (Some(call), Ok(principal)) = (&call, &admitted) {
        call.caller(principal.as_ref());
    }
    let result = match admitted {
        Ok(_) => way.serve(&edge, &variables, &parts, body, signed).await,
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

/// How an endpoint serves a call.
enum Way<'a> {
    Unary(&'a Binding),
    Events(&'a Binding, Form),
    Download(&'a Download),
    Upload(&'a Upload),
}

impl<'a> Way<'a> {
    /// The way that the caller wants; `signed` is one with a URL for the file itself.
    fn of(endpoint: &'a Endpoint, parts: &Parts, signed: bool) -> Option<Self> {
        let Endpoint { unary, streaming, download, upload, .. } = endpoint;
        if let Some(upload) = upload
            && (unary.is_none() || signed || upload::is_raw(&parts.headers))
        {
            return Some(Self::Upload(upload));
        }
        // the file alone was signed for: of a folder, JSON would be a list
        if let (true, Some(download)) = (signed, download) {
            return Some(Self::Download(download));
        }
        let mut offered = Vec::new();
        offered.extend(unary.as_ref().map(|_| Form::Json));
        // HEAD is about a document where there is one
        if streaming.is_some() && (parts.method != Method::HEAD || unary.is_none()) {
            offered.extend([Form::JsonLines, Form::EventStream]);
        }
        offered.extend(download.as_ref().map(|download| Form::Raw(download.media_type())));
        match accept::preferred(&parts.headers, &offered)? {
            Form::Json => unary.as_ref().map(Self::Unary),
            Form::Raw(_) => download.as_ref().map(Self::Download),
            form => streaming.as_ref().map(|binding| Self::Events(binding, form)),
        }
    }

    fn binding(&self) -> &'a Binding {
        match self {
            Self::Unary(binding) | Self::Events(binding, _) => binding,
            Self::Download(download) => &download.binding,
            Self::Upload(upload) => &upload.binding,
        }
    }

    async fn serve(
        self,
        edge: &Edge,
        variables: &[(&str, String)],
        parts: &Parts,
        body: Body,
        signed: bool,
    ) -> Result<Response<Body>, Rejection> {
        if let Self::Upload(upload) = self {
            return upload::serve(edge, upload, variables, parts, body, signed).await;
        }
        let binding = self.binding();
        let body = request::collect(body, edge.max_body_bytes).await?;
        let mut message = request::message(binding, variables, parts.uri.query(), &parts.headers, &body)?;
        drop(body);
        let call = Call::new(edge, binding, &parts.headers)?;
        match self {
            Self::Download(download) => download::serve(download, call, message, parts).await,
            Self::Events(_, form) => {
                let position = Position::begin(binding, &mut message, &parts.headers)?;
                let deadline = call.deadline;
                let messages = call.stream(message.encode_to_vec().into()).await?;
                Ok(stream::response(binding.clone(), form, messages, deadline, position))
            }
            _ => {
                let conditional = conditions::demand(&mut message, &parts.headers)?;
                let message = message.encode_to_vec().into();
                let answer = call.unary(message).await.map_err(|error| {
                    let rejection = Rejection::from(error);
                    if conditional { rejection.of_condition() } else { rejection }
                })?;
                Ok(json(StatusCode::OK, render(binding, answer)?))
            }
        }
    }
}

/// The JSON of an answer.
pub fn render(binding: &Binding, message: Bytes) -> Result<Vec<u8>, Error> {
    print(binding, &read(binding, message)?)
}

/// An answer, or one message of a streamed one.
pub fn read(binding: &Binding, message: Bytes) -> Result<DynamicMessage, Error> {
    DynamicMessage::decode(binding.rpc.output(), message)
        .map_err(|error| Error::internal("read the service's answer", error))
}

/// Its JSON.
pub fn print(binding: &Binding, message: &DynamicMessage) -> Result<Vec<u8>, Error> {
    let text = match &binding.response_body {
        None => serde_json::to_vec(&write::Message(message)),
        Some(field) => serde_json::to_vec(&write::Field(message, field)),
    };
    text.map_err(|error| Error::internal("print the service's answer", error))
}

pub fn json(status: StatusCode, body: impl Into<Body>) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(Form::Json.media_type()));
    // answers hold tokens and what is inside sandboxes
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
