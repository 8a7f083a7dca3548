//! What the document says of raw bytes: their media types, the headers that go with them, and the statuses that only
//! they have.

use serde_json::{Map, Value, json};

use crate::{
    file_url,
    raw::{Download, Upload},
    routes::Endpoint,
};

/// The security scheme of signed URLs.
pub const FILE_URL: &str = "file_url";

/// The description of that scheme.
pub fn scheme() -> Value {
    json!({
        "type": "apiKey",
        "in": "query",
        "name": file_url::TOKEN,
        "description": "The token of a signed URL, made by `POST /api/v1/files/url` for one file. Raw bytes are the \
            only form then: `GET` answers with them, `PUT` takes a body of any type.",
    })
}

/// The schema of raw bytes.
fn bytes() -> Value {
    json!({"schema": {"type": "string", "format": "binary"}})
}

/// Adds to an operation what its raw forms have.
pub fn describe(endpoint: &Endpoint, operation: &mut Value, parameters: &mut Vec<Value>) {
    if let Some(download) = &endpoint.download {
        describe_download(download, &mut operation["responses"], parameters);
    }
    if let Some(upload) = &endpoint.upload {
        describe_upload(upload, operation, parameters);
    }
    if file_url::is_signable(&endpoint.method, endpoint.template.text()) {
        operation["security"] = json!([{"bearer": []}, {FILE_URL: []}]);
    }
}

fn describe_download(download: &Download, responses: &mut Value, parameters: &mut Vec<Value>) {
    let mut headers = Map::new();
    let mut header = |name: &str, text: &str| {
        headers.insert(name.to_owned(), json!({"description": text, "schema": {"type": "string"}}));
    };
    header("Content-Disposition", "The name to save raw bytes by.");
    if download.file.is_some() {
        header("ETag", "Changes whenever the file's content changes. Raw form only.");
        header("Last-Modified", "When the file's content last changed. Raw form only.");
    }
    responses["200"]["headers"] = headers.into();
    responses["200"]["content"][download.media_type()] = bytes();
    if download.file.is_none() {
        return;
    }
    responses["206"] = json!({
        "description": "The range of the raw bytes that was asked for; `Content-Range` says which.",
        "content": {download.media_type(): bytes()},
    });
    responses["304"] = json!({"description": "The raw bytes are those that the caller has."});
    responses["412"] = json!({"$ref": "#/components/responses/Error"});
    responses["416"] = json!({"$ref": "#/components/responses/Error"});
    for (name, text) in [
        (
            "Range",
            "One range of the raw bytes: `bytes=0-99`, `bytes=100-`, `bytes=-100`. Several are answered with all.",
        ),
        ("If-Range", "The range stands only if the file has this etag; else all of it is sent."),
        ("If-Match", "The raw bytes are sent only if the file has one of these etags."),
        ("If-None-Match", "The raw bytes are sent only if the file has none of these etags."),
        ("If-Modified-Since", "The raw bytes are sent only if the file has changed since."),
    ] {
        parameters.push(in_header(name, text));
    }
}

fn describe_upload(upload: &Upload, operation: &mut Value, parameters: &mut Vec<Value>) {
    let body = &mut operation["requestBody"];
    if body.is_null() {
        *body = json!({"required": true, "content": {}});
    }
    body["content"][upload.media_type()] = bytes();
    if upload.header_message().get_field_by_name("if_etag").is_some() {
        operation["responses"]["412"] = json!({"$ref": "#/components/responses/Error"});
        parameters.push(in_header("If-Match", "Write only if the file has this etag; the same as `if_etag`."));
        parameters.push(in_header("If-None-Match", "`*`: write only if there is no file yet."));
    }
}

fn in_header(name: &str, text: &str) -> Value {
    json!({"name": name, "in": "header", "required": false, "description": text, "schema": {"type": "string"}})
}
