//! Whatever arrives, the edge never answers that it is itself at fault.

use std::sync::{Arc, atomic::AtomicBool};

use axum::{Router, body::Body};
use cloud_sandbox_auth::Role;
use cloud_sandbox_gateway_rest::Gateway;
use http::{Method, Request};
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use proptest::{collection::vec, prelude::*, sample::select, test_runner::TestRunner};
use tower::ServiceExt;

use crate::{
    fakes::Seen,
    support::{options, token},
};

const PATHS: [&str; 11] = [
    "/api/v1/execute",
    "/api/v1/files",
    "/api/v1/files/archive",
    "/api/v1/files/url",
    "/api/v1/executions/ex1/output",
    "/api/v1/sandbox",
    "/api/v1/sandbox/acquire",
    "/api/v1/sessions/x/pause",
    "/api/v1/auth/token",
    "/docs/",
    "/",
];
const NAMES: [&str; 15] = [
    "path",
    "raw_path",
    "offset",
    "length",
    "access_token",
    "sandbox_id",
    "code",
    "env",
    "argv",
    "limits",
    "data",
    "content",
    "timeout_ms",
    "role",
    "page_size",
];

fn encoded(bytes: &[u8]) -> String {
    percent_encode(bytes, NON_ALPHANUMERIC).to_string()
}

fn path() -> impl Strategy<Value = String> {
    let tail = vec(any::<u8>(), 0..12).prop_map(|bytes| encoded(&bytes));
    prop_oneof![
        select(&PATHS[..]).prop_map(str::to_owned),
        (select(&PATHS[..]), tail).prop_map(|(path, tail)| format!("{path}/{tail}")),
        "/[a-z0-9/%:.]{0,20}",
    ]
}

fn query() -> impl Strategy<Value = String> {
    let pair = (prop_oneof![select(&NAMES[..]).prop_map(str::to_owned), "[a-z._]{0,12}"], vec(any::<u8>(), 0..8));
    vec(pair.prop_map(|(name, value)| format!("{name}={}", encoded(&value))), 0..4).prop_map(|pairs| pairs.join("&"))
}

fn json() -> impl Strategy<Value = Vec<u8>> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        ".{0,8}".prop_map(Into::into),
    ];
    let value = leaf.prop_recursive(3, 16, 4, |inner| {
        let name = prop_oneof![select(&NAMES[..]).prop_map(str::to_owned), "[a-z_]{0,8}"];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(serde_json::Value::from),
            vec((name, inner), 0..4).prop_map(|pairs| pairs.into_iter().collect::<serde_json::Value>()),
        ]
    });
    value.prop_map(|value| value.to_string().into_bytes())
}

async fn status(
    router: Router,
    method: Method,
    uri: String,
    headers: Vec<(&str, String)>,
    body: Vec<u8>,
) -> Option<u16> {
    let mut request = Request::builder().method(method).uri(uri);
    request = request.header("authorization", format!("Bearer {}", token("ada", Role::User)));
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Body::from(body));
    // what is no URI at all, the HTTP parser refuses
    let response = router.oneshot(request.ok()?).await.unwrap();
    Some(response.status().as_u16())
}

#[test]
fn arbitrary_requests_are_never_a_server_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let router = {
        let (seen, well) = (Arc::<Seen>::default(), Arc::new(AtomicBool::new(true)));
        Gateway::new(options(&seen, &well)).unwrap().router()
    };
    let methods = select(vec![Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::HEAD, Method::OPTIONS]);
    let accepts = select(vec!["*/*", "text/event-stream", "application/x-ndjson", "application/octet-stream", "q=;,;"]);
    let types = select(vec!["application/json", "application/octet-stream", "multipart/form-data"]);
    let conditions =
        select(vec!["range", "if-range", "if-match", "if-none-match", "if-modified-since", "last-event-id"]);
    let condition = (conditions, "[ -~]{0,12}|bytes=[0-9]{0,20}-[0-9]{0,20}");
    let bodies = prop_oneof![vec(any::<u8>(), 0..64), json()];
    let mut runner = TestRunner::new(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() });
    let headers = (accepts, types, condition);
    let requests = (methods, path(), query(), headers, bodies);
    let result = runner.run(&requests, |(method, path, query, (accept, content_type, (condition, value)), body)| {
        let uri = if query.is_empty() { path } else { format!("{path}?{query}") };
        let headers =
            vec![("accept", accept.to_owned()), ("content-type", content_type.to_owned()), (condition, value)];
        let status = runtime.block_on(status(router.clone(), method, uri, headers, body));
        prop_assert!(status.is_none_or(|status| status < 500), "{status:?}");
        Ok(())
    });
    result.unwrap();
}
