//! The browsable page of the API. Everything it needs comes from this program; its policy forbids the browser to
//! fetch from anywhere else.

use std::{
    borrow::Cow,
    sync::{Arc, LazyLock},
};

use axum::{
    body::Body,
    extract::Path,
    response::{IntoResponse, Redirect},
};
use http::{
    HeaderValue, Response,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE},
};
use utoipa_swagger_ui::Config;

use crate::errors::Rejection;

/// Where the document is.
pub const OPENAPI_PATH: &str = "/api/v1/openapi.json";

const POLICY: &str =
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";

static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
    let config = Config::new([OPENAPI_PATH]);
    // the default sends the document to a validator on the internet
    let config = config.validator_url("none").display_request_duration(true).persist_authorization(false);
    Arc::new(config.try_it_out_enabled(true).deep_linking(true))
});

pub async fn folder() -> Response<Body> {
    Redirect::permanent("/docs/").into_response()
}

pub async fn index() -> Response<Body> {
    file("index.html")
}

pub async fn asset(Path(path): Path<String>) -> Response<Body> {
    file(&path)
}

fn file(path: &str) -> Response<Body> {
    let Ok(Some(file)) = utoipa_swagger_ui::serve(path, Arc::clone(&CONFIG)) else {
        return Rejection::no_route().into_response();
    };
    // all but one are served from where the program holds them
    let body = match file.bytes {
        Cow::Borrowed(bytes) => Body::from(bytes),
        Cow::Owned(bytes) => Body::from(bytes),
    };
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    if let Ok(media_type) = HeaderValue::try_from(file.content_type) {
        headers.insert(CONTENT_TYPE, media_type);
    }
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    response
}
