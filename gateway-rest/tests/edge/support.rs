//! An edge on a loopback port, and calls to it.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use cloud_sandbox_auth::{ApiKey, Principal, Role, TokenIssuer, Tokens};
use cloud_sandbox_gateway_rest::{Check, Gateway, Options, RateLimit};
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};

use crate::fakes::{Seen, upstreams};

pub const SECRET: [u8; 32] = [7; 32];
pub const BODY_MAX: usize = 64 * 1024;

pub struct Edge {
    pub address: SocketAddr,
    pub gateway: Gateway,
    pub seen: Arc<Seen>,
    pub well: Arc<AtomicBool>,
    pub client: Client,
}

pub fn options(seen: &Arc<Seen>, well: &Arc<AtomicBool>) -> Options {
    let tokens = Tokens::hs256(&SECRET);
    let keys = vec![ApiKey { key: "admin-key".into(), role: Role::Admin }];
    let well = Arc::clone(well);
    let store = Check::new("store", move || {
        let well = well.load(std::sync::atomic::Ordering::SeqCst);
        Box::pin(async move { if well { Ok(()) } else { Err("cannot be written".to_owned()) } })
    });
    Options {
        issuer: TokenIssuer::new(tokens.clone(), keys, true, Duration::from_secs(3600)),
        rate_limit: RateLimit { per_second: 0, burst: 0 },
        shared_limits: None,
        max_body_bytes: BODY_MAX,
        max_timeout: Duration::from_secs(30),
        metrics: Arc::new(|| "a_metric 1\n".to_owned()),
        upstreams: upstreams(&tokens, seen),
        readiness: vec![store],
        tokens,
    }
}

impl Edge {
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    pub async fn start_with(change: impl FnOnce(&mut Options)) -> Self {
        let (seen, well) = (Arc::<Seen>::default(), Arc::new(AtomicBool::new(true)));
        let mut options = options(&seen, &well);
        change(&mut options);
        let gateway = Gateway::new(options).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = gateway.router().into_make_service_with_connect_info::<SocketAddr>();
        tokio::spawn(async move { axum::serve(listener, service).await });
        Self { address, gateway, seen, well, client: Client::builder().no_proxy().redirect(none()).build().unwrap() }
    }

    /// A call without a token.
    pub fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("http://{}{path}", self.address))
    }

    /// A call of the user `ada`.
    pub fn call(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, path).bearer_auth(token("ada", Role::User))
    }

    pub async fn get(&self, path: &str) -> Response {
        self.call(Method::GET, path).send().await.unwrap()
    }

    pub async fn post(&self, path: &str, body: &str) -> Response {
        let call = self.call(Method::POST, path).header("content-type", "application/json");
        call.body(body.to_owned()).send().await.unwrap()
    }

    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }
}

fn none() -> reqwest::redirect::Policy {
    reqwest::redirect::Policy::none()
}

pub fn token(user: &str, role: Role) -> String {
    let who = Principal::new("default", user, role);
    Tokens::hs256(&SECRET).mint(&who, Duration::from_secs(600)).unwrap()
}

pub fn authorized<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let value = format!("Bearer {}", token("ada", Role::User)).parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

/// The error envelope of an answer, checked for its shape.
#[track_caller]
pub fn assert_error(status: u16, body: &Value, code: u16, name: &str, reason: &str) {
    let error = &body["error"];
    assert_eq!(status, code, "{body}");
    assert_eq!(error["code"], code, "{body}");
    assert_eq!(error["status"], name, "{body}");
    assert!(!error["message"].as_str().unwrap().is_empty());
    assert_eq!(error["details"][0]["@type"], "type.googleapis.com/google.rpc.ErrorInfo");
    assert_eq!(error["details"][0]["reason"], reason, "{body}");
    assert_eq!(error["details"][0]["domain"], "cloud-sandbox");
}

/// The field that an answer's first violation names.
pub fn violated(body: &Value) -> String {
    let details = body["error"]["details"].as_array().cloned().unwrap_or_default();
    let request = details.iter().find(|detail| detail["@type"] == "type.googleapis.com/google.rpc.BadRequest");
    request.and_then(|r| r["field_violations"][0]["field"].as_str()).unwrap_or_default().to_owned()
}

pub async fn json(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    let text = response.text().await.unwrap();
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("not JSON: {text}")))
}
