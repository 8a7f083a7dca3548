//! Who may do what.

use serde_json::{Value, json};

use crate::harness::{Api, Server, command, reason};

const SECRET: &str = "a-secret-that-is-long-enough-for-hs256";

fn with_token(api: &Api, token: Option<&str>) -> Api {
    Api { token: token.map(str::to_owned), ..api.clone() }
}

async fn stats(api: &Api) -> (u16, Value) {
    api.get("/api/v1/sandbox/stats").await
}

/// A token made by the command line with some key.
fn minted(secret: &str, arguments: &[&str]) -> String {
    let data = tempfile::tempdir().unwrap();
    let made = command(&["token"])
        .args(arguments)
        .args(["--data-dir", data.path().to_str().unwrap()])
        .env("JWT_SECRET", secret)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    String::from_utf8(made.stdout).unwrap().trim().to_owned()
}

#[tokio::test]
async fn missing_forged_and_unsigned_tokens_are_unauthenticated() {
    let server = Server::with(&[("JWT_SECRET", SECRET)]).await;
    let api = server.user("ada").await;
    assert_eq!(stats(&api).await.0, 200);

    let good = api.token.clone().unwrap();
    let payload = good.split('.').nth(1).unwrap();
    // {"alg":"none","typ":"JWT"}
    let unsigned = format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.");
    let forged = minted("another-secret-that-is-long-enough-too", &["--user", "ada"]);
    let cases = [
        (None, "TOKEN_MISSING"),
        (Some("nonsense"), "TOKEN_INVALID"),
        (Some(unsigned.as_str()), "TOKEN_INVALID"),
        (Some(forged.as_str()), "TOKEN_INVALID"),
    ];
    for (token, expected) in cases {
        let (status, answer) = stats(&with_token(&api, token)).await;
        assert_eq!((status, reason(&answer)), (401, expected), "{token:?} {answer}");
        assert_eq!(answer["error"]["status"], "UNAUTHENTICATED");
    }
    let refused = with_token(&api, None).request("GET", "/api/v1/sandbox/stats").send().await.unwrap();
    assert!(refused.headers().contains_key("www-authenticate"));
}

#[tokio::test]
async fn token_of_the_command_line_is_accepted() {
    let server = Server::with(&[("JWT_SECRET", SECRET)]).await;
    let api = server.user("ada").await;
    let admin = minted(SECRET, &["--user", "root", "--role", "admin"]);
    assert_eq!(stats(&with_token(&api, Some(&admin))).await.0, 200);
}

#[tokio::test]
async fn somebody_elses_sandbox_is_not_found() {
    let server = Server::start().await;
    let (ada, bob) = (server.user("ada").await, server.user("bob").await);
    let id = ada.acquire().await;
    ada.shell(&id, "echo secret > /workspace/note").await;
    let attempts = [
        bob.get(&format!("/api/v1/sandbox/{id}")).await,
        bob.post("/api/v1/sandbox/release", json!({"sandbox_id": id})).await,
        bob.post("/api/v1/sandbox/keepalive", json!({"sandbox_id": id})).await,
        bob.post("/api/v1/execute", json!({"sandbox_id": id, "command": "cat /workspace/note"})).await,
        bob.get(&format!("/api/v1/files?sandbox_id={id}&path=/workspace/note")).await,
        bob.put("/api/v1/files", json!({"sandbox_id": id, "path": "/workspace/note", "content": "x"})).await,
        bob.delete(&format!("/api/v1/files?sandbox_id={id}&path=/workspace/note")).await,
    ];
    for (status, answer) in attempts {
        assert_eq!((status, reason(&answer)), (404, "SANDBOX_NOT_FOUND"), "{answer}");
    }
    let (_, list) = bob.get("/api/v1/sandbox").await;
    assert_eq!(list["sandboxes"], json!([]));
    assert_eq!(ada.shell(&id, "cat /workspace/note").await, "secret\n");
}

#[tokio::test]
async fn admin_sees_and_releases_its_tenants_sandboxes() {
    let server = Server::with(&[("JWT_SECRET", SECRET)]).await;
    let ada = server.user("ada").await;
    let id = ada.acquire().await;
    let admin = with_token(&ada, Some(&minted(SECRET, &["--user", "root", "--role", "admin"])));
    let (_, list) = admin.get("/api/v1/sandbox").await;
    assert_eq!(list["sandboxes"][0]["sandbox_id"], json!(id));
    admin.release(&id).await;
}

#[tokio::test]
async fn caller_cannot_raise_its_own_role() {
    let server = Server::start().await;
    let ada = server.user("ada").await;
    for api in [with_token(&ada, None), ada] {
        let (status, answer) = api.post("/api/v1/auth/token", json!({"user_id": "ada", "role": "admin"})).await;
        assert_eq!((status, reason(&answer)), (403, "ROLE_DENIED"), "{answer}");
    }
}

#[tokio::test]
async fn server_with_keys_wants_one() {
    let server = Server::with(&[("API_KEYS", "a-key-for-users-of-32-characters:user")]).await;
    let anonymous = Api { http: reqwest::Client::new(), url: server.url.clone(), token: None };
    let wanted = json!({"user_id": "ada"});
    let (status, answer) = anonymous.post("/api/v1/auth/token", wanted.clone()).await;
    assert_eq!(status, 401, "{answer}");
    let ask = anonymous.request("POST", "/api/v1/auth/token").json(&wanted);
    let given = ask.header("x-api-key", "a-key-for-users-of-32-characters").send().await.unwrap();
    assert_eq!(given.status(), 200);
}

#[tokio::test]
async fn calls_over_the_rate_are_told_when_to_come_back() {
    let server = Server::with(&[("RATE_LIMIT_PER_SECOND", "1"), ("RATE_LIMIT_BURST", "5")]).await;
    let api = server.user("ada").await;
    let mut limited = None;
    for _ in 0..20 {
        let answer = api.request("GET", "/api/v1/sandbox/stats").send().await.unwrap();
        if answer.status() == 429 {
            limited = Some(answer);
            break;
        }
        assert!(answer.headers().contains_key("ratelimit-remaining"));
    }
    let limited = limited.expect("20 calls at once are over a burst of 5");
    let wait: u64 = limited.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait), "{wait}");
    let answer: Value = limited.json().await.unwrap();
    assert_eq!(reason(&answer), "RATE_LIMITED");
    assert_eq!(reqwest::get(format!("{}/health", server.url)).await.unwrap().status(), 200, "health is never limited");
}

#[tokio::test]
async fn web_page_of_elsewhere_gets_no_free_token() {
    let server = Server::start().await;
    let anonymous = Api { http: reqwest::Client::new(), url: server.url.clone(), token: None };
    let ask = |name: &'static str, value: &'static str| {
        let body = json!({"user_id": "ada"});
        let request = anonymous.request("POST", "/api/v1/auth/token").header(name, value).json(&body);
        async move { request.send().await.unwrap().status().as_u16() }
    };
    assert_eq!(ask("origin", "https://evil.example").await, 403);
    assert_eq!(ask("host", "rebound.evil.example").await, 403);
    assert_eq!(ask("origin", "http://localhost:3000").await, 200);
}
