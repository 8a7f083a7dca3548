use cloud_sandbox_auth::Role;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Edge, SECRET, assert_error, json as answer, token};

fn claims() -> Value {
    json!({
        "iss": "cloud-sandbox", "aud": "cloud-sandbox", "sub": "ada", "tenant": "default", "role": "user", "iat": 1,
        "exp": 4_000_000_000_u64
    })
}

fn signed(claims: &Value, secret: &[u8]) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret)).unwrap()
}

fn with(key: &str, value: impl Into<Value>) -> String {
    let mut claims = claims();
    claims[key] = value.into();
    signed(&claims, &SECRET)
}

#[tokio::test]
async fn bad_tokens_are_401_with_www_authenticate() {
    let edge = Edge::start().await;
    let good = signed(&claims(), &SECRET);
    let payload = good.split('.').nth(1).unwrap();
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
    for (authorization, reason) in [
        (None, "TOKEN_MISSING"),
        (Some("Basic dTpw".to_owned()), "TOKEN_INVALID"),
        (Some(format!("Bearer {}", with("exp", 1))), "TOKEN_EXPIRED"),
        (Some(format!("Bearer {}", with("aud", "elsewhere"))), "TOKEN_INVALID"),
        (Some(format!("Bearer {}", with("role", "service"))), "TOKEN_INVALID"),
        (Some(format!("Bearer {}", signed(&claims(), b"another secret of thirty-two bytes"))), "TOKEN_INVALID"),
        (Some(format!("Bearer {unsigned}")), "TOKEN_INVALID"),
    ] {
        let mut call = edge.bare(Method::GET, "/api/v1/sandbox/stats");
        if let Some(authorization) = &authorization {
            call = call.header("authorization", authorization);
        }
        let response = call.send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (status, body) = answer(response).await;
        assert_error(status, &body, 401, "UNAUTHENTICATED", reason);
    }
    let call = edge.bare(Method::GET, "/api/v1/sandbox/stats").bearer_auth(good);
    assert_eq!(call.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn service_token_is_403_at_the_edge() {
    let edge = Edge::start().await;
    let call = edge.bare(Method::GET, "/api/v1/sandbox/stats").bearer_auth(token("exec", Role::Service));
    let (status, body) = answer(call.send().await.unwrap()).await;
    assert_error(status, &body, 403, "PERMISSION_DENIED", "ROLE_DENIED");
}

#[tokio::test]
async fn callers_role_is_raised_by_an_api_key_only() {
    let edge = Edge::start().await;
    let ask = |call: reqwest::RequestBuilder| {
        let call = call.header("content-type", "application/json").body(r#"{"user_id":"root","role":"admin"}"#);
        async move { answer(call.send().await.unwrap()).await }
    };
    let (status, body) = ask(edge.bare(Method::POST, "/api/v1/auth/token")).await;
    assert_error(status, &body, 403, "PERMISSION_DENIED", "ROLE_DENIED");
    let (status, body) = ask(edge.bare(Method::POST, "/api/v1/auth/token").header("x-api-key", "wrong")).await;
    assert_error(status, &body, 401, "UNAUTHENTICATED", "TOKEN_INVALID");
    let (status, _) = ask(edge.bare(Method::POST, "/api/v1/auth/token").header("x-api-key", "admin-key")).await;
    assert_eq!(status, 200);
    let admin = token("boss", Role::Admin);
    let (status, _) = ask(edge.bare(Method::POST, "/api/v1/auth/token").bearer_auth(admin)).await;
    assert_eq!(status, 200);
}

#[tokio::test]
async fn expired_token_does_not_bar_the_way_to_a_new_one() {
    let edge = Edge::start().await;
    let call = edge.bare(Method::POST, "/api/v1/auth/token").bearer_auth(with("exp", 1));
    let call = call.header("content-type", "application/json").body(r#"{"user_id":"ada"}"#);
    assert_eq!(call.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn issuers_refusals_name_their_fields() {
    let edge = Edge::start().await;
    let (status, body) = answer(edge.post("/api/v1/auth/token", r#"{"user_id":"a b","expires_in":1}"#).await).await;
    assert_error(status, &body, 400, "INVALID_ARGUMENT", "INVALID_REQUEST");
    let fields: Vec<_> = body["error"]["details"][1]["field_violations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v["field"].clone())
        .collect();
    assert_eq!(fields, ["user_id", "expires_in"]);
}
