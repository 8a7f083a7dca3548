//! An HTTP request as a request message: path variables, query parameters and body, by the endpoint's annotation.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use cloud_sandbox_model::error::{Error, ErrorKind, reason};
use http::{HeaderMap, header::CONTENT_TYPE};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use prost_reflect::{DynamicMessage, FieldDescriptor, ReflectMessage, Value};

use crate::{
    errors::Rejection,
    json::{read, scalar},
    raw::Upload,
    routes::{Binding, BodyRule},
};

/// A body that takes longer, or of an upload that stands still longer, holds memory for a caller that may never come back.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// The whole body, up to `limit` bytes.
pub async fn collect(body: Body, limit: usize) -> Result<Bytes, Rejection> {
    // known too large already: no need to wait for the bytes
    if http_body::Body::size_hint(&body).lower() > limit as u64 {
        return Err(Rejection::body_too_large(limit));
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Err(_) => Err(Rejection::body_timeout()),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Rejection::body_too_large(limit)),
        Ok(Err(_)) => Err(Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, "the body broke off").into()),
    }
}

/// The request message of `binding`.
pub fn message(
    binding: &Binding,
    path: &[(&str, String)],
    query: Option<&str>,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<DynamicMessage, Rejection> {
    let mut message = DynamicMessage::new(binding.rpc.input());
    read_body(&mut message, binding, headers, body)?;
    parameters(&mut message, &binding.body, path, query)?;
    Ok(message)
}

/// The `header` message of an upload.
pub fn header(upload: &Upload, path: &[(&str, String)], query: Option<&str>) -> Result<DynamicMessage, Error> {
    let mut message = DynamicMessage::new(upload.header_message());
    parameters(&mut message, &BodyRule::None, path, query)?;
    Ok(message)
}

/// Sets what the path and the query give.
fn parameters(
    message: &mut DynamicMessage,
    body: &BodyRule,
    path: &[(&str, String)],
    query: Option<&str>,
) -> Result<(), Error> {
    let bound: Vec<_> = path.iter().map(|(field, _)| *field).collect();
    let mut given = Vec::new();
    for (name, value) in query.map(pairs).transpose()?.unwrap_or_default() {
        if bound.contains(&name.as_str()) {
            return Err(Error::invalid(name, "is set by the path"));
        }
        set_from_query(message, body, &mut given, &name, &value)?;
    }
    for (field, value) in path {
        if !matches!(body, BodyRule::None) && is_set(message, field) {
            return Err(Error::invalid(*field, "is set by the path"));
        }
        set(message, field, field, value)?;
    }
    Ok(())
}

fn read_body(
    message: &mut DynamicMessage,
    binding: &Binding,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<(), Rejection> {
    let body = body.trim_ascii();
    if body.is_empty() {
        return Ok(());
    }
    if !matches!(Content::of(headers), Content::Json | Content::Unsaid) {
        return Err(Rejection::media_type("a body needs content-type: application/json"));
    }
    match &binding.body {
        BodyRule::Whole => read::into_message(message, body)?,
        BodyRule::Field(field) if field.kind().as_message().is_some() && !field.is_list() && !field.is_map() => {
            if let Value::Message(inner) = message.get_field_mut(field) {
                read::into_message(inner, body)?;
            }
        }
        BodyRule::Field(field) => read::into_field(message, field, body)?,
        // an empty object is what some clients send for nothing
        BodyRule::None if body == b"{}" => {}
        BodyRule::None => {
            let message = "this call takes no body; its parameters are in the path and the query";
            return Err(Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, message).into());
        }
    }
    Ok(())
}

/// What a body is said to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Unsaid,
    Json,
    /// a form with files in it, as browsers send them
    Form,
    Other,
}

impl Content {
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(CONTENT_TYPE) else { return Self::Unsaid };
        let essence = value.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
        match essence.trim().to_ascii_lowercase().as_str() {
            "application/json" => Self::Json,
            "multipart/form-data" => Self::Form,
            other if other.starts_with("application/") && other.ends_with("+json") => Self::Json,
            _ => Self::Other,
        }
    }
}

fn pairs(query: &str) -> Result<Vec<(String, String)>, Error> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map(|text| text.into_owned());
        decoded.map_err(|_| {
            Error::new(ErrorKind::InvalidArgument, reason::INVALID_REQUEST, "the query is not valid UTF-8")
        })
    };
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            Ok((decode(name)?, decode(value)?))
        })
        .collect()
}

fn set_from_query(
    message: &mut DynamicMessage,
    body: &BodyRule,
    given: &mut Vec<FieldDescriptor>,
    name: &str,
    value: &str,
) -> Result<(), Error> {
    let unknown = || Error::invalid(short(name), "is not a parameter of this call");
    let first = name.split('.').next().unwrap_or_default();
    let of_body = match body {
        BodyRule::None => false,
        BodyRule::Whole => true,
        BodyRule::Field(field) => field.name() == first || field.json_name() == first,
    };
    if of_body {
        return Err(unknown());
    }
    let field = set(message, name, &short(name), value)?;
    if let Some(group) = field.containing_oneof()
        && let Some(other) = given.iter().find(|f| f.containing_oneof().as_ref() == Some(&group) && **f != field)
    {
        return Err(Error::invalid(name, format!("excludes {}: give one of them", other.name())));
    }
    if given.contains(&field) && !field.is_list() {
        return Err(Error::invalid(name, "is given more than once"));
    }
    given.push(field);
    Ok(())
}

/// Sets the field at a dotted path from text.
fn set(message: &mut DynamicMessage, path: &str, shown: &str, text: &str) -> Result<FieldDescriptor, Error> {
    let unknown = || Error::invalid(shown, "is not a parameter of this call");
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let kind = message.descriptor();
    let field = kind.get_field_by_name(name).or_else(|| kind.get_field_by_json_name(name)).ok_or_else(unknown)?;
    if let Some(rest) = rest {
        if field.is_list() || field.is_map() {
            return Err(unknown());
        }
        let Value::Message(inner) = message.get_field_mut(&field) else { return Err(unknown()) };
        return set(inner, rest, shown, text);
    }
    if field.kind().as_message().is_some() {
        return Err(unknown());
    }
    let value = scalar::from_text(&field.kind(), text).map_err(|rule| Error::invalid(shown, rule))?;
    match message.get_field_mut(&field) {
        Value::List(values) => values.push(value),
        single => *single = value,
    }
    Ok(field)
}

fn is_set(message: &DynamicMessage, path: &str) -> bool {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let Some(field) = message.descriptor().get_field_by_name(name) else { return false };
    match (rest, message.get_field(&field).as_ref()) {
        (None, _) => message.has_field(&field),
        (Some(rest), Value::Message(inner)) => is_set(inner, rest),
        (Some(_), _) => false,
    }
}

/// A name that the caller made up, short enough to repeat.
fn short(name: &str) -> String {
    name[..name.floor_char_boundary(256)].to_owned()
}
