use cloud_sandbox_auth::Role;
use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Edge, assert_error, json as answered, token};

#[tokio::test]
async fn document_and_stream_of_a_template_share_a_path() {
    let edge = Edge::start().await;
    let (status, body) = answered(edge.get("/api/v1/templates/a@1").await).await;
    assert_eq!((status, &body["name"], &body["state"]), (200, &json!("a@1"), &json!("ready")));
    for (accept, separator) in [("application/x-ndjson", "\n"), ("text/event-stream", "\n\n")] {
        let call = edge.call(Method::GET, "/api/v1/templates/a").header("accept", accept);
        let text = call.send().await.unwrap().text().await.unwrap();
        let read = |piece: &str| serde_json::from_str::<Value>(piece.trim_start_matches("data: ")).unwrap();
        let states: Vec<_> = text.split_terminator(separator).map(|piece| read(piece)["state"].clone()).collect();
        assert_eq!(states, ["preparing", "ready"], "{accept}");
    }
}

#[tokio::test]
async fn only_admins_reach_what_changes_templates() {
    let edge = Edge::start().await;
    let body = json!({"name": "a", "source": {"docker_image": {"image": "x", "pull": "always"}}}).to_string();
    let create = |role| {
        let call = edge.bare(Method::POST, "/api/v1/templates").bearer_auth(token("ada", role));
        call.header("content-type", "application/json").body(body.clone()).send()
    };
    let (status, refused) = answered(create(Role::User).await.unwrap()).await;
    assert_error(status, &refused, 403, "PERMISSION_DENIED", "ROLE_DENIED");
    assert!(edge.seen.request().is_empty(), "the service is not even asked");
    let (status, created) = answered(create(Role::Admin).await.unwrap()).await;
    assert_eq!((status, &created["name"], &created["state"]), (200, &json!("a"), &json!("preparing")));
    assert!(edge.seen.request().contains("pull: Always"), "{}", edge.seen.request());
    let delete = edge.bare(Method::DELETE, "/api/v1/templates/a@1").bearer_auth(token("root", Role::Admin));
    assert_eq!(answered(delete.send().await.unwrap()).await, (200, json!({"deleted": ["a@1"]})));
    let (status, refused) = answered(edge.call(Method::DELETE, "/api/v1/templates/a").send().await.unwrap()).await;
    assert_error(status, &refused, 403, "PERMISSION_DENIED", "ROLE_DENIED");
}
