use cloud_sandbox_auth::Role;
use cloud_sandbox_gateway_rest::RateLimit;
use cloud_sandbox_proto::v1::{GetSandboxStatsRequest, scheduler_service_client::SchedulerServiceClient};
use reqwest::Method;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::{Edge, assert_error, authorized, json, token};

/// More calls than any machine is so slow for that each is granted.
const CALLS: usize = 20;

async fn limited(burst: u32) -> Edge {
    Edge::start_with(|options| options.rate_limit = RateLimit { per_second: 1, burst }).await
}

#[tokio::test]
async fn answers_say_what_is_left_and_then_429() {
    let edge = limited(2).await;
    let mut left = Vec::new();
    let answer = loop {
        let answer = edge.get("/api/v1/sandbox/stats").await;
        if answer.status() == 429 {
            break answer;
        }
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["ratelimit-limit"], "2");
        assert!(answer.headers().contains_key("ratelimit-reset"));
        left.push(answer.headers()["ratelimit-remaining"].to_str().unwrap().to_owned());
        assert!(left.len() < CALLS, "{left:?}");
    };
    // on a busy machine more is granted meanwhile
    assert!(left.len() >= 2 && left[0] == "1" && left[left.len() - 1] == "0", "{left:?}");
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
    // no more than a rate of its own would grant, in case that time has granted something between the two
    for tried in 1..=3 {
        let mut refused = 0;
        loop {
            let status = guess().await.unwrap().status();
            if status == 429 {
                break;
            }
            assert_eq!(status, 401);
            refused += 1;
            assert!(refused < CALLS);
        }
        assert!(tried > 1 || refused >= 3, "{refused}");
        let issue = edge.bare(Method::POST, "/api/v1/auth/token").send().await.unwrap();
        if tried == 3 || issue.status() == 429 {
            assert_eq!(issue.status(), 429, "the same address");
            break;
        }
    }
}

#[tokio::test]
async fn grpc_calls_share_the_rate_and_carry_retry_info() {
    let edge = limited(3).await;
    let mut client = SchedulerServiceClient::new(edge.channel().await);
    // no more than a rate of its own would grant, in case that time has granted something between the two
    for tried in 1..=3 {
        let mut granted = 0;
        let status = loop {
            match client.get_sandbox_stats(authorized(GetSandboxStatsRequest {})).await {
                Ok(_) => granted += 1,
                Err(status) => break status,
            }
            assert!(granted < CALLS);
        };
        assert!(tried > 1 || granted >= 3, "{granted}");
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
        let status = edge.get("/api/v1/sandbox/stats").await.status();
        if tried == 3 || status == 429 {
            assert_eq!(status, 429);
            break;
        }
    }
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
