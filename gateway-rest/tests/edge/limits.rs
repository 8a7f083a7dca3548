use cloud_sandbox_auth::Role;
use cloud_sandbox_gateway_rest::RateLimit;
use cloud_sandbox_proto::v1::{GetSandboxStatsRequest, scheduler_service_client::SchedulerServiceClient};
use reqwest::Method;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{Edge, assert_error, authorized, json, token};

async fn limited(burst: u32) -> Edge {
    Edge::start_with(|options| options.rate_limit = RateLimit { per_second: 1, burst }).await
}

#[tokio::test]
async fn answers_say_what_is_left_and_then_429() {
    let edge = limited(2).await;
    for left in ["1", "0"] {
        let answer = edge.get("/api/v1/sandbox/stats").await;
        assert_eq!(answer.status(), 200);
        assert_eq!(
            (&answer.headers()["ratelimit-limit"], &answer.headers()["ratelimit-remaining"]),
            (&"2".parse().unwrap(), &left.parse().unwrap())
        );
        assert!(answer.headers().contains_key("ratelimit-reset"));
    }
    let answer = edge.get("/api/v1/sandbox/stats").await;
    assert_eq!(
        (&answer.headers()["retry-after"], &answer.headers()["ratelimit-remaining"]),
        (&"1".parse().unwrap(), &"0".parse().unwrap())
    );
    let (status, body) = json(answer).await;
    assert_error(status, &body, 429, "RESOURCE_EXHAUSTED", "RATE_LIMITED");
    assert_eq!(body["error"]["details"][1]["@type"], "type.googleapis.com/google.rpc.RetryInfo");

    let bob = edge.bare(Method::GET, "/api/v1/sandbox/stats").bearer_auth(token("bob", Role::User));
    assert_eq!(bob.send().await.unwrap().status(), 200, "another user has a rate of its own");
}

#[tokio::test]
async fn callers_without_a_token_are_limited_by_address_also_when_refused() {
    let edge = limited(3).await;
    let guess = || edge.bare(Method::GET, "/api/v1/sandbox/stats").bearer_auth("guess").send();
    for _ in 0..3 {
        assert_eq!(guess().await.unwrap().status(), 401);
    }
    assert_eq!(guess().await.unwrap().status(), 429);
    let issue = edge.bare(Method::POST, "/api/v1/auth/token").send().await.unwrap();
    assert_eq!(issue.status(), 429, "the same address");
}

#[tokio::test]
async fn grpc_calls_share_the_rate_and_carry_retry_info() {
    let edge = limited(1).await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    client.get_sandbox_stats(authorized(GetSandboxStatsRequest {})).await.unwrap();
    let status = client.get_sandbox_stats(authorized(GetSandboxStatsRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    assert_eq!(edge.get("/api/v1/sandbox/stats").await.status(), 429);
}

#[tokio::test]
async fn operational_calls_are_not_limited() {
    let edge = limited(1).await;
    for _ in 0..5 {
        let answer = edge.bare(Method::GET, "/livez").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert!(!answer.headers().contains_key("ratelimit-limit"));
    }
}
